"""Makes changes: the rules, and the copies of the array."""

from cpython.ref cimport Py_XDECREF, Py_XINCREF, PyObject
from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.baseline.slotarray cimport (
    NO_INDEX,
    arrayspace_clear,
    arrayspace_copy,
    arrayspace_edit,
    arrayspace_get_room,
    arrayspace_init,
    arrayspace_publish,
    slot_from_array,
    slotarray,
    slotarray_by_id,
    slotarray_index,
    slotarray_overlap,
    slotarray_slots,
)
from memslots.core.dirtylog cimport dirty_free, dirty_new
from memslots.core.region cimport (
    ALLOWED,
    BEYOND_MAX_GFN,
    CHANGE_CREATE,
    CHANGE_DELETE,
    CHANGE_MOVE,
    CHANGE_NONE,
    NO_MEMORY,
    OVERLAPS,
    change_kind,
    limits,
    refusal,
    region_beyond_max_gfn,
    region_classify,
    ruling,
)
from memslots.core.slot cimport SLOT_INVALID, SLOT_LOG_DIRTY_PAGES, region, slot, slot_region
from memslots.values.records cimport region_record
from memslots.values.rules cimport refusal_error

from memslots.errors import busy

cdef enum:
    DIRTY_LOG_INITIALLY_SET = 1 << 1  # the bit of manual_dirty_log for it


cdef void free_slots(const slotarray *a) noexcept:
    """Frees what the slots hold. The array must not be read any more."""
    cdef array_slot *s = slotarray_slots(a)
    cdef uint32_t n
    for n in range(a.count):
        dirty_free(s[n].dirty)
        Py_XDECREF(<PyObject *>s[n].record)


cdef refusal judge(
    const slotarray *a, const region *r, bint creates, const array_slot *old, slot *other, ruling *p
) noexcept nogil:
    """Judges a change by rules 3 to 6. With OVERLAPS, `other` is the slot in the way."""
    cdef array_slot *existing
    cdef refusal why = region_classify(p.old, r, creates, p)
    if why == ALLOWED and (p.kind == CHANGE_CREATE or p.kind == CHANGE_MOVE):
        existing = slotarray_overlap(a, r.base_gfn, r.npages, old)
        if existing is not NULL:
            slot_from_array(existing, r.as_id, other)
            p.existing = other
            why = OVERLAPS
    return why


cdef int get_memory(
    const limits *lim,
    arrayspace *sp,
    const region *r,
    change_kind kind,
    uint64_t *dirty,
    array_slot *item,
) except -1:
    """Gets all the memory that a change may need. Makes the slot that it adds, with its log (D1).

    A log that stays on keeps the bitmap `dirty`.
    """
    cdef uint32_t count = sp.active.count + (kind == CHANGE_CREATE)
    cdef uint64_t nids = max(<uint64_t>sp.active.nids, <uint64_t>r.id + 1)
    cdef bint got = True
    item.base_gfn = r.base_gfn
    item.npages = r.npages
    item.userspace_addr = r.userspace_addr
    item.id = r.id
    item.flags = r.flags
    item.dirty = NULL
    if kind != CHANGE_DELETE and r.flags & SLOT_LOG_DIRTY_PAGES:
        item.dirty = dirty
        if dirty is NULL:
            item.dirty = dirty_new(r.npages, lim.manual_dirty_log & DIRTY_LOG_INITIALLY_SET)
            got = item.dirty is not NULL
    if not got or arrayspace_get_room(sp, count, nids) != 0:
        if item.dirty is not dirty:
            dirty_free(item.dirty)
        raise refusal_error(NO_MEMORY, lim, r, NULL, "")
    return 0


cdef object invalid_record(uint32_t as_id, const array_slot *s):
    """Returns the Slot of a slot's INVALID copy."""
    cdef slot old
    cdef region r
    slot_from_array(s, as_id, &old)
    r = slot_region(&old)
    r.flags |= SLOT_INVALID
    return region_record(&r)


