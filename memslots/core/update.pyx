"""The write side. The steps of a change and the contract of each function are in update.pxd."""

from memslots.core.dirtylog cimport dirty_free, dirty_new
from memslots.core.idtable cimport idtable_drop_spare, idtable_get_spare
from memslots.core.region cimport ALLOWED, CHANGE_CREATE, CHANGE_DELETE, CHANGE_MOVE, NO_MEMORY
from memslots.core.slot cimport SLOT_INVALID, SLOT_LOG_DIRTY_PAGES, slot_free, slot_new
from memslots.core.slotset cimport slotset, slotset_put
from memslots.core.space cimport space_inactive, space_swap_begin, space_swap_end

cdef enum:
    DIRTY_LOG_INITIALLY_SET = 1 << 1  # the bit of manual_dirty_log for it


cdef void hold(change *c, slotset *set, slot *s) noexcept nogil:
    """Makes the set hold `s` in this change's place."""
    slotset_put(set, c.held[set.k], s, &c.spare[set.k])
    c.held[set.k] = s


cdef void begin(change *c, slot *s) noexcept nogil:
    """Makes `s` what readers find."""
    hold(c, space_inactive(c.sp), s)
    space_swap_begin(c.sp)


cdef bint get_new(change *c, const limits *lim, const region *r) noexcept nogil:
    """Makes the slot as it is to be, with its dirty log (D1): a log that stays on keeps its
    bitmap.
    """
    c.new = slot_new(r.id, r.as_id, r.flags, r.base_gfn, r.npages, r.userspace_addr)
    if c.new is NULL:
        return False
    if r.flags & SLOT_LOG_DIRTY_PAGES:
        if c.old is not NULL and c.old.dirty is not NULL:
            c.new.dirty = c.old.dirty
        else:
            c.new.dirty = dirty_new(r.npages, lim.manual_dirty_log & DIRTY_LOG_INITIALLY_SET)
            return c.new.dirty is not NULL
    return True


cdef bint get_invalid(change *c) noexcept nogil:
    """Makes the INVALID copy of the old slot.

    It shares the bitmap: a mark made meanwhile is not lost.
    """
    cdef slot *old = c.old
    c.invalid = slot_new(
        old.id, old.as_id, old.flags | SLOT_INVALID, old.base_gfn, old.npages, old.userspace_addr
    )
    if c.invalid is NULL:
        return False
    c.invalid.dirty = old.dirty
    return True


cdef bint get_spares(change *c) noexcept nogil:
    cdef int k
    for k in range(2):
        if idtable_get_spare(&c.sp.sets[k].ids, &c.spare[k]) != 0:
            return False
    return True


cdef refusal update_get(
    change *c, space *sp, const limits *lim, const region *r, const plan *p
) noexcept nogil:
    cdef int k
    cdef bint got = True
    c.kind = p.kind
    c.sp = sp
    c.old = p.old
    c.new = NULL
    c.invalid = NULL
    c.done = False
    for k in range(2):
        c.held[k] = p.old
        c.spare[k].places = NULL
    if p.kind != CHANGE_DELETE:
        got = get_new(c, lim, r)
    if got and (p.kind == CHANGE_DELETE or p.kind == CHANGE_MOVE):
        got = get_invalid(c)
    if got and p.kind == CHANGE_CREATE:
        got = get_spares(c)
    if not got:
        update_end(c)
        return NO_MEMORY
    return ALLOWED


cdef void update_invalidate_begin(change *c) noexcept nogil:
    begin(c, c.invalid)


cdef void update_invalidate_end(change *c) noexcept nogil:
    # The set that is inactive now keeps the old slot: the way on and the way back both begin there.
    space_swap_end(c.sp)


cdef void update_apply_begin(change *c) noexcept nogil:
    begin(c, c.new)
    c.done = True


cdef void update_apply_end(change *c) noexcept nogil:
    space_swap_end(c.sp)
    hold(c, space_inactive(c.sp), c.new)


cdef void update_revert_begin(change *c) noexcept nogil:
    # The inactive set still holds the old slot.
    space_swap_begin(c.sp)


cdef void update_revert_end(change *c) noexcept nogil:
    space_swap_end(c.sp)
    hold(c, space_inactive(c.sp), c.old)


cdef void update_end(change *c) noexcept nogil:
    cdef slot *left = update_leftover(c)
    cdef slot *kept = c.new if c.done else c.old
    cdef int k
    # Copies share the bitmap: it goes with the last of them.
    if left is not NULL and (kept is NULL or kept.dirty is not left.dirty):
        dirty_free(left.dirty)
    slot_free(left)
    slot_free(c.invalid)
    c.invalid = NULL
    for k in range(2):
        idtable_drop_spare(&c.spare[k])
