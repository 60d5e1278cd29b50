"""A hash table from id to item.

idtable.pxd says how it works and has the contract of each function.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.alloc cimport alloc_free, alloc_zeroed

cdef enum:
    MIN_ORDER = 3  # the smallest table: eight places, one cache line


cdef inline uint32_t id_of(const idtable *table, const void *item) noexcept nogil:
    return (<const uint32_t *>(<const char *>item + table.id_offset))[0]


cdef inline uint32_t home(uint32_t id, uint32_t order) noexcept nogil:
    """Returns the place where a probe for `id` begins.

    The high bits of the id times 2**64 / the golden ratio spread runs and strides of ids.
    """
    return <uint32_t>((<uint64_t>id * <uint64_t>0x9E3779B97F4A7C15) >> (64 - order))


cdef inline uint32_t place_of(const idtable *table, const void *item) noexcept nogil:
    """Returns the place of an item that the table holds."""
    cdef uint32_t mask = (<uint32_t>1 << table.order) - 1
    cdef uint32_t place = home(id_of(table, item), table.order)
    while table.places[place] is not item:
        place = (place + 1) & mask
    return place


cdef inline void put(idtable *table, void *item) noexcept nogil:
    """Writes an item into the first empty place from its home on. There must be one."""
    cdef uint32_t mask = (<uint32_t>1 << table.order) - 1
    cdef uint32_t place = home(id_of(table, item), table.order)
    while table.places[place] is not NULL:
        place = (place + 1) & mask
    table.places[place] = item


cdef void rehash(idtable *table, void **places, uint32_t order) noexcept nogil:
    """Moves every item into `places` and frees the old places."""
    cdef void **old = table.places
    cdef uint64_t size = <uint64_t>1 << table.order if old is not NULL else 0
    cdef uint64_t i
    table.places = places
    table.order = order
    for i in range(size):
        if old[i] is not NULL:
            put(table, old[i])
    alloc_free(old)


cdef void idtable_init(idtable *table, ptrdiff_t id_offset) noexcept nogil:
    table.places = NULL
    table.order = 0
    table.count = 0
    table.id_offset = id_offset


cdef void idtable_clear(idtable *table) noexcept nogil:
    alloc_free(table.places)
    idtable_init(table, table.id_offset)


cdef void *idtable_find(const idtable *table, uint32_t id) noexcept nogil:
    cdef uint32_t mask
    cdef uint32_t place
    cdef void *item
    if table.count == 0:
        return NULL
    mask = (<uint32_t>1 << table.order) - 1
    place = home(id, table.order)
    while True:
        item = table.places[place]
        if item is NULL or id_of(table, item) == id:
            return item
        place = (place + 1) & mask


cdef int idtable_get_spare(
    const idtable *table, uint32_t additions, idtable_spare *spare
) noexcept nogil:
    cdef uint64_t count = <uint64_t>table.count + additions
    spare.places = NULL
    if idtable_fits(table, additions, spare):
        return 0
    spare.order = MIN_ORDER
    while 4 * count > 3 * (<uint64_t>1 << spare.order):
        spare.order += 1
    spare.places = <void **>alloc_zeroed(sizeof(void *) << spare.order)
    return 0 if spare.places is not NULL else -1


cdef void idtable_add(idtable *table, void *item, idtable_spare *spare) noexcept nogil:
    if spare.places is not NULL:
        rehash(table, spare.places, spare.order)
        spare.places = NULL
    put(table, item)
    table.count += 1


cdef void idtable_remove(idtable *table, void *item) noexcept nogil:
    cdef uint32_t mask = (<uint32_t>1 << table.order) - 1
    cdef uint32_t hole = place_of(table, item)
    cdef uint32_t place = hole
    while True:
        # An item after the hole, with no gap between them, moves into the hole. It stays if the
        # hole is before its home: there must be no gap between an item's home and its place.
        table.places[hole] = NULL
        while True:
            place = (place + 1) & mask
            if table.places[place] is NULL:
                break
            if ((place - home(id_of(table, table.places[place]), table.order)) & mask) >= (
                (place - hole) & mask
            ):
                break
        if table.places[place] is NULL:
            break
        table.places[hole] = table.places[place]
        hole = place
    table.count -= 1


cdef void idtable_trim(idtable *table) noexcept nogil:
    cdef uint32_t order = table.order
    cdef void **smaller
    if table.count == 0:
        idtable_clear(table)
        return
    while order > MIN_ORDER and 8 * <uint64_t>table.count <= (<uint64_t>1 << order):
        order -= 1
    if order != table.order:
        smaller = <void **>alloc_zeroed(sizeof(void *) << order)
        if smaller is not NULL:
            rehash(table, smaller, order)


cdef void idtable_replace(idtable *table, void *old, void *new) noexcept nogil:
    table.places[place_of(table, old)] = new
