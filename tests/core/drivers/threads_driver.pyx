# cython: language_level=3, cdivision=True
"""Threads at one machine of the core, without Python: readers, those who mark and take dirty logs,
and a writer who re-arranges everything.

The slots of each space always tile one range of gfns, whatever the writer does; others come, move
and go elsewhere. No Python runs between the start of the first thread and the end of the last, so
that ThreadSanitizer, which does not know the interpreter's locks, sees nothing but the core.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport abort
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

from memslots.core.alloc cimport alloc_live
from memslots.core.atomics cimport atomic_fetch_add, atomic_load_relaxed, atomic_store_relaxed
from memslots.core.dirtylog cimport dirty_clear, dirty_free, dirty_get
from memslots.core.idtable cimport idtable_drop_spare, idtable_get_spare, idtable_spare
from memslots.core.index cimport index, index_free
from memslots.core.index_policy cimport (
    index_policy_build,
    index_policy_collect,
    index_policy_current,
)
from memslots.core.invariants cimport HOLDS, invariants_check_space, report
from memslots.core.lookup cimport lookup_gfn, vcpu_cache
from memslots.core.lookup_batch cimport (
    LOOKUP_IDS,
    MARK_DIRTY,
    TRANSLATE_WRITE,
    lookup_batch_index,
    lookup_batch_tree,
    lookup_kind,
)
from memslots.core.machine cimport machine, machine_free, machine_new
from memslots.core.region cimport (
    ALLOWED,
    CHANGE_NONE,
    limits,
    plan,
    region,
    region_check,
    region_classify,
    region_place,
)
from memslots.core.slot cimport (
    SLOT_INVALID,
    SLOT_LOG_DIRTY_PAGES,
    slot,
    slot_end_gfn,
    slot_free,
    slot_gfn_to_hva,
    slot_has_gfn,
)
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_clash,
    slotset_count,
    slotset_first,
    slotset_first_hva,
    slotset_last,
    slotset_next_hva,
    slotset_put,
    slotset_search,
    slotset_step,
)
from memslots.core.space cimport (
    SWAPPING,
    space,
    space_active,
    space_generation,
    space_inactive,
    space_swap_begin,
    space_swap_end,
)
from memslots.core.srcu cimport (
    srcu_alone,
    srcu_enter,
    srcu_idle,
    srcu_leave,
    srcu_reader,
    srcu_reader_get,
    srcu_reader_put,
    srcu_shared,
    srcu_wait,
)
from memslots.core.units cimport PAGE_SHIFT, gfn_t, gpa_t, hva_t
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

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_barrier_t:
        pass
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)
    int pthread_barrier_init(pthread_barrier_t *, const void *, unsigned)
    int pthread_barrier_wait(pthread_barrier_t *)
    int pthread_barrier_destroy(pthread_barrier_t *)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    NSPACES = 2
    TILES = 24  # slots in the range, of UNIT pages each at first
    UNIT = 8
    TOP = 24 * 8
    LOG_SIZE = 24  # bytes, of a slot that has the whole range
    TILE_IDS = 3 * 24  # a tile's id is below it
    OTHERS = 8  # ids from there on, of the slots elsewhere
    OTHER_PAGES = 4
    ELSEWHERE = 0x10000
    THREADS = 11  # as ROLES has
    STAGED = 2 * NSPACES  # ids that one transaction changes, at most

cdef enum wrong:
    NOTHING
    REFUSED
    HOLE
    TORN
    WRONG_HVA
    NOT_TILED
    NOT_BY_ID
    NOT_BY_HVA
    GENERATION_FELL
    MARKED_BEYOND_END
    NO_READER

WRONG = (
    "",
    "a change was refused, or there was no memory for it",
    "a page of the range was not held",
    "a look-up of many saw two sets",
    "a page had another slot's host address",
    "the slots did not tile the range",
    "a slot was not found by its id",
    "the slots by host address were not those by gfn",
    "the generation went back",
    "a page beyond the slot's end was marked",
    "there was no memory for a reader",
)

cdef struct scene:
    machine *m
    pthread_barrier_t start
    double end  # by the clock
    uint64_t wrong  # the first of the enum that was seen
    uint64_t waits  # how often the writer found readers to wait for
    uint64_t indexed  # how often a batch found an index
    gfn_t gfns[TOP]
    gpa_t gpas[TOP]

cdef struct job

ctypedef wrong (*round_t)(job *) noexcept nogil

# A thread and what it does, over and over.
cdef struct job:
    scene *at
    round_t once
    vcpu_cache *own  # NULL: it reads without a vCPU
    vcpu_cache vcpu
    uint64_t dice
    uint64_t rounds
    uint64_t generations[NSPACES]  # seen last


cdef double now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + time.tv_nsec * 1e-9


cdef uint64_t throw(job *j, uint64_t sides) noexcept nogil:
    """A number below `sides`."""
    j.dice = j.dice * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
    return (j.dice >> 33) % sides


cdef hva_t hva_of(uint32_t id) noexcept nogil:
    """A host address that tells the slot."""
    return (<hva_t>id + 1) << 32


cdef space *any_space(job *j) noexcept nogil:
    return j.at.m.spaces[throw(j, NSPACES)]


# The readers. What they find is checked while they are in, what they were given after they left.

cdef srcu_reader *reader_of(job *j, vcpu_cache *own) noexcept nogil:
    return own.reader if own is not NULL else srcu_shared(&j.at.m.readers)


cdef vcpu_cache *usable(srcu_reader *reader, vcpu_cache *own) noexcept nogil:
    """The cache of a vCPU that two threads may use: one of them has it, at most."""
    return own if own is not NULL and srcu_alone(reader) else NULL


cdef wrong look_up_each(job *j, vcpu_cache *own) noexcept nogil:
    cdef srcu_reader *reader = reader_of(j, own)
    cdef space *sp = any_space(j)
    cdef wrong seen = NOTHING
    cdef gfn_t gfn
    cdef slot *s
    cdef int side
    for _ in range(20):
        gfn = throw(j, TOP)
        side = srcu_enter(reader)
        s = lookup_gfn(sp, usable(reader, own), gfn)
        if s is NULL or not slot_has_gfn(s, gfn):
            seen = HOLE
        elif slot_gfn_to_hva(s, gfn) != hva_of(s.id) + ((gfn - s.base_gfn) << PAGE_SHIFT):
            seen = WRONG_HVA
        srcu_leave(reader, side)
    return seen


cdef wrong single(job *j) noexcept nogil:
    return look_up_each(j, j.own)


cdef wrong come_and_go(job *j) noexcept nogil:
    """A vCPU that is made, used and dropped."""
    cdef vcpu_cache vcpu
    cdef wrong seen
    memset(&vcpu, 0, sizeof(vcpu))
    vcpu.reader = srcu_reader_get(&j.at.m.readers)
    if vcpu.reader is NULL:
        return NO_READER
    seen = look_up_each(j, &vcpu)
    srcu_reader_put(vcpu.reader)
    return seen


cdef void batch(
    job *j, space *sp, lookup_kind kind, const uint64_t *given, void *out
) noexcept nogil:
    """The whole range at once, of one set: by its index if there is one."""
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef vcpu_cache cache
    cdef bint scattered = throw(j, 2)
    cdef int side = srcu_enter(reader)
    cdef slotset *set = space_active(sp)
    cdef const index *ix = index_policy_current(sp, set)
    if ix is NULL:
        lookup_batch_tree(set, usable(reader, j.own), kind, given, out, TOP)
    else:
        memset(&cache, 0, sizeof(cache))
        lookup_batch_index(ix, &cache, kind, given, out, TOP, &scattered)
        atomic_fetch_add(&j.at.indexed, 1)
    srcu_leave(reader, side)


cdef wrong many(job *j) noexcept nogil:
    cdef space *sp = any_space(j)
    cdef bint begun[TILE_IDS]
    cdef int32_t ids[TOP]
    cdef hva_t hvas[TOP]
    cdef int n
    if throw(j, 2):
        index_policy_build(sp, reader_of(j, j.own))
    batch(j, sp, LOOKUP_IDS, j.at.gfns, ids)
    batch(j, sp, TRANSLATE_WRITE, j.at.gpas, hvas)
    # All of one set: every page is held, and each slot's pages are in one run, from its first on.
    memset(begun, 0, sizeof(begun))
    for n in range(TOP):
        if not 0 <= ids[n] < TILE_IDS:
            return HOLE
        if n == 0 or ids[n] != ids[n - 1]:
            if begun[ids[n]]:
                return TORN
            begun[ids[n]] = True
        if <uint32_t>hvas[n] != 0 and (n == 0 or hvas[n] != hvas[n - 1] + (1 << PAGE_SHIFT)):
            return WRONG_HVA
    return NOTHING


cdef wrong check_tiles(const slotset *set) noexcept nogil:
    """By gfn both ways, by host address, by id."""
    cdef uint32_t tiles = 0, others = 0, by_hva = 0
    cdef gfn_t gfn = 0
    cdef slot *s = slotset_first(set)
    while s is not NULL and s.base_gfn < ELSEWHERE:
        if s.base_gfn != gfn or s.flags & SLOT_INVALID or s.id >= TILE_IDS:
            return NOT_TILED
        if s.userspace_addr != hva_of(s.id):
            return WRONG_HVA
        if slotset_by_id(set, s.id) is not s:
            return NOT_BY_ID
        gfn = slot_end_gfn(s)
        tiles += 1
        s = slotset_step(set, s, 1)
    if gfn != TOP:
        return NOT_TILED
    s = slotset_last(set)
    while s is not NULL and s.base_gfn >= ELSEWHERE:
        others += 1
        s = slotset_step(set, s, 0)
    if tiles + others != slotset_count(set):
        return NOT_TILED
    s = slotset_first_hva(set, 0, hva_of(TILE_IDS) - 1)
    while s is not NULL:
        by_hva += 1
        if slotset_search(set, s.base_gfn) is not s:
            return NOT_BY_HVA
        s = slotset_next_hva(set, s, 0, hva_of(TILE_IDS) - 1)
    return NOTHING if by_hva == tiles else NOT_BY_HVA


cdef wrong walk(job *j) noexcept nogil:
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef space *sp = any_space(j)
    cdef int side = srcu_enter(reader)
    cdef uint64_t generation = space_generation(sp) & ~SWAPPING
    cdef wrong seen = check_tiles(space_active(sp))
    srcu_leave(reader, side)
    if generation < j.generations[sp.as_id]:
        seen = GENERATION_FELL
    j.generations[sp.as_id] = generation
    return seen


cdef wrong mark(job *j) noexcept nogil:
    batch(j, any_space(j), MARK_DIRTY, j.at.gfns, NULL)
    return NOTHING


cdef wrong take(job *j) noexcept nogil:
    """Every log of a space: all at once, or as KVM has it, got first and then cleared."""
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef space *sp = any_space(j)
    cdef bint at_once = throw(j, 2)
    cdef unsigned char log[LOG_SIZE]
    cdef wrong seen = NOTHING
    cdef uint64_t page
    cdef int side = srcu_enter(reader)
    cdef slotset *set = space_active(sp)
    cdef slot *s = slotset_first(set)
    while s is not NULL:
        if s.dirty is not NULL:
            dirty_get(s, log, at_once)
            for page in range(s.npages, (s.npages + 63) & ~<uint64_t>63):
                if log[page >> 3] >> (page & 7) & 1:
                    seen = MARKED_BEYOND_END
            if not at_once:
                dirty_clear(s, 0, s.npages, log)
        s = slotset_step(set, s, 1)
    srcu_leave(reader, side)
    return seen


# The writer. It alone changes anything, so it reads without a section.

cdef void wait(scene *at) noexcept nogil:
    """As a Memslots' writer does."""
    cdef index *taken[NSPACES]
    cdef int n
    for n in range(NSPACES):
        taken[n] = index_policy_collect(at.m.spaces[n])
    if not srcu_idle(&at.m.readers):
        at.waits += 1
        srcu_wait(&at.m.readers)
    for n in range(NSPACES):
        index_free(taken[n])


