# cython: language_level=3
"""Breaks one property of a Memslots at a time, behind its back, and mends it again."""

from libc.stdint cimport uint64_t

from memslots.core.hvatree cimport hva_node
from memslots.core.idtable cimport idtable_spare
from memslots.core.index cimport INDEX_READONLY, index_row
from memslots.core.rbtree cimport RB_BLACK, rb_node
from memslots.core.slot cimport (
    SLOT_INVALID,
    SLOT_LOG_DIRTY_PAGES,
    slot,
    slot_of_gfn_node,
    slot_of_hva_node,
)
from memslots.core.slotset cimport (
    slotset,
    slotset_drop_index,
    slotset_first,
    slotset_put,
    slotset_step,
)
from memslots.core.space cimport SWAPPING, space, space_active, space_inactive
from memslots.memslots cimport memslots_space


cdef rb_node *red_leaf(rb_node *node):
    """A red node without children, or NULL."""
    cdef rb_node *found = NULL
    cdef int side
    if node is NULL:
        return NULL
    if not node.parent_and_color & 1 and node.child[0] is NULL and node.child[1] is NULL:
        return node
    for side in range(2):
        found = red_leaf(node.child[side])
        if found is not NULL:
            break
    return found


cdef rb_node *root_of(slotset *set, bint hva):
    return set.hva_tree.node if hva else set.gfn_tree.node


def depth(face):
    """The depth of the deepest tree of both sets, in nodes."""
    cdef space *sp = memslots_space(face)
    return max(depth_of(root_of(&sp.sets[k], hva)) for k in range(2) for hva in (False, True))


cdef int depth_of(const rb_node *node):
    return 0 if node is NULL else 1 + max(depth_of(node.child[0]), depth_of(node.child[1]))


cdef id_of(const rb_node *node, const slotset *set, bint hva):
    if hva:
        return slot_of_hva_node(<const hva_node *>node, set.k).id
    return slot_of_gfn_node(node, set.k).id


