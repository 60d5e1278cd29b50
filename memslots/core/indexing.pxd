"""When an index is made, who may use it, and when its memory is given back.

Batches that search the tree count how often. Once that has cost about as much as an index would, or
will have before the batch that is under way ends, the batch makes one, as a reader: in sections of
a few slots each, so that no change waits for it, and anew if there was a change meanwhile. It
publishes the index in the address space (index_home). A reader uses it only while the set that it
reads is of the index's generation, so a change need not take it away before it swaps, and never
waits for it. Whoever changes takes away what is of another generation, and frees it after the wait
for readers that the change needs anyway.

Single look-ups know nothing of this.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport load_acquire_ptr, load_relaxed
from memslots.core.index cimport index
from memslots.core.slotset cimport slotset
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu_reader


cdef inline const index *indexing_current(const space *sp, const slotset *set) noexcept nogil:
    """The index of a set that was active in the caller's section, or NULL."""
    # Acquire: pairs with the exchange that publishes it, so its rows are seen.
    cdef index *ix = <index *>load_acquire_ptr(<void *const *>&sp.index.current)
    if ix is not NULL and ix.generation == load_relaxed(&set.generation):
        return ix
    return NULL


# Counts `searches` of the tree at a generation of `slots` slots; whether an index pays now, if
# `expected` more are to come.
cdef bint indexing_pays(
    space *sp, uint64_t generation, uint64_t slots, uint64_t searches, uint64_t expected
) noexcept nogil
# Makes the index of the active set and publishes it. False: there was a change meanwhile, there are
# no slots, or no memory. In no section. O(n).
cdef bint indexing_make(space *sp, srcu_reader *reader) noexcept nogil
# For the writer. What readers that enter from now on have no use for, as a list to be freed after
# the next wait for readers; may be NULL.
cdef index *indexing_take(space *sp) noexcept nogil
