"""The write side. update.pxd has the steps of a change and the contract of each function."""

from libc.stdint cimport uint32_t

from memslots.core.dirtylog cimport dirty_copy, dirty_free, dirty_new
from memslots.core.idtable cimport (
    idtable,
    idtable_drop_spare,
    idtable_get_spare,
    idtable_init,
    idtable_trim,
)
from memslots.core.region cimport ALLOWED, CHANGE_CREATE, CHANGE_DELETE, CHANGE_MOVE, NO_MEMORY
from memslots.core.slot cimport (
    SLOT_GUEST_MEMFD,
    SLOT_INVALID,
    SLOT_LOG_DIRTY_PAGES,
    slot_copy,
    slot_end_gfn,
    slot_free,
    slot_gfn_to_hva,
    slot_new,
)
from memslots.core.slotset cimport (
    slotset,
    slotset_count,
    slotset_first,
    slotset_first_from,
    slotset_follow,
    slotset_init,
    slotset_put,
    slotset_put_after,
    slotset_step,
)
from memslots.core.space cimport (
    SWAPPING,
    space_active,
    space_inactive,
    space_swap_begin,
    space_swap_end,
)
from memslots.core.units cimport gfn_t


cdef void hold(change *c, slotset *set, slot *s) noexcept nogil:
    """Makes the set hold `s` in place of the slot of this change that it holds now."""
    if c.held[set.k] is not s:
        slotset_put(set, c.held[set.k], s, &c.spare[set.k])
        c.held[set.k] = s


cdef void begin(change *c, slot *s) noexcept nogil:
    """Puts `s` into the inactive set and begins the swap, so that readers find `s`."""
    hold(c, space_inactive(c.sp), s)
    space_swap_begin(c.sp)


cdef slot *make_slot(
    space *sp, const limits *lim, const region *r, const slot *before
) noexcept nogil:
    """Returns the slot that a region asks for, with its dirty log (D1); NULL: no memory.

    If logging stays on, the slot shares the bitmap of `before`, the slot that it replaces, if any.
    """
    cdef slot *s = slot_new(&sp.slots, r)
    if r.flags & SLOT_GUEST_MEMFD:
        sp.has_memfds = True
    if s is NULL or not r.flags & SLOT_LOG_DIRTY_PAGES:
        return s
    if before is not NULL and before.dirty is not NULL:
        s.dirty = before.dirty
    else:
        s.dirty = dirty_new(r.npages, lim.manual_dirty_log & DIRTY_LOG_INITIALLY_SET)
        if s.dirty is NULL:
            slot_free(s)
            return NULL
    return s


cdef void update_init(change *c, space *sp, uint32_t id, slot *old) noexcept nogil:
    cdef int k
    c.sp = sp
    c.id = id
    c.old = old
    c.new = old
    c.invalid = NULL
    c.displaced = False
    c.done = False
    for k in range(2):
        c.held[k] = old
        c.spare[k].places = NULL


cdef refusal update_get(
    change *c, space *sp, const limits *lim, const region *r, const ruling *p
) noexcept nogil:
    cdef int k
    cdef bint got = True
    update_init(c, sp, r.id, p.old)
    c.kind = p.kind
    c.before = p.before
    c.new = NULL
    if p.kind != CHANGE_DELETE:
        c.new = make_slot(sp, lim, r, p.old)
        got = c.new is not NULL
    if got and (p.kind == CHANGE_DELETE or p.kind == CHANGE_MOVE):
        # The copy shares the bitmap, so marks made meanwhile are not lost.
        c.invalid = slot_copy(&sp.slots, c.old, c.old.flags | SLOT_INVALID)
        got = c.invalid is not NULL
    if p.kind == CHANGE_CREATE:
        for k in range(2):
            got = got and idtable_get_spare(&sp.sets[k].ids, 1, &c.spare[k]) == 0
    if not got:
        update_end(c)
        return NO_MEMORY
    return ALLOWED


cdef void update_invalidate_begin(change *c) noexcept nogil:
    begin(c, c.invalid)


cdef void update_invalidate_end(change *c) noexcept nogil:
    # The set that is inactive now keeps the old slot. Applying and reverting both start from there.
    space_swap_end(c.sp)


cdef void update_apply_begin(change *c) noexcept nogil:
    cdef slotset *set = space_inactive(c.sp)
    if c.kind == CHANGE_CREATE:
        slotset_put_after(set, c.before, c.new, &c.spare[set.k])
        c.held[set.k] = c.new
    begin(c, c.new)
    c.done = True


cdef void update_apply_end(change *c) noexcept nogil:
    cdef slotset *set = space_inactive(c.sp)
    space_swap_end(c.sp)
    slotset_follow(set, c.held[set.k], c.new, &c.spare[set.k])
    c.held[set.k] = c.new


cdef void update_revert_begin(change *c) noexcept nogil:
    # The inactive set still holds the old slot.
    space_swap_begin(c.sp)


