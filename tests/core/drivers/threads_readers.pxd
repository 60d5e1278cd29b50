# cython: language_level=3, cdivision=True
"""The work of the readers of threads_driver.pyx, and of the threads that use dirty logs."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from memslots.core.atomics cimport atomic_fetch_add
from memslots.core.dirtylog cimport dirty_clear, dirty_get
from memslots.core.index cimport (
    index,
    index_drop,
    index_has_gfn,
    index_hold,
    index_row,
    index_userspace_addr,
)
from memslots.core.index_policy cimport index_policy_build, index_policy_current
from memslots.core.lookup cimport lookup_gfn, lookup_index, lookup_row, vcpu_cache
from memslots.core.lookup_batch cimport (
    LOOKUP_IDS,
    MARK_DIRTY,
    TRANSLATE_WRITE,
    lookup_batch_index,
    lookup_batch_tree,
    lookup_kind,
)
from memslots.core.slot cimport SLOT_INVALID, slot, slot_end_gfn, slot_gfn_to_hva, slot_has_gfn
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_count,
    slotset_first,
    slotset_first_hva,
    slotset_last,
    slotset_next_hva,
    slotset_search,
    slotset_step,
)
from memslots.core.space cimport SWAPPING, space, space_active, space_generation
from memslots.core.srcu cimport (
    srcu_alone,
    srcu_enter,
    srcu_leave,
    srcu_reader,
    srcu_reader_get,
    srcu_reader_put,
    srcu_shared,
)
from memslots.core.units cimport PAGE_SHIFT, gfn_t, hva_t

from threads_scene cimport (
    ELSEWHERE,
    GENERATION_FELL,
    HOLE,
    LOG_SIZE,
    MARKED_BEYOND_END,
    NOTHING,
    NOT_BY_HVA,
    NOT_BY_ID,
    NOT_TILED,
    NO_READER,
    TILE_IDS,
    TOP,
    TORN,
    WRONG_HVA,
    any_space,
    hva_of,
    job,
    throw,
    wrong,
)

# The readers. What they find is checked while they are in, what they were given after they left.

cdef inline srcu_reader *reader_of(job *j, vcpu_cache *own) noexcept nogil:
    return own.reader if own is not NULL else srcu_shared(&j.at.m.readers)


cdef inline vcpu_cache *usable(srcu_reader *reader, vcpu_cache *own) noexcept nogil:
    """The cache of a vCPU that two threads may use: one of them has it, at most."""
    return own if own is not NULL and srcu_alone(reader) else NULL


cdef inline wrong look_up_each(job *j, vcpu_cache *own) noexcept nogil:
    cdef srcu_reader *reader = reader_of(j, own)
    cdef space *sp = any_space(j)
    cdef wrong seen = NOTHING
    cdef gfn_t gfn
    cdef index_row room
    cdef const index_row *row
    cdef slot *s
    cdef int side
    for _ in range(20):
        gfn = throw(j, TOP)
        side = srcu_enter(reader)
        if throw(j, 2):
            row = lookup_row(space_active(sp), usable(reader, own), gfn, &room)
            if row is NULL or not index_has_gfn(row, gfn):
                seen = HOLE
            elif index_userspace_addr(row) != hva_of(<uint32_t>row.id):
                seen = WRONG_HVA
        else:
            s = lookup_gfn(sp, usable(reader, own), gfn)
            if s is NULL or not slot_has_gfn(s, gfn):
                seen = HOLE
            elif slot_gfn_to_hva(s, gfn) != hva_of(s.id) + ((gfn - s.base_gfn) << PAGE_SHIFT):
                seen = WRONG_HVA
        srcu_leave(reader, side)
    return seen


cdef inline wrong single(job *j) noexcept nogil:
    return look_up_each(j, j.own)


cdef inline wrong come_and_go(job *j) noexcept nogil:
    """A vCPU that is made, used and dropped."""
    cdef vcpu_cache vcpu
    cdef wrong seen
    memset(&vcpu, 0, sizeof(vcpu))
    vcpu.reader = srcu_reader_get(&j.at.m.readers)
    if vcpu.reader is NULL:
        return NO_READER
    seen = look_up_each(j, &vcpu)
    srcu_reader_put(vcpu.reader)
    return seen


cdef inline void batch(
    job *j, space *sp, lookup_kind kind, const uint64_t *given, void *out
) noexcept nogil:
    """The whole range at once, of one set: by its index if there is one."""
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef vcpu_cache cache
    cdef bint scattered = throw(j, 2)
    cdef int side = srcu_enter(reader)
    cdef slotset *set = space_active(sp)
    cdef const index *ix = index_policy_current(set)
    if ix is NULL:
        lookup_batch_tree(set, usable(reader, j.own), kind, given, out, TOP)
    else:
        memset(&cache, 0, sizeof(cache))
        lookup_batch_index(ix, &cache, kind, given, out, TOP, &scattered)
        atomic_fetch_add(&j.at.indexed, 1)
    srcu_leave(reader, side)


cdef inline wrong keep(job *j) noexcept nogil:
    """An index that is kept while the slots change."""
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef space *sp = any_space(j)
    cdef wrong seen = NOTHING
    cdef index *ix
    cdef const index_row *row
    cdef gfn_t gfn
    cdef int side = srcu_enter(reader)
    ix = index_policy_current(space_active(sp))
    if ix is not NULL:
        index_hold(ix)
    srcu_leave(reader, side)
    if ix is NULL:
        return seen
    for _ in range(20):
        gfn = throw(j, TOP)
        row = lookup_index(ix, gfn)
        if row is NULL or not index_has_gfn(row, gfn):
            seen = HOLE
        elif index_userspace_addr(row) != hva_of(<uint32_t>row.id):
            seen = WRONG_HVA
    index_drop(ix)
    return seen


cdef inline wrong many(job *j) noexcept nogil:
    cdef space *sp = any_space(j)
    cdef bint begun[TILE_IDS]
    cdef int32_t ids[TOP]
    cdef hva_t hvas[TOP]
    cdef int n
    if throw(j, 2):
        index_policy_build(sp, reader_of(j, j.own))
    batch(j, sp, LOOKUP_IDS, j.at.gfns, ids)
    batch(j, sp, TRANSLATE_WRITE, j.at.gpas, hvas)
    # All of one set: every page is held, and each slot's pages are in one run, from its first on.
    memset(begun, 0, sizeof(begun))
    for n in range(TOP):
        if not 0 <= ids[n] < TILE_IDS:
            return HOLE
        if n == 0 or ids[n] != ids[n - 1]:
            if begun[ids[n]]:
                return TORN
            begun[ids[n]] = True
        if <uint32_t>hvas[n] != 0 and (n == 0 or hvas[n] != hvas[n - 1] + (1 << PAGE_SHIFT)):
            return WRONG_HVA
    return NOTHING


cdef inline wrong check_tiles(const slotset *set) noexcept nogil:
    """By gfn both ways, by host address, by id."""
    cdef uint32_t tiles = 0, others = 0, by_hva = 0
    cdef gfn_t gfn = 0
    cdef slot *s = slotset_first(set)
    while s is not NULL and s.base_gfn < ELSEWHERE:
        if s.base_gfn != gfn or s.flags & SLOT_INVALID or s.id >= TILE_IDS:
            return NOT_TILED
        if s.userspace_addr != hva_of(s.id):
            return WRONG_HVA
        if slotset_by_id(set, s.id) is not s:
            return NOT_BY_ID
        gfn = slot_end_gfn(s)
        tiles += 1
        s = slotset_step(set, s, 1)
    if gfn != TOP:
        return NOT_TILED
    s = slotset_last(set)
    while s is not NULL and s.base_gfn >= ELSEWHERE:
        others += 1
        s = slotset_step(set, s, 0)
    if tiles + others != slotset_count(set):
        return NOT_TILED
    s = slotset_first_hva(set, 0, hva_of(TILE_IDS) - 1)
    while s is not NULL:
        by_hva += 1
        if slotset_search(set, s.base_gfn) is not s:
            return NOT_BY_HVA
        s = slotset_next_hva(set, s, 0, hva_of(TILE_IDS) - 1)
    return NOTHING if by_hva == tiles else NOT_BY_HVA


cdef inline wrong walk(job *j) noexcept nogil:
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef space *sp = any_space(j)
    cdef int side = srcu_enter(reader)
    cdef uint64_t generation = space_generation(sp) & ~SWAPPING
    cdef wrong seen = check_tiles(space_active(sp))
    srcu_leave(reader, side)
    if generation < j.generations[sp.as_id]:
        seen = GENERATION_FELL
    j.generations[sp.as_id] = generation
    return seen


cdef inline wrong mark(job *j) noexcept nogil:
    batch(j, any_space(j), MARK_DIRTY, j.at.gfns, NULL)
    return NOTHING


cdef inline wrong take(job *j) noexcept nogil:
    """Every log of a space: all at once, or as KVM has it, got first and then cleared."""
    cdef srcu_reader *reader = reader_of(j, j.own)
    cdef space *sp = any_space(j)
    cdef bint at_once = throw(j, 2)
    cdef unsigned char log[LOG_SIZE]
    cdef wrong seen = NOTHING
    cdef uint64_t page
    cdef int side = srcu_enter(reader)
    cdef slotset *set = space_active(sp)
    cdef slot *s = slotset_first(set)
    while s is not NULL:
        if s.dirty is not NULL:
            dirty_get(s, log, at_once)
            for page in range(s.npages, (s.npages + 63) & ~<uint64_t>63):
                if log[page >> 3] >> (page & 7) & 1:
                    seen = MARKED_BEYOND_END
            if not at_once:
                dirty_clear(s, 0, s.npages, log)
        s = slotset_step(set, s, 1)
    srcu_leave(reader, side)
    return seen
