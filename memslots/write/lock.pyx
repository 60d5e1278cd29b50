"""The lock of a writer. How it works and the contract of each function are in lock.pxd."""

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
)
from libc.stdint cimport uint64_t

from memslots.core.atomics cimport atomic_fetch_add_acq_rel, atomic_store_relaxed

cdef extern from "pythread.h":
    # The parts of this header that Cython's cpython.pythread leaves out.
    ctypedef enum PyLockStatus:
        PY_LOCK_INTR
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible
    ) noexcept nogil


cdef PyThread_type_lock new_handover() noexcept:
    """Returns a new closed lock, or NULL if there is no memory."""
    cdef PyThread_type_lock handover = PyThread_allocate_lock()
    if handover is not NULL:
        PyThread_acquire_lock(handover, NOWAIT_LOCK)
    return handover


cdef int lock_init(writer_lock *lock) noexcept:
    lock.count = 0
    lock.handover = new_handover()
    return 0 if lock.handover is not NULL else -1


cdef void lock_clear(writer_lock *lock) noexcept:
    if lock.handover is not NULL:
        PyThread_free_lock(lock.handover)


cdef void pass_gate(writer_lock *lock) noexcept:
    with nogil:
        PyThread_acquire_lock_timed(lock.handover, -1, 0)


cdef void give_up(writer_lock *lock) noexcept:
    """Stops waiting for the lock."""
    cdef uint64_t count = atomic_load_relaxed(&lock.count)
    while count > 1:
        if atomic_compare_exchange(&lock.count, &count, count - 1):
            return
    # No other thread is left: the lock was just handed over to this one.
    pass_gate(lock)
    lock_release(lock)


cdef int lock_wait(writer_lock *lock) except -1:
    cdef PyLockStatus got
    if atomic_fetch_add_acq_rel(&lock.count, 1) == 0:
        return 0
    while True:
        with nogil:
            got = PyThread_acquire_lock_timed(lock.handover, -1, 1)
        if got != PY_LOCK_INTR:
            return 0
        try:
            PyErr_CheckSignals()
        except BaseException:
            give_up(lock)
            raise


cdef void lock_after_fork(writer_lock *lock, bint held) noexcept:
    cdef PyThread_type_lock handover = new_handover()
    # The old lock is not freed: the fork may have caught the system's lock in the middle of a step.
    if handover is not NULL:
        lock.handover = handover
    atomic_store_relaxed(&lock.count, held)
