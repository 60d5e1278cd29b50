"""When an index is made. How that goes and the contract of each function are in indexing.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.atomics cimport (
    compare_exchange_ptr,
    exchange_acq_rel_ptr,
    load_relaxed_ptr,
    store_relaxed,
)
from memslots.core.index cimport index_add, index_free, index_home, index_new, index_seal
from memslots.core.slot cimport slot, slot_end_gfn
from memslots.core.slotset cimport slotset_count, slotset_first_from, slotset_step
from memslots.core.space cimport SWAPPING, space_active
from memslots.core.srcu cimport srcu_enter, srcu_leave
from memslots.core.units cimport gfn_t

cdef enum:
    # A search of the tree takes about as long as a place in an index takes to fill, times this.
    GAIN = 4
    FIXED = 512  # what an index costs besides, in places filled: memory, mostly
    WALK = 64  # slots put in within a section


cdef bint indexing_pays(
    space *sp, uint64_t generation, uint64_t slots, uint64_t searches, uint64_t expected
) noexcept nogil:
    cdef index_home *home = &sp.index
    if load_relaxed(&home.generation) == generation:
        searches += load_relaxed(&home.searches)
    else:
        store_relaxed(&home.generation, generation)
    store_relaxed(&home.searches, searches)
    return (searches + expected) * GAIN >= slots + FIXED


cdef void retire(index_home *home, index *ix) noexcept nogil:
    ix.next = <index *>load_relaxed_ptr(<void *const *>&home.retired)
    while not compare_exchange_ptr(<void **>&home.retired, <void **>&ix.next, ix):
        pass


cdef gfn_t fill(index *ix, slotset *set, gfn_t start) noexcept nogil:
    """Puts in the next slots from a gfn on; gives the gfn to go on from."""
    cdef slot *s = slotset_first_from(set, start)
    for _ in range(WALK):
        if s is NULL:
            break
        index_add(ix, s)
        start = slot_end_gfn(s)
        s = slotset_step(set, s, 1)
    return start


cdef index *walk(space *sp, srcu_reader *reader) noexcept nogil:
    """An index of what is the active set from the beginning to the end of this, or NULL."""
    cdef index *ix = NULL
    cdef slotset *set
    cdef uint64_t generation
    cdef uint32_t count
    cdef gfn_t start = 0
    cdef bint good
    cdef int side = srcu_enter(reader)
    set = space_active(sp)
    generation = load_relaxed(&set.generation)
    count = slotset_count(set)
    srcu_leave(reader, side)
    if count != 0 and not generation & SWAPPING:
        ix = index_new(generation, count)
    while ix is not NULL and ix.count < count:
        side = srcu_enter(reader)
        set = space_active(sp)
        good = load_relaxed(&set.generation) == generation
        if good:
            start = fill(ix, set, start)
        srcu_leave(reader, side)
        if not good:
            index_free(ix)
            ix = NULL
    if ix is not NULL:
        index_seal(ix)
    return ix


cdef bint indexing_make(space *sp, srcu_reader *reader) noexcept nogil:
    cdef index_home *home = &sp.index
    cdef index *ix = walk(sp, reader)
    cdef index *before
    cdef int side
    if ix is NULL:
        # What was counted is spent; if there are changes all the time, an index does not pay.
        store_relaxed(&home.searches, 0)
        return False
    side = srcu_enter(reader)
    if ix.generation == load_relaxed(&space_active(sp).generation):
        before = <index *>exchange_acq_rel_ptr(<void **>&home.current, ix)
        if before is not NULL:
            retire(home, before)  # another reader's, most likely of the same generation
        ix = NULL
    srcu_leave(reader, side)
    index_free(ix)
    return ix is NULL


cdef index *indexing_take(space *sp) noexcept nogil:
    cdef index_home *home = &sp.index
    cdef index *ix = <index *>load_acquire_ptr(<void *const *>&home.current)
    # Only the writer frees, so what is there stays there while this looks at it.
    if ix is not NULL and ix.generation != load_relaxed(&space_active(sp).generation):
        ix = <index *>exchange_acq_rel_ptr(<void **>&home.current, NULL)
        if ix is not NULL:
            retire(home, ix)
    if load_relaxed_ptr(<void *const *>&home.retired) is NULL:
        return NULL
    return <index *>exchange_acq_rel_ptr(<void **>&home.retired, NULL)
