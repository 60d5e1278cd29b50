"""The lock of a writer: a count to take when it is free, and a Python lock to sleep on.

A Python lock alone reads the clock before it looks whether it is free. That would be an eighth of
the time of a FLAGS_ONLY change. A release while threads wait hands the lock over to one of them,
which has it even before it has the GIL again. Otherwise a thread that releases and takes the lock
in a loop would always win. Not installed: Cython code outside this package uses memslots.pxd.
"""

from cpython.pythread cimport PyThread_release_lock, PyThread_type_lock
from libc.stdint cimport uint64_t

from memslots.core.atomics cimport (
    atomic_compare_exchange,
    atomic_fetch_sub_acq_rel,
    atomic_load_relaxed,
)

cdef struct writer_lock:
    uint64_t count  # of threads: the one that has the lock, and those that wait for it
    # A closed lock to wait on. A handover opens it once; the thread that gets through has the
    # writer's lock.
    PyThread_type_lock handover


# Makes the lock free. -1: no memory; the lock must not be used.
cdef int lock_init(writer_lock *lock) noexcept
cdef void lock_clear(writer_lock *lock) noexcept
# Waits for the lock and takes it; releases the GIL meanwhile. If a signal handler raises, the lock
# was not taken.
cdef int lock_wait(writer_lock *lock) except -1
# Resets the lock in the child of a fork: no thread waits. `held`: the thread that forked has it.
cdef void lock_after_fork(writer_lock *lock, bint held) noexcept


cdef inline bint lock_try(writer_lock *lock) noexcept:
    """Takes the lock if it is free. Returns whether it did."""
    cdef uint64_t count = 0
    return atomic_compare_exchange(&lock.count, &count, 1)


cdef inline bint lock_is_held(const writer_lock *lock) noexcept:
    return atomic_load_relaxed(&lock.count) != 0


cdef inline void lock_release(writer_lock *lock) noexcept:
    """Releases the lock, or hands it over to a thread that waits. Any thread may call it."""
    if atomic_fetch_sub_acq_rel(&lock.count, 1) > 1:
        PyThread_release_lock(lock.handover)
