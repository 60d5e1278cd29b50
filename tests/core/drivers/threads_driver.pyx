# cython: language_level=3, cdivision=True
"""Threads that use one machine of the core, without Python. Readers look up, other threads mark
pages and take dirty logs, and a writer re-arranges everything.

The slots of each space always tile one range of gfns, whatever the writer does; others come, move
and go elsewhere. No Python runs between the start of the first thread and the end of the last, so
that ThreadSanitizer, which does not know the interpreter's locks, sees nothing but the core.
"""

from libc.stdlib cimport abort
from libc.string cimport memset
from posix.time cimport nanosleep, timespec

from memslots.core.alloc cimport alloc_live
from memslots.core.atomics cimport atomic_load_relaxed, atomic_store_relaxed
from memslots.core.dirtylog cimport dirty_free
from memslots.core.invariants cimport HOLDS, invariants_check_space, report
from memslots.core.machine cimport machine_free, machine_new
from memslots.core.region cimport limits
from memslots.core.slot cimport SLOT_LOG_DIRTY_PAGES, slot, slot_free
from memslots.core.slotset cimport slotset_drop_index, slotset_first, slotset_put
from memslots.core.space cimport space, space_active
from memslots.core.srcu cimport srcu_reader_get
from memslots.core.units cimport PAGE_SHIFT, gpa_t

from threads_readers cimport check_tiles, come_and_go, keep, many, mark, single, take, walk
from threads_scene cimport (
    NOTHING,
    NSPACES,
    REFUSED,
    THREADS,
    TILES,
    TOP,
    UNIT,
    job,
    now,
    pthread_barrier_destroy,
    pthread_barrier_init,
    pthread_barrier_wait,
    pthread_create,
    pthread_join,
    pthread_t,
    round_t,
    scene,
    sched_yield,
    throw,
    wrong,
)
from threads_writer cimport change_one, region_of, write

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
        slotset_drop_index(&sp.sets[0])
        slotset_drop_index(&sp.sets[1])
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
    ("keep", ""),
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
    elif role == "keep":
        found = keep
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
