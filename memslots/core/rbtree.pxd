"""An intrusive red-black tree (prefix: rb_).

The nodes lie inside the structs that the tree orders. The tree knows nothing of these structs.

Comments cite these properties by number where code relies on them or checks them:

  R1  search order: in walking order the keys never fall (equal keys are allowed)
  R2  the root is black
  R3  a red node has no red child
  R4  every path from a node down to a missing child passes the same number of black nodes
  R5  a child's parent link names its parent; the root's parent link is empty

R3 and R4 bound the depth by 2 * log2(n + 1).

The key is an unsigned 64-bit number at a fixed distance from the node. So a search needs no
callback: it loads the key, and `child[key <= wanted]` is the next node, without a branch. With
`child[2]` in place of left and right, one piece of code covers each pair of mirrored cases.

A tree may keep a value of each subtree in its nodes (hvatree does). `refresh` computes a node's
value from the node's own data and its children's values. The tree calls `refresh` for each node
whose children have changed, lower nodes first.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

cdef extern from *:
    void rb_prefetch "__builtin_prefetch"(const void *) noexcept nogil  # any address is allowed

cdef struct rb_node:
    # [0]: the subtree of keys at most this one's, [1]: of keys at least this one's; NULL: none
    rb_node *child[2]
    # the parent's address (0: this node is the root); bit 0 is the colour: 1 is black
    size_t parent_and_color

cdef struct rb_root:
    rb_node *node  # the root; NULL: the tree is empty
    ptrdiff_t key_offset  # from a node's address to its key's address
    # Computes the node's subtree value. Returns whether the value changed. NULL: the tree keeps no
    # subtree values (a plain tree).
    bint (*refresh)(const rb_root *root, rb_node *node) noexcept nogil

cdef enum:
    RB_RED = 0
    RB_BLACK = 1


cdef inline void rb_init(
    rb_root *root, ptrdiff_t key_offset, bint (*refresh)(const rb_root *, rb_node *) noexcept nogil
) noexcept nogil:
    root.node = NULL
    root.key_offset = key_offset
    root.refresh = refresh


cdef inline uint64_t rb_key(const rb_root *root, const rb_node *node) noexcept nogil:
    return (<const uint64_t *>(<const char *>node + root.key_offset))[0]


cdef inline rb_node *rb_parent(const rb_node *node) noexcept nogil:
    """Returns the parent, or NULL for the root."""
    return <rb_node *>(node.parent_and_color & ~<size_t>1)


cdef inline size_t rb_color(const rb_node *node) noexcept nogil:
    return node.parent_and_color & 1


cdef inline rb_node *rb_floor(
    const rb_root *root, uint64_t key, ptrdiff_t wanted
) noexcept nogil:
    """Returns the last node whose key is at most `key`, or NULL.

    O(log n), branch-free except for the loop. `wanted` is the distance from a node to the data that
    the caller will read of the result. The search prefetches that data for every candidate.
    """
    cdef rb_node *node = root.node
    cdef rb_node *best = NULL
    cdef bint right
    while node is not NULL:
        right = rb_key(root, node) <= key
        best = node if right else best
        rb_prefetch(<const char *>best + wanted)
        node = node.child[right]
    return best


cdef inline rb_node *rb_lower_bound(const rb_root *root, uint64_t key) noexcept nogil:
    """Returns the first node whose key is at least `key`, or NULL.

    O(log n), branch-free except for the loop.
    """
    cdef rb_node *node = root.node
    cdef rb_node *best = NULL
    cdef bint right
    while node is not NULL:
        right = rb_key(root, node) < key
        best = best if right else node
        node = node.child[right]
    return best


# Returns the outermost node on a side (0: the first, 1: the last), or NULL for an empty tree.
# O(log n).
cdef rb_node *rb_end(const rb_root *root, int side) noexcept nogil
# Returns the neighbour on a side (0: the node before, 1: the node after), or NULL. O(1) on average
# over a walk.
cdef rb_node *rb_step(const rb_node *node, int side) noexcept nogil

# Fills an empty tree with `count` nodes, given in key order. Node i is `distance` bytes after the
# address items[i]. O(count).
cdef void rb_build(
    rb_root *root, void *const *items, size_t count, ptrdiff_t distance
) noexcept nogil
# Inserts a node that is in no tree, after all nodes of an equal key. O(log n).
cdef void rb_insert(rb_root *root, rb_node *node) noexcept nogil
# Inserts a node right after `before`; NULL: as the first node. The node's key must sort there.
# O(log n); in a plain tree O(1) amortised, since only rebalancing climbs the tree.
cdef void rb_insert_after(rb_root *root, rb_node *before, rb_node *node) noexcept nogil
# Removes a node of this tree. O(log n).
cdef void rb_erase(rb_root *root, rb_node *node) noexcept nogil
# Puts `new`, which is in no tree, in the place of `old`. The key of `new` must sort there. O(1) in
# a plain tree. O(1) too if `new` has the same subtree value as `old`; otherwise O(log n).
cdef void rb_replace(rb_root *root, rb_node *old, rb_node *new) noexcept nogil


cdef inline rb_node *rb_first(const rb_root *root) noexcept nogil:
    return rb_end(root, 0)


cdef inline rb_node *rb_last(const rb_root *root) noexcept nogil:
    return rb_end(root, 1)


cdef inline rb_node *rb_next(const rb_node *node) noexcept nogil:
    return rb_step(node, 1)


cdef inline rb_node *rb_prev(const rb_node *node) noexcept nogil:
    return rb_step(node, 0)