def broken(face, name, active=True, hva=False):
    """A generator: breaks the named property in the active or inactive set, yields the number of
    the set and the id of the slot (or None) that a check names, and mends it.
    """
    cdef space *sp = memslots_space(face)
    cdef slotset *set = space_active(sp) if active else space_inactive(sp)
    cdef rb_node *root = root_of(set, hva)
    cdef rb_node *node
    cdef rb_node *child
    cdef slot *s = slotset_first(set)
    cdef slot *next = slotset_step(set, s, 1)
    cdef size_t kept = 0
    cdef uint64_t word = 0
    cdef void *place = NULL
    cdef uint64_t i = 0
    cdef slot copy
    cdef index_row *row
    cdef index_row row_copy
    cdef rb_node *parent
    cdef int side
    cdef idtable_spare spare  # none is needed: a table keeps its size
    spare.places = NULL
    if name == "R1":
        kept = s.userspace_addr if hva else s.base_gfn
        if hva:
            s.userspace_addr = ~<uint64_t>0
        else:
            s.base_gfn = ~<uint64_t>0
        yield 0, s.id  # both sets hold the slot
        if hva:
            s.userspace_addr = kept
        else:
            s.base_gfn = kept
    elif name == "R2":
        root.parent_and_color &= ~<size_t>RB_BLACK
        yield set.k, id_of(root, set, hva)
        root.parent_and_color |= RB_BLACK
    elif name == "R3":
        # Red all the way down to a red leaf's parent, everywhere as many: paint the leaf's parent
        # red.
        node = red_leaf(root)
        child = <rb_node *>(node.parent_and_color & ~<size_t>1)
        child.parent_and_color &= ~<size_t>RB_BLACK
        parent = <rb_node *>(child.parent_and_color & ~<size_t>1)
        # The upper one of the first two that are red.
        yield set.k, id_of(child if parent.parent_and_color & RB_BLACK else parent, set, hva)
        child.parent_and_color |= RB_BLACK
    elif name == "R4":
        node = red_leaf(root)
        node.parent_and_color |= RB_BLACK
        yield set.k, id_of(node, set, hva)
        node.parent_and_color &= ~<size_t>RB_BLACK
    elif name == "R5":
        node = root.child[0]
        kept = node.parent_and_color
        node.parent_and_color = <size_t>node | (kept & 1)
        yield set.k, id_of(root, set, hva)  # the one whose child has another parent
        node.parent_and_color = kept
    elif name == "R5 cycle":
        node = red_leaf(root)
        node.child[1] = root
        yield set.k, id_of(node, set, hva)
        node.child[1] = NULL
    elif name == "H1":
        kept = (<hva_node *>set.hva_tree.node).greatest
        (<hva_node *>set.hva_tree.node).greatest += 1
        yield set.k, id_of(set.hva_tree.node, set, True)
        (<hva_node *>set.hva_tree.node).greatest = kept
    elif name == "S1 ids":
        while set.ids.places[i] is NULL:
            i += 1
        place = set.ids.places[i]
        set.ids.places[i] = NULL
        yield set.k, None
        set.ids.places[i] = place
    elif name == "S1 count":
        set.ids.count += 1
        yield set.k, None
        set.ids.count -= 1
    elif name == "S1 hva":
        # A copy of a slot takes its place in the hva tree: it reads the same and is in no set.
        node = red_leaf(set.hva_tree.node)
        s = slot_of_hva_node(<hva_node *>node, set.k)
        copy = s[0]
        parent = <rb_node *>(node.parent_and_color & ~<size_t>1)
        side = parent.child[1] is node
        parent.child[side] = <rb_node *>(<char *>&copy + (<char *>node - <char *>s))
        yield set.k, s.id
        parent.child[side] = node
    elif name == "S2":
        kept = s.npages
        s.npages = next.base_gfn - s.base_gfn + 1
        set.npages += s.npages - kept
        yield 0, s.id  # both sets hold the slot
        set.npages -= s.npages - kept
        s.npages = kept
    elif name == "S3":
        set.last_used = <slot *>set
        yield set.k, None
        set.last_used = NULL
    elif name == "S4":
        set.npages += 1
        yield set.k, None
        set.npages -= 1
    elif name == "P1":
        s.flags |= SLOT_INVALID
        yield sp.active.k, s.id
        s.flags &= ~SLOT_INVALID
    elif name == "P1 slots":
        while next is not NULL:  # to the last slot
            s = next
            next = slotset_step(set, s, 1)
        slotset_drop_index(set)
        slotset_put(set, s, NULL, NULL)
        yield sp.active.k, s.id
        slotset_put(set, NULL, s, &spare)
    elif name == "P2":
        sp.active.generation |= SWAPPING
        yield sp.active.k, None
        sp.active.generation &= ~SWAPPING
    elif name == "D1 flag":
        s.flags ^= SLOT_LOG_DIRTY_PAGES
        yield 0, s.id  # both sets hold the slot
        s.flags ^= SLOT_LOG_DIRTY_PAGES
    elif name == "D1 bit":
        while s.dirty is NULL or s.npages & 63 == 0:
            s = slotset_step(set, s, 1)
        i = s.npages >> 6
        word = s.dirty[i]
        s.dirty[i] |= <uint64_t>1 << (s.npages & 63)
        yield 0, s.id  # both sets hold the slot
        s.dirty[i] = word
    elif name.startswith("I1 row"):
        row = &sp.active.index.rows[1]
        row_copy = row[0]
        if name == "I1 row: base_gfn":
            row.base_gfn += 1
        elif name == "I1 row: npages":
            row.npages += 1
        elif name == "I1 row: id":
            row.id += 1
        elif name == "I1 row: userspace_addr":
            row.hva += 1 << 12
        elif name == "I1 row: flags":
            row.hva ^= INDEX_READONLY
        elif name == "I1 row: record":
            row.record = NULL
        yield sp.active.k, sp.active.index.slots[1].id
        row[0] = row_copy
    elif name == "I1 slot":
        place = sp.active.index.slots[1]
        sp.active.index.slots[1] = sp.active.index.slots[2]
        yield sp.active.k, (<slot *>place).id
        sp.active.index.slots[1] = <slot *>place
    elif name == "I1 count":
        sp.active.index.count -= 1
        yield sp.active.k, None
        sp.active.index.count += 1
    elif name == "I1 kept":
        sp.sets[1 - sp.active.k].index = sp.active.index
        yield sp.active.k, None
        sp.sets[1 - sp.active.k].index = NULL
    else:
        raise ValueError(name)
