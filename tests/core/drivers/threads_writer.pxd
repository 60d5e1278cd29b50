# cython: language_level=3, cdivision=True
"""What the writer of threads_driver.pyx does."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from memslots.core.idtable cimport idtable_drop_spare, idtable_get_spare, idtable_spare
from memslots.core.region cimport (
    ALLOWED,
    CHANGE_NONE,
    region,
    region_check,
    region_classify,
    region_place,
    ruling,
)
from memslots.core.slot cimport SLOT_LOG_DIRTY_PAGES, slot, slot_end_gfn
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_clash,
    slotset_count,
    slotset_drop_index,
    slotset_search,
    slotset_step,
)
from memslots.core.space cimport (
    space,
    space_active,
    space_inactive,
    space_swap_begin,
    space_swap_end,
)
from memslots.core.srcu cimport srcu_idle, srcu_wait
from memslots.core.units cimport gfn_t
from memslots.core.update cimport (
    change,
    update_apply_begin,
    update_apply_end,
    update_carry,
    update_discard,
    update_end,
    update_get,
    update_init,
    update_invalidate_begin,
    update_invalidate_end,
    update_must_invalidate,
    update_revert_begin,
    update_revert_end,
    update_stage,
    update_stage_get,
    update_unstage,
)

from threads_scene cimport (
    ELSEWHERE,
    NOTHING,
    NOT_TILED,
    NSPACES,
    OTHERS,
    OTHER_PAGES,
    REFUSED,
    STAGED,
    TILES,
    TILE_IDS,
    TOP,
    any_space,
    hva_of,
    job,
    scene,
    throw,
    wrong,
)

# The writer. It alone changes anything, so it reads without a section.

cdef inline void wait(scene *at) noexcept nogil:
    """As a Memslots' writer does."""
    cdef int n
    if not srcu_idle(&at.m.readers):
        at.waits += 1
        srcu_wait(&at.m.readers)
    for n in range(NSPACES):
        slotset_drop_index(space_inactive(at.m.spaces[n]))


cdef inline region region_of(
    space *sp, uint32_t id, gfn_t base_gfn, uint64_t npages, uint32_t flags
) noexcept nogil:
    cdef region r
    r.id = id
    r.as_id = sp.as_id
    r.flags = flags
    r.base_gfn = base_gfn
    r.npages = npages
    r.userspace_addr = hva_of(id)
    return r


cdef inline wrong change_one(scene *at, region r, bint refuse) noexcept nogil:
    """Makes a change in the steps of update.pxd, or goes the road back."""
    cdef space *sp = at.m.spaces[r.as_id]
    cdef change c
    cdef ruling p
    if (
        region_check(&at.m.lim, &r) != ALLOWED
        or region_classify(slotset_by_id(space_active(sp), r.id), &r, False, &p) != ALLOWED
        or region_place(space_active(sp), &r, &p) != ALLOWED
    ):
        return REFUSED
    if p.kind == CHANGE_NONE:
        return NOTHING
    if update_get(&c, sp, &at.m.lim, &r, &p) != ALLOWED:
        return REFUSED
    if update_must_invalidate(&c):
        update_invalidate_begin(&c)
        wait(at)
        update_invalidate_end(&c)
    if not refuse:
        update_apply_begin(&c)
        wait(at)
        update_apply_end(&c)
    elif update_must_invalidate(&c):
        update_revert_begin(&c)
        wait(at)
        update_revert_end(&c)
    update_end(&c)
    return NOTHING


cdef struct transaction:
    change changes[STAGED]
    int count
    uint32_t additions[NSPACES]  # ids that the active set does not hold
    idtable_spare spare[NSPACES]  # memory for these to be carried over
    bint touched[NSPACES]


cdef inline change *change_of(transaction *tx, space *sp, uint32_t id, slot *old) noexcept nogil:
    """The change of an id: the one there is, or a new one; NULL: no memory."""
    cdef idtable_spare larger
    cdef int n
    for n in range(tx.count):
        if tx.changes[n].sp is sp and tx.changes[n].id == id:
            return &tx.changes[n]
    if old is NULL:
        tx.additions[sp.as_id] += 1
        if idtable_get_spare(&space_active(sp).ids, tx.additions[sp.as_id], &larger) != 0:
            return NULL
        idtable_drop_spare(&tx.spare[sp.as_id])
        tx.spare[sp.as_id] = larger
    update_init(&tx.changes[tx.count], sp, id, old)
    tx.touched[sp.as_id] = True
    tx.count += 1
    return &tx.changes[tx.count - 1]


cdef inline wrong stage(scene *at, transaction *tx, region r) noexcept nogil:
    cdef space *sp = at.m.spaces[r.as_id]
    cdef slotset *set = space_inactive(sp)
    cdef slot *before
    cdef slot *next
    cdef change *c
    cdef ruling p
    if region_classify(slotset_by_id(set, r.id), &r, False, &p) != ALLOWED:
        return REFUSED
    if p.kind == CHANGE_NONE:
        return NOTHING
    c = change_of(tx, sp, r.id, p.old)
    if c is NULL or update_stage_get(c, &at.m.lim, &r, &next) != ALLOWED:
        return REFUSED
    before = c.held[set.k]
    update_stage(c, next)
    if before is not c.old:
        update_discard(before, next, c.old)
    return NOTHING


