"""Searching a sorted array of gfns, many at once, with the processor's vector instructions.

If their span allows it, keys are kept as 32-bit numbers (narrow keys). These count from the first
key and omit the zero bits that all keys end in. Narrow keys are the lowest level of a tree of nodes
of 16 keys; a key of a higher level is the first key of a node below. A node is one cache line. One
or two vector instructions count the keys of a node that are not above the wanted number.

Many numbers are searched for in groups, so the processor waits for the memory of all of them at
once. Without vector instructions, a group is searched for by halving the lowest level, without a
branch. Wide keys are always searched by halving.

Keys are laid out one by one, in order. So an index can be made in small parts.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SEARCH_BLOCK = 64  # the most numbers in one call
    SEARCH_NODE = 16  # keys in a node: one cache line
    SEARCH_LEVELS = 8  # 16 ** 8 keys are as many as 32 bits can count

# How the nodes are searched.
cdef enum search_kind:
    SEARCH_PORTABLE  # in plain C; groups by halving
    SEARCH_AVX2
    SEARCH_AVX512

cdef struct search_keys:
    # The members up to level[3] are all that a search of up to 65,536 narrow keys reads.
    uint64_t origin  # the first key; narrow keys count from it
    uint32_t shift  # the number of low zero bits that narrow keys omit
    uint32_t levels  # levels of narrow keys; 0: the keys are wide
    search_kind kind  # the kind of search that the keys were laid out for
    uint32_t count  # keys; at least 1
    # [0]: the narrow keys; [i + 1]: the first key of each node of level i
    uint32_t *level[SEARCH_LEVELS]
    uint64_t *wide  # the keys in full; NULL: the keys are narrow in any case
    uint64_t stray  # not 0: some key has a bit set that narrow keys omit


# Returns the bytes that `count` keys (at least 1) may need if the last is `span` above the first.
# The result is a multiple of a cache line.
cdef size_t search_size(uint32_t count, uint64_t span) noexcept nogil
# Begins to lay out `count` keys (at least 1, each below 2**63) in `memory`: as many bytes as
# search_size says, from the start of a cache line, with any contents. Pass each key to search_add,
# then call search_end.
cdef void search_begin(
    search_keys *keys, void *memory, uint32_t count, uint64_t first, uint64_t last
) noexcept nogil
# Makes the keys searchable. O(1).
cdef void search_end(search_keys *keys) noexcept nogil
# Returns the place of the last key that is not above `wanted`. If all keys are above `wanted`,
# returns some valid place. O(log n).
cdef uint32_t search_one(const search_keys *keys, uint64_t wanted) noexcept nogil
# Does what search_one does for each of `count` numbers (at most SEARCH_BLOCK).
cdef void search_block(
    const search_keys *keys, const uint64_t *wanted, uint32_t *places, size_t count
) noexcept nogil
# Returns the best kind that this processor supports. Keys use it unless search_use chose another.
cdef search_kind search_best() noexcept nogil
# Makes keys that are laid out from now on use `kind`, or the best kind if that is lower. For tests.
cdef void search_use(search_kind kind) noexcept nogil
# Returns the kind that keys laid out now would use.
cdef search_kind search_used() noexcept nogil


cdef inline void search_add(search_keys *keys, uint32_t place, uint64_t key) noexcept nogil:
    """Adds the key of a place. Each key must be greater than the key before. O(1)."""
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
