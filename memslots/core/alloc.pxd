"""All memory of the core comes from here. So tests can count allocations and make one fail."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    CACHE_LINE = 64


cdef inline size_t alloc_whole_lines(uint64_t size) noexcept nogil:
    """Returns `size` rounded up to whole cache lines, in bytes."""
    return (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)


# Returns `size` bytes of zeros, or NULL. A large block comes zeroed from the system and costs
# nothing until it is touched.
cdef void *alloc_zeroed(size_t size) noexcept nogil
# Returns `size` bytes of zeros, or NULL, in cache lines that no other block shares. For structs
# that are laid out by the line. O(size).
cdef void *alloc_lines(size_t size) noexcept nogil
# Returns memory as alloc_lines does, but does not zero it. A large block costs nothing until it is
# touched.
cdef void *alloc_block(size_t size) noexcept nogil
# Counts an allocation that is served from memory obtained earlier. Returns whether it must fail, as
# alloc_fail_nth ordered.
cdef bint alloc_refused() noexcept nogil
# Frees memory that any of these functions returned. NULL does nothing.
cdef void alloc_free(void *memory) noexcept nogil

# Returns how many allocations of this process are not freed.
cdef int64_t alloc_live() noexcept nogil
# Makes the `nth` allocation from now (1 is the next) fail, once. 0 cancels the order. For tests.
cdef void alloc_fail_nth(int64_t nth) noexcept nogil
# Returns how many allocations were requested since the process began. Some requests that several
# threads make at once may not be counted. For tests.
cdef int64_t alloc_asked() noexcept nogil
