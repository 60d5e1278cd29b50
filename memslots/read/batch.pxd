"""Batch calls: many look-ups in one, without the GIL, on buffers that are never copied."""

from memslots.core.lookup cimport vcpu_cache
from memslots.core.lookup_batch cimport LOOKUP_IDS, MARK_DIRTY, lookup_kind
from memslots.core.machine cimport machine
from memslots.core.space cimport space

# Runs a batch. take_batch in buffers.pxd describes its input and output, lookup.pxd `own`. Returns
# the output (None for MARK_DIRTY).
cdef object run_batch(
    machine *m, space *sp, vcpu_cache *own, lookup_kind kind, object given, str name, object out
)


cdef inline str kind_element(lookup_kind kind):
    """Returns the element type of the answers, or None if there are none."""
    if kind == LOOKUP_IDS:
        return "int32"
    return "uint64" if kind != MARK_DIRTY else None
