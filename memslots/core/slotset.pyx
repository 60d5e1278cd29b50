"""One set of slots.

slotset.pxd has the properties S1 to S4 and the contract of each function.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from memslots.core.alloc cimport CACHE_LINE
from memslots.core.atomics cimport atomic_load_acquire
from memslots.core.debug cimport debug_assert
from memslots.core.hvatree cimport hva_init, hva_node
from memslots.core.idtable cimport (
    idtable_add,
    idtable_clear,
    idtable_init,
    idtable_remove,
    idtable_replace,
    idtable_spare,
)
from memslots.core.index cimport INDEX_FEW, index_drop
from memslots.core.rbtree cimport (
    rb_build,
    rb_erase,
    rb_init,
    rb_insert,
    rb_insert_after,
    rb_key,
    rb_node,
    rb_replace,
    rb_step,
)


cdef extern from *:
    """
    #define MEMSLOTS_CHECK_SET_LAYOUT(s, line) do { \\
        _Static_assert(offsetof(__typeof__(*(s)), last_used) == (line), "last_used: line 2"); \\
        _Static_assert(offsetof(__typeof__(*(s)), hva_tree) == 2 * (line), "hva_tree: line 3"); \\
        _Static_assert(sizeof(*(s)) == 3 * (line), "a set is three cache lines"); \\
    } while (0)
    """
    void check_layout "MEMSLOTS_CHECK_SET_LAYOUT"(slotset *, int) noexcept nogil


cdef inline ptrdiff_t distance(const void *start, const void *end) noexcept nogil:
    return <const char *>end - <const char *>start


cdef void slotset_init(slotset *set, int k) noexcept nogil:
    cdef slot shape  # only its layout is used
    check_layout(set, CACHE_LINE)
    rb_init(&set.gfn_tree, distance(&shape.gfn_node[k], &shape.base_gfn), NULL)
    hva_init(&set.hva_tree, distance(&shape.hva_node[k], &shape.userspace_addr))
    idtable_init(&set.ids, distance(&shape, &shape.id))
    set.generation = 0
    set.index = NULL
    set.k = k
    set.last_used = NULL
    set.searches = 0
    set.building = False
    set.unfinished = NULL
    set.spare = NULL
    set.npages = 0


cdef void slotset_clear(slotset *set) noexcept nogil:
    slotset_drop_index(set)
    index_drop(set.spare)
    idtable_clear(&set.ids)
    slotset_init(set, set.k)


cdef void slotset_drop_index(slotset *set) noexcept nogil:
    cdef index *ix = set.index
    set.searches = 0
    # In the child of a fork it may still be set, by a reader that exists only in the parent.
    set.building = False
    index_drop(set.unfinished)
    set.unfinished = NULL
    if ix is NULL:
        return
    set.index = NULL
    if set.spare is NULL and ix.room <= INDEX_FEW and atomic_load_acquire(&ix.references) == 1:
        set.spare = ix
    else:
        index_drop(ix)


cdef bint is_held(const slotset *set, const slot *old, const slot *new) noexcept nogil:
    """Returns whether `old` is the slot with its id; NULL: whether no slot has the id of `new`."""
    return slotset_by_id(set, old.id if old is not NULL else new.id) is old


cdef void insert_gfn(slotset *set, slot *before, slot *new) noexcept nogil:
    """Inserts a slot into the gfn tree right after `before`; NULL: as the first."""
    cdef int k = set.k
    rb_insert_after(
        &set.gfn_tree, &before.gfn_node[k] if before is not NULL else NULL, &new.gfn_node[k]
    )


cdef void insert_hva(slotset *set, slot *near, slot *new) noexcept nogil:
    """Inserts a slot into the hva tree. `near` is a guess at the slot before it; NULL: no guess.

    Slots may have the same host address, and the two sets may order these differently. So the slot
    after `near` in this set is checked (R1).
    """
    cdef int k = set.k
    cdef rb_node *next = NULL
    cdef bint beside = near is not NULL and near.userspace_addr <= new.userspace_addr
    if beside:
        next = rb_step(&near.hva_node[k].rb, 1)
        beside = next is NULL or rb_key(&set.hva_tree, next) > new.userspace_addr
    if beside:
        rb_insert_after(&set.hva_tree, &near.hva_node[k].rb, &new.hva_node[k].rb)
    else:
        rb_insert(&set.hva_tree, &new.hva_node[k].rb)


cdef void place_gfn(slotset *set, slot *new, bint follows) noexcept nogil:
    cdef int k = set.k
    if follows:
        insert_gfn(set, slot_of_gfn_node(rb_step(&new.gfn_node[1 - k], 0), 1 - k), new)
    else:
        rb_insert(&set.gfn_tree, &new.gfn_node[k])


cdef void place_hva(slotset *set, slot *new, bint follows) noexcept nogil:
    cdef int k = set.k
    cdef slot *near = NULL
    if follows:
        near = slot_of_hva_node(<hva_node *>rb_step(&new.hva_node[1 - k].rb, 0), 1 - k)
    insert_hva(set, near, new)


cdef void put(
    slotset *set, slot *old, slot *new, idtable_spare *spare, bint follows
) noexcept nogil:
    cdef int k = set.k
    debug_assert(set.index is NULL, b"slotset_put: the index is gone")
    # One call for each condition: only so can the compiler's preprocessor drop the condition.
    debug_assert(is_held(set, old, new), b"slotset_put: the set holds just what is to go")
    # S3. A reader from before the swap may have left the old slot here. No such reader is left.
    if set.last_used is old:
        set.last_used = NULL
    if old is NULL:
        place_gfn(set, new, follows)
        place_hva(set, new, follows)
        idtable_add(&set.ids, new, spare)
        set.npages += new.npages
    elif new is NULL:
        rb_erase(&set.gfn_tree, &old.gfn_node[k])
        rb_erase(&set.hva_tree, &old.hva_node[k].rb)
        idtable_remove(&set.ids, old)
        set.npages -= old.npages
    else:
        if new.base_gfn == old.base_gfn:
            rb_replace(&set.gfn_tree, &old.gfn_node[k], &new.gfn_node[k])
        else:
            rb_erase(&set.gfn_tree, &old.gfn_node[k])
            place_gfn(set, new, follows)
        if new.userspace_addr == old.userspace_addr:
            rb_replace(&set.hva_tree, &old.hva_node[k].rb, &new.hva_node[k].rb)
        else:
            rb_erase(&set.hva_tree, &old.hva_node[k].rb)
            place_hva(set, new, follows)
        idtable_replace(&set.ids, old, new)
        set.npages += new.npages - old.npages


cdef void slotset_put(slotset *set, slot *old, slot *new, idtable_spare *spare) noexcept nogil:
    put(set, old, new, spare, False)


cdef void slotset_follow(slotset *set, slot *old, slot *new, idtable_spare *spare) noexcept nogil:
    put(set, old, new, spare, True)


cdef void slotset_put_after(
    slotset *set, slot *before, slot *new, idtable_spare *spare
) noexcept nogil:
    debug_assert(is_held(set, NULL, new), b"slotset_put_after: the id is new")
    insert_gfn(set, before, new)
    insert_hva(set, before, new)
    idtable_add(&set.ids, new, spare)
    set.npages += new.npages


cdef slot *slotset_overlap(
    const slotset *set,
    gfn_t base_gfn,
    uint64_t npages,
    const slot *except_for,
    slot **before,
) noexcept nogil:
    cdef slot *s
    before[0] = slotset_floor(set, base_gfn)
    s = slotset_first_after(set, before[0], base_gfn)
    if s is not NULL and s is except_for:
        s = slotset_step(set, s, 1)
    return s if s is not NULL and s.base_gfn < base_gfn + npages else NULL


cdef slot *slotset_clash(const slotset *set, const slot *s) noexcept nogil:
    cdef slot *before = slotset_step(set, s, 0)
    cdef slot *after = slotset_step(set, s, 1)
    if before is not NULL and slot_end_gfn(before) > s.base_gfn:
        return before
    return after if after is not NULL and after.base_gfn < slot_end_gfn(s) else NULL


cdef void slotset_fill(
    slotset *set, slot **slots, slot **by_hva, uint32_t count, idtable_spare *spare
) noexcept nogil:
    cdef slot shape  # only its layout is used
    cdef uint32_t i
    rb_build(
        &set.gfn_tree, <void *const *>slots, count, distance(&shape, &shape.gfn_node[set.k])
    )
    rb_build(
        &set.hva_tree, <void *const *>by_hva, count, distance(&shape, &shape.hva_node[set.k])
    )
    for i in range(count):
        idtable_add(&set.ids, slots[i], spare)
        set.npages += slots[i].npages
