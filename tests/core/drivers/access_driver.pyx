# cython: language_level=3
"""Drives memslots.core.access on the slots of a Memslots. Only copy and fill touch their memory."""

from libc.stdint cimport uint64_t

from memslots.core.access cimport (
    ACCESS_BAD,
    ACCESS_NO_MEMORY,
    ACCESS_READ,
    ACCESS_RESTORE,
    ACCESS_WRITE,
    ACCESS_ALL,
    FEW_SPANS,
    access,
    access_fill,
    access_free,
    access_init,
    access_kind,
    access_mark,
    access_meets,
    access_probe,
    access_read,
    access_result,
    access_split,
    access_write,
)
from memslots.core.space cimport space_active
from memslots.core.srcu cimport srcu_enter, srcu_leave, srcu_reader
from memslots.core.units cimport gpa_t
from memslots.memslots cimport memslots_reader, memslots_space

FEW = FEW_SPANS

cdef dict KINDS = {"read": ACCESS_READ, "write": ACCESS_WRITE, "restore": ACCESS_RESTORE}


class Bad(Exception):
    """ACCESS_BAD; args[0] is the guest address."""


cdef class Access:
    """An access that was worked out, and is over when this goes."""

    cdef object face
    cdef access a
    cdef bint due  # whether access_free is

    def __cinit__(self, face, gpa, size, kind):
        cdef gpa_t address = gpa
        cdef uint64_t length = size
        cdef access_kind how = <access_kind><int>KINDS[kind]
        cdef srcu_reader *reader = memslots_reader(face)
        cdef int side = srcu_enter(reader)
        cdef access_result result = access_init(
            &self.a, space_active(memslots_space(face)), address, length, how
        )
        srcu_leave(reader, side)
        if result == ACCESS_BAD:
            raise Bad(self.a.bad)
        if result == ACCESS_NO_MEMORY:
            raise MemoryError
        self.face = face
        self.due = True

    def __dealloc__(self):
        if self.due:
            access_free(&self.a)

    @property
    def spans(self):
        """(gpa, hva, size, id, readonly) of each."""
        cdef size_t n
        found = []
        for n in range(self.a.count):
            found.append(
                (
                    self.a.spans[n].gpa,
                    self.a.spans[n].hva,
                    self.a.spans[n].size,
                    self.a.spans[n].id,
                    bool(self.a.spans[n].readonly),
                )
            )
        return found

    @property
    def is_few(self):
        """Whether it holds the spans itself."""
        return self.a.spans == self.a.few

    def mark(self):
        cdef srcu_reader *reader = memslots_reader(self.face)
        cdef int side = srcu_enter(reader)
        access_mark(&self.a, space_active(memslots_space(self.face)))
        srcu_leave(reader, side)

    def split(self, n, size):
        if not access_split(&self.a, n, size):
            raise MemoryError

    def put_behind(self, Access other):
        """Writes the first span of another access behind the last span of this one."""
        assert self.is_few and self.a.count < <size_t>FEW_SPANS
        self.a.few[self.a.count] = other.a.spans[0]
        self.a.few[self.a.count].may_fault = True

    def meets(self, address, size):
        cdef size_t memory = address
        return access_meets(&self.a, <const void *>memory, size)

    def probe(self):
        """The first address that is missing, or None."""
        return missing(access_probe(&self.a))

    def read(self, unsigned char[::1] out):
        return missing(access_read(&self.a, &out[0]))

    def write(self, const unsigned char[::1] data):
        return missing(access_write(&self.a, &data[0]))

    def fill(self, byte):
        return missing(access_fill(&self.a, byte))


cdef object missing(gpa_t bad):
    return None if bad == <gpa_t>ACCESS_ALL else bad
