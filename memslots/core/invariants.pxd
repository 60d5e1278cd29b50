"""The only checker: walks everything and names the first property that does not hold.

R1 to R5 are stated in rbtree.pxd, H1 in hvatree.pxd, S1 to S4 in slotset.pxd, P1 and P2 in
space.pxd, D1 in dirtylog.pxd and I1 in index.pxd. A structure at rest shows no trace of P3. Code
that broke P3 would also break P1: both sets hold the very same slots.
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
    property_id broken  # HOLDS: no property is broken
    int k  # the set with the broken property
    bint in_hva_tree  # with R1 to R5: whether it is the hva tree, else the gfn tree
    uint64_t id  # the id of the slot with the broken property; ~0: no slot in particular

# Checks R1 to R5 for one tree of at most `most` nodes. Returns the first property that is broken,
# and stores the node in *where. Stores the number of nodes in *count and the depth in *depth. O(n);
# it ends whatever the links are.
cdef property_id invariants_check_tree(
    const rb_root *root, uint64_t most, uint64_t *count, uint64_t *depth, const void **where
) noexcept nogil
# Checks H1 for a tree that has R1 to R5. O(n).
cdef property_id invariants_check_greatest(const rb_root *root, const void **where) noexcept nogil
# Checks all properties of an address space. No change may be under way in it; batches may be. O(n).
cdef void invariants_check_space(const space *sp, report *out) noexcept nogil