cdef region region_of(
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


cdef wrong change_one(scene *at, region r, bint refuse) noexcept nogil:
    """Makes a change in the steps of update.pxd, or goes the road back."""
    cdef space *sp = at.m.spaces[r.as_id]
    cdef change c
    cdef plan p
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


cdef change *change_of(transaction *tx, space *sp, uint32_t id, slot *old) noexcept nogil:
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


cdef wrong stage(scene *at, transaction *tx, region r) noexcept nogil:
    cdef space *sp = at.m.spaces[r.as_id]
    cdef slotset *set = space_inactive(sp)
    cdef slot *before
    cdef slot *next
    cdef change *c
    cdef plan p
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


cdef wrong stage_some(job *j, transaction *tx, space *sp) noexcept nogil:
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


cdef void commit(scene *at, transaction *tx) noexcept nogil:
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


cdef void roll_back(transaction *tx) noexcept nogil:
    cdef int n, adds
    # What was put in goes first, so that what was taken out finds its place again.
    for adds in range(2):
        for n in range(tx.count):
            if (tx.changes[n].new is NULL) == (adds == 1):
                update_unstage(&tx.changes[n])


cdef wrong change_many(job *j) noexcept nogil:
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


cdef wrong change_tile(job *j) noexcept nogil:
    """Turns a tile's dirty log on or off."""
    cdef space *sp = any_space(j)
    cdef slot *s = slotset_search(space_active(sp), throw(j, TOP))
    return change_one(
        j.at,
        region_of(sp, s.id, s.base_gfn, s.npages, s.flags ^ SLOT_LOG_DIRTY_PAGES),
        throw(j, 4) == 0,
    )


cdef wrong change_other(job *j) noexcept nogil:
    """Creates, moves or deletes a slot elsewhere."""
    cdef space *sp = any_space(j)
    cdef uint32_t id = TILE_IDS + <uint32_t>throw(j, OTHERS)
    cdef gfn_t base_gfn = ELSEWHERE + 16 * <gfn_t>id + throw(j, 8)
    cdef slot *s = slotset_by_id(space_active(sp), id)
    cdef uint32_t flags = s.flags if s is not NULL else SLOT_LOG_DIRTY_PAGES * (id & 1)
    cdef uint64_t npages = OTHER_PAGES if s is NULL or throw(j, 2) else 0
    return change_one(j.at, region_of(sp, id, base_gfn, npages, flags), throw(j, 4) == 0)


cdef wrong write(job *j) noexcept nogil:
    cdef wrong seen = change_many(j)
    if seen == NOTHING:
        seen = change_tile(j)
    if seen == NOTHING:
        seen = change_other(j)
    return seen


# The threads.

cdef void *run(void *argument) noexcept nogil:
    cdef job *j = <job *>argument
    cdef scene *at = j.at
    cdef timespec pause
    cdef wrong seen
    pause.tv_sec = 0
    pause.tv_nsec = 1000
    pthread_barrier_wait(&at.start)
    # Nothing here may order one thread after another: that is what the core has to do.
    while now() < at.end and atomic_load_relaxed(&at.wrong) == NOTHING:
        seen = j.once(j)
        if seen != NOTHING:
            atomic_store_relaxed(&at.wrong, seen)
        j.rounds += 1
        # A thread whose time is used up is stopped in a section, most likely, and the writer waits
        # until it is its turn again: so it makes way before. One that sleeps comes back wherever a
        # processor is free; those that only make way may all stay on one.
        if throw(j, 8) == 0:
            nanosleep(&pause, NULL)
        else:
            sched_yield()
    return NULL


cdef void run_all(scene *at, job *jobs, double seconds) noexcept nogil:
    cdef pthread_t threads[THREADS]
    cdef int n
    pthread_barrier_init(&at.start, NULL, THREADS)
    at.end = now() + seconds
    for n in range(THREADS):
        if pthread_create(&threads[n], NULL, run, &jobs[n]) != 0:
            abort()  # the others would wait at the start for ever
    for n in range(THREADS):
        pthread_join(threads[n], NULL)
    pthread_barrier_destroy(&at.start)


cdef wrong set_up(scene *at) noexcept nogil:
    cdef wrong seen = NOTHING
    cdef limits lim
    cdef int n, k
    lim.max_slots = 1000
    lim.nspaces = NSPACES
    lim.max_gfn = 1 << 40
    lim.max_hva = 1 << 47
    lim.manual_dirty_log = 0
    at.m = machine_new(&lim)
    if at.m is NULL:
        return REFUSED
    at.wrong = NOTHING
    for n in range(TOP):
        at.gfns[n] = n
        at.gpas[n] = <gpa_t>n << PAGE_SHIFT
    for k in range(NSPACES):
        for n in range(TILES):
            if seen == NOTHING:
                seen = change_one(
                    at,
                    region_of(at.m.spaces[k], n, UNIT * n, UNIT, SLOT_LOG_DIRTY_PAGES * (n & 1)),
                    False,
                )
    return seen


cdef void tear_down(scene *at) noexcept nogil:
    cdef space *sp
    cdef slot *s
    cdef int k
    if at.m is NULL:
        return
    for k in range(NSPACES):
        sp = at.m.spaces[k]
        s = slotset_first(&sp.sets[0])
        while s is not NULL:
            slotset_put(&sp.sets[0], s, NULL, NULL)
            slotset_put(&sp.sets[1], s, NULL, NULL)
            dirty_free(s.dirty)
            slot_free(s)
            s = slotset_first(&sp.sets[0])
    machine_free(at.m)


# What each thread does, and as whom: without a vCPU, with one of its own, or with the one that the
# thread before it has.
ROLES = (
    ("write", ""),
    ("single", ""),
    ("single", "own"),
    ("single", "shared"),
    ("come and go", ""),
    ("many", ""),
    ("many", "own"),
    ("walk", ""),
    ("walk", "own"),
    ("mark", "own"),
    ("take", ""),
)


cdef round_t round_of(str role) except NULL:
    cdef round_t found = NULL
    if role == "write":
        found = write
    elif role == "single":
        found = single
    elif role == "come and go":
        found = come_and_go
    elif role == "many":
        found = many
    elif role == "walk":
        found = walk
    elif role == "mark":
        found = mark
    elif role == "take":
        found = take
    return found


def stress(double seconds):
    """Runs the threads; gives the rounds that each made, and how often the writer had to wait.
    AssertionError where a thread saw what must not be, where an invariant is broken at the end, or
    where memory was not given back.
    """
    cdef scene at
    cdef job jobs[THREADS]
    cdef report found
    cdef wrong seen
    cdef job *j
    cdef int n
    live = alloc_live()
    memset(&at, 0, sizeof(at))
    memset(jobs, 0, sizeof(jobs))
    seen = set_up(&at)
    for n, (role, vcpu) in enumerate(ROLES):
        j = &jobs[n]
        j.at = &at
        j.dice = n
        j.once = round_of(role)
        if vcpu == "own":
            j.own = &j.vcpu
            j.vcpu.reader = srcu_reader_get(&at.m.readers)
        elif vcpu == "shared":
            j.own = jobs[n - 1].own
    if seen == NOTHING:
        with nogil:
            run_all(&at, jobs, seconds)
        seen = <wrong>at.wrong
    for n in range(NSPACES):
        if seen == NOTHING:
            invariants_check_space(at.m.spaces[n], &found)
            assert found.broken == HOLDS, found.broken
            seen = check_tiles(space_active(at.m.spaces[n]))
    tear_down(&at)
    assert seen == NOTHING, WRONG[<int>seen]
    assert alloc_live() == live
    rounds = [(role, jobs[n].rounds) for n, (role, _) in enumerate(ROLES)]
    return [*rounds, ("wait", at.waits), ("indexed", at.indexed)]
