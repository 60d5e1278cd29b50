"""Making a change, as memslots.pyx calls it.

The lock of a Writer is the only lock. Whoever takes it lets the GIL go while waiting for it, and
while waiting for readers: no reader ever waits for a writer. Listeners run while it is held.

Not installed: Cython code outside goes through memslots.pxd.
"""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint32_t

from memslots.core.region cimport CHANGE_NONE, change_kind, limits, region
from memslots.faces cimport ReadFace

# What a verb wants of the slot it names.
cdef enum demand:
    ANY
    NO_SLOT

# The Change of a kind.
cdef object change_record(change_kind kind)

cdef class Writer(ReadFace):
    cdef PyThread_type_lock lock  # held by the thread that is changing something
    cdef unsigned long writer  # that thread's ident; 0: none. Written by whoever holds the lock
    # the listeners' Subscriptions; replaced as a whole, never changed in place
    cdef tuple subscriptions

    cdef int own_machine(self, const limits *lim) except -1
    cdef int enter(self, str what) except -1
    cdef void leave(self) noexcept
    cdef void wait_for_readers(self) noexcept
    cdef int region_of(self, region *r, uint32_t id, uint32_t as_id) except -1
    cdef object current(self, const region *r)
    cdef change_kind make(self, const region *r, demand wants) except? CHANGE_NONE
