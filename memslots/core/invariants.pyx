"""The only checker. invariants.pxd says where each property is stated."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.core.atomics cimport atomic_load_relaxed_ptr
from memslots.core.dirtylog cimport dirty_words
from memslots.core.hvatree cimport hva_last, hva_node
from memslots.core.idtable cimport idtable
from memslots.core.index cimport index, index_hva, index_row
from memslots.core.index_policy cimport index_policy_current
from memslots.core.rbtree cimport (
    RB_BLACK,
    RB_RED,
    rb_color,
    rb_first,
    rb_key,
    rb_next,
    rb_node,
    rb_parent,
    rb_root,
)
from memslots.core.slot cimport (
    SLOT_INVALID,
    SLOT_LOG_DIRTY_PAGES,
    slot,
    slot_end_gfn,
    slot_of_gfn_node,
    slot_of_hva_node,
)
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_count,
    slotset_first,
    slotset_step,
)
from memslots.core.space cimport SWAPPING, space, space_active


cdef property_id check_links(
    const rb_root *root, uint64_t most, uint64_t *count, uint64_t *depth, const void **where
) noexcept nogil:
    """Checks R2 to R5.

    The walk goes down by child links and back up by parent links. It checks each link (R5) before
    the next step, so it ends.
    """
    cdef const rb_node *node = root.node
    cdef const rb_node *came_from = NULL
    cdef uint64_t level = 1  # number of nodes from the root to `node`
    cdef uint64_t black = 0  # number of black nodes among them
    cdef uint64_t full = 0  # black nodes on any path to a missing child; 0: none seen yet
    cdef int side
    count[0] = 0
    depth[0] = 0
    where[0] = node
    if node is NULL:
        return HOLDS
    if rb_parent(node) is not NULL:
        return R5
    if rb_color(node) != RB_BLACK:
        return R2
    while node is not NULL:
        where[0] = node
        if came_from is rb_parent(node):  # arrived from above
            count[0] += 1
            if count[0] > most:
                return R5  # more nodes than possible: the walk reaches some node twice
            depth[0] = max(depth[0], level)
            black += rb_color(node)
            for side in range(2):
                if node.child[side] is NULL:
                    if full == 0:
                        full = black
                    if black != full:
                        return R4
                elif rb_parent(node.child[side]) is not node:
                    return R5
                elif rb_color(node) == RB_RED and rb_color(node.child[side]) == RB_RED:
                    return R3
            if node.child[0] is not NULL:
                side = 0
            elif node.child[1] is not NULL:
                side = 1
            else:
                side = 2
        elif came_from is node.child[0] and node.child[1] is not NULL:
            if node.child[1] is node.child[0]:
                return R5
            side = 1
        else:
            side = 2
        came_from = node
        if side < 2:
            level += 1
            node = node.child[side]
        else:
            level -= 1
            black -= rb_color(node)
            node = rb_parent(node)
    return HOLDS


cdef property_id invariants_check_tree(
    const rb_root *root, uint64_t most, uint64_t *count, uint64_t *depth, const void **where
) noexcept nogil:
    cdef property_id broken = check_links(root, most, count, depth, where)
    cdef const rb_node *node
    cdef const rb_node *next
    if broken != HOLDS:
        return broken
    node = rb_first(root)
    while node is not NULL:
        where[0] = node
        next = rb_next(node)
        if next is not NULL and rb_key(root, next) < rb_key(root, node):
            return R1
        node = next
    return HOLDS


cdef property_id invariants_check_greatest(const rb_root *root, const void **where) noexcept nogil:
    cdef const rb_node *node = rb_first(root)
    cdef const hva_node *child
    cdef uint64_t greatest
    cdef int side
    while node is not NULL:
        where[0] = node
        greatest = hva_last(root, node)
        for side in range(2):
            child = <const hva_node *>node.child[side]
            if child is not NULL:
                greatest = max(greatest, child.greatest)
        if (<const hva_node *>node).greatest != greatest:
            return H1
        node = rb_next(node)
    return HOLDS


cdef bint dirty_log_agrees(const slot *s) noexcept nogil:
    """Returns whether D1 holds for a slot."""
    if (s.dirty is not NULL) != ((s.flags & SLOT_LOG_DIRTY_PAGES) != 0):
        return False
    return s.dirty is NULL or s.npages & 63 == 0 or (
        s.dirty[dirty_words(s.npages) - 1] >> (s.npages & 63) == 0
    )


cdef uint64_t items_in(const idtable *ids) noexcept nogil:
    """Returns the number of places of the table that are taken."""
    cdef uint64_t size = <uint64_t>1 << ids.order if ids.places is not NULL else 0
    cdef uint64_t taken = 0
    cdef uint64_t i
    for i in range(size):
        taken += ids.places[i] is not NULL
    return taken


cdef property_id check_hva_slots(const slotset *set, uint64_t *id) noexcept nogil:
    """Checks S1 for an hva tree with as many nodes as the set has slots: each is one of them."""
    cdef const rb_node *node = rb_first(&set.hva_tree)
    cdef slot *s
    while node is not NULL:
        s = slot_of_hva_node(<const hva_node *>node, set.k)
        id[0] = s.id
        if slotset_by_id(set, s.id) is not s:
            return S1
        node = rb_next(node)
    id[0] = ~<uint64_t>0
    return HOLDS


cdef property_id check_slots(const slotset *set, uint64_t *id) noexcept nogil:
    """Checks S1 to S4 and D1 for a set whose trees have R1 to R5."""
    cdef slot *s = slotset_first(set)
    cdef slot *next
    cdef uint64_t npages = 0
    # Read once: a reader may be writing it.
    cdef const void *last_used = atomic_load_relaxed_ptr(<void *const *>&set.last_used)
    cdef bint last_used_seen = last_used is NULL
    while s is not NULL:
        id[0] = s.id
        if slotset_by_id(set, s.id) is not s:
            return S1
        next = slotset_step(set, s, 1)
        if next is not NULL and slot_end_gfn(s) > next.base_gfn:
            return S2
        if not dirty_log_agrees(s):
            return D1
        last_used_seen |= last_used is s
        npages += s.npages
        s = next
    id[0] = ~<uint64_t>0
    if not last_used_seen:
        return S3
    if npages != set.npages:
        return S4
    return HOLDS


cdef void check_set(const slotset *set, report *out) noexcept nogil:
    cdef uint64_t most = slotset_count(set)
    cdef uint64_t count
    cdef uint64_t depth
    cdef const void *where = NULL
    out.k = set.k
    out.in_hva_tree = False
    out.broken = invariants_check_tree(&set.gfn_tree, most, &count, &depth, &where)
    if out.broken != HOLDS:
        out.id = slot_of_gfn_node(<const rb_node *>where, set.k).id
        return
    if count != most or items_in(&set.ids) != most:
        out.broken = S1
        return
    out.in_hva_tree = True
    out.broken = invariants_check_tree(&set.hva_tree, most, &count, &depth, &where)
    if out.broken == HOLDS:
        out.broken = invariants_check_greatest(&set.hva_tree, &where)
    if out.broken != HOLDS:
        out.id = slot_of_hva_node(<const hva_node *>where, set.k).id
        return
    out.broken = S1 if count != most else check_hva_slots(set, &out.id)
    if out.broken != HOLDS:
        return
    out.in_hva_tree = False
    out.broken = check_slots(set, &out.id)


cdef property_id check_index(const index *ix, const slotset *active, uint64_t *id) noexcept nogil:
    """Checks I1 for the index of the active set."""
    cdef slot *s = slotset_first(active)
    cdef const index_row *row
    cdef uint32_t i
    if ix.count != slotset_count(active):
        return I1
    for i in range(ix.count):
        row = &ix.rows[i]
        id[0] = s.id
        if ix.slots[i] is not s or row.record is not s.record:
            return I1
        if row.base_gfn != s.base_gfn or row.npages != s.npages:
            return I1
        if row.id != <int32_t>s.id or row.hva != index_hva(s.userspace_addr, s.flags):
            return I1
        s = slotset_step(active, s, 1)
    id[0] = ~<uint64_t>0
    return HOLDS


cdef void invariants_check_space(const space *sp, report *out) noexcept nogil:
    cdef const slotset *active = space_active(sp)
    cdef const slotset *other = &sp.sets[1 - active.k]
    cdef slot *s
    cdef slot *twin
    cdef const index *ix
    cdef int k
    out.broken = HOLDS
    out.id = ~<uint64_t>0
    for k in range(2):
        check_set(&sp.sets[k], out)
        if out.broken != HOLDS:
            return
    out.k = active.k
    s = slotset_first(active)
    twin = slotset_first(other)
    while s is not NULL and s is twin:
        out.id = s.id
        if s.flags & SLOT_INVALID:
            out.broken = P1
            return
        s = slotset_step(active, s, 1)
        twin = slotset_step(other, twin, 1)
    if s is not twin:
        out.broken = P1
        out.id = s.id if s is not NULL else twin.id
        return
    out.id = ~<uint64_t>0
    if active.generation & SWAPPING:
        out.broken = P2
        return
    # The other set lost its index when its readers had gone.
    if other.index is not NULL:
        out.broken = I1
        return
    ix = index_policy_current(active)
    if ix is not NULL:
        out.broken = check_index(ix, active, &out.id)
