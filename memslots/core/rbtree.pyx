"""An intrusive red-black tree.

The properties R1 to R5 and the contract of each function are in rbtree.pxd.

In the drawings capital letters are black nodes and small letters are red nodes. (p) is a node of
either colour. The drawings show side 0; side 1 is the mirror image.
"""


cdef inline int side_of(const rb_node *parent, const rb_node *node) noexcept nogil:
    return parent.child[1] is node


cdef inline bint is_red(const rb_node *node) noexcept nogil:
    """Returns whether a node is red. A missing child counts as black."""
    return node is not NULL and rb_color(node) == RB_RED


cdef inline void set_parent(rb_node *node, rb_node *parent) noexcept nogil:
    node.parent_and_color = <size_t>parent | rb_color(node)


cdef inline void set_color(rb_node *node, size_t color) noexcept nogil:
    node.parent_and_color = <size_t>rb_parent(node) | color


cdef inline void set_link(
    rb_root *root, rb_node *parent, rb_node *old, rb_node *new
) noexcept nogil:
    """Makes the link from `parent` to `old` lead to `new`. NULL parent: the root's link."""
    if parent is NULL:
        root.node = new
    else:
        parent.child[side_of(parent, old)] = new


cdef inline void refresh_up(rb_root *root, rb_node *node) noexcept nogil:
    """Refreshes subtree values from `node` upward. Stops at the first value that stays the same."""
    while node is not NULL and root.refresh(root, node):
        node = rb_parent(node)


cdef void rotate(rb_root *root, rb_node *node, int side) noexcept nogil:
    """Moves `node` down to `side`; its other child moves up. Colours stay with their nodes."""
    #      (n)                (c)
    #     /   \              /   \
    #    1    (c)   ->     (n)    3
    #        /   \        /   \
    #       2     3      1     2
    cdef rb_node *child = node.child[1 - side]
    cdef rb_node *inner = child.child[side]
    cdef rb_node *parent = rb_parent(node)
    node.child[1 - side] = inner
    if inner is not NULL:
        set_parent(inner, node)
    child.child[side] = node
    set_link(root, parent, node, child)
    set_parent(child, parent)
    set_parent(node, child)
    if root.refresh is not NULL:
        # Both nodes have other children now. The subtree as a whole holds the same nodes, so no
        # value above it changes.
        root.refresh(root, node)
        root.refresh(root, child)


cdef void rebalance_insert(rb_root *root, rb_node *node) noexcept nogil:
    """Restores R2 and R3. `node` is red, and its parent may be red.

    R1, R4 and R5 hold throughout.
    """
    cdef rb_node *parent = rb_parent(node)
    cdef rb_node *grand
    cdef rb_node *uncle
    cdef int side
    while is_red(parent):
        grand = rb_parent(parent)  # not NULL: a red parent is not the root (R2)
        side = side_of(grand, parent)
        uncle = grand.child[1 - side]
        if is_red(uncle):
            # Case 1: a red uncle. Recolour. g may now have a red parent: continue with g.
            #
            #       G            g
            #      / \          / \
            #     p   u   ->   P   U
            #    /            /
            #   n            n
            set_color(parent, RB_BLACK)
            set_color(uncle, RB_BLACK)
            set_color(grand, RB_RED)
            node = grand
            parent = rb_parent(node)
            continue
        if side_of(parent, node) != side:
            # Case 2: the node is the inner grandchild. Rotate it outward; n and p swap names.
            #
            #       G            G
            #      / \          / \
            #     p   U   ->   n   U
            #      \          /
            #       n        p
            rotate(root, parent, side)
            parent = node
        # Case 3: the node is the outer grandchild. Rotate the grandparent down; done.
        #
        #       G            P
        #      / \          / \
        #     p   U   ->   n   g
        #    /                  \
        #   n                    U
        set_color(parent, RB_BLACK)
        set_color(grand, RB_RED)
        rotate(root, grand, 1 - side)
        break
    set_color(root.node, RB_BLACK)


