"""Many look-ups in one call, of the tree or of the index.

The caller must keep the writer from freeing the slots, as in lookup.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.index cimport index
from memslots.core.lookup cimport vcpu_cache
from memslots.core.slotset cimport slotset

# What a batch asks of each number, and what it writes to `out`.
cdef enum lookup_kind:
    LOOKUP_IDS  # gfns to int32 ids; -1 if no slot has the gfn
    TRANSLATE_READ  # gpas to uint64 hvas; BAD_HVA if there is no hva
    TRANSLATE_WRITE  # as TRANSLATE_READ, but BAD_HVA for READONLY slots too
    MARK_DIRTY  # gfns; marks them in the dirty logs of slots that log; writes no answers

# Answers `count` numbers from the tree of one set, through the vCPU's cache. `out` may be the
# memory of `given`. O(log n) for each number.
cdef void lookup_batch_tree(
    slotset *set,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil
# Answers `count` numbers, at least one, from an index. `own` must not be NULL; it gets the last
# number's slot. The caller must set its `generation` to that of the index's slots. Consecutive
# numbers in the same slot or the same hole need no search. If few numbers are like that, each
# number is searched for, in groups. `scattered` remembers this from call to call; it must be False
# before the first.
cdef void lookup_batch_index(
    const index *ix,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
    bint *scattered,
) noexcept nogil
