"""Blocks of one size in whole cache lines, many to an allocation (a chunk).

A change makes a slot and frees one, and with a pool each costs a few instructions. Blocks side by
side take less memory than malloc's blocks with its own words between. A chunk without a used block
is freed, except for one that the pool keeps. Only one thread at a time may use a pool: the writer.
"""

from libc.stdint cimport uint32_t

cdef struct pool

# The header of some blocks. The blocks begin at the next cache line.
cdef struct pool_chunk:
    pool *home
    # the neighbours in the list of chunks that have room; NULL: none
    pool_chunk *next
    pool_chunk *prev
    void *given_back  # a block to hand out again; its first word points to the next; NULL: none
    # the number of blocks ever handed out; the blocks after these are free too
    uint32_t fresh
    uint32_t used  # the number of blocks handed out now

cdef struct pool:
    size_t size  # of a block in bytes; a multiple of a cache line
    pool_chunk *roomy  # the list of chunks that have room; NULL: none


cdef void pool_init(pool *p, size_t size) noexcept nogil
# Frees every chunk that has no used block. A chunk with a used block stays.
cdef void pool_clear(pool *p) noexcept nogil
# Returns a block and stores its chunk in *chunk, or returns NULL if there is no memory. The block's
# contents are arbitrary. O(1).
cdef void *pool_get(pool *p, pool_chunk **chunk) noexcept nogil
# Takes back a block of a chunk. O(1).
cdef void pool_put(pool_chunk *chunk, void *block) noexcept nogil
