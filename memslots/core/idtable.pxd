"""A hash table from id to item in O(1), paid for as ids are used.

Open addressing with linear probing; the table holds pointers only, an item's id (32 bits) is read
from the item itself, at a fixed distance. At least a quarter of the places is empty, which bounds
the length of a probe; once seven eighths are, idtable_trim makes the table smaller. So its memory
is in proportion to the ids in use, wherever between 0 and 2**32 - 1 they are. Removing shifts later
items back, so there are no tombstones and a look-up never gets slower with age.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.alloc cimport alloc_free

cdef struct idtable:
    void **places  # 1 << order of them, NULL where empty; itself NULL while order is 0
    uint32_t order  # log2 of the number of places; 0: none
    uint32_t count  # items in the table
    ptrdiff_t id_offset  # from an item's address to its id's

# Memory for a larger table, got before a change that must not fail.
cdef struct idtable_spare:
    void **places  # NULL: none is needed
    uint32_t order  # of `places`


cdef void idtable_init(idtable *table, ptrdiff_t id_offset) noexcept nogil
# Gives the table's memory back. The items are not its own.
cdef void idtable_clear(idtable *table) noexcept nogil

# The item of this id, or NULL. O(1).
cdef void *idtable_find(const idtable *table, uint32_t id) noexcept nogil


cdef inline void idtable_drop_spare(idtable_spare *spare) noexcept nogil:
    """Gives back a spare that was not taken."""
    if spare.places is not NULL:
        alloc_free(spare.places)
        spare.places = NULL


cdef inline bint idtable_fits(
    const idtable *table, uint32_t additions, const idtable_spare *spare
) noexcept nogil:
    """Whether there is room for so many more: in the table, or in a spare got for it."""
    cdef uint64_t places = 0
    if spare.places is not NULL:
        places = <uint64_t>1 << spare.order
    elif table.places is not NULL:
        places = <uint64_t>1 << table.order
    return 4 * (<uint64_t>table.count + additions) <= 3 * places


# Gets what the next `additions` to this table may need; the table is not touched, so readers may be
# in it. 0, or -1: no memory. Pair with idtable_add or idtable_drop_spare.
cdef int idtable_get_spare(
    const idtable *table, uint32_t additions, idtable_spare *spare
) noexcept nogil

# Puts in an item whose id the table does not hold; takes the spare's memory if there is some.
# Cannot fail. O(1), or O(count) when it grows: O(1) over many.
cdef void idtable_add(idtable *table, void *item, idtable_spare *spare) noexcept nogil
# Takes out an item that the table holds. O(1). Its place stays: adding as many as were removed
# needs no spare, until the table is trimmed.
cdef void idtable_remove(idtable *table, void *item) noexcept nogil
# Gives back memory that the ids in use do not need; where there is none to be had for a smaller
# table, it is put off. O(1) over many removals.
cdef void idtable_trim(idtable *table) noexcept nogil
# Puts `new` in the place of `old`, which the table holds and which has the same id. O(1).
cdef void idtable_replace(idtable *table, void *old, void *new) noexcept nogil
