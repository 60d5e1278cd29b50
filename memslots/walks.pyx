"""Walks over the slots of a range, as lists.

Making a list may run other Python code, by way of the garbage collector, and that may change the
slots: so no slot is in hand while one is made.
"""

from cpython.list cimport PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF

from memslots.arguments cimport u64
from memslots.core.slot cimport slot
from memslots.core.slotset cimport (
    slotset,
    slotset_first_from,
    slotset_first_hva,
    slotset_next_hva,
    slotset_step,
)
from memslots.core.space cimport space, space_active


cdef inline slot *walk_first(const slotset *set, const extent *e) noexcept:
    cdef slot *s
    if e.by_hva:
        return slotset_first_hva(set, e.first, e.last)
    s = slotset_first_from(set, e.first)
    return s if s is not NULL and s.base_gfn <= e.last else NULL


cdef inline slot *walk_next(const slotset *set, const extent *e, const slot *s) noexcept:
    cdef slot *next
    if e.by_hva:
        return slotset_next_hva(set, s, e.first, e.last)
    next = slotset_step(set, s, 1)
    return next if next is not NULL and next.base_gfn <= e.last else NULL


cdef bint set_extent(extent *e, bint by_hva, object start, object end) except -1:
    e.by_hva = by_hva
    e.first = u64(start, "start")
    e.last = u64(end, "end")
    if e.first > e.last:
        raise ValueError(f"the range [{e.first:#x}, {e.last:#x}) ends before it starts")
    if e.first == e.last:
        return False
    e.last -= 1
    return True


cdef list records(const space *sp, const extent *e):
    cdef slotset *set
    cdef slot *s
    cdef Py_ssize_t count
    cdef list found
    while True:
        set = space_active(sp)
        count = 0
        s = walk_first(set, e)
        while s is not NULL:
            count += 1
            s = walk_next(set, e, s)
        # This may run Python code, and that may change the slots: take the list only if it still
        # fits.
        found = PyList_New(count)
        set = space_active(sp)
        s = walk_first(set, e)
        while s is not NULL and count > 0:
            record = <object>s.record
            Py_INCREF(record)
            PyList_SET_ITEM(found, PyList_GET_SIZE(found) - count, record)
            count -= 1
            s = walk_next(set, e, s)
        if s is NULL and count == 0:
            return found
