# cython: language_level=3
"""Drives memslots.core.dirtylog on a slot that is in no set."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from memslots.core.dirtylog cimport (
    dirty_free,
    dirty_get,
    dirty_mark,
    dirty_mark_range,
    dirty_merge,
    dirty_new,
    dirty_words,
)
from memslots.core.pool cimport pool, pool_clear
from memslots.core.slot cimport (
    SLOT_LOG_DIRTY_PAGES,
    SLOT_READONLY,
    region,
    slot,
    slot_free,
    slot_new,
    slot_pool_init,
)


cdef class Log:
    """The dirty log of a slot; with `logs` False it has none."""

    cdef pool memory
    cdef slot *s

    def __cinit__(self, base_gfn, npages, logs=True, readonly=False):
        slot_pool_init(&self.memory)
        flags = (SLOT_LOG_DIRTY_PAGES if logs else 0) | (SLOT_READONLY if readonly else 0)
        cdef region r
        r.id = 0
        r.as_id = 0
        r.flags = flags
        r.base_gfn = base_gfn
        r.npages = npages
        r.userspace_addr = 0
        self.s = slot_new(&self.memory, &r)
        if self.s is NULL:
            raise MemoryError
        if logs:
            self.s.dirty = dirty_new(npages, False)
            if self.s.dirty is NULL:
                raise MemoryError

    def __dealloc__(self):
        if self.s is not NULL:
            dirty_free(self.s.dirty)
            slot_free(self.s)
        pool_clear(&self.memory)

    def mark(self, gfn):
        dirty_mark(self.s, gfn)

    def mark_range(self, first, last):
        dirty_mark_range(self.s, first, last)

    def merge(self, bytes bitmap):
        assert len(bitmap) == 8 * dirty_words(self.s.npages)
        dirty_merge(self.s, <const unsigned char *>PyBytes_AS_STRING(bitmap))

    def get(self, take=False):
        """The bitmap; b"" where there is none."""
        if self.s.dirty is NULL:
            return b""
        out = PyBytes_FromStringAndSize(NULL, 8 * dirty_words(self.s.npages))
        dirty_get(self.s, <unsigned char *>PyBytes_AS_STRING(out), take)
        return out
