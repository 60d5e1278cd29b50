"""The readers of the arrays, as arraymemslots.pyx extends it."""

from libc.stdint cimport uint32_t

from memslots.baseline.slotarray cimport array_cache, arrayspace
from memslots.baseline.writer cimport ArrayWriter
from memslots.core.lookup_batch cimport lookup_kind

cdef class ArrayReader:
    cdef ArrayWriter writer  # whose address space is read; None: nobody's
    cdef arrayspace *sp  # the address space
    cdef array_cache *own  # a last-used slot of its own, or NULL: the array's is used
    cdef object owner  # the ArrayMemslots; None in that itself
    cdef object __weakref__

    cdef object slot_of(self, uint32_t id)

# Runs a batch as memslots.read.batch does, but with the GIL.
cdef object run_array_batch(
    arrayspace *sp, array_cache *own, lookup_kind kind, object given, str name, object out
)
