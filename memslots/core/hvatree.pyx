"""An interval tree. The property H1 and the contract of each function are in hvatree.pxd."""

from memslots.core.rbtree cimport rb_init, rb_parent


cdef bint refresh(const rb_root *root, rb_node *node) noexcept nogil:
    """Computes H1 for a node whose children's values are right. Returns whether it changed."""
    cdef hva_t greatest = hva_last(root, node)
    cdef hva_node *child
    cdef int side
    for side in range(2):
        child = <hva_node *>node.child[side]
        if child is not NULL and child.greatest > greatest:
            greatest = child.greatest
    if (<hva_node *>node).greatest == greatest:
        return False
    (<hva_node *>node).greatest = greatest
    return True


cdef inline bint reaches(const rb_node *node, hva_t first) noexcept nogil:
    """Returns whether any range of this subtree ends at `first` or after it (H1)."""
    return node is not NULL and (<const hva_node *>node).greatest >= first


cdef const rb_node *leftmost_overlap(
    const rb_root *root, const rb_node *node, hva_t first, hva_t last
) noexcept nogil:
    """Returns the first overlap in a subtree, or NULL. Some range there must reach `first`."""
    while True:
        if reaches(node.child[0], first):
            # Some range in the left subtree ends late enough. If it starts too late, so do all
            # ranges after it.
            node = node.child[0]
        elif hva_first(root, node) > last:
            return NULL
        elif hva_last(root, node) >= first:
            return node
        else:
            # By H1 a range that reaches `first` can only be in the right subtree.
            node = node.child[1]


cdef void hva_init(rb_root *root, ptrdiff_t range_offset) noexcept nogil:
    rb_init(root, range_offset, refresh)


cdef hva_node *hva_first_overlap(const rb_root *root, hva_t first, hva_t last) noexcept nogil:
    if not reaches(root.node, first):
        return NULL
    return <hva_node *>leftmost_overlap(root, root.node, first, last)


cdef hva_node *hva_next_overlap(
    const rb_root *root, const hva_node *node, hva_t first, hva_t last
) noexcept nogil:
    cdef const rb_node *here = &node.rb
    cdef const rb_node *above
    while True:
        if reaches(here.child[1], first):
            return <hva_node *>leftmost_overlap(root, here.child[1], first, last)
        # No overlap below: climb to the nearest node above that comes after this subtree.
        above = rb_parent(here)
        while above is not NULL and above.child[1] is here:
            here = above
            above = rb_parent(here)
        if above is NULL or hva_first(root, above) > last:
            return NULL
        if hva_last(root, above) >= first:
            return <hva_node *>above
        here = above
