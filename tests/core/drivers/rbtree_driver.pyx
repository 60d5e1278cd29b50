# cython: language_level=3
"""Drives memslots.core.rbtree alone: a plain tree of numbered nodes."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from memslots.core.invariants cimport HOLDS, invariants_check_tree
from memslots.core.rbtree cimport (
    RB_RED,
    rb_color,
    rb_erase,
    rb_first,
    rb_floor,
    rb_init,
    rb_insert,
    rb_last,
    rb_lower_bound,
    rb_next,
    rb_node,
    rb_prev,
    rb_replace,
    rb_root,
)

cdef struct item:
    uint64_t guard  # so that the node is not at the item's start
    rb_node node
    uint64_t key

NAMES = ("", "R1", "R2", "R3", "R4", "R5")


cdef class Tree:
    """Nodes 0 to size - 1, in the tree or not."""

    cdef item *items
    cdef rb_root root
    cdef readonly uint64_t size

    def __cinit__(self, size):
        self.size = size
        self.items = <item *>calloc(max(size, 1), sizeof(item))
        if self.items is NULL:
            raise MemoryError
        rb_init(&self.root, <char *>&self.items[0].key - <char *>&self.items[0].node, NULL)

    def __dealloc__(self):
        free(self.items)

    cdef rb_node *node(self, number) except NULL:
        if not 0 <= number < self.size:
            raise IndexError(number)
        return &self.items[<uint64_t>number].node

    cdef object number(self, const rb_node *node):
        if node is NULL:
            return None
        return (<char *>node - <char *>&self.items[0].node) // <Py_ssize_t>sizeof(item)

    def insert(self, number, key):
        cdef rb_node *node = self.node(number)
        self.items[<uint64_t>number].key = key
        rb_insert(&self.root, node)

    def erase(self, number):
        rb_erase(&self.root, self.node(number))

    def replace(self, old, new, key):
        cdef rb_node *node = self.node(new)
        self.items[<uint64_t>new].key = key
        rb_replace(&self.root, self.node(old), node)

    def forward(self):
        """The numbers from first to last."""
        cdef rb_node *node = rb_first(&self.root)
        numbers = []
        while node is not NULL:
            numbers.append(self.number(node))
            node = rb_next(node)
        return numbers

    def backward(self):
        """The numbers from last to first."""
        cdef rb_node *node = rb_last(&self.root)
        numbers = []
        while node is not NULL:
            numbers.append(self.number(node))
            node = rb_prev(node)
        return numbers

    def floor(self, key):
        return self.number(rb_floor(&self.root, key, 0))

    def lower_bound(self, key):
        return self.number(rb_lower_bound(&self.root, key))

    cdef object shape_of(self, const rb_node *node):
        if node is NULL:
            return None
        color = "r" if rb_color(node) == RB_RED else "B"
        return self.number(node), color, self.shape_of(node.child[0]), self.shape_of(node.child[1])

    def shape(self):
        """The tree as nested tuples (number, colour, side 0, side 1)."""
        return self.shape_of(self.root.node)

    def check(self):
        """The number of nodes and the depth; AssertionError with the property that does not
        hold.
        """
        cdef uint64_t count
        cdef uint64_t depth
        cdef const void *where = NULL
        broken = invariants_check_tree(&self.root, self.size, &count, &depth, &where)
        if broken != HOLDS:
            raise AssertionError(NAMES[broken])
        return count, depth
