"""Walks over the slots of a range.

The contract of each function is in ranges.pxd.
"""

from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF, Py_XDECREF, Py_XINCREF, PyObject
from libc.string cimport memcpy

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.slot cimport slot
from memslots.core.slotset cimport (
    slotset,
    slotset_first_from,
    slotset_first_hva,
    slotset_next_hva,
    slotset_step,
)
from memslots.core.space cimport space, space_active
from memslots.core.units cimport gfn_t
from memslots.read.sections cimport section, section_enter, section_leave
from memslots.values.integers cimport ERROR64, end_of, quick, u64

cdef enum:
    FEW = 16  # this many slots need no memory besides the list

# A slot that a walk has visited.
cdef struct held_slot:
    PyObject *record  # a reference to the Slot; in the end, to the list's item
    # in a walk by host address: the gfns of the slot that are in the extent
    gfn_t start
    gfn_t end


cdef inline slot *range_first(const slotset *set, const extent *e) noexcept:
    cdef slot *s
    if e.by_hva:
        return slotset_first_hva(set, e.first, e.last)
    s = slotset_first_from(set, e.first)
    return s if s is not NULL and s.base_gfn <= e.last else NULL


cdef inline slot *range_next(const slotset *set, const extent *e, const slot *s) noexcept:
    cdef slot *next
    if e.by_hva:
        return slotset_next_hva(set, s, e.first, e.last)
    next = slotset_step(set, s, 1)
    return next if next is not NULL and next.base_gfn <= e.last else NULL


cdef bint set_extent(extent *e, bint by_hva, object start, object end) except -1:
    e.by_hva = by_hva
    e.first = u64(start, "start")
    e.last = quick(end)
    if e.last == ERROR64:
        # Rare: 2**64 - 1, no plain int, or the end of all host addresses.
        end = end_of(end, "end") if by_hva else u64(end, "end")
        if end > ERROR64:
            e.last = ERROR64
            return True
        e.last = end
    if e.first > e.last:
        raise ValueError(f"the range [{e.first:#x}, {e.last:#x}) ends before it starts")
    if e.first == e.last:
        return False
    e.last -= 1
    return True


cdef inline void note(held_slot *at, const slot *s, const extent *e) noexcept:
    """Takes a reference to a slot's record, and notes the slot's gfns that are in the extent."""
    at.record = <PyObject *>s.record
    Py_XINCREF(at.record)
    if e.by_hva:
        at.start = extent_start(e, s.base_gfn, s.userspace_addr)
        at.end = extent_end(e, s.base_gfn, s.npages, s.userspace_addr)


cdef list walk(machine *m, const space *sp, vcpu_cache *own, const extent *e, bint with_gfns):
    """Returns the Slots, or tuples of each Slot and its gfns in the extent."""
    # A list can only be made when its length is known, and making it may run Python code. So its
    # future items wait in `held`.
    cdef held_slot few[FEW]
    cdef held_slot *held = few
    cdef size_t count = 0
    cdef size_t n = 0
    cdef size_t i
    cdef slot *s
    cdef list found
    cdef section at = section_enter(m, own)
    cdef const slotset *set = space_active(sp)
    s = range_first(set, e)
    while s is not NULL:
        if count < FEW:
            note(&few[count], s, e)
            n += 1
        count += 1
        s = range_next(set, e, s)
    if count > FEW:
        held = <held_slot *>alloc_zeroed(count * sizeof(held_slot))
        if held is not NULL:
            memcpy(held, few, sizeof(few))
            s = range_first(set, e)
            count = 0
            while s is not NULL:
                if count >= FEW:
                    note(&held[count], s, e)
                    n += 1
                count += 1
                s = range_next(set, e, s)
        else:
            held = few
    section_leave(&at)
    try:
        if n != count:
            raise MemoryError("no memory for the list of slots")
        if with_gfns:
            for i in range(n):
                item = (<object>held[i].record, held[i].start, held[i].end)
                Py_INCREF(item)
                Py_XDECREF(held[i].record)
                held[i].record = <PyObject *>item
        # No object is made once the list is: no other code may see a list that is not yet full.
        found = PyList_New(count)
        while n > 0:  # each reference passes from `held` to the list
            n -= 1
            PyList_SET_ITEM(found, n, <object>held[n].record)
    finally:
        while n > 0:
            n -= 1
            Py_XDECREF(held[n].record)
        if held is not few:
            alloc_free(held)
    return found


cdef list records(machine *m, const space *sp, vcpu_cache *own, const extent *e):
    return walk(m, sp, own, e, False)


cdef list overlaps(machine *m, const space *sp, vcpu_cache *own, const extent *e):
    return walk(m, sp, own, e, True)
