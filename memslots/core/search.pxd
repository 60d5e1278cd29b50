"""Where in a sorted array of gfns: many answers at once, by what the processor has for it.

The keys are kept as 32-bit numbers where their span allows it (narrow), counted from the first and
without the zero bits that all of them end in. Narrow keys are the lowest level of a tree of nodes
of 16: a key of a level above is the first of a node below. A vector instruction or two tells how
many keys of a node, which is one cache line, are not above the one that is wanted. Without such
instructions, and for wide keys, the lowest level is searched by itself, by halves, without a
branch. Either way questions are taken in groups, so that the processor waits for the memory of all
of them at once.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SEARCH_BLOCK = 64  # the most questions in one call
    SEARCH_LEVELS = 8  # 16 ** 8 keys are all that 32 bits can count

# How the nodes are searched.
cdef enum search_kind:
    SEARCH_PORTABLE  # by halves, in plain C
    SEARCH_AVX2
    SEARCH_AVX512

cdef struct search_keys:
    uint64_t origin  # what narrow keys are counted from: the first
    uint32_t shift  # the zero bits that narrow keys are without
    uint32_t count  # keys; at least 1
    search_kind kind  # what the keys were laid out for
    uint32_t levels  # narrow ones; 0: the keys are wide
    const uint64_t *wide  # the keys as they are; NULL: they are narrow
    # [0]: the narrow keys; [i + 1]: the first of each node of i
    const uint32_t *level[SEARCH_LEVELS]


# The bytes that `count` keys may need, a multiple of a cache line.
cdef size_t search_size(uint32_t count) noexcept nogil
# Lays out `count` keys (at least 1, each greater than the one before, below 2**63) in `memory`:
# lines of zeros, as many bytes as search_size says. A key is the first 64 bits of each `stride`
# bytes of `items`. O(count).
cdef void search_lay(
    search_keys *keys, void *memory, uint32_t count, const void *items, size_t stride
) noexcept nogil
# For each of `count` numbers (at most SEARCH_BLOCK) the place of the last key that is not above it,
# and where all keys are above it some place or other. O(log n) each.
cdef void search_block(
    const search_keys *keys, const uint64_t *wanted, uint32_t *places, size_t count
) noexcept nogil
# The best kind that this processor has; keys laid out from now on use it.
cdef search_kind search_best() noexcept nogil
# Has keys that are laid out from now on use another, no better than the best. For tests.
cdef void search_use(search_kind kind) noexcept nogil
# What keys that are laid out now would use.
cdef search_kind search_used() noexcept nogil
