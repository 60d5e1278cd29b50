# cython: language_level=3
"""Drives memslots.core.pool alone."""

from memslots.core.pool cimport pool, pool_chunk, pool_clear, pool_get, pool_init, pool_put


cdef class Pool:
    """Pieces of 64 bytes or a multiple, each filled with its number while it is handed out."""

    cdef pool p
    cdef dict pieces  # number: (piece, chunk)
    cdef int next

    def __cinit__(self, size=64):
        pool_init(&self.p, size)
        self.pieces = {}

    def __dealloc__(self):
        for number in list(self.pieces):
            self.put(number)
        pool_clear(&self.p)

    def get(self):
        """The number of a new piece, or None where there is no memory."""
        cdef pool_chunk *chunk
        cdef int *piece = <int *>pool_get(&self.p, &chunk)
        cdef size_t i
        if piece is NULL:
            return None
        for i in range(self.p.size // sizeof(int)):
            piece[i] = self.next
        self.pieces[self.next] = <size_t>piece, <size_t>chunk
        self.next += 1
        return self.next - 1

    def put(self, number):
        """Gives a piece back; nobody else has written to it."""
        cdef size_t i
        piece, chunk = self.pieces.pop(number)
        for i in range(self.p.size // sizeof(int)):
            assert (<int *><size_t>piece)[i] == number
        pool_put(<pool_chunk *><size_t>chunk, <void *><size_t>piece)

    def address(self, number):
        return self.pieces[number][0]

    def numbers(self):
        return list(self.pieces)

    def leave(self):
        """Clears the pool while pieces are handed out; gives them back after that."""
        pool_clear(&self.p)
