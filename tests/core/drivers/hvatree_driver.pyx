# cython: language_level=3
"""Drives memslots.core.hvatree alone: numbered ranges."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from memslots.core.hvatree cimport hva_first_overlap, hva_init, hva_next_overlap, hva_node
from memslots.core.invariants cimport HOLDS, invariants_check_greatest, invariants_check_tree
from memslots.core.rbtree cimport (
    RB_RED,
    rb_color,
    rb_erase,
    rb_insert,
    rb_node,
    rb_replace,
    rb_root,
)

cdef struct item:
    hva_node node
    uint64_t number
    uint64_t first
    uint64_t last

NAMES = ("", "R1", "R2", "R3", "R4", "R5", "H1")


cdef class Ranges:
    """Ranges 0 to size - 1, in the tree or not."""

    cdef item *items
    cdef rb_root root
    cdef readonly uint64_t size

    def __cinit__(self, size):
        cdef uint64_t i
        self.size = size
        self.items = <item *>calloc(max(size, 1), sizeof(item))
        if self.items is NULL:
            raise MemoryError
        for i in range(self.size):
            self.items[i].number = i
        hva_init(&self.root, <char *>&self.items[0].first - <char *>&self.items[0].node)

    def __dealloc__(self):
        free(self.items)

    cdef item *item_of(self, number) except NULL:
        if not 0 <= number < self.size:
            raise IndexError(number)
        return &self.items[<uint64_t>number]

    def insert(self, number, first, last):
        cdef item *it = self.item_of(number)
        it.first = first
        it.last = last
        rb_insert(&self.root, &it.node.rb)

    def erase(self, number):
        rb_erase(&self.root, &self.item_of(number).node.rb)

    def replace(self, old, new, last):
        """Puts `new` with old's first byte, and a last one that may differ, in old's place."""
        cdef item *it = self.item_of(new)
        it.first = self.item_of(old).first
        it.last = last
        rb_replace(&self.root, &self.item_of(old).node.rb, &it.node.rb)

    def overlaps(self, first, last):
        """The numbers of the ranges that overlap [first, last], in the order the tree gives
        them.
        """
        cdef uint64_t start = first
        cdef uint64_t end = last
        cdef hva_node *node = hva_first_overlap(&self.root, start, end)
        numbers = []
        while node is not NULL:
            numbers.append((<item *>node).number)
            node = hva_next_overlap(&self.root, node, start, end)
        return numbers

    def count_overlaps(self, first, last):
        """How many there are, without making a list: for timing."""
        cdef uint64_t start = first
        cdef uint64_t end = last
        cdef uint64_t count = 0
        cdef hva_node *node = hva_first_overlap(&self.root, start, end)
        while node is not NULL:
            count += 1
            node = hva_next_overlap(&self.root, node, start, end)
        return count

    cdef object shape_of(self, const rb_node *node):
        if node is NULL:
            return None
        color = "r" if rb_color(node) == RB_RED else "B"
        number = (<const item *>node).number
        return number, color, self.shape_of(node.child[0]), self.shape_of(node.child[1])

    def shape(self):
        """The tree as nested tuples (number, colour, side 0, side 1). With the ranges, and H1, this
        is all there is to it.
        """
        return self.shape_of(self.root.node)

    def check(self):
        """The number of nodes and the depth; AssertionError with the property that does not
        hold.
        """
        cdef uint64_t count
        cdef uint64_t depth
        cdef const void *where = NULL
        broken = invariants_check_tree(&self.root, self.size, &count, &depth, &where)
        if broken == HOLDS:
            broken = invariants_check_greatest(&self.root, &where)
        if broken != HOLDS:
            raise AssertionError(NAMES[broken])
        return count, depth
