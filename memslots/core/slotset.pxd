"""One set of slots: found by gfn, by host range, by id.

  S1  all three indexes hold the same slots
  S2  no two slots of a set share a gfn
  S3  last-used is NULL or a slot of the set
  S4  the counts of slots and of pages agree with the slots

Readers use the active set, so only the inactive one is changed. What readers write themselves is
last-used, and the set's index (index.pxd), which is there for as long as the set is not changed.
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
    # The first cache line: what every look-up by gfn reads, and only a swap writes.
    rb_root gfn_tree  # the slots by base_gfn
    uint64_t generation  # see space; here, beside the tree, since a reader reads both
    index *index  # I1; NULL: there is none yet. Published once, by a reader
    int k  # which of a slot's nodes are this set's: 0 or 1
    uint64_t first_line[2]
    # The second: what readers write.
    slot *last_used  # the slot found last, or NULL
    # What index_policy knows of the index that is to be.
    uint64_t searches  # of the tree since the set is active (about: several may count at once)
    uint64_t building  # whether a reader is making part of the index, and has what follows
    index *unfinished  # with the rows that are made; NULL: none is begun
    slot *next  # the slot to make the next row of
    index *spare  # one of INDEX_FEW that is to be used again, or NULL
    uint64_t second_line[2]
    # The third: what the writer writes while the set is inactive.
    rb_root hva_tree  # the slots by host range
    idtable ids  # the slots by id
    uint64_t npages  # the sum of the slots' npages
    uint64_t third_line[1]


cdef void slotset_init(slotset *set, int k) noexcept nogil
# Gives back what the set has got for itself; the slots in it are not its own.
cdef void slotset_clear(slotset *set) noexcept nogil
# Before the set is changed, when all readers are gone: takes away its index, also an unfinished
# one. O(1), and what giving back memory takes.
cdef void slotset_drop_index(slotset *set) noexcept nogil
# Changes the set from holding `old` to holding `new`: NULL `old` adds, NULL `new` removes;
# otherwise `new` takes the place of `old`, whose id it has. An addition takes `spare`, got with
# idtable_get_spare(&set.ids, ...) for it. Cannot fail. O(log n); a replacement O(1) in the trees
# where base_gfn, or the host range, stays.
cdef void slotset_put(slotset *set, slot *old, slot *new, idtable_spare *spare) noexcept nogil
# The same where the other set of the space holds `new` already, and otherwise what this one does:
# its place is mostly known from there.
cdef void slotset_follow(slotset *set, slot *old, slot *new, idtable_spare *spare) noexcept nogil
# Adds a slot that comes right after `before` by gfn (NULL: it is the first). Slots side by side in
# guest memory often are in host memory, too: then no place is searched for. O(log n).
cdef void slotset_put_after(
    slotset *set, slot *before, slot *new, idtable_spare *spare
) noexcept nogil
# Fills a set that is empty with slots, given by gfn and by host address; takes `spare`. O(count).
cdef void slotset_fill(
    slotset *set, slot **slots, slot **by_hva, uint32_t count, idtable_spare *spare
) noexcept nogil
# A slot other than `except_for` (may be NULL) that has a gfn in [base_gfn, base_gfn + npages), or
# NULL; in *before the last slot that begins at base_gfn or before it, or NULL. O(log n).
cdef slot *slotset_overlap(
    const slotset *set,
    gfn_t base_gfn,
    uint64_t npages,
    const slot *except_for,
    slot **before,
) noexcept nogil


# A neighbour by gfn that a slot of the set overlaps, or NULL. Where every slot that was put in is
# asked this, S2 holds if none is found. O(log n).
cdef slot *slotset_clash(const slotset *set, const slot *s) noexcept nogil


cdef inline uint32_t slotset_count(const slotset *set) noexcept nogil:
    return set.ids.count


cdef inline slot *slotset_floor(const slotset *set, gfn_t gfn) noexcept nogil:
    """The last slot that begins at `gfn` or before it, or NULL. O(log n)."""
    return slot_of_gfn_node(rb_floor(&set.gfn_tree, gfn, slot_third_line(set.k)), set.k)


cdef inline slot *slotset_search(const slotset *set, gfn_t gfn) noexcept nogil:
    """Returns the slot that has the gfn, or NULL, by a search of the tree. O(log n)."""
    cdef slot *s = slotset_floor(set, gfn)
    return s if s is not NULL and slot_has_gfn(s, gfn) else NULL


cdef inline slot *slotset_by_id(const slotset *set, uint32_t id) noexcept nogil:
    """The slot of this id, or NULL. O(1)."""
    return <slot *>idtable_find(&set.ids, id)


cdef inline slot *slotset_first(const slotset *set) noexcept nogil:
    """The slot with the lowest gfn, or NULL."""
    return slot_of_gfn_node(rb_first(&set.gfn_tree), set.k)


cdef inline slot *slotset_last(const slotset *set) noexcept nogil:
    """The slot with the highest gfn, or NULL."""
    return slot_of_gfn_node(rb_last(&set.gfn_tree), set.k)


cdef inline slot *slotset_step(const slotset *set, const slot *s, int side) noexcept nogil:
    """The neighbour by gfn of a slot of the set (side 0: before, 1: after), or NULL."""
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
    """The first slot, by userspace_addr, with a host byte in [first, last], or NULL.

    Both ends are inclusive. O(log n).
    """
    return slot_of_hva_node(hva_first_overlap(&set.hva_tree, first, last), set.k)


cdef inline slot *slotset_next_hva(
    const slotset *set, const slot *s, hva_t first, hva_t last
) noexcept nogil:
    """The one after `s`, which a call with the same [first, last] gave, or NULL."""
    return slot_of_hva_node(
        hva_next_overlap(&set.hva_tree, &s.hva_node[set.k], first, last), set.k
    )
