"""The lock of a writer: a count where nobody waits for it, a lock of Python's to sleep at.

Python's own takes the time of day before it looks whether it is free, which would be an eighth of a
change of flags. Whoever lets the lock go while others wait hands it over to one of them: that one
has it before it has the GIL back, or a thread that takes the lock again at once would always be
first. Not installed: Cython code outside goes through memslots.pxd.
"""

from cpython.pythread cimport PyThread_release_lock, PyThread_type_lock
from libc.stdint cimport uint64_t

from memslots.core.atomics cimport (
    atomic_compare_exchange,
    atomic_fetch_sub_acq_rel,
    atomic_load_relaxed,
)

cdef struct writer_lock:
    uint64_t count  # whoever has the lock, and those who wait for it
    # Where to wait, closed; opened once for each time that the lock is handed over. Whoever gets
    # through has the lock.
    PyThread_type_lock handover


# Makes it free. -1: no memory, it must not be used.
cdef int lock_init(writer_lock *lock) noexcept
cdef void lock_clear(writer_lock *lock) noexcept
# Takes it, however long that takes; lets the GIL go meanwhile. A signal's handler may raise: then
# it was not taken.
cdef int lock_wait(writer_lock *lock) except -1
# In the child of a fork: nobody waits for it, and it is held only if the thread that forked has it.
cdef void lock_after_fork(writer_lock *lock, bint held) noexcept


cdef inline bint lock_try(writer_lock *lock) noexcept:
    """Takes it if it is free."""
    cdef uint64_t count = 0
    return atomic_compare_exchange(&lock.count, &count, 1)


cdef inline bint lock_is_held(const writer_lock *lock) noexcept:
    return atomic_load_relaxed(&lock.count) != 0


cdef inline void lock_release(writer_lock *lock) noexcept:
    """By whatever thread."""
    if atomic_fetch_sub_acq_rel(&lock.count, 1) > 1:
        PyThread_release_lock(lock.handover)
