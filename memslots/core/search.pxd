"""Where in a sorted array of gfns: many answers at once, by what the processor has for it.

The keys are kept as 32-bit numbers where their span allows it (narrow), counted from the first and
without the zero bits that all of them end in. Narrow keys are the lowest level of a tree of nodes
of 16: a key of a level above is the first of a node below. A vector instruction or two tells how
many keys of a node, which is one cache line, are not above the one that is wanted. Many numbers are
searched for in groups, so that the processor waits for the memory of all of them at once; without
such instructions by halves of the lowest level, without a branch. Wide keys are searched by halves
always.

The keys are laid out one by one, in order, so that whoever makes an index can do so in small parts.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SEARCH_BLOCK = 64  # the most questions in one call
    SEARCH_NODE = 16  # keys in a node: as many as fit in a cache line
    SEARCH_LEVELS = 8  # 16 ** 8 keys are all that 32 bits can count

# How the nodes are searched.
cdef enum search_kind:
    SEARCH_PORTABLE  # by halves, in plain C
    SEARCH_AVX2
    SEARCH_AVX512

cdef struct search_keys:
    # What a search of up to 65,536 narrow keys reads, in half a line and four words.
    uint64_t origin  # what narrow keys are counted from: the first
    uint32_t shift  # the zero bits that narrow keys are without
    uint32_t levels  # of narrow keys; 0: the keys are wide
    search_kind kind  # what the keys were laid out for
    uint32_t count  # keys; at least 1
    # [0]: the narrow keys; [i + 1]: the first of each node of i
    uint32_t *level[SEARCH_LEVELS]
    uint64_t *wide  # the keys as they are; NULL: they are narrow whatever comes
    uint64_t stray  # not 0: a key has a bit set that narrow ones are without


# The bytes that `count` keys may need, at least 1, of which the last is `span` above the first. A
# multiple of a cache line.
cdef size_t search_size(uint32_t count, uint64_t span) noexcept nogil
# Begins to lay out `count` keys (at least 1, below 2**63) in `memory`: lines, as many bytes as
# search_size says, whatever is in them. Give each key to search_add, then call search_end.
cdef void search_begin(
    search_keys *keys, void *memory, uint32_t count, uint64_t first, uint64_t last
) noexcept nogil
# Makes the keys ready to be searched. O(1).
cdef void search_end(search_keys *keys) noexcept nogil
# The place of the last key that is not above a number, and where all keys are above it some place
# or other. O(log n).
cdef uint32_t search_one(const search_keys *keys, uint64_t wanted) noexcept nogil
# The same for each of `count` numbers (at most SEARCH_BLOCK).
cdef void search_block(
    const search_keys *keys, const uint64_t *wanted, uint32_t *places, size_t count
) noexcept nogil
# The best kind that this processor has; keys laid out from now on use it.
cdef search_kind search_best() noexcept nogil
# Has keys that are laid out from now on use another, no better than the best. For tests.
cdef void search_use(search_kind kind) noexcept nogil
# What keys that are laid out now would use.
cdef search_kind search_used() noexcept nogil


cdef inline void search_add(search_keys *keys, uint32_t place, uint64_t key) noexcept nogil:
    """Puts in the key of a place; each is greater than the one before. O(1)."""
    cdef uint64_t distance = key - keys.origin
    cdef uint32_t narrow = <uint32_t>(distance >> keys.shift)
    cdef uint32_t height = 0
    if keys.wide is not NULL:
        keys.wide[place] = key
        keys.stray |= distance & ((<uint64_t>1 << keys.shift) - 1)
    keys.level[0][place] = narrow
    while place % SEARCH_NODE == 0 and height + 1 < keys.levels:  # the first of a node
        place //= SEARCH_NODE
        height += 1
        keys.level[height][place] = narrow
