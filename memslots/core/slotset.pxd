"""One set of slots, found by gfn, by host range and by id.

  S1  both trees and the id table hold the same slots
  S2  no two slots of a set share a gfn
  S3  last-used is NULL or a slot of the set
  S4  the counts of slots and of pages agree with the slots

Readers use the active set, so the writer changes only the inactive set. Readers themselves write
last-used and the set's index (index.pxd). The index exists only while the set is not changed.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.hvatree cimport hva_first_overlap, hva_next_overlap
from memslots.core.idtable cimport idtable, idtable_find, idtable_spare
from memslots.core.index cimport index
from memslots.core.rbtree cimport rb_first, rb_floor, rb_last, rb_root, rb_step
from memslots.core.slot cimport (
    slot,
    slot_end_gfn,
    slot_has_gfn,
    slot_of_gfn_node,
    slot_of_hva_node,
    slot_third_line,
)
from memslots.core.units cimport gfn_t, hva_t

cdef struct slotset:
    # The first cache line: every look-up by gfn reads it. While the set is active, only a swap and
    # the reader that publishes the index write it.
    rb_root gfn_tree  # the slots by base_gfn
    uint64_t generation  # see space.pxd; beside the tree, since a reader reads both
    index *index  # I1; NULL: there is none yet. Published once, by a reader
    int k  # which of a slot's nodes are this set's: 0 or 1
    uint64_t first_line[2]
    # The second line: readers write it.
    slot *last_used  # the slot found last, or NULL
    # The state of index_policy: the index that readers are making.
    uint64_t searches  # of the tree since the set became active (approximate: readers race)
    uint64_t building  # whether a reader is making part of the index and owns the next three
    index *unfinished  # an index with the rows made so far; NULL: none is begun
    slot *next  # the slot to make the next row of
    index *spare  # an index of INDEX_FEW rows to be used again, or NULL
    uint64_t second_line[2]
    # The third line: the writer writes it while the set is inactive.
    rb_root hva_tree  # the slots by host range
    idtable ids  # the slots by id
    uint64_t npages  # the sum of the slots' npages
    uint64_t third_line[1]


cdef void slotset_init(slotset *set, int k) noexcept nogil
# Frees the set's own memory, but not the slots in it.
cdef void slotset_clear(slotset *set) noexcept nogil
# Removes the set's index, also an unfinished one. Call it before the set is changed, when it has no
# readers left. O(1), plus the cost of freeing memory.
cdef void slotset_drop_index(slotset *set) noexcept nogil
# Replaces `old` by `new`, a slot with the same id. NULL `old`: only adds; NULL `new`: only removes.
# An addition takes `spare`, from idtable_get_spare(&set.ids, ...). Cannot fail. O(log n). O(1) for
# a replacement in the gfn tree if base_gfn stays, and in the hva tree if the host range stays.
cdef void slotset_put(slotset *set, slot *old, slot *new, idtable_spare *spare) noexcept nogil
# Does what slotset_put does. The other set must hold `new` already and otherwise the same slots as
# this one. The place of `new` there usually tells its place here, without a search.
cdef void slotset_follow(slotset *set, slot *old, slot *new, idtable_spare *spare) noexcept nogil
# Adds a slot that comes right after `before` by gfn; NULL: as the first. If the two slots are
# neighbours by host address too, nothing is searched. O(log n).
cdef void slotset_put_after(
    slotset *set, slot *before, slot *new, idtable_spare *spare
) noexcept nogil
# Fills an empty set with slots, which are given in gfn order and in order of host address. Takes
# `spare`. O(count).
cdef void slotset_fill(
    slotset *set, slot **slots, slot **by_hva, uint32_t count, idtable_spare *spare
) noexcept nogil
# Returns a slot other than `except_for` (may be NULL) that has a gfn in
# [base_gfn, base_gfn + npages), or NULL. Stores in *before the last slot that begins at or before
# base_gfn, or NULL. O(log n).
cdef slot *slotset_overlap(
    const slotset *set,
    gfn_t base_gfn,
    uint64_t npages,
    const slot *except_for,
    slot **before,
) noexcept nogil


# Returns a neighbour by gfn that overlaps a slot of the set, or NULL. S2 holds if this returns NULL
# for every slot that was added. O(log n).
cdef slot *slotset_clash(const slotset *set, const slot *s) noexcept nogil


cdef inline uint32_t slotset_count(const slotset *set) noexcept nogil:
    return set.ids.count


cdef inline slot *slotset_floor(const slotset *set, gfn_t gfn) noexcept nogil:
    """Returns the last slot that begins at or before `gfn`, or NULL. O(log n)."""
    return slot_of_gfn_node(rb_floor(&set.gfn_tree, gfn, slot_third_line(set.k)), set.k)


cdef inline slot *slotset_search(const slotset *set, gfn_t gfn) noexcept nogil:
    """Searches the tree for the slot that has the gfn. Returns NULL if there is none. O(log n)."""
    cdef slot *s = slotset_floor(set, gfn)
    return s if s is not NULL and slot_has_gfn(s, gfn) else NULL


cdef inline slot *slotset_by_id(const slotset *set, uint32_t id) noexcept nogil:
    """Returns the slot with this id, or NULL. O(1)."""
    return <slot *>idtable_find(&set.ids, id)


cdef inline slot *slotset_first(const slotset *set) noexcept nogil:
    """Returns the slot with the lowest gfn, or NULL."""
    return slot_of_gfn_node(rb_first(&set.gfn_tree), set.k)


cdef inline slot *slotset_last(const slotset *set) noexcept nogil:
    """Returns the slot with the highest gfn, or NULL."""
    return slot_of_gfn_node(rb_last(&set.gfn_tree), set.k)


cdef inline slot *slotset_step(const slotset *set, const slot *s, int side) noexcept nogil:
    """Returns the neighbour by gfn of a slot of the set (side 0: before, 1: after), or NULL."""
    return slot_of_gfn_node(rb_step(&s.gfn_node[set.k], side), set.k)


cdef inline slot *slotset_first_after(
    const slotset *set, slot *floor, gfn_t gfn
) noexcept nogil:
    """Returns the first slot that ends after `gfn`, or NULL.

    `floor` is what slotset_floor returned for this gfn. The result is `floor` or its neighbour.
    """
    if floor is NULL:
        return slotset_first(set)
    return floor if slot_end_gfn(floor) > gfn else slotset_step(set, floor, 1)


cdef inline slot *slotset_first_from(const slotset *set, gfn_t gfn) noexcept nogil:
    """Returns the first slot that ends after `gfn`, or NULL. O(log n)."""
    return slotset_first_after(set, slotset_floor(set, gfn), gfn)


cdef inline slot *slotset_first_hva(const slotset *set, hva_t first, hva_t last) noexcept nogil:
    """Returns the first slot by userspace_addr with a host byte in [first, last], or NULL.

    Both ends are inclusive. O(log n).
    """
    return slot_of_hva_node(hva_first_overlap(&set.hva_tree, first, last), set.k)


cdef inline slot *slotset_next_hva(
    const slotset *set, const slot *s, hva_t first, hva_t last
) noexcept nogil:
    """Returns the next such slot after `s`, or NULL.

    A call with the same [first, last] must have returned `s`.
    """
    return slot_of_hva_node(
        hva_next_overlap(&set.hva_tree, &s.hva_node[set.k], first, last), set.k
    )
