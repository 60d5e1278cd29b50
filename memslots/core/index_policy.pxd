"""When the index of a set is made, and by whom.

Readers that search the tree count their searches. When those have cost several times what an index
would, or in a batch about as much, a reader makes one: a batch or whoever wants all of it at once,
and single look-ups a few rows at each search, so that none of them stalls. No change waits for it:
a set that becomes inactive before its index is finished loses what there is of it. At most one
thread at a time makes part of it; others search the tree meanwhile.

But for index_policy_build, all is for readers in a section, or who hold what keeps the set as it
is.
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
    # A single look-up that searches the tree for so many times in all finds that an index pays:
    # so many times besides those for each slot, of which
    SINGLE_SEARCHES = 24
    # so many count double. An index takes a tenth of the time then that the searches have taken.
    SINGLE_DOUBLE = 1024
    # It makes so many rows then, or all of INDEX_FEW: the longest that it can take is as many steps
    # in the tree.
    SINGLE_PART = 8

# What became of an index.
cdef enum index_progress:
    INDEX_READY  # the set has one
    INDEX_MORE  # there is more to make
    INDEX_NONE  # another thread is making it, there is no memory, or no slot


cdef inline index *index_policy_current(const slotset *set) noexcept nogil:
    """The index of a set, or NULL."""
    # Acquire: pairs with the release that publishes it, so its rows are seen.
    return <index *>atomic_load_acquire_ptr(<void *const *>&set.index)


# Makes up to `rows` rows of the set's index. O(rows).
cdef index_progress index_policy_advance(slotset *set, uint64_t rows) noexcept nogil
# Makes the index of the active set, in sections of a few rows each, so that no change waits for it.
# False: there was a change meanwhile, another thread is making it, there is no memory, or no slot.
# The caller must be in no section. O(n).
cdef bint index_policy_build(space *sp, srcu_reader *reader) noexcept nogil
# An index of the set for the caller alone, who has the only reference; NULL: no memory, or no slot.
# O(n).
cdef index *index_policy_copy(const slotset *set) noexcept nogil
# For a batch: counts `searches` of the tree. Returns whether an index pays now, if `expected` more
# are to come.
cdef bint index_policy_pays(slotset *set, uint64_t searches, uint64_t expected) noexcept nogil


cdef inline bint index_policy_begun(slotset *set) noexcept nogil:
    """Returns whether part of an index is made, so that the next search should make more."""
    return atomic_load_relaxed_ptr(<void *const *>&set.unfinished) is not NULL


cdef inline void index_policy_note(slotset *set, uint64_t searches) noexcept nogil:
    """For a single look-up that has no index: counts searches of the tree, and makes its part."""
    cdef uint64_t slots = slotset_count(set)
    searches += atomic_load_relaxed(&set.searches)
    atomic_store_relaxed(&set.searches, searches)
    if searches >= slots + min(slots, <uint64_t>SINGLE_DOUBLE) + SINGLE_SEARCHES:
        index_policy_advance(set, SINGLE_PART if slots > INDEX_FEW else INDEX_FEW)