cdef void update_revert_end(change *c) noexcept nogil:
    space_swap_end(c.sp)
    hold(c, space_inactive(c.sp), c.old)


cdef refusal update_stage_get(
    change *c, const limits *lim, const region *r, slot **next
) noexcept nogil:
    cdef slotset *set = space_inactive(c.sp)
    cdef slot *before = c.held[set.k]
    next[0] = NULL
    if r.npages == 0:
        return ALLOWED
    # An earlier step of the same id that failed after this point may have left a spare.
    idtable_drop_spare(&c.spare[set.k])
    if before is NULL and idtable_get_spare(&set.ids, 1, &c.spare[set.k]) != 0:
        return NO_MEMORY
    next[0] = make_slot(c.sp, lim, r, before)
    return ALLOWED if next[0] is not NULL else NO_MEMORY


cdef bint update_displaces(const change *c, change_kind kind) noexcept nogil:
    return (
        c.old is not NULL
        and not c.displaced
        and (kind == CHANGE_DELETE or kind == CHANGE_MOVE)
    )


cdef void update_stage(change *c, slot *next) noexcept nogil:
    hold(c, space_inactive(c.sp), next)
    c.new = next


cdef void update_carry(change *c, idtable_spare *spare) noexcept nogil:
    cdef slotset *set = space_inactive(c.sp)
    c.done = True
    # No step took memory for this set's table: it was the active one then.
    c.spare[set.k] = spare[0]
    spare.places = NULL
    hold(c, set, c.new)
    spare[0] = c.spare[set.k]
    c.spare[set.k].places = NULL


cdef void update_carry_marks(const change *c) noexcept nogil:
    cdef const slotset *active = space_active(c.sp)
    cdef const slot *old = c.old
    cdef slot *s
    cdef gfn_t first
    cdef gfn_t last
    if old is NULL or old.dirty is NULL:
        return
    s = slotset_first_from(active, old.base_gfn)
    while s is not NULL and s.base_gfn < slot_end_gfn(old):
        first = max(s.base_gfn, old.base_gfn)
        last = min(slot_end_gfn(s), slot_end_gfn(old)) - 1
        # A slot that kept the bitmap has the marks already.
        if (
            s.dirty is not NULL
            and s.dirty is not old.dirty
            and slot_gfn_to_hva(s, first) == slot_gfn_to_hva(old, first)
        ):
            dirty_copy(s, first, last, old, first - old.base_gfn)
        s = slotset_step(active, s, 1)


cdef void update_unstage(change *c) noexcept nogil:
    hold(c, space_inactive(c.sp), c.old)


cdef refusal update_abandon_get(change *c, space *sp) noexcept nogil:
    cdef slotset *active = space_active(sp)
    cdef slot *s = slotset_first(active)
    cdef idtable empty
    while s is not NULL and not s.flags & SLOT_INVALID:
        s = slotset_step(active, s, 1)
    update_init(c, sp, 0, s)
    c.new = NULL
    if s is not NULL:
        c.new = slot_copy(&sp.slots, s, s.flags & ~<uint32_t>SLOT_INVALID)
        if c.new is NULL:
            return NO_MEMORY
    idtable_init(&empty, 0)
    if idtable_get_spare(&empty, slotset_count(active), &c.spare[space_inactive(sp).k]) != 0:
        update_abandon_drop(c)
        return NO_MEMORY
    return ALLOWED


cdef void update_abandon_drop(change *c) noexcept nogil:
    slot_free(c.new)
    idtable_drop_spare(&c.spare[space_inactive(c.sp).k])


cdef void update_abandon_begin(change *c) noexcept nogil:
    cdef slotset *active = space_active(c.sp)
    cdef slotset *set = space_inactive(c.sp)
    cdef slot *s = slotset_first(active)
    slotset_init(set, set.k)
    while s is not NULL:
        slotset_put(set, NULL, c.new if s is c.old else s, &c.spare[set.k])
        s = slotset_step(active, s, 1)
    c.done = True
    if active.generation & SWAPPING:
        space_swap_end(c.sp)
    if c.new is not NULL:
        space_swap_begin(c.sp)


cdef void update_abandon_end(change *c) noexcept nogil:
    if c.new is not NULL:
        space_swap_end(c.sp)
        hold(c, space_inactive(c.sp), c.new)


cdef void update_discard(slot *s, const slot *kept, const slot *also_kept) noexcept nogil:
    # Copies share the bitmap. It is freed with the last copy.
    if s is NULL or s is kept or s is also_kept:
        return
    if (kept is NULL or kept.dirty is not s.dirty) and (
        also_kept is NULL or also_kept.dirty is not s.dirty
    ):
        dirty_free(s.dirty)
    slot_free(s)


cdef void update_end(change *c) noexcept nogil:
    cdef int k
    update_discard(update_leftover(c), c.new if c.done else c.old, NULL)
    slot_free(c.invalid)
    for k in range(2):
        idtable_drop_spare(&c.spare[k])
    idtable_trim(&space_inactive(c.sp).ids)
