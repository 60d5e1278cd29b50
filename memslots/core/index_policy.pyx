"""When the index of a set is made. The policy and the contracts are in index_policy.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.atomics cimport (
    atomic_compare_exchange,
    atomic_load_relaxed,
    atomic_store_relaxed,
    atomic_store_relaxed_ptr,
    atomic_store_release,
    atomic_store_release_ptr,
)
from memslots.core.index cimport INDEX_FEW, index_add, index_new, index_reset, index_seal
from memslots.core.slot cimport slot
from memslots.core.slotset cimport slotset_first, slotset_last, slotset_step
from memslots.core.space cimport space_active
from memslots.core.srcu cimport srcu_enter, srcu_leave

cdef enum:
    # For a batch, one search of the tree takes about as long as making GAIN rows of an index.
    GAIN = 4
    FIXED = 512  # the fixed cost of an index, mostly memory, in rows
    PART = 64  # rows that index_policy_build makes in one section


cdef bint begin(slotset *set) noexcept nogil:
    """Begins an index without rows. Returns False if there is no memory or no slot."""
    cdef uint32_t count = slotset_count(set)
    cdef index *ix = set.spare if count <= INDEX_FEW else NULL
    cdef slot *first = slotset_first(set)
    cdef slot *last = slotset_last(set)
    if first is NULL:
        return False
    if ix is not NULL:
        set.spare = NULL
        index_reset(ix, count, first.base_gfn, last.base_gfn)
    else:
        ix = index_new(count, first.base_gfn, last.base_gfn)
    if ix is NULL:
        return False
    set.next = first
    atomic_store_relaxed_ptr(<void **>&set.unfinished, ix)
    return True


cdef index_progress advance(slotset *set, uint64_t rows) noexcept nogil:
    """Does the work of index_policy_advance. The caller has set `building`."""
    cdef slot *s
    cdef index *ix
    if index_policy_current(set) is not NULL:
        return INDEX_READY
    if set.unfinished is NULL and not begin(set):
        # Count searches from 0 again: there may be memory later.
        atomic_store_relaxed(&set.searches, 0)
        return INDEX_NONE
    ix = set.unfinished
    s = set.next
    while rows > 0 and ix.count < ix.room:
        index_add(ix, s)
        s = slotset_step(set, s, 1)
        rows -= 1
    set.next = s
    if ix.count < ix.room:
        return INDEX_MORE
    index_seal(ix)
    atomic_store_relaxed_ptr(<void **>&set.unfinished, NULL)
    # Release: pairs with the acquire in index_policy_current.
    atomic_store_release_ptr(<void **>&set.index, ix)
    return INDEX_READY


cdef index_progress index_policy_advance(slotset *set, uint64_t rows) noexcept nogil:
    cdef uint64_t nobody = False
    cdef index_progress done
    if atomic_load_relaxed(&set.building):
        return INDEX_NONE
    # Acquire: pairs with the release below, so the rows that others made are seen.
    if not atomic_compare_exchange(&set.building, &nobody, True):
        return INDEX_NONE
    done = advance(set, rows)
    atomic_store_release(&set.building, False)
    return done


cdef bint index_policy_build(space *sp, srcu_reader *reader) noexcept nogil:
    cdef index_progress done = INDEX_MORE
    cdef const slotset *begun = NULL
    cdef slotset *set
    cdef int side
    while done == INDEX_MORE:
        side = srcu_enter(reader)
        set = space_active(sp)
        # After a change, stop: this reader cannot know how long an index of the new set would pay.
        if begun is not NULL and set is not begun:
            done = INDEX_NONE
        else:
            begun = set
            done = index_policy_advance(set, PART)
        srcu_leave(reader, side)
    return done == INDEX_READY


cdef index *index_policy_copy(const slotset *set) noexcept nogil:
    cdef slot *s = slotset_first(set)
    cdef index *ix = NULL
    if s is not NULL:
        ix = index_new(slotset_count(set), s.base_gfn, slotset_last(set).base_gfn)
    if ix is not NULL:
        while s is not NULL:
            index_add(ix, s)
            s = slotset_step(set, s, 1)
        index_seal(ix)
    return ix


cdef bint index_policy_pays(slotset *set, uint64_t searches, uint64_t expected) noexcept nogil:
    searches += atomic_load_relaxed(&set.searches)
    atomic_store_relaxed(&set.searches, searches)
    return (searches + expected) * GAIN >= slotset_count(set) + <uint64_t>FIXED