cdef void rebalance_erase(rb_root *root, rb_node *parent, int side) noexcept nogil:
    """Restores R4 if the paths through `parent.child[side]` pass one black node too few.

    The short subtree is drawn as *. Its root is black or missing, so its sibling exists (R4).
    """
    cdef rb_node *sibling
    cdef rb_node *node
    while True:
        sibling = parent.child[1 - side]
        if is_red(sibling):
            # Case 1: a red sibling. Rotate it up; the new sibling is black.
            #
            #      P              S
            #     / \            / \
            #    *   s    ->    p   D
            #       / \        / \
            #      C   D      *   C
            set_color(sibling, RB_BLACK)
            set_color(parent, RB_RED)
            rotate(root, parent, side)
            sibling = parent.child[1 - side]
        if not is_red(sibling.child[0]) and not is_red(sibling.child[1]):
            # Case 2: the sibling and its children are black. Take one black node from its side too.
            # If the parent is red, it turns black and makes up for both. Otherwise the parent's
            # whole subtree is short: continue with the parent.
            #
            #     (p)            (p)
            #     / \            / \
            #    *   S    ->    *   s
            #       / \            / \
            #      C   D          C   D
            set_color(sibling, RB_RED)
            node = parent
            parent = rb_parent(node)
            if is_red(node) or parent is NULL:
                set_color(node, RB_BLACK)
                return
            side = side_of(parent, node)
            continue
        if not is_red(sibling.child[1 - side]):
            # Case 3: only the near child of the sibling is red. Rotate it up: it is the new
            # sibling.
            #
            #     (p)            (p)
            #     / \            / \
            #    *   S    ->    *   C
            #       / \              \
            #      c   D              s
            #                          \
            #                           D
            set_color(sibling, RB_RED)
            rotate(root, sibling, 1 - side)
            sibling = parent.child[1 - side]
            set_color(sibling, RB_BLACK)
        # Case 4: the sibling's far child is red. Rotate the parent down into the short side and
        # make it black; done.
        #
        #     (p)            (s)
        #     / \            / \
        #    *   S    ->    P   D
        #       / \        / \
        #     (c)  d      *  (c)
        set_color(sibling, rb_color(parent))
        set_color(parent, RB_BLACK)
        set_color(sibling.child[1 - side], RB_BLACK)
        rotate(root, parent, side)
        return


cdef rb_node *rb_end(const rb_root *root, int side) noexcept nogil:
    cdef rb_node *node = root.node
    if node is not NULL:
        while node.child[side] is not NULL:
            node = node.child[side]
    return node


cdef rb_node *rb_step(const rb_node *node, int side) noexcept nogil:
    cdef rb_node *other = node.child[side]
    if other is not NULL:
        # The nearest node below: one step to the side, then to the other side until the end.
        while other.child[1 - side] is not NULL:
            other = other.child[1 - side]
        return other
    # Otherwise the nearest node above that comes after this subtree (side 1) or before it (side 0).
    other = rb_parent(node)
    while other is not NULL and other.child[side] is node:
        node = other
        other = rb_parent(node)
    return other


cdef void link_at(
    rb_root *root, rb_node *parent, rb_node **link, rb_node *node
) noexcept nogil:
    """Hangs a node below `parent` by `link`, the NULL link at the node's place in key order."""
    node.child[0] = NULL
    node.child[1] = NULL
    node.parent_and_color = <size_t>parent | RB_RED
    link[0] = node
    if root.refresh is not NULL:
        root.refresh(root, node)
        refresh_up(root, parent)
    rebalance_insert(root, node)


cdef void rb_insert(rb_root *root, rb_node *node) noexcept nogil:
    cdef uint64_t key = rb_key(root, node)
    cdef rb_node *parent = NULL
    cdef rb_node **link = &root.node
    while link[0] is not NULL:
        parent = link[0]
        link = &parent.child[rb_key(root, parent) <= key]
    link_at(root, parent, link, node)


