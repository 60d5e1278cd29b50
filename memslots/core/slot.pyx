"""The slot. Its layout and the contract of each function are in slot.pxd."""

from memslots.core.alloc cimport CACHE_LINE
from memslots.core.pool cimport pool_get, pool_init, pool_put

cdef extern from *:
    """
    #include <stddef.h>
    /* Compiling fails if a search by gfn would read more than the slot's first cache line. */
    #define MEMSLOTS_CHECK_LAYOUT(s, line) do { \\
        _Static_assert(offsetof(__typeof__(*(s)), gfn_node) == 0, "gfn_node comes first"); \\
        _Static_assert(offsetof(__typeof__(*(s)), base_gfn) + sizeof((s)->base_gfn) <= (line) \\
                       && offsetof(__typeof__(*(s)), npages) + sizeof((s)->npages) <= (line), \\
                       "what a search by gfn reads lies in one cache line"); \\
        _Static_assert(offsetof(__typeof__(*(s)), hva_node) == (line) \\
                       && sizeof((s)->hva_node) <= (line), "the hva nodes lie in one line"); \\
        _Static_assert(offsetof(__typeof__(*(s)), last_hva) \\
                       == offsetof(__typeof__(*(s)), userspace_addr) + 8, \\
                       "hvatree wants the last byte's address behind the first's"); \\
        _Static_assert(sizeof(*(s)) <= 3 * (line), "a slot is in three cache lines"); \\
    } while (0)
    """
    void check_layout "MEMSLOTS_CHECK_LAYOUT"(slot *, int) noexcept nogil


cdef enum:
    SLOT_LINES = 3


cdef void slot_pool_init(pool *p) noexcept nogil:
    pool_init(p, SLOT_LINES * CACHE_LINE)


cdef slot *slot_new(pool *p, const region *r) noexcept nogil:
    cdef pool_chunk *chunk
    cdef slot *s = <slot *>pool_get(p, &chunk)
    check_layout(s, CACHE_LINE)
    # The nodes are not set here: a set writes them when the slot is added to it.
    if s is not NULL:
        s.chunk = chunk
        s.dirty = NULL
        s.record = NULL
        s.base_gfn = r.base_gfn
        s.npages = r.npages
        s.userspace_addr = r.userspace_addr
        s.last_hva = r.userspace_addr + (r.npages << PAGE_SHIFT) - 1
        s.id = r.id
        s.as_id = r.as_id
        s.flags = r.flags
        s.guest_memfd = r.guest_memfd
        s.guest_memfd_offset = r.guest_memfd_offset
    return s


cdef slot *slot_copy(pool *p, const slot *s, uint32_t flags) noexcept nogil:
    cdef region r = slot_region(s)
    cdef slot *copy
    r.flags = flags
    copy = slot_new(p, &r)
    if copy is not NULL:
        copy.dirty = s.dirty
    return copy


cdef void slot_free(slot *s) noexcept nogil:
    if s is not NULL:
        pool_put(s.chunk, s)
