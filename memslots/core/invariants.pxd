"""The only checker: walks everything and names the first property that does not hold.

R1 to R5 are stated in rbtree.pxd, H1 in hvatree.pxd, S1 to S4 in slotset.pxd, P1 and P2 in
space.pxd, D1 in dirtylog.pxd, I1 in index.pxd. P3 leaves no trace in a structure at rest; that both
sets hold the very same slots (P1) is what breaking it would break.
"""

from libc.stdint cimport uint64_t

from memslots.core.rbtree cimport rb_root
from memslots.core.space cimport space

cdef enum property_id:
    HOLDS = 0
    R1
    R2
    R3
    R4
    R5
    H1
    S1
    S2
    S3
    S4
    P1
    P2
    D1
    I1

# What a check found.
cdef struct report:
    property_id broken  # HOLDS: nothing is
    int k  # the set it was found in
    bint in_hva_tree  # with R1 to R5: which of the set's two trees it is
    uint64_t id  # the slot it was found at, where there is one; otherwise ~0
    uint64_t depth  # the longest way from a root down, in nodes, of all the trees walked

# R1 to R5 for one tree of at most `most` nodes. Gives the first that is broken, with the node where
# it was seen in *where; how many nodes there are in *count, the depth in *depth. O(n), and it ends
# whatever the links are.
cdef property_id invariants_check_tree(
    const rb_root *root, uint64_t most, uint64_t *count, uint64_t *depth, const void **where
) noexcept nogil
# H1 for a tree that has R1 to R5. O(n).
cdef property_id invariants_check_greatest(const rb_root *root, const void **where) noexcept nogil
# Everything, for an address space that no change is under way in; batches may be. O(n).
cdef void invariants_check_space(const space *sp, report *out) noexcept nogil
