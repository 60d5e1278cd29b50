"""A hash table from id to item in O(1), with memory in proportion to the ids in use.

The table uses open addressing with linear probing. It holds only pointers; an item's id (32 bits)
is read from the item itself, at a fixed distance. At least a quarter of the places is empty, which
bounds the length of a probe. If seven eighths are empty, idtable_trim makes the table smaller. Ids
may lie anywhere between 0 and 2**32 - 1. Removing an item shifts later items back. So there are no
tombstones, and a look-up never gets slower with age.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.alloc cimport alloc_free

cdef struct idtable:
    void **places  # 1 << order places, NULL if empty; `places` is NULL while order is 0
    uint32_t order  # log2 of the number of places; 0: no places
    uint32_t count  # items in the table
    ptrdiff_t id_offset  # from an item's address to its id's address

# Memory for a larger table, allocated before a change that must not fail.
cdef struct idtable_spare:
    void **places  # NULL: none is needed
    uint32_t order  # of `places`


cdef void idtable_init(idtable *table, ptrdiff_t id_offset) noexcept nogil
# Frees the table's memory, but not the items.
cdef void idtable_clear(idtable *table) noexcept nogil

# Returns the item with this id, or NULL. O(1).
cdef void *idtable_find(const idtable *table, uint32_t id) noexcept nogil


cdef inline void idtable_drop_spare(idtable_spare *spare) noexcept nogil:
    """Frees a spare that was not taken."""
    if spare.places is not NULL:
        alloc_free(spare.places)
        spare.places = NULL


cdef inline bint idtable_fits(
    const idtable *table, uint32_t additions, const idtable_spare *spare
) noexcept nogil:
    """Returns whether `additions` more items fit into the spare or, without one, the table."""
    cdef uint64_t places = 0
    if spare.places is not NULL:
        places = <uint64_t>1 << spare.order
    elif table.places is not NULL:
        places = <uint64_t>1 << table.order
    return 4 * (<uint64_t>table.count + additions) <= 3 * places


# Allocates the memory that the next `additions` to this table may need. Does not touch the table,
# so readers may use it meanwhile. Returns 0, or -1 if there is no memory. Pair with idtable_add or
# idtable_drop_spare.
cdef int idtable_get_spare(
    const idtable *table, uint32_t additions, idtable_spare *spare
) noexcept nogil

# Adds an item whose id the table does not hold. Takes the spare's memory if there is a spare.
# Cannot fail. O(1), or O(count) when the table grows: O(1) amortised.
cdef void idtable_add(idtable *table, void *item, idtable_spare *spare) noexcept nogil
# Removes an item that the table holds. O(1). The table keeps its size: until idtable_trim, adding
# as many items as were removed needs no spare.
cdef void idtable_remove(idtable *table, void *item) noexcept nogil
# Moves the items to a smaller table if the ids in use fit there; with no items, frees all memory.
# If there is no memory for the smaller table, changes nothing. O(1) amortised over many removals.
cdef void idtable_trim(idtable *table) noexcept nogil
# Puts `new` in the place of `old`. The table holds `old`, and both have the same id. O(1).
cdef void idtable_replace(idtable *table, void *old, void *new) noexcept nogil
