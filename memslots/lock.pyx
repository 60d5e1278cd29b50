"""The lock of a writer. How it works and the contract of each function are in lock.pxd."""

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
)

from memslots.core.atomics cimport store_relaxed

cdef extern from "pythread.h":
    # Of this header, what Cython's own cpython.pythread leaves out.
    ctypedef enum PyLockStatus:
        PY_LOCK_INTR
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible
    ) noexcept nogil


cdef int lock_init(writer_lock *lock) noexcept:
    lock.state = LOCK_FREE
    lock.gate = PyThread_allocate_lock()
    if lock.gate is NULL:
        return -1
    PyThread_acquire_lock(lock.gate, NOWAIT_LOCK)
    return 0


cdef void lock_clear(writer_lock *lock) noexcept:
    if lock.gate is not NULL:
        PyThread_free_lock(lock.gate)


cdef int lock_wait(writer_lock *lock) except -1:
    cdef PyLockStatus got
    # What is taken after a wait counts as awaited, since others may wait as well.
    while exchange_acq_rel(&lock.state, LOCK_AWAITED) != LOCK_FREE:
        with nogil:
            got = PyThread_acquire_lock_timed(lock.gate, -1, 1)
        if got == PY_LOCK_INTR:
            PyErr_CheckSignals()
    return 0


cdef void lock_forget(writer_lock *lock) noexcept:
    cdef PyThread_type_lock gate = PyThread_allocate_lock()
    # The old one is not given back: a system's lock may have been in the middle of something.
    if gate is not NULL:
        PyThread_acquire_lock(gate, NOWAIT_LOCK)
        lock.gate = gate
    store_relaxed(&lock.state, LOCK_FREE)
