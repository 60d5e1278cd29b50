"""When the index of a set is made, and by which thread.

Readers that search the tree count their searches. Readers make an index when these searches have
cost several times what an index costs, or in a batch about as much. A batch, or a caller that wants
it all at once, makes the whole index (index_policy_build). Single look-ups make a few rows at each
search, so that none of them stalls. No change waits for an index: if a set becomes inactive before
its index is finished, the part is lost. At most one thread at a time makes part of an index; others
search the tree meanwhile.

The caller must be in a read-side section or hold a lock that keeps the set unchanged. Only
index_policy_build is different.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport (
    atomic_load_acquire_ptr,
    atomic_load_relaxed,
    atomic_load_relaxed_ptr,
    atomic_store_relaxed,
)
from memslots.core.index cimport INDEX_FEW, index
from memslots.core.slotset cimport slotset, slotset_count
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu_reader

cdef enum:
    # For single look-ups an index pays after this many searches of the tree, plus one for each
    # slot, plus one more for each of the first SINGLE_DOUBLE slots. Making the index then takes a
    # tenth of the time that the searches have taken.
    SINGLE_SEARCHES = 24
    SINGLE_DOUBLE = 1024
    # The number of rows that a single look-up then makes; of at most INDEX_FEW slots it makes all.
    # It takes at most as long as this many steps in the tree.
    SINGLE_PART = 8

# The state of an index after an attempt to make more of it.
cdef enum index_progress:
    INDEX_READY  # the set has an index
    INDEX_MORE  # there are more rows to make
    INDEX_NONE  # another thread is making it, there is no memory, or there is no slot


cdef inline index *index_policy_current(const slotset *set) noexcept nogil:
    """Returns the index of a set, or NULL."""
    # Acquire: pairs with the release that publishes it, so its rows are seen.
    return <index *>atomic_load_acquire_ptr(<void *const *>&set.index)


# Makes at most `rows` more rows of the set's index. O(rows).
cdef index_progress index_policy_advance(slotset *set, uint64_t rows) noexcept nogil
# Makes the index of the active set, a few rows in each section, so that no change waits for it.
# Returns False if there was a change meanwhile, another thread is making the index, there is no
# memory, or there is no slot. The caller must not be in a section. O(n).
cdef bint index_policy_build(space *sp, srcu_reader *reader) noexcept nogil
# Returns a new index of the set, to which the caller has the only reference. Returns NULL if there
# is no memory or no slot. O(n).
cdef index *index_policy_copy(const slotset *set) noexcept nogil
# For a batch: counts `searches` of the tree. Returns whether an index pays now if `expected` more
# searches are to come.
cdef bint index_policy_pays(slotset *set, uint64_t searches, uint64_t expected) noexcept nogil


cdef inline bint index_policy_begun(slotset *set) noexcept nogil:
    """Returns whether an index is begun but not finished. If so, a search should make more."""
    return atomic_load_relaxed_ptr(<void *const *>&set.unfinished) is not NULL


cdef inline void index_policy_note(slotset *set, uint64_t searches) noexcept nogil:
    """Counts a single look-up's searches of the tree. If an index pays, makes part of it."""
    cdef uint64_t slots = slotset_count(set)
    searches += atomic_load_relaxed(&set.searches)
    atomic_store_relaxed(&set.searches, searches)
    if searches >= slots + min(slots, <uint64_t>SINGLE_DOUBLE) + SINGLE_SEARCHES:
        index_policy_advance(set, SINGLE_PART if slots > INDEX_FEW else INDEX_FEW)
