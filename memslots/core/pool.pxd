"""Blocks of one size, each whole cache lines, many to an allocation.

A change makes a slot and frees one, so that is to cost a few instructions; and blocks side by side
take less memory than blocks that malloc puts its own words between. A chunk whose blocks have all
been given back is given back itself, but for one. For one thread at a time: whoever writes.
"""

from libc.stdint cimport uint32_t

cdef struct pool

# Memory for some blocks, which follow it, from the next cache line on.
cdef struct pool_chunk:
    pool *home
    # its neighbours in the list of the chunks that have room; NULL: none
    pool_chunk *next
    pool_chunk *prev
    void *given_back  # a block to hand out again; its first word leads to the next; NULL: none
    # how many blocks have ever been handed out: those from there on are free as well
    uint32_t fresh
    uint32_t used  # how many are handed out now

cdef struct pool:
    size_t size  # of a block; a multiple of a cache line
    pool_chunk *roomy  # the chunks that have room; NULL: none


cdef void pool_init(pool *p, size_t size) noexcept nogil
# Gives the memory back. A chunk of which a block is still handed out stays.
cdef void pool_clear(pool *p) noexcept nogil
# A block, whatever is in it, and in *chunk where it is from; or NULL: no memory. O(1).
cdef void *pool_get(pool *p, pool_chunk **chunk) noexcept nogil
# Takes back a block of a chunk. O(1).
cdef void pool_put(pool_chunk *chunk, void *block) noexcept nogil
