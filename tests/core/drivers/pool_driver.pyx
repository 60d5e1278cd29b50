# cython: language_level=3
"""Drives memslots.core.pool alone."""

from memslots.core.pool cimport pool, pool_chunk, pool_clear, pool_get, pool_init, pool_put


cdef class Pool:
    """Pieces of 64 bytes or a multiple, each filled with its number while it is handed out."""

    cdef pool p
    cdef dict blocks  # number: (block, chunk)
    cdef int next

    def __cinit__(self, size=64):
        pool_init(&self.p, size)
        self.blocks = {}

    def __dealloc__(self):
        for number in list(self.blocks):
            self.put(number)
        pool_clear(&self.p)

    def get(self):
        """The number of a new block, or None where there is no memory."""
        cdef pool_chunk *chunk
        cdef int *block = <int *>pool_get(&self.p, &chunk)
        cdef size_t i
        if block is NULL:
            return None
        for i in range(self.p.size // sizeof(int)):
            block[i] = self.next
        self.blocks[self.next] = <size_t>block, <size_t>chunk
        self.next += 1
        return self.next - 1

    def put(self, number):
        """Gives a block back; nobody else has written to it."""
        cdef size_t i
        block, chunk = self.blocks.pop(number)
        for i in range(self.p.size // sizeof(int)):
            assert (<int *><size_t>block)[i] == number
        pool_put(<pool_chunk *><size_t>chunk, <void *><size_t>block)

    def address(self, number):
        return self.blocks[number][0]

    def numbers(self):
        return list(self.blocks)

    def leave(self):
        """Clears the pool while blocks are handed out; gives them back after that."""
        pool_clear(&self.p)
