"""The slot. Its layout and the contract of each function are in slot.pxd."""

from memslots.core.alloc cimport CACHE_LINE, alloc_free, alloc_lines

cdef extern from *:
    """
    #include <stddef.h>
    /* Compiling fails where a search by gfn would read more than the slot's first cache line. */
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
        _Static_assert(sizeof(*(s)) <= 3 * (line), "a slot is three cache lines"); \\
    } while (0)
    """
    void check_layout "MEMSLOTS_CHECK_LAYOUT"(slot *, int) noexcept nogil


cdef slot *slot_new(
    uint32_t id,
    uint32_t as_id,
    uint32_t flags,
    gfn_t base_gfn,
    uint64_t npages,
    hva_t userspace_addr,
) noexcept nogil:
    cdef slot *s = <slot *>alloc_lines(sizeof(slot))
    check_layout(s, CACHE_LINE)
    if s is not NULL:
        s.base_gfn = base_gfn
        s.npages = npages
        s.userspace_addr = userspace_addr
        s.last_hva = userspace_addr + (npages << PAGE_SHIFT) - 1
        s.id = id
        s.as_id = as_id
        s.flags = flags
    return s


cdef void slot_free(slot *s) noexcept nogil:
    alloc_free(s)
