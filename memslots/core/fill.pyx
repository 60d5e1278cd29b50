"""Filling an empty address space in one pass. The contract of each function is in fill.pxd."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from memslots.core.alloc cimport alloc_block, alloc_free
from memslots.core.dirtylog cimport dirty_free, dirty_new
from memslots.core.idtable cimport idtable_drop_spare, idtable_get_spare
from memslots.core.index cimport index_flags, index_row, index_userspace_addr
from memslots.core.region cimport (
    ALLOWED,
    BEYOND_MAX_GFN,
    NO_MEMORY,
    region_beyond_max_gfn,
    region_check,
)
from memslots.core.slot cimport SLOT_LOG_DIRTY_PAGES, slot_free, slot_new
from memslots.core.slotset cimport slotset, slotset_clear, slotset_fill
from memslots.core.space cimport space_inactive, space_swap_begin, space_swap_end
from memslots.core.update cimport DIRTY_LOG_INITIALLY_SET


cdef int compare_hva(const void *a, const void *b) noexcept nogil:
    cdef const slot *x = (<const slot **>a)[0]
    cdef const slot *y = (<const slot **>b)[0]
    if x.userspace_addr != y.userspace_addr:
        return 1 if x.userspace_addr > y.userspace_addr else -1
    return 1 if x.base_gfn > y.base_gfn else -1


cdef bint sort_by_hva(fill *f) noexcept nogil:
    """Sets by_hva. Returns False if there is no memory."""
    cdef uint32_t i
    f.by_hva = f.slots
    for i in range(1, f.count):
        if f.slots[i - 1].userspace_addr > f.slots[i].userspace_addr:
            f.by_hva = <slot **>alloc_block(f.count * sizeof(slot *))
            if f.by_hva is NULL:
                return False
            memcpy(f.by_hva, f.slots, f.count * sizeof(slot *))
            qsort(f.by_hva, f.count, sizeof(slot *), compare_hva)
            break
    return True


cdef refusal make_slot(
    fill *f, const index_row *row, const limits *lim, region *r
) noexcept nogil:
    cdef refusal why
    cdef slot *s
    r.id = <uint32_t>row.id
    r.as_id = f.sp.as_id
    r.flags = index_flags(row)
    r.base_gfn = row.base_gfn
    r.npages = row.npages
    r.userspace_addr = index_userspace_addr(row)
    # A row has no guest_memfd. Callers add slots of guest_memfds one by one instead.
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    why = region_check(lim, r)
    if why != ALLOWED:
        return why
    if region_beyond_max_gfn(lim, r):
        return BEYOND_MAX_GFN
    s = slot_new(&f.sp.slots, r)
    if s is NULL:
        return NO_MEMORY
    f.slots[f.count] = s
    f.count += 1
    if r.flags & SLOT_LOG_DIRTY_PAGES:
        s.dirty = dirty_new(r.npages, lim.manual_dirty_log & DIRTY_LOG_INITIALLY_SET)
        if s.dirty is NULL:
            return NO_MEMORY
    return ALLOWED


cdef refusal fill_get(
    fill *f, space *sp, const index *ix, const limits *lim, region *wrong
) noexcept nogil:
    cdef refusal why = NO_MEMORY
    cdef uint32_t i
    cdef int k
    memset(f, 0, sizeof(fill))
    f.sp = sp
    f.slots = <slot **>alloc_block(ix.count * sizeof(slot *))
    if f.slots is not NULL:
        why = ALLOWED
        for i in range(ix.count):
            why = make_slot(f, &ix.rows[i], lim, wrong)
            if why != ALLOWED:
                break
    for k in range(2):
        if why == ALLOWED and idtable_get_spare(&sp.sets[k].ids, f.count, &f.spare[k]) != 0:
            why = NO_MEMORY
    if why == ALLOWED and not sort_by_hva(f):
        why = NO_MEMORY
    if why != ALLOWED:
        fill_drop(f)
    return why


cdef void free_lists(fill *f) noexcept nogil:
    cdef int k
    for k in range(2):
        idtable_drop_spare(&f.spare[k])
    if f.by_hva is not f.slots:
        alloc_free(f.by_hva)
    alloc_free(f.slots)


cdef void put(fill *f, slotset *set) noexcept nogil:
    slotset_fill(set, f.slots, f.by_hva, f.count, &f.spare[set.k])


cdef void fill_begin(fill *f) noexcept nogil:
    put(f, space_inactive(f.sp))
    space_swap_begin(f.sp)


cdef void fill_end(fill *f) noexcept nogil:
    space_swap_end(f.sp)
    put(f, space_inactive(f.sp))
    free_lists(f)


cdef void fill_stage(fill *f) noexcept nogil:
    put(f, space_inactive(f.sp))


cdef void fill_unstage(fill *f) noexcept nogil:
    # The set was empty before fill_stage.
    slotset_clear(space_inactive(f.sp))


cdef void fill_carry(fill *f) noexcept nogil:
    put(f, space_inactive(f.sp))
    free_lists(f)


cdef void fill_leave(fill *f) noexcept nogil:
    free_lists(f)


cdef void fill_put(fill *f) noexcept nogil:
    put(f, &f.sp.sets[0])
    put(f, &f.sp.sets[1])
    free_lists(f)


cdef void fill_drop(fill *f) noexcept nogil:
    cdef uint32_t i
    for i in range(f.count):
        dirty_free(f.slots[i].dirty)
        slot_free(f.slots[i])
    free_lists(f)
