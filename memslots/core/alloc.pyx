"""All memory of the core comes from here. So tests can count allocations and make one fail."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from memslots.core.atomics cimport (
    atomic_fetch_add,
    atomic_fetch_sub_release,
    atomic_load_relaxed,
    atomic_store_relaxed,
)

cdef uint64_t live = 0  # allocations that are not freed
cdef uint64_t asked = 0  # allocations requested since the process began
cdef uint64_t fail_at = 0  # the value of `asked` at which an allocation fails; 0: never


cdef bint alloc_refused() noexcept nogil:
    cdef uint64_t number = atomic_load_relaxed(&asked) + 1
    atomic_store_relaxed(&asked, number)
    return number == atomic_load_relaxed(&fail_at)


cdef void *alloc_zeroed(size_t size) noexcept nogil:
    cdef void *memory = NULL if alloc_refused() else calloc(1, size)
    if memory is not NULL:
        atomic_fetch_add(&live, 1)
    return memory


cdef void *alloc_block(size_t size) noexcept nogil:
    cdef void *memory = NULL
    # Whole lines: two structs that different threads write never share a line.
    if alloc_refused() or posix_memalign(&memory, CACHE_LINE, alloc_whole_lines(size)) != 0:
        return NULL
    atomic_fetch_add(&live, 1)
    return memory


cdef void *alloc_lines(size_t size) noexcept nogil:
    cdef void *memory = alloc_block(size)
    if memory is not NULL:
        memset(memory, 0, alloc_whole_lines(size))
    return memory


cdef void alloc_free(void *memory) noexcept nogil:
    if memory is not NULL:
        free(memory)
        atomic_fetch_sub_release(&live, 1)


cdef int64_t alloc_live() noexcept nogil:
    return <int64_t>atomic_load_relaxed(&live)


cdef int64_t alloc_asked() noexcept nogil:
    return <int64_t>atomic_load_relaxed(&asked)


cdef void alloc_fail_nth(int64_t nth) noexcept nogil:
    atomic_store_relaxed(&fail_at, atomic_load_relaxed(&asked) + <uint64_t>nth if nth > 0 else 0)
