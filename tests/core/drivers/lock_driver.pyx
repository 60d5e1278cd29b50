# cython: language_level=3
"""Drives the lock of a writer (memslots.write.lock) alone."""

from libc.string cimport memset

from cpython.pythread cimport NOWAIT_LOCK, PyThread_acquire_lock, PyThread_release_lock

from memslots.write.lock cimport (
    lock_after_fork,
    lock_clear,
    lock_init,
    lock_is_held,
    lock_release,
    lock_try,
    lock_wait,
    writer_lock,
)


cdef class Lock:
    cdef writer_lock lock

    def __cinit__(self):
        memset(&self.lock, 0xFF, sizeof(writer_lock))  # a caller need not clear it
        if lock_init(&self.lock) != 0:
            raise MemoryError

    def __dealloc__(self):
        lock_clear(&self.lock)

    @property
    def held(self):
        return lock_is_held(&self.lock)

    def take(self):
        """Takes the lock if it is free. Whether it was."""
        return lock_try(&self.lock)

    def wait(self):
        lock_wait(&self.lock)

    def release(self):
        lock_release(&self.lock)

    def hand_over(self):
        """Opens the gate, as a release does while another thread waits."""
        PyThread_release_lock(self.lock.handover)

    def after_fork(self, held):
        lock_after_fork(&self.lock, held)

    @property
    def gate(self):
        """The address of the gate at which threads wait."""
        return <size_t>self.lock.handover

    def is_open(self):
        """Whether a thread that waits would get through at once. If so, closes the gate."""
        return PyThread_acquire_lock(self.lock.handover, NOWAIT_LOCK) != 0