cdef void invalidate(
    arrayspace *sp, int32_t gone, const array_slot *was, object invalid
) noexcept:
    """Publishes a copy in which the slot is INVALID. The caller keeps its own reference."""
    cdef array_slot marked = was[0]
    marked.flags |= SLOT_INVALID
    marked.record = <void *>invalid
    arrayspace_copy(sp, gone, &marked)
    arrayspace_publish(sp)


cdef void hand_over(const array_slot *was, const array_slot *item) noexcept:
    """Takes a reference to the Slot of the new slot, and frees what the old slot held.

    A record may be NULL: there is none.
    """
    Py_XINCREF(<PyObject *>item.record)
    Py_XDECREF(<PyObject *>was.record)
    if was.dirty is not item.dirty:
        dirty_free(was.dirty)


cdef class ArrayWriter(Target):
    """Owns the address spaces and makes their changes."""

    cdef int own_spaces(self, const limits *lim) except -1:
        cdef uint32_t as_id
        self.own_lim = lim[0]
        self.lim = &self.own_lim
        for as_id in range(lim.nspaces):
            if arrayspace_init(&self.spaces[as_id], as_id, lim.nspaces) != 0:
                raise MemoryError("no memory for the address spaces")
        return 0

    def __dealloc__(self):
        cdef uint32_t as_id
        for as_id in range(self.own_lim.nspaces):
            if self.spaces[as_id].active is not NULL:
                free_slots(self.spaces[as_id].active)
                arrayspace_clear(&self.spaces[as_id])

    cdef int enter(self, str what) except -1:
        if self.busy:
            raise busy(what)
        self.busy = True
        return 0

    cdef void leave(self) noexcept:
        self.busy = False

    cdef array_slot *slot_of(self, uint32_t as_id, uint32_t id) noexcept:
        return slotarray_by_id(self.spaces[as_id].active, id)

    cdef slot *find(self, uint32_t id, uint32_t as_id) noexcept:
        cdef array_slot *found = self.slot_of(as_id, id)
        if found is NULL:
            return NULL
        slot_from_array(found, as_id, &self.found)
        return &self.found

    cdef object make(self, const region *r, slot *old, bint creates, change_kind *done):
        cdef arrayspace *sp = &self.spaces[r.as_id]
        cdef array_slot *found = self.slot_of(r.as_id, r.id)
        cdef bint displaces
        cdef int32_t gone = NO_INDEX
        cdef array_slot was
        cdef array_slot item
        cdef slot other
        cdef ruling p
        cdef refusal why
        was.dirty = NULL
        was.record = NULL
        p.old = old
        if found is not NULL:
            was = found[0]
            gone = <int32_t>slotarray_index(sp.active, found)
        why = judge(sp.active, r, creates, found, &other, &p)
        if why != ALLOWED:
            raise refusal_error(why, self.lim, r, &p, "")
        done[0] = p.kind
        if p.kind == CHANGE_NONE:
            return <object>old.record
        # As in KVM, a slot that leaves its place is INVALID first.
        displaces = p.kind == CHANGE_DELETE or p.kind == CHANGE_MOVE
        new = None if p.kind == CHANGE_DELETE else region_record(r)
        invalid = invalid_record(r.as_id, &was) if displaces else None
        get_memory(self.lim, sp, r, p.kind, was.dirty, &item)
        item.record = NULL if new is None else <void *>new
        if displaces:
            invalidate(sp, gone, &was, invalid)
        if new is not None and region_beyond_max_gfn(self.lim, r):
            if displaces:
                # Goes back: the retired array holds what was there before.
                arrayspace_publish(sp)
            if item.dirty is not was.dirty:
                dirty_free(item.dirty)
            raise refusal_error(BEYOND_MAX_GFN, self.lim, r, &p, "")
        if displaces:
            # The retired array is the active one without the flag INVALID: it need not be copied
            # again.
            arrayspace_edit(sp, gone, &item if new is not None else NULL)
        else:
            arrayspace_copy(sp, gone, &item)
        arrayspace_publish(sp)
        hand_over(&was, &item)
        return new
