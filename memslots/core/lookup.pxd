"""The read side: which slot holds this gfn, and where does the host keep it.

Two caches stand before the search: each set's last-used, which all share, and one of each vCPU's
own. A vCPU's is valid for one generation only, and a vCPU that misses searches the tree without
asking or telling the set's.

Whoever calls these keeps the writer from freeing what is found: by being inside srcu_enter and
srcu_leave, or by holding a lock that the writer needs before it frees.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport load_relaxed
from memslots.core.index cimport index
from memslots.core.slot cimport SLOT_INVALID, SLOT_READONLY, slot, slot_gfn_to_hva, slot_has_gfn
from memslots.core.slotset cimport slotset, slotset_find, slotset_search
from memslots.core.space cimport space, space_active
from memslots.core.srcu cimport srcu_reader
from memslots.core.units cimport BAD_HVA, PAGE_OFFSET_MASK, gfn_t, gpa_t, gpa_to_gfn, hva_t

# A vCPU's last-used slot, and its line among the readers. One thread at a time uses it.
cdef struct vcpu_cache:
    slot *last_used  # found at `generation`, or NULL; at any other generation it may be gone
    uint64_t generation
    uint64_t hits  # look-ups that last_used answered
    uint64_t misses  # look-ups that had to search
    srcu_reader *reader  # its own; NULL: the thread's shared one


cdef inline slot *lookup_in(slotset *set, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """The slot of `set` that has the gfn, or NULL.

    By way of the vCPU's cache, or of the set's where `own` is NULL.
    """
    cdef slot *s
    if own is NULL:
        return slotset_find(set, gfn)
    s = own.last_used
    if s is not NULL and own.generation == load_relaxed(&set.generation) and slot_has_gfn(s, gfn):
        own.hits += 1
        return s
    own.misses += 1
    s = slotset_search(set, gfn)
    if s is not NULL:
        own.last_used = s
        own.generation = load_relaxed(&set.generation)
    return s


cdef inline slot *lookup_gfn(space *sp, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """The slot that has the gfn now, or NULL. O(log n), O(1) where the cache has it."""
    return lookup_in(space_active(sp), own, gfn)


cdef inline bint slot_usable(const slot *s, bint write) noexcept nogil:
    """Whether an access may go through this slot.

    It is there, not about to go, and for a write not READONLY.
    """
    return s is not NULL and not s.flags & (SLOT_INVALID | (SLOT_READONLY if write else 0))


cdef inline hva_t lookup_hva(slotset *set, vcpu_cache *own, gpa_t gpa, bint write) noexcept nogil:
    """The host address of a guest address, or BAD_HVA."""
    cdef gfn_t gfn = gpa_to_gfn(gpa)
    cdef slot *s = lookup_in(set, own, gfn)
    if not slot_usable(s, write):
        return BAD_HVA
    return slot_gfn_to_hva(s, gfn) + (gpa & PAGE_OFFSET_MASK)


# What a batch asks of each of its numbers, and what it writes for it.
cdef enum lookup_kind:
    LOOKUP_IDS  # gfns to int32 ids, -1 where there is none
    TRANSLATE_READ  # gpas to uint64 hvas, BAD_HVA where there is none
    TRANSLATE_WRITE  # the same, READONLY slots left out
    MARK_DIRTY  # gfns; marks them in the dirty logs of slots that log; writes nothing

# Many at once, all from one set, by way of the vCPU's cache. `out` may be where the input is.
cdef void lookup_many(
    slotset *set,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil
# The same of the set's index, at least one; `own` is not NULL. Numbers of one slot, or of one hole,
# that come one after another are found so; where few do (`scattered`, which this keeps up to date:
# False to begin with) each is searched for, in groups.
cdef void lookup_indexed(
    const index *ix,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
    bint *scattered,
) noexcept nogil
