"""Batch calls: many look-ups in one, without the GIL, on buffers that are never copied."""

from memslots.core.lookup cimport lookup_kind, vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.space cimport space

# Runs a batch over `given`, any C-contiguous buffer of uint64, which errors call `name`; `own` as
# in lookup.pxd. The output goes to `out`, a writable buffer of as many elements, or where that is
# None to an array made anew: numpy's, of the shape of `given`, for numpy, otherwise an array.array.
# Gives the output (None for MARK_DIRTY). TypeError for what is no buffer or has other elements,
# ValueError where a buffer is not contiguous, not writable or not as long as it must be.
cdef object run_batch(
    machine *m, space *sp, vcpu_cache *own, lookup_kind kind, object given, str name, object out
)