cdef inline wrong stage_some(job *j, transaction *tx, space *sp) noexcept nogil:
    """Two tiles trade places, or one is split, or two are merged; or nothing, as the dice fall."""
    cdef slotset *set = space_active(sp)
    cdef slot *a = slotset_search(set, throw(j, TOP))
    cdef slot *b = slotset_search(set, throw(j, TOP))
    cdef slot *next = slotset_step(set, a, 1)
    cdef uint32_t flags = <uint32_t>throw(j, 2) * SLOT_LOG_DIRTY_PAGES
    cdef uint32_t fresh = 0
    cdef wrong seen = NOTHING
    cdef region r[4]
    cdef int n, steps = 0
    if a is not b and a.npages == b.npages:
        r[0] = region_of(sp, a.id, b.base_gfn, a.npages, a.flags)
        r[1] = region_of(sp, b.id, a.base_gfn, b.npages, b.flags)
        steps = 2
    elif a.npages > 1 and throw(j, 2) and slotset_count(set) < 2 * TILES:
        while slotset_by_id(set, fresh) is not NULL:
            fresh += 1
        r[0] = region_of(sp, a.id, 0, 0, 0)
        r[1] = region_of(sp, a.id, a.base_gfn, a.npages - 1, flags)
        r[2] = region_of(sp, fresh, slot_end_gfn(a) - 1, 1, flags)
        steps = 3
    elif next is not NULL and next.base_gfn < TOP and 2 * slotset_count(set) > TILES:
        r[0] = region_of(sp, next.id, 0, 0, 0)
        r[1] = region_of(sp, a.id, 0, 0, 0)
        r[2] = region_of(sp, a.id, a.base_gfn, a.npages + next.npages, flags)
        steps = 3
    for n in range(steps):
        if seen == NOTHING:
            seen = stage(j.at, tx, r[n])
    return seen


cdef inline void commit(scene *at, transaction *tx) noexcept nogil:
    cdef int n
    for n in range(NSPACES):
        if tx.touched[n]:
            space_swap_begin(at.m.spaces[n])
    wait(at)
    for n in range(NSPACES):
        if tx.touched[n]:
            space_swap_end(at.m.spaces[n])
    for n in range(tx.count):
        update_carry(&tx.changes[n], &tx.spare[tx.changes[n].sp.as_id])


cdef inline void roll_back(transaction *tx) noexcept nogil:
    cdef int n, adds
    # What was put in goes first, so that what was taken out finds its place again.
    for adds in range(2):
        for n in range(tx.count):
            if (tx.changes[n].new is NULL) == (adds == 1):
                update_unstage(&tx.changes[n])


cdef inline wrong change_many(job *j) noexcept nogil:
    """A transaction in one space or in all of them, one in four taken back."""
    cdef wrong seen = NOTHING
    cdef bint refuse = throw(j, 4) == 0
    cdef transaction tx
    cdef slot *s
    cdef int n
    memset(&tx, 0, sizeof(tx))
    for n in range(NSPACES):
        if seen == NOTHING and throw(j, 2):
            seen = stage_some(j, &tx, j.at.m.spaces[n])
    for n in range(tx.count):
        s = tx.changes[n].new
        if s is not NULL and slotset_clash(space_inactive(tx.changes[n].sp), s) is not NULL:
            seen = NOT_TILED
    if refuse or seen != NOTHING:
        roll_back(&tx)
    else:
        commit(j.at, &tx)
    for n in range(tx.count):
        update_end(&tx.changes[n])
    for n in range(NSPACES):
        idtable_drop_spare(&tx.spare[n])
    return seen


cdef inline wrong change_tile(job *j) noexcept nogil:
    """Turns a tile's dirty log on or off."""
    cdef space *sp = any_space(j)
    cdef slot *s = slotset_search(space_active(sp), throw(j, TOP))
    return change_one(
        j.at,
        region_of(sp, s.id, s.base_gfn, s.npages, s.flags ^ SLOT_LOG_DIRTY_PAGES),
        throw(j, 4) == 0,
    )


cdef inline wrong change_other(job *j) noexcept nogil:
    """Creates, moves or deletes a slot elsewhere."""
    cdef space *sp = any_space(j)
    cdef uint32_t id = TILE_IDS + <uint32_t>throw(j, OTHERS)
    cdef gfn_t base_gfn = ELSEWHERE + 16 * <gfn_t>id + throw(j, 8)
    cdef slot *s = slotset_by_id(space_active(sp), id)
    cdef uint32_t flags = s.flags if s is not NULL else SLOT_LOG_DIRTY_PAGES * (id & 1)
    cdef uint64_t npages = OTHER_PAGES if s is NULL or throw(j, 2) else 0
    return change_one(j.at, region_of(sp, id, base_gfn, npages, flags), throw(j, 4) == 0)


cdef inline wrong write(job *j) noexcept nogil:
    cdef wrong seen = change_many(j)
    if seen == NOTHING:
        seen = change_tile(j)
    if seen == NOTHING:
        seen = change_other(j)
    return seen