cdef void rb_insert_after(rb_root *root, rb_node *before, rb_node *node) noexcept nogil:
    # If `before` has no right child, its link is free. Otherwise the next node has no left child.
    cdef rb_node *parent = before
    cdef rb_node **link = &root.node if before is NULL else &before.child[1]
    while link[0] is not NULL:
        parent = link[0]
        link = &parent.child[0]
    link_at(root, parent, link, node)


cdef rb_node *build(
    rb_root *root, void *const *items, size_t count, ptrdiff_t distance, rb_node *parent, int reds
) noexcept nogil:
    """Returns a subtree of the nodes. The nodes `reds` levels below its root are red.

    By halving, the lengths of any two paths differ by at most one, so all levels but the last are
    full. The full levels are black (R4). The last level is red under black parents (R3).
    """
    cdef size_t middle = count // 2
    cdef rb_node *node
    if count == 0:
        return NULL
    node = <rb_node *>(<char *>items[middle] + distance)
    node.parent_and_color = <size_t>parent | (RB_RED if reds == 0 else RB_BLACK)
    node.child[0] = build(root, items, middle, distance, node, reds - 1)
    node.child[1] = build(
        root, items + middle + 1, count - middle - 1, distance, node, reds - 1
    )
    if root.refresh is not NULL:
        root.refresh(root, node)
    return node


cdef void rb_build(
    rb_root *root, void *const *items, size_t count, ptrdiff_t distance
) noexcept nogil:
    cdef int full = 0  # number of levels that have all their nodes
    while (<size_t>2 << full) - 1 <= count:
        full += 1
    root.node = build(root, items, count, distance, NULL, full)


cdef void rb_erase(rb_root *root, rb_node *node) noexcept nogil:
    cdef rb_node *heir  # takes the place of `node`
    # takes the place that the heir leaves, or that of `node` if there is no heir; may be NULL
    cdef rb_node *orphan
    cdef rb_node *parent = rb_parent(node)  # in the end: the parent of the orphan's place
    cdef int side = 0  # in the end: the side of the orphan's place under `parent`
    cdef size_t lost = rb_color(node)  # the colour that the paths through that place have lost

    if node.child[0] is not NULL and node.child[1] is not NULL:
        # Two children: the next node is the heir and has no child on side 0. The heir leaves its
        # place to its only child, moves here and takes the erased node's colour.
        heir = rb_step(node, 1)
        orphan = heir.child[1]
        lost = rb_color(heir)
        if rb_parent(heir) is node:
            side = 1
            set_link(root, parent, node, heir)
            parent = heir
        else:
            set_link(root, parent, node, heir)
            parent = rb_parent(heir)
            parent.child[0] = orphan
            heir.child[1] = node.child[1]
            set_parent(heir.child[1], heir)
        heir.child[0] = node.child[0]
        set_parent(heir.child[0], heir)
        heir.parent_and_color = node.parent_and_color
    else:
        # At most one child: the child moves up.
        heir = NULL
        orphan = node.child[node.child[0] is NULL]
        if parent is not NULL:
            side = side_of(parent, node)
        set_link(root, parent, node, orphan)
    if orphan is not NULL:
        set_parent(orphan, parent)

    if root.refresh is not NULL:
        if heir is not NULL:
            # The heir still has the value of its old place. So an unchanged value ends the climb
            # only above the heir.
            node = parent
            while node is not heir:
                root.refresh(root, node)
                node = rb_parent(node)
            root.refresh(root, heir)
            refresh_up(root, rb_parent(heir))
        else:
            refresh_up(root, parent)

    if lost == RB_BLACK:
        if orphan is not NULL:
            # An only child is red (R4: the other side is empty). Made black, it makes up for the
            # lost node.
            set_color(orphan, RB_BLACK)
        elif parent is not NULL:
            rebalance_erase(root, parent, side)


cdef void rb_replace(rb_root *root, rb_node *old, rb_node *new) noexcept nogil:
    cdef int side
    new[0] = old[0]
    set_link(root, rb_parent(old), old, new)
    for side in range(2):
        if new.child[side] is not NULL:
            set_parent(new.child[side], new)
    if root.refresh is not NULL:
        root.refresh(root, new)
        refresh_up(root, rb_parent(new))
