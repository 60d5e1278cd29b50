"""When an index is built. The policy and the contract of each function are in index_policy.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.atomics cimport (
    atomic_compare_exchange_ptr,
    atomic_exchange_acq_rel_ptr,
    atomic_load_relaxed_ptr,
    atomic_store_relaxed,
)
from memslots.core.index cimport index_add, index_free, index_home, index_new, index_seal
from memslots.core.slot cimport slot, slot_end_gfn
from memslots.core.slotset cimport slotset_count, slotset_first_from, slotset_step
from memslots.core.space cimport SWAPPING, space_active
from memslots.core.srcu cimport srcu_enter, srcu_leave
from memslots.core.units cimport gfn_t

cdef enum:
    # A search of the tree takes about as long as GAIN rows of an index take to fill.
    GAIN = 4
    FIXED = 512  # the cost of an index besides its rows, in rows: memory, mostly
    PART = 64  # rows filled in one section


cdef bint index_policy_pays(
    space *sp, uint64_t generation, uint64_t slots, uint64_t searches, uint64_t expected
) noexcept nogil:
    cdef index_home *home = &sp.index
    if atomic_load_relaxed(&home.generation) == generation:
        searches += atomic_load_relaxed(&home.searches)
    else:
        atomic_store_relaxed(&home.generation, generation)
    atomic_store_relaxed(&home.searches, searches)
    return (searches + expected) * GAIN >= slots + FIXED


cdef void retire(index_home *home, index *ix) noexcept nogil:
    ix.next = <index *>atomic_load_relaxed_ptr(<void *const *>&home.retired)
    while not atomic_compare_exchange_ptr(<void **>&home.retired, <void **>&ix.next, ix):
        pass


cdef gfn_t fill(index *ix, slotset *set, gfn_t start) noexcept nogil:
    """Fills the rows of the next PART slots from a gfn on. Returns the gfn to continue from."""
    cdef slot *s = slotset_first_from(set, start)
    for _ in range(PART):
        if s is NULL:
            break
        index_add(ix, s)
        start = slot_end_gfn(s)
        s = slotset_step(set, s, 1)
    return start


cdef index *build(space *sp, srcu_reader *reader) noexcept nogil:
    """Builds an index of the active set, a part at a time. NULL: there was a change meanwhile,
    there are no slots, or no memory.
    """
    cdef index *ix = NULL
    cdef slotset *set
    cdef uint64_t generation
    cdef uint32_t count
    cdef gfn_t start = 0
    cdef bint good
    cdef int side = srcu_enter(reader)
    set = space_active(sp)
    generation = atomic_load_relaxed(&set.generation)
    count = slotset_count(set)
    srcu_leave(reader, side)
    if count != 0 and not generation & SWAPPING:
        ix = index_new(generation, count)
    while ix is not NULL and ix.count < count:
        side = srcu_enter(reader)
        set = space_active(sp)
        good = atomic_load_relaxed(&set.generation) == generation
        if good:
            start = fill(ix, set, start)
        srcu_leave(reader, side)
        if not good:
            index_free(ix)
            ix = NULL
    if ix is not NULL:
        index_seal(ix)
    return ix


cdef bint index_policy_build(space *sp, srcu_reader *reader) noexcept nogil:
    cdef index_home *home = &sp.index
    cdef index *ix = build(sp, reader)
    cdef index *before
    cdef int side
    if ix is NULL:
        # The count begins anew: while changes are frequent, an index does not pay.
        atomic_store_relaxed(&home.searches, 0)
        return False
    side = srcu_enter(reader)
    if ix.generation == atomic_load_relaxed(&space_active(sp).generation):
        before = <index *>atomic_exchange_acq_rel_ptr(<void **>&home.current, ix)
        if before is not NULL:
            retire(home, before)  # another reader built it, most likely of the same generation
        ix = NULL
    srcu_leave(reader, side)
    index_free(ix)
    return ix is NULL


cdef index *index_policy_collect(space *sp) noexcept nogil:
    cdef index_home *home = &sp.index
    cdef index *ix = <index *>atomic_load_acquire_ptr(<void *const *>&home.current)
    # Only the writer frees an index, so `ix` stays valid here.
    if ix is not NULL and ix.generation != atomic_load_relaxed(&space_active(sp).generation):
        ix = <index *>atomic_exchange_acq_rel_ptr(<void **>&home.current, NULL)
        if ix is not NULL:
            retire(home, ix)
    if atomic_load_relaxed_ptr(<void *const *>&home.retired) is NULL:
        return NULL
    return <index *>atomic_exchange_acq_rel_ptr(<void **>&home.retired, NULL)
