"""Many look-ups in one call, of the tree or of the index.

The caller must keep the writer from freeing the slots, as in lookup.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.index cimport index
from memslots.core.lookup cimport vcpu_cache
from memslots.core.slotset cimport slotset

# What a batch asks of each of its numbers, and what it writes for it.
cdef enum lookup_kind:
    LOOKUP_IDS  # gfns to int32 ids, -1 where there is none
    TRANSLATE_READ  # gpas to uint64 hvas, BAD_HVA where there is none
    TRANSLATE_WRITE  # the same, READONLY slots left out
    MARK_DIRTY  # gfns; marks them in the dirty logs of slots that log; writes nothing

# Answers `count` numbers from the tree of one set, by way of the vCPU's cache. `out` may be the
# memory of `given`. O(log n) for each number.
cdef void lookup_batch_tree(
    slotset *set,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil
# Answers `count` numbers, at least one, from an index. `own` is not NULL; its `generation` is for
# the caller to set, to that of the index's slots: it has the last number's slot then. Consecutive
# numbers of the same slot or the same hole need no search. If few numbers are like that, each one
# is searched for, in groups. `scattered` remembers this from call to call: False before the first.
cdef void lookup_batch_index(
    const index *ix,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
    bint *scattered,
) noexcept nogil
