"""The lock of a writer: a word where nobody waits for it, a lock of Python's to sleep at.

Python's own takes the time of day before it looks whether it is free, which would be an eighth of a
change of flags. Not installed: Cython code outside goes through memslots.pxd.
"""

from cpython.pythread cimport PyThread_release_lock, PyThread_type_lock
from libc.stdint cimport uint64_t

from memslots.core.atomics cimport compare_exchange, exchange_acq_rel, load_relaxed

cdef enum lock_state:
    LOCK_FREE
    LOCK_HELD
    LOCK_AWAITED  # held, and somebody may be waiting

cdef struct writer_lock:
    uint64_t state  # lock_state
    # Where to wait, closed; opened by whoever lets an awaited lock go. To be woken for nothing does
    # no harm: whoever wakes tries again.
    PyThread_type_lock gate


# Makes it free. -1: no memory, it must not be used.
cdef int lock_init(writer_lock *lock) noexcept
cdef void lock_clear(writer_lock *lock) noexcept
# Takes it, however long that takes; lets the GIL go meanwhile. A signal's handler may raise: then
# it was not taken.
cdef int lock_wait(writer_lock *lock) except -1
# In the child of a fork: makes it free, whoever held it.
cdef void lock_forget(writer_lock *lock) noexcept


cdef inline bint lock_try(writer_lock *lock) noexcept:
    """Takes it if it is free."""
    cdef uint64_t state = LOCK_FREE
    return compare_exchange(&lock.state, &state, LOCK_HELD)


cdef inline bint lock_is_held(const writer_lock *lock) noexcept:
    return load_relaxed(&lock.state) != LOCK_FREE


cdef inline void lock_release(writer_lock *lock) noexcept:
    """By whatever thread."""
    if exchange_acq_rel(&lock.state, LOCK_FREE) == LOCK_AWAITED:
        PyThread_release_lock(lock.gate)
