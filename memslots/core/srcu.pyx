"""Readers enter and leave without waiting.

srcu.pxd says how it works and has the contract of each function.
"""

from libc.stdint cimport uint64_t
from posix.time cimport nanosleep, timespec

from memslots.core.alloc cimport alloc_free, alloc_lines
from memslots.core.atomics cimport (
    atomic_compare_exchange_ptr,
    atomic_cpu_relax,
    atomic_exchange_acq_rel,
    atomic_fence,
    atomic_load_acquire_ptr,
    atomic_store_relaxed,
    atomic_store_release,
)
from memslots.core.debug cimport debug_assert

cdef extern from *:
    """
    static _Thread_local uint64_t memslots_thread = 0;
    static _Thread_local int memslots_depth = 0;
    """
    uint64_t thread "memslots_thread"  # this thread's number, from 1; 0: no number yet
    int depth "memslots_depth"  # the number of sections this thread is in; only in a debug build

cdef enum:
    SPINS = 1000  # about 25 microseconds: most sections of a batch end sooner

cdef uint64_t threads = 0  # the number of threads that have a number


cdef int *srcu_depth() noexcept nogil:
    return &depth


cdef void srcu_init(srcu *domain) noexcept nogil:
    cdef int i
    domain.turn = 0
    domain.readers = NULL
    for i in range(SHARED_READERS):
        domain.shared[i].inside[0] = 0
        domain.shared[i].inside[1] = 0
        domain.shared[i].domain = domain


cdef void srcu_clear(srcu *domain) noexcept nogil:
    cdef srcu_reader *reader = domain.readers
    cdef srcu_reader *next
    domain.readers = NULL
    while reader is not NULL:
        next = reader.next
        alloc_free(reader)
        reader = next


cdef inline srcu_reader *first(srcu *domain) noexcept nogil:
    """Returns the first reader of a domain's list, or NULL.

    Acquire: pairs with the release in srcu_reader_get, so its domain and next are seen.
    """
    return <srcu_reader *>atomic_load_acquire_ptr(<void *const *>&domain.readers)


cdef srcu_reader *srcu_reader_get(srcu *domain) noexcept nogil:
    cdef srcu_reader *reader = first(domain)
    while reader is not NULL:
        if not atomic_load_relaxed(&reader.taken) and not atomic_exchange_acq_rel(&reader.taken, 1):
            return reader
        reader = reader.next
    reader = <srcu_reader *>alloc_lines(sizeof(srcu_reader))
    if reader is not NULL:
        reader.domain = domain
        reader.taken = 1
        reader.next = first(domain)
        # No reader ever leaves the list. So if its head is unchanged, the list is unchanged.
        while not atomic_compare_exchange_ptr(
            <void **>&domain.readers, <void **>&reader.next, reader
        ):
            pass
    return reader


cdef void srcu_reader_put(srcu_reader *reader) noexcept nogil:
    if reader is not NULL:
        atomic_store_release(&reader.taken, 0)


cdef srcu_reader *srcu_shared(srcu *domain) noexcept nogil:
    global thread
    if thread == 0:
        thread = atomic_fetch_add(&threads, 1) + 1
    return &domain.shared[thread % SHARED_READERS]


cdef inline bint is_in(srcu_reader *reader, int side) noexcept nogil:
    # Acquire: pairs with the release of srcu_leave.
    return atomic_load_acquire(&reader.inside[side]) != 0


cdef bint srcu_idle(srcu *domain) noexcept nogil:
    cdef srcu_reader *reader
    cdef int i
    atomic_fence()  # as in srcu_wait
    for i in range(SHARED_READERS):
        if is_in(&domain.shared[i], 0) or is_in(&domain.shared[i], 1):
            return False
    reader = first(domain)
    while reader is not NULL:
        if is_in(reader, 0) or is_in(reader, 1):
            return False
        reader = reader.next
    return True


cdef void drain_line(srcu_reader *reader, int side) noexcept nogil:
    cdef timespec pause
    cdef int spins = 0
    pause.tv_sec = 0
    pause.tv_nsec = 1  # the shortest there is: a reader may need this very processor
    while is_in(reader, side):
        if spins < SPINS:
            spins += 1
            atomic_cpu_relax()
        else:
            nanosleep(&pause, NULL)


cdef void drain(srcu *domain, int side) noexcept nogil:
    """Waits until no reader is left on the counters of `side`, which new readers do not use.

    It waits for one line after another. Only stragglers can still enter on these counters.
    """
    cdef srcu_reader *reader
    cdef int i
    for i in range(SHARED_READERS):
        drain_line(&domain.shared[i], side)
    reader = first(domain)
    while reader is not NULL:
        drain_line(reader, side)
        reader = reader.next


cdef void srcu_wait(srcu *domain) noexcept nogil:
    cdef uint64_t turn = domain.turn
    debug_assert(depth == 0, b"srcu_wait: not from within a section")
    # Pairs with the fence of srcu_enter. A reader that is not seen here sees what was published
    # before. An srcu_reader added before is seen here.
    atomic_fence()
    # Stragglers: they read the turn before the last wait took this counter out of use, and counted
    # themselves after.
    drain(domain, (turn & 1) ^ 1)
    atomic_store_relaxed(&domain.turn, turn + 1)
    # A reader that counts on the old counter from here on is a straggler of the next wait. It sees
    # what was published.
    atomic_fence()
    drain(domain, turn & 1)


cdef void srcu_forget(srcu *domain) noexcept nogil:
    cdef srcu_reader *reader = domain.readers
    cdef int i, side
    for side in range(2):
        for i in range(SHARED_READERS):
            domain.shared[i].inside[side] = 0
    while reader is not NULL:
        reader.inside[0] = 0
        reader.inside[1] = 0
        reader = reader.next
