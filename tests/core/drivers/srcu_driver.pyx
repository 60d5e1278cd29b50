# cython: language_level=3
"""Drives memslots.core.srcu alone: one domain, readers, and waits that let other threads run."""

from memslots.core.alloc cimport alloc_free, alloc_lines
from memslots.core.srcu cimport (
    SHARED_READERS,
    srcu,
    srcu_alone,
    srcu_clear,
    srcu_enter,
    srcu_forget,
    srcu_idle,
    srcu_init,
    srcu_leave,
    srcu_reader,
    srcu_reader_get,
    srcu_reader_put,
    srcu_shared,
    srcu_wait,
)
from memslots.memslots cimport memslots_reader

from memslots import Memslots

shared_readers = SHARED_READERS


cdef class Domain:
    cdef srcu *domain

    def __cinit__(self):
        self.domain = <srcu *>alloc_lines(sizeof(srcu))
        if self.domain is NULL:
            raise MemoryError
        srcu_init(self.domain)

    def __dealloc__(self):
        if self.domain is not NULL:
            srcu_clear(self.domain)
            alloc_free(self.domain)

    def reader(self):
        return reader_of(self, srcu_reader_get(self.domain))

    def shared(self):
        return reader_of(self, srcu_shared(self.domain))

    def idle(self):
        return srcu_idle(self.domain)

    def wait(self):
        with nogil:
            srcu_wait(self.domain)

    def wait_in_a_section(self):
        """What nobody may do: a debug build stops at it."""
        srcu_enter(srcu_shared(self.domain))
        if not srcu_idle(self.domain):
            srcu_forget(self.domain)
        srcu_wait(self.domain)

    def forget(self):
        srcu_forget(self.domain)


cdef class Reader:
    cdef srcu_reader *reader
    cdef object owner

    @property
    def address(self):
        return <size_t>self.reader

    def enter(self):
        return srcu_enter(self.reader)

    def leave(self, side):
        srcu_leave(self.reader, side)

    def alone(self):
        return srcu_alone(self.reader)

    def put(self):
        srcu_reader_put(self.reader)


cdef reader_of(Domain owner, srcu_reader *reader):
    if reader is NULL:
        raise MemoryError
    cdef Reader made = Reader.__new__(Reader)
    made.reader = reader
    made.owner = owner
    return made


cdef class Section:
    """A reader inside a read-side section of a Memslots, until it leaves."""

    cdef srcu_reader *reader
    cdef int side
    cdef object face

    def __cinit__(self, face):
        self.face = face
        self.reader = memslots_reader(face)
        self.side = srcu_enter(self.reader)

    def leave(self):
        srcu_leave(self.reader, self.side)


def change_in_a_section():
    """What nobody may do either. (The change is refused, so it waits for no reader.)"""
    vm = Memslots()
    cdef srcu_reader *reader = memslots_reader(vm)
    cdef int side = srcu_enter(reader)
    try:
        vm.delete(0)
    except KeyError:
        srcu_leave(reader, side)
