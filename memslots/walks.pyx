"""Walks over the slots of a range, as lists.

The contract of each function is in walks.pxd.
"""

from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_XDECREF, Py_XINCREF, PyObject

from memslots.arguments cimport u64
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
from memslots.core.units cimport PAGE_SHIFT, hva_t
from memslots.sections cimport section, section_enter, section_leave


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


cdef list records(machine *m, const space *sp, vcpu_cache *own, const extent *e):
    # A list can only be made when its length is known, and making it may run Python code: so the
    # records wait here meanwhile, with a reference to each.
    cdef PyObject **held = NULL
    cdef size_t count = 0
    cdef size_t n = 0
    cdef slot *s
    cdef list found
    cdef section at = section_enter(m, own)
    cdef const slotset *set = space_active(sp)
    s = walk_first(set, e)
    while s is not NULL:
        count += 1
        s = walk_next(set, e, s)
    if count != 0:
        held = <PyObject **>alloc_zeroed(count * sizeof(PyObject *))
    if held is not NULL:
        s = walk_first(set, e)
        while s is not NULL:
            held[n] = <PyObject *>s.record
            Py_XINCREF(held[n])
            n += 1
            s = walk_next(set, e, s)
    section_leave(&at)
    if n != count:
        raise MemoryError("no memory for the list of slots")
    try:
        found = PyList_New(count)
        while n > 0:  # each reference goes from here to the list
            n -= 1
            PyList_SET_ITEM(found, n, <object>held[n])
    finally:
        while n > 0:
            n -= 1
            Py_XDECREF(held[n])
        alloc_free(held)
    return found


cdef list cut(list found, const extent *e):
    cdef hva_t first
    cdef hva_t last
    cdef hva_t hva
    cdef Py_ssize_t i
    for i in range(len(found)):
        record = found[i]
        hva = record.userspace_addr
        first = max(e.first, hva) - hva
        last = min(e.last - hva, record.memory_size - 1)
        found[i] = (
            record,
            record.base_gfn + (first >> PAGE_SHIFT),
            record.base_gfn + (last >> PAGE_SHIFT) + 1,
        )
    return found
