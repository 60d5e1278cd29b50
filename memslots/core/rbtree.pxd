"""An intrusive red-black tree (prefix: rb_).

The nodes lie inside whatever the tree orders, and it knows nothing of that.

The properties, cited by number wherever they are relied on or checked:

  R1  search order: in walking order the keys never fall (equal keys are allowed)
  R2  the root is black
  R3  a red node has no red child
  R4  every way from a node down to a missing child passes the same number of black nodes
  R5  a child's parent link names its parent; the root's names nothing

R3 and R4 bound the depth by 2 * log2(n + 1).

The key is an unsigned 64-bit number at a fixed distance from the node, so that a search needs no
call back: it loads the key, and `child[key <= wanted]` says where to go on, without a branch.
`child[2]` in place of left and right lets one piece of code stand for each pair of mirrored cases.

A tree may keep a value of each subtree in its nodes (hvatree does). Then `refresh` works out a
node's value from its own and its children's; the tree calls it wherever a node's children have
changed, lower nodes first.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

cdef extern from *:
    void rb_prefetch "__builtin_prefetch"(const void *) noexcept nogil  # any address will do

cdef struct rb_node:
    rb_node *child[2]  # [0] holds keys not above this one's, [1] keys not below; NULL: none
    # the parent's address (0: this is the root), and in bit 0 the colour: 1 is black
    size_t parent_and_color

cdef struct rb_root:
    rb_node *node  # the root, or NULL: the tree is empty
    ptrdiff_t key_offset  # from a node's address to its key's
    # Works out the node's subtree value; says whether it changed. NULL: this tree keeps none.
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
    """The node above, or NULL for the root."""
    return <rb_node *>(node.parent_and_color & ~<size_t>1)


cdef inline size_t rb_color(const rb_node *node) noexcept nogil:
    return node.parent_and_color & 1


cdef inline rb_node *rb_floor(
    const rb_root *root, uint64_t key, ptrdiff_t wanted
) noexcept nogil:
    """The last node whose key is at most `key`, or NULL. O(log n), branch-free but for the loop.

    `wanted`: from a node to what the caller will read of the one found. It is fetched while the
    search goes on below a node that may be the one.
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
    """The first node whose key is at least `key`, or NULL.

    O(log n), branch-free but for the loop.
    """
    cdef rb_node *node = root.node
    cdef rb_node *best = NULL
    cdef bint right
    while node is not NULL:
        right = rb_key(root, node) < key
        best = best if right else node
        node = node.child[right]
    return best


# The outermost node on a side (0: the first, 1: the last), or NULL for an empty tree. O(log n).
cdef rb_node *rb_end(const rb_root *root, int side) noexcept nogil
# The neighbour on a side (0: the one before, 1: the one after), or NULL. O(1) on average over a
# walk.
cdef rb_node *rb_step(const rb_node *node, int side) noexcept nogil

# Makes a tree, which is empty, of `count` nodes in order, each `distance` from the address in
# `items`. O(count).
cdef void rb_build(
    rb_root *root, void *const *items, size_t count, ptrdiff_t distance
) noexcept nogil
# Puts in a node that is in no tree, after all nodes of an equal key. O(log n).
cdef void rb_insert(rb_root *root, rb_node *node) noexcept nogil
# The same where it is known after which node (NULL: it is the first). Its key must sort there. Only
# what follows from it goes up the tree: O(log n), O(1) over many in a plain tree.
cdef void rb_insert_after(rb_root *root, rb_node *before, rb_node *node) noexcept nogil
# Takes out a node of this tree. O(log n).
cdef void rb_erase(rb_root *root, rb_node *node) noexcept nogil
# Puts `new`, which is in no tree, in the place of `old`. Its key must sort into that place. O(1) in
# a plain tree, and in one that keeps subtree values if the new node's own are the same.
cdef void rb_replace(rb_root *root, rb_node *old, rb_node *new) noexcept nogil


cdef inline rb_node *rb_first(const rb_root *root) noexcept nogil:
    return rb_end(root, 0)


cdef inline rb_node *rb_last(const rb_root *root) noexcept nogil:
    return rb_end(root, 1)


cdef inline rb_node *rb_next(const rb_node *node) noexcept nogil:
    return rb_step(node, 1)


cdef inline rb_node *rb_prev(const rb_node *node) noexcept nogil:
    return rb_step(node, 0)
