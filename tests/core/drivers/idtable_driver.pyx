# cython: language_level=3
"""Drives memslots.core.idtable alone: items that have nothing but an id."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from memslots.core.idtable cimport (
    idtable,
    idtable_add,
    idtable_clear,
    idtable_drop_spare,
    idtable_find,
    idtable_get_spare,
    idtable_init,
    idtable_remove,
    idtable_replace,
    idtable_spare,
    idtable_trim,
)

cdef struct item:
    uint64_t number
    uint32_t id


cdef class Table:
    """Items 0 to size - 1, in the table or not."""

    cdef item *items
    cdef idtable table
    cdef readonly uint64_t size

    def __cinit__(self, size):
        cdef uint64_t i
        self.size = size
        self.items = <item *>calloc(max(size, 1), sizeof(item))
        if self.items is NULL:
            raise MemoryError
        for i in range(self.size):
            self.items[i].number = i
        idtable_init(&self.table, <char *>&self.items[0].id - <char *>&self.items[0])

    def __dealloc__(self):
        idtable_clear(&self.table)
        free(self.items)

    cdef item *item_of(self, number) except NULL:
        if not 0 <= number < self.size:
            raise IndexError(number)
        return &self.items[<uint64_t>number]

    def add(self, number, id):
        cdef idtable_spare spare
        cdef item *it = self.item_of(number)
        if idtable_get_spare(&self.table, 1, &spare) != 0:
            raise MemoryError
        it.id = id
        idtable_add(&self.table, it, &spare)

    def add_all(self, numbers):
        """Adds items, their numbers as ids; the memory for all is got before the first."""
        cdef idtable_spare spare
        cdef item *it
        if idtable_get_spare(&self.table, len(numbers), &spare) != 0:
            raise MemoryError
        for number in numbers:
            it = self.item_of(number)
            it.id = number
            idtable_add(&self.table, it, &spare)

    def trim(self):
        idtable_trim(&self.table)

    def get_and_drop_spare(self):
        """Gets the memory for an addition that is then not made; whether there was any to get."""
        cdef idtable_spare spare
        if idtable_get_spare(&self.table, 1, &spare) != 0:
            raise MemoryError
        got = spare.places is not NULL
        idtable_drop_spare(&spare)
        return got

    def remove(self, number):
        idtable_remove(&self.table, self.item_of(number))

    def replace(self, old, new):
        cdef item *it = self.item_of(new)
        it.id = self.item_of(old).id
        idtable_replace(&self.table, self.item_of(old), it)

    def find(self, id):
        cdef item *it = <item *>idtable_find(&self.table, id)
        return None if it is NULL else it.number

    @property
    def count(self):
        return self.table.count

    @property
    def places(self):
        """How many places there are."""
        return (1 << self.table.order) if self.table.places is not NULL else 0

    def state(self):
        """What lies in each place: an item's number or None. This is all there is to a table."""
        cdef uint64_t i
        numbers = []
        for i in range(self.places):
            numbers.append(
                None if self.table.places[i] is NULL else (<item *>self.table.places[i]).number
            )
        return tuple(numbers)

    def longest_probe(self):
        """The most places that a look-up of an id in the table reads."""
        cdef uint64_t size = self.places
        cdef uint64_t run = 0
        cdef uint64_t longest = 0
        cdef uint64_t i
        for i in range(2 * size):
            run = run + 1 if self.table.places[i % size] is not NULL else 0
            longest = max(longest, min(run, size))
        return longest
