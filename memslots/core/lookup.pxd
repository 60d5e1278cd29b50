"""A single look-up: which slot holds this gfn, and where does the host keep it?

A look-up tries a last-used slot before it searches. All readers share the last-used slot of each
set, or of its index. Each vCPU has its own, valid for one generation only. A vCPU that misses
neither reads nor writes the shared one.

A search uses the set's index if there is one, else the tree. Searches of the tree count towards
making an index (index_policy.pxd).

The caller must keep the writer from freeing the result. Either enter a read-side section
(srcu_enter ... srcu_leave) or hold a lock that the writer takes before it frees.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.atomics cimport (
    atomic_load_relaxed,
    atomic_load_relaxed_ptr,
    atomic_store_relaxed_ptr,
)
from memslots.core.index cimport (
    index,
    index_fill,
    index_gfn_to_hva,
    index_has_gfn,
    index_row,
    index_usable,
)
from memslots.core.index_policy cimport index_policy_begun, index_policy_current, index_policy_note
from memslots.core.search cimport search_one
from memslots.core.slot cimport slot, slot_has_gfn
from memslots.core.slotset cimport slotset, slotset_by_id, slotset_search
from memslots.core.space cimport space, space_active
from memslots.core.srcu cimport srcu_reader
from memslots.core.units cimport BAD_HVA, PAGE_OFFSET_MASK, gfn_t, gpa_t, gpa_to_gfn, hva_t

cdef enum:
    # A vCPU reports its searches of the tree to the set in batches of this size. So, until part of
    # an index is made, most misses do not write to a line that others write too.
    VCPU_SEARCHES = 8

# A vCPU's last-used slot and its srcu reader. One thread at a time uses it.
cdef struct vcpu_cache:
    # The first cache line: all that a hit reads and writes.
    index_row last_used  # of the slot found last; npages is 0 if no slot was found
    uint64_t generation  # that last_used was found at; at any other one the slot may be gone
    slot *slot  # the slot itself; NULL: not asked for yet
    uint64_t hits  # look-ups that last_used answered
    uint64_t misses  # look-ups that had to search
    # The second line.
    srcu_reader *reader  # the vCPU's own; NULL: it uses the thread's shared reader


cdef inline index_row *lookup_index(index *ix, gfn_t gfn) noexcept nogil:
    """Searches an index for the row that has the gfn. Returns NULL if there is none. O(log n)."""
    cdef index_row *row = &ix.rows[search_one(&ix.keys, gfn)]
    return row if index_has_gfn(row, gfn) else NULL


cdef inline bint lookup_cached(const slotset *set, const vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Returns whether the last-used slot of a vCPU has the gfn."""
    return index_has_gfn(&own.last_used, gfn) and own.generation == atomic_load_relaxed(
        &set.generation
    )


cdef inline bint lookup_vcpu(slotset *set, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Makes the slot of `set` that has the gfn the vCPU's last-used slot.

    Returns False if there is none. `own.slot` is that slot, or NULL (not asked for). O(log n), O(1)
    if the last-used slot has the gfn.
    """
    cdef index *ix
    cdef index_row *row
    cdef slot *s
    if lookup_cached(set, own, gfn):
        own.hits += 1
        return True
    own.misses += 1
    ix = index_policy_current(set)
    if ix is not NULL:
        row = lookup_index(ix, gfn)
        if row is NULL:
            return False
        own.last_used = row[0]
        own.slot = NULL
    else:
        s = slotset_search(set, gfn)
        if own.misses % VCPU_SEARCHES == 0:
            index_policy_note(set, VCPU_SEARCHES)
        elif index_policy_begun(set):
            index_policy_note(set, 0)
        if s is NULL:
            return False
        index_fill(&own.last_used, s)
        own.slot = s
    own.generation = atomic_load_relaxed(&set.generation)
    return True


cdef inline slot *lookup_tree(slotset *set, gfn_t gfn) noexcept nogil:
    """Returns the slot of a set that has the gfn, or NULL. Tries the last-used slot first."""
    cdef slot *s = <slot *>atomic_load_relaxed_ptr(<void *const *>&set.last_used)
    if s is not NULL and slot_has_gfn(s, gfn):
        return s
    s = slotset_search(set, gfn)
    if s is not NULL:
        atomic_store_relaxed_ptr(<void **>&set.last_used, s)
    index_policy_note(set, 1)
    return s


cdef inline index_row *lookup_shared(index *ix, gfn_t gfn) noexcept nogil:
    """Returns the row of an index that has the gfn, or NULL. Tries the last-used row first."""
    cdef index_row *row = <index_row *>atomic_load_relaxed_ptr(<void *const *>&ix.last_used)
    if index_has_gfn(row, gfn):
        return row
    row = lookup_index(ix, gfn)
    if row is not NULL:
        atomic_store_relaxed_ptr(<void **>&ix.last_used, row)
    return row


cdef inline const index_row *lookup_row(
    slotset *set, vcpu_cache *own, gfn_t gfn, index_row *room
) noexcept nogil:
    """Returns a row of the slot of `set` that has the gfn, or NULL.

    Tries the last-used slot of the vCPU first, or the shared one if `own` is NULL. If neither the
    index nor the vCPU has a row, fills in `room` and returns it. O(log n), O(1) if the last-used
    slot has the gfn.
    """
    cdef index *ix
    cdef slot *s
    if own is not NULL:
        return &own.last_used if lookup_vcpu(set, own, gfn) else NULL
    ix = index_policy_current(set)
    if ix is not NULL:
        return lookup_shared(ix, gfn)
    s = lookup_tree(set, gfn)
    if s is NULL:
        return NULL
    index_fill(room, s)
    return room


cdef inline slot *lookup_in(slotset *set, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Returns the slot of `set` that has the gfn, or NULL. Searches as lookup_row does."""
    cdef index *ix
    cdef const index_row *row
    if own is not NULL:
        if not lookup_vcpu(set, own, gfn):
            return NULL
        if own.slot is NULL:
            own.slot = slotset_by_id(set, <uint32_t>own.last_used.id)
        return own.slot
    ix = index_policy_current(set)
    if ix is NULL:
        return lookup_tree(set, gfn)
    row = lookup_shared(ix, gfn)
    return ix.slots[row - ix.rows] if row is not NULL else NULL


cdef inline slot *lookup_gfn(space *sp, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Returns the slot of the active set that has the gfn, or NULL. Searches as lookup_row does."""
    return lookup_in(space_active(sp), own, gfn)


cdef inline hva_t lookup_hva(slotset *set, vcpu_cache *own, gpa_t gpa, bint write) noexcept nogil:
    """Returns the host address of a guest address, or BAD_HVA if the access is refused."""
    cdef index_row room
    cdef gfn_t gfn = gpa_to_gfn(gpa)
    cdef const index_row *row = lookup_row(set, own, gfn, &room)
    if not index_usable(row, write):
        return BAD_HVA
    return index_gfn_to_hva(row, gfn) + (gpa & PAGE_OFFSET_MASK)
