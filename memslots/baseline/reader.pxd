"""The readers of the arrays, for arraymemslots.pyx to extend."""

from libc.stdint cimport uint32_t

from memslots.baseline.slotarray cimport array_cache, arrayspace
from memslots.baseline.writer cimport ArrayWriter
from memslots.core.lookup_batch cimport lookup_kind

cdef class ArrayReader:
    cdef ArrayWriter writer  # owns the address space that is read; None if there is none
    cdef arrayspace *sp  # the address space
    cdef array_cache *own  # a last-used slot of its own, or NULL: the array's is used
    cdef object owner  # the ArrayMemslots; None in the ArrayMemslots itself
    cdef object __weakref__

    cdef object slot_of(self, uint32_t id)

# Runs a batch as memslots.read.batch does, but with the GIL held.
cdef object run_array_batch(
    arrayspace *sp, array_cache *own, lookup_kind kind, object given, str name, object out
)
