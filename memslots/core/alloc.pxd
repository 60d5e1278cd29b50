"""All memory of the core comes from here, so that it can be counted and made to fail."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    CACHE_LINE = 64


cdef inline size_t alloc_whole_lines(uint64_t size) noexcept nogil:
    """The bytes of the cache lines that `size` bytes take."""
    return (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)


# `size` bytes of zeros, or NULL. Large ones come zeroed from the system and cost nothing until
# touched.
cdef void *alloc_zeroed(size_t size) noexcept nogil
# The same in whole cache lines of their own, for structs that are laid out by the line. O(size).
cdef void *alloc_lines(size_t size) noexcept nogil
# The same as it comes, not of zeros. Large ones cost nothing until touched.
cdef void *alloc_block(size_t size) noexcept nogil
# For those who hand out memory that they have got before: whether this once, they must not, as
# alloc_fail_nth has it.
cdef bint alloc_refused() noexcept nogil
# Gives back what any of them gave; NULL is allowed and does nothing.
cdef void alloc_free(void *memory) noexcept nogil

# Returns how many allocations of this process are not freed.
cdef int64_t alloc_live() noexcept nogil
# Makes the `nth` allocation from now (1 is the next) give NULL or be refused, once; 0 takes the
# order back. For tests.
cdef void alloc_fail_nth(int64_t nth) noexcept nogil
# How many allocations were asked for since the process began; of several at once some may not be
# counted. For tests.
cdef int64_t alloc_asked() noexcept nogil
