"""An interval tree: which host ranges overlap this one? (prefix: hva_)

A red-black tree, ordered by a range's first byte. Each node also keeps

  H1  the greatest last byte of any range in the node's subtree

A search skips subtrees that end too early. Ranges may overlap one another and be equal. A range is
two 64-bit numbers at a fixed distance from its node: its first and its last byte. The last byte is
inclusive, so a range can reach the last address.
"""

from libc.stddef cimport ptrdiff_t

from memslots.core.rbtree cimport rb_node, rb_root
from memslots.core.units cimport hva_t

cdef struct hva_node:
    rb_node rb  # must come first: a pointer to it is also a pointer to the hva_node
    hva_t greatest  # H1; only the tree writes it


# Initialises an empty tree. `range_offset` is the distance from an hva_node's address to the number
# of the first byte; the number of the last byte follows.
cdef void hva_init(rb_root *root, ptrdiff_t range_offset) noexcept nogil
# Use rb_insert, rb_erase, rb_replace and the walks of rbtree, on &node.rb.

# Returns the first range (in order of first bytes) that has a byte in [first, last], or NULL.
# O(log n).
cdef hva_node *hva_first_overlap(const rb_root *root, hva_t first, hva_t last) noexcept nogil
# Returns the next overlap after `node`, or NULL. A call with the same [first, last] must have
# returned `node`. All k overlaps take O(log n + k) if the ranges of the tree are disjoint, and
# never more than O(min(n, k * log n)).
cdef hva_node *hva_next_overlap(
    const rb_root *root, const hva_node *node, hva_t first, hva_t last
) noexcept nogil


cdef inline hva_t hva_first(const rb_root *root, const rb_node *node) noexcept nogil:
    return (<const hva_t *>(<const char *>node + root.key_offset))[0]


cdef inline hva_t hva_last(const rb_root *root, const rb_node *node) noexcept nogil:
    return (<const hva_t *>(<const char *>node + root.key_offset))[1]
