"""A single look-up: which slot holds this gfn, and where does the host keep it.

Two caches stand before the search of the tree: the last-used slot of each set, which all readers
share, and the last-used slot of each vCPU. A vCPU's is valid for one generation only. A vCPU that
misses searches the tree, and neither reads nor writes the set's last-used.

The caller must keep the writer from freeing the result. Either enter a read-side section
(srcu_enter ... srcu_leave) or hold a lock that the writer takes before it frees.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport (
    atomic_load_relaxed,
    atomic_load_relaxed_ptr,
    atomic_store_relaxed_ptr,
)
from memslots.core.slot cimport slot, slot_gfn_to_hva, slot_has_gfn, slot_usable
from memslots.core.slotset cimport slotset, slotset_search
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
    """Returns the slot of `set` that has the gfn, or NULL.

    Tries the last-used slot of the vCPU first, or of the set if `own` is NULL. O(log n), O(1) if
    that slot has the gfn.
    """
    cdef slot *s
    cdef uint64_t generation
    if own is NULL:
        s = <slot *>atomic_load_relaxed_ptr(<void *const *>&set.last_used)
        if s is not NULL and slot_has_gfn(s, gfn):
            return s
        s = slotset_search(set, gfn)
        if s is not NULL:
            atomic_store_relaxed_ptr(<void **>&set.last_used, s)
        return s
    generation = atomic_load_relaxed(&set.generation)
    s = own.last_used
    if s is not NULL and own.generation == generation and slot_has_gfn(s, gfn):
        own.hits += 1
        return s
    own.misses += 1
    s = slotset_search(set, gfn)
    if s is not NULL:
        own.last_used = s
        own.generation = generation
    return s


cdef inline slot *lookup_gfn(space *sp, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Returns the slot of the active set that has the gfn, or NULL. As lookup_in."""
    return lookup_in(space_active(sp), own, gfn)


cdef inline hva_t lookup_hva(slotset *set, vcpu_cache *own, gpa_t gpa, bint write) noexcept nogil:
    """Returns the host address of a guest address, or BAD_HVA."""
    cdef gfn_t gfn = gpa_to_gfn(gpa)
    cdef slot *s = lookup_in(set, own, gfn)
    if not slot_usable(s, write):
        return BAD_HVA
    return slot_gfn_to_hva(s, gfn) + (gpa & PAGE_OFFSET_MASK)
