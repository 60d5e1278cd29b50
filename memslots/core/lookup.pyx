"""The read side, many look-ups at once. The contract of each function is in lookup.pxd."""

from memslots.core.dirtylog cimport dirty_mark


cdef void lookup_ids(
    space *sp, vcpu_cache *own, const gfn_t *gfns, int32_t *out, size_t count
) noexcept nogil:
    cdef slotset *set = space_active(sp)
    cdef slot *s
    cdef size_t i
    for i in range(count):
        s = lookup_in(set, own, gfns[i])
        out[i] = <int32_t>s.id if s is not NULL else -1


cdef void lookup_hvas(
    space *sp, vcpu_cache *own, const gpa_t *gpas, hva_t *out, size_t count, bint write
) noexcept nogil:
    cdef slotset *set = space_active(sp)
    cdef size_t i
    for i in range(count):
        out[i] = lookup_hva(set, own, gpas[i], write)


cdef void lookup_mark_dirty(
    space *sp, vcpu_cache *own, const gfn_t *gfns, size_t count
) noexcept nogil:
    cdef slotset *set = space_active(sp)
    cdef slot *s
    cdef size_t i
    for i in range(count):
        s = lookup_in(set, own, gfns[i])
        if s is not NULL:
            dirty_mark(s, gfns[i])
