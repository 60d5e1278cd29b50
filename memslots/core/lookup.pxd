"""A single look-up: which slot holds this gfn, and where does the host keep it.

Two caches stand before the search: the last-used slot of each set, or of its index, which all
readers share, and the last-used slot of each vCPU. A vCPU's is valid for one generation only. A
vCPU that misses neither reads nor writes the one that is shared.

What is searched is the set's index where it has one, else the tree. Searches of the tree count for
an index (index_policy.pxd).

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
    # A vCPU tells its set of so many searches of the tree at a time: until part of an index is
    # made, not all of its misses write to a line that others write, too.
    VCPU_SEARCHES = 8

# A vCPU's last-used slot, and its line among the readers. One thread at a time uses it.
cdef struct vcpu_cache:
    # One cache line: all that a hit reads and writes.
    index_row last_used  # of the slot found last; at any other generation it may be gone
    uint64_t generation  # the one it was found at; 0 npages: none was
    slot *slot  # the slot itself; NULL: not asked for yet
    uint64_t hits  # look-ups that last_used answered
    uint64_t misses  # look-ups that had to search
    # The next.
    srcu_reader *reader  # its own; NULL: the thread's shared one


cdef inline index_row *lookup_index(index *ix, gfn_t gfn) noexcept nogil:
    """Returns the row that has the gfn, or NULL, by a search. O(log n)."""
    cdef index_row *row = &ix.rows[search_one(&ix.keys, gfn)]
    return row if index_has_gfn(row, gfn) else NULL


cdef inline bint lookup_cached(const slotset *set, const vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Returns whether the last-used slot of a vCPU has the gfn."""
    return index_has_gfn(&own.last_used, gfn) and own.generation == atomic_load_relaxed(
        &set.generation
    )


cdef inline bint lookup_vcpu(slotset *set, vcpu_cache *own, gfn_t gfn) noexcept nogil:
    """Has a vCPU's last-used slot be the one of `set` that has the gfn; False: there is none.

    O(log n), O(1) if it is already. `own.slot` is set, or NULL.
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
    """Returns the slot of a set that has the gfn, or NULL: the last-used slot, or by a search."""
    cdef slot *s = <slot *>atomic_load_relaxed_ptr(<void *const *>&set.last_used)
    if s is not NULL and slot_has_gfn(s, gfn):
        return s
    s = slotset_search(set, gfn)
    if s is not NULL:
        atomic_store_relaxed_ptr(<void **>&set.last_used, s)
    index_policy_note(set, 1)
    return s


cdef inline index_row *lookup_shared(index *ix, gfn_t gfn) noexcept nogil:
    """Returns the row of an index that has the gfn, or NULL: the last-used one, or by a search."""
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
    """Returns what an answer needs to know of the slot of `set` that has the gfn, or NULL.

    Tries the last-used slot of the vCPU first, or the shared one if `own` is NULL. The row is in
    `room` where neither the index nor the vCPU has one. O(log n), O(1) if the last-used slot has
    the gfn.
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
    """Returns the slot of `set` that has the gfn, or NULL. As lookup_row."""
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
    """Returns the slot of the active set that has the gfn, or NULL. As lookup_in."""
    return lookup_in(space_active(sp), own, gfn)


cdef inline hva_t lookup_hva(slotset *set, vcpu_cache *own, gpa_t gpa, bint write) noexcept nogil:
    """Returns the host address of a guest address, or BAD_HVA."""
    cdef index_row room
    cdef gfn_t gfn = gpa_to_gfn(gpa)
    cdef const index_row *row = lookup_row(set, own, gfn, &room)
    if not index_usable(row, write):
        return BAD_HVA
    return index_gfn_to_hva(row, gfn) + (gpa & PAGE_OFFSET_MASK)
