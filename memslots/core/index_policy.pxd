"""When an index is built, who may use it, and when its memory is freed.

Batches that search the tree count their searches. When those have cost about as much as an index
would, or will have at the end of the current batch, the batch builds an index. It does so as a
reader: in sections of a few slots each, so that no change waits for it. If a change comes between
two sections, the build is given up. A batch publishes its index in the address space (index_home).

A reader uses an index only if the set it reads is of the index's generation. So a change need not
remove the index before it swaps. After the swap the writer removes an index of another generation,
and frees it after the wait for readers that the change needs anyway.

Single look-ups do not use the index.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport atomic_load_acquire_ptr, atomic_load_relaxed
from memslots.core.index cimport index
from memslots.core.slotset cimport slotset
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu_reader


cdef inline const index *index_policy_current(const space *sp, const slotset *set) noexcept nogil:
    """Returns the index of a set that was active in the caller's section, or NULL."""
    # Acquire: pairs with the exchange that publishes it, so its rows are seen.
    cdef index *ix = <index *>atomic_load_acquire_ptr(<void *const *>&sp.index.current)
    if ix is not NULL and ix.generation == atomic_load_relaxed(&set.generation):
        return ix
    return NULL


# Counts `searches` of the tree at a generation of `slots` slots. Returns whether an index pays now,
# if `expected` more searches are to come.
cdef bint index_policy_pays(
    space *sp, uint64_t generation, uint64_t slots, uint64_t searches, uint64_t expected
) noexcept nogil
# Builds the index of the active set and publishes it. False: there was a change meanwhile, there
# are no slots, or no memory. The caller must be in no section. O(n).
cdef bint index_policy_build(space *sp, srcu_reader *reader) noexcept nogil
# For the writer. Removes the indexes that no reader which enters from now on can use. Returns them
# as a list to free after the next wait for readers, or NULL.
cdef index *index_policy_collect(space *sp) noexcept nogil
