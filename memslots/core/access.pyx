"""An access to guest memory. The contract of each function is in access.pxd."""

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.dirtylog cimport dirty_mark_range
from memslots.core.lookup cimport lookup_in, slot_usable
from memslots.core.slot cimport SLOT_READONLY
from memslots.core.slotset cimport (
    slotset_by_id,
    slotset_first_hva,
    slotset_next_hva,
    slotset_step,
)
from memslots.core.units cimport PAGE_SHIFT, gpa_to_gfn, hva_t


cdef size_t walk(
    slotset *set, slot *s, access *a, gpa_t gpa, uint64_t size, access_kind kind, size_t room
) noexcept nogil:
    """Puts down up to `room` pieces, and gives how many there are; 0: `bad` is no part of any."""
    cdef size_t count = 0
    cdef uint64_t offset, take
    cdef piece *at
    while True:
        if not slot_usable(s, kind == ACCESS_WRITE):
            a.bad = gpa
            return 0
        offset = gpa - (s.base_gfn << PAGE_SHIFT)
        take = min(size, (s.npages << PAGE_SHIFT) - offset)
        if count < room:
            at = &a.pieces[count]
            at.hva = s.userspace_addr + offset
            at.size = take
            at.gpa = gpa
            at.id = s.id
            at.npages = s.npages
            at.slot_hva = s.userspace_addr
            at.readonly = s.flags & SLOT_READONLY
        count += 1
        size -= take
        if size == 0:
            return count
        gpa += take
        s = slotset_step(set, s, 1)
        if s is not NULL and s.base_gfn != gpa_to_gfn(gpa):
            s = NULL


cdef access_result access_init(
    access *a, slotset *set, gpa_t gpa, uint64_t size, access_kind kind
) noexcept nogil:
    cdef slot *s = lookup_in(set, NULL, gpa_to_gfn(gpa))
    a.pieces = a.few
    a.count = walk(set, s, a, gpa, size, kind, FEW_PIECES)
    if a.count == 0:
        return ACCESS_BAD
    if a.count > FEW_PIECES:
        a.pieces = <piece *>alloc_zeroed(a.count * sizeof(piece))
        if a.pieces is NULL:
            return ACCESS_NO_MEMORY
        walk(set, s, a, gpa, size, kind, a.count)
    return ACCESS_DONE


cdef void access_free(access *a) noexcept nogil:
    if a.pieces is not a.few:
        alloc_free(a.pieces)


cdef void mark(slot *s, hva_t first, hva_t last) noexcept nogil:
    """Marks what the slot has of the host bytes [first, last]: some."""
    cdef hva_t begin = max(first, s.userspace_addr) - s.userspace_addr
    cdef hva_t end = min(last, s.last_hva) - s.userspace_addr
    dirty_mark_range(s, s.base_gfn + (begin >> PAGE_SHIFT), s.base_gfn + (end >> PAGE_SHIFT))


cdef void access_mark(const access *a, slotset *set) noexcept nogil:
    cdef const piece *at
    cdef hva_t last
    cdef slot *s
    cdef size_t n
    for n in range(a.count):
        at = &a.pieces[n]
        last = at.hva + at.size - 1
        s = slotset_by_id(set, at.id)
        if s is not NULL and s.userspace_addr == at.slot_hva and s.npages == at.npages:
            mark(s, at.hva, last)
            continue
        # Split, or merged with others: what was written must be in some log.
        s = slotset_first_hva(set, at.hva, last)
        while s is not NULL:
            mark(s, at.hva, last)
            s = slotset_next_hva(set, s, at.hva, last)
