"""Room for slots. The contract of each function is in room.pxd."""

from memslots.core.alloc cimport alloc_block, alloc_free
from memslots.core.slot cimport slot, slot_end_gfn
from memslots.core.slotset cimport slotset, slotset_first_from, slotset_search, slotset_step
from memslots.core.space cimport space_active
from memslots.read.sections cimport section, section_enter, section_leave
from memslots.values.integers cimport u64

cdef enum:
    FEW = 16  # this many holes need no memory besides the list

cdef struct hole:
    gfn_t start
    gfn_t end


cdef int set_wish(
    wish *w, object npages, object start, object end, object align, gfn_t usual_end
) except -1:
    w.npages = u64(npages, "npages")
    w.start = u64(start, "start")
    w.end = usual_end if end is None else u64(end, "end")
    w.align = u64(align, "align")
    if w.npages == 0:
        raise ValueError("npages must be at least 1")
    if w.align == 0:
        raise ValueError("align must be at least 1")
    if end is not None and w.start > w.end:
        raise ValueError(f"the range [{w.start:#x}, {w.end:#x}) ends before it starts")
    return 0


cdef bint wish_fits(const wish *w, gfn_t *gfn) noexcept nogil:
    cdef uint64_t beyond = gfn[0] % w.align
    if beyond != 0:
        if gfn[0] > ~<uint64_t>0 - (w.align - beyond):
            return False
        gfn[0] += w.align - beyond
    return gfn[0] <= w.end and w.npages <= w.end - gfn[0]


cdef size_t walk(
    const slotset *set, gfn_t start, gfn_t end, hole *found, size_t room
) noexcept nogil:
    """Records at most `room` holes. Returns how many holes there are."""
    cdef slot *s = slotset_first_from(set, start)
    cdef size_t count = 0
    cdef gfn_t before
    while start < end:
        before = min(s.base_gfn, end) if s is not NULL else end
        if before > start:
            if count < room:
                found[count].start = start
                found[count].end = before
            count += 1
        if s is NULL:
            break
        start = slot_end_gfn(s)
        s = slotset_step(set, s, 1)
    return count


cdef list holes_of(machine *m, const space *sp, vcpu_cache *own, gfn_t start, gfn_t end):
    cdef hole few[FEW]
    cdef hole *found = few
    cdef size_t count, i
    cdef section at = section_enter(m, own)
    cdef const slotset *set = space_active(sp)
    count = walk(set, start, end, few, FEW)
    if count > FEW:
        found = <hole *>alloc_block(count * sizeof(hole))
        if found is not NULL:
            walk(set, start, end, found, count)
    section_leave(&at)
    if found is NULL:
        raise MemoryError("no memory for the list of holes")
    try:
        return [(found[i].start, found[i].end) for i in range(count)]
    finally:
        if found is not few:
            alloc_free(found)


cdef object find_hole_of(machine *m, const space *sp, vcpu_cache *own, const wish *w):
    cdef gfn_t gfn = w.start
    cdef bint found = False
    cdef slot *s
    cdef section at = section_enter(m, own)
    # Load the active set only once: without the GIL another set may become active meanwhile.
    cdef const slotset *set = space_active(sp)
    s = slotset_first_from(set, gfn)
    while wish_fits(w, &gfn):
        # Aligning may have moved gfn past some slots.
        while s is not NULL and slot_end_gfn(s) <= gfn:
            s = slotset_step(set, s, 1)
        if s is NULL or s.base_gfn >= gfn + w.npages:
            found = True
            break
        gfn = slot_end_gfn(s)
    section_leave(&at)
    return gfn if found else None


cdef bint is_mapped_of(
    machine *m, const space *sp, vcpu_cache *own, gfn_t start, gfn_t end
) noexcept:
    cdef slot *s
    cdef section at = section_enter(m, own)
    cdef const slotset *set = space_active(sp)
    s = slotset_search(set, start)
    while start < end and s is not NULL and s.base_gfn <= start:
        start = slot_end_gfn(s)
        s = slotset_step(set, s, 1)
    section_leave(&at)
    return start >= end
