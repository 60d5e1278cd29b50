"""Blocks of one size. The contract of each function is in pool.pxd."""

from libc.stdint cimport uint32_t

from memslots.core.alloc cimport CACHE_LINE, alloc_free, alloc_lines, alloc_refused
from memslots.core.debug cimport debug_assert

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    /* AddressSanitizer treats a block that is not handed out as freed, except its first word. */
    #define memslots_lend(block, size) ASAN_UNPOISON_MEMORY_REGION(block, size)
    #define memslots_seal(block, size) \\
        ASAN_POISON_MEMORY_REGION((char *)(block) + sizeof(void *), (size) - sizeof(void *))
    #else
    #define memslots_lend(block, size) ((void)(block), (void)(size))
    #define memslots_seal(block, size) ((void)(block), (void)(size))
    #endif
    """
    void lend "memslots_lend"(void *block, size_t size) noexcept nogil
    void seal "memslots_seal"(void *block, size_t size) noexcept nogil

cdef enum:
    BLOCKS = 32  # blocks in a chunk


cdef inline void *block_at(pool_chunk *chunk, uint32_t place) noexcept nogil:
    return <char *>chunk + CACHE_LINE + place * chunk.home.size


cdef inline bint has_room(const pool_chunk *chunk) noexcept nogil:
    return chunk.used < BLOCKS


cdef void enlist(pool_chunk *chunk) noexcept nogil:
    chunk.prev = NULL
    chunk.next = chunk.home.roomy
    if chunk.next is not NULL:
        chunk.next.prev = chunk
    chunk.home.roomy = chunk


cdef void delist(pool_chunk *chunk) noexcept nogil:
    if chunk.prev is not NULL:
        chunk.prev.next = chunk.next
    else:
        chunk.home.roomy = chunk.next
    if chunk.next is not NULL:
        chunk.next.prev = chunk.prev


cdef pool_chunk *new_chunk(pool *p) noexcept nogil:
    cdef pool_chunk *chunk = <pool_chunk *>alloc_lines(CACHE_LINE + BLOCKS * p.size)
    cdef uint32_t place
    if chunk is not NULL:
        chunk.home = p
        for place in range(<uint32_t>BLOCKS):
            seal(block_at(chunk, place), p.size)
        enlist(chunk)
    return chunk


cdef void free_chunk(pool_chunk *chunk) noexcept nogil:
    delist(chunk)
    lend(block_at(chunk, 0), BLOCKS * chunk.home.size)
    alloc_free(chunk)


cdef void pool_init(pool *p, size_t size) noexcept nogil:
    debug_assert(sizeof(pool_chunk) <= CACHE_LINE, b"pool_init: blocks begin a line after a chunk")
    p.size = size
    p.roomy = NULL


cdef void pool_clear(pool *p) noexcept nogil:
    cdef pool_chunk *chunk = p.roomy
    cdef pool_chunk *next
    while chunk is not NULL:
        next = chunk.next
        if chunk.used == 0:
            free_chunk(chunk)
        chunk = next


cdef void *pool_get(pool *p, pool_chunk **chunk) noexcept nogil:
    cdef pool_chunk *from_chunk = p.roomy
    cdef void *block
    if from_chunk is NULL:
        from_chunk = new_chunk(p)
        if from_chunk is NULL:
            return NULL
    elif alloc_refused():
        return NULL
    block = from_chunk.given_back
    if block is not NULL:
        from_chunk.given_back = (<void **>block)[0]
    else:
        block = block_at(from_chunk, from_chunk.fresh)
        from_chunk.fresh += 1
    from_chunk.used += 1
    if not has_room(from_chunk):
        delist(from_chunk)
    lend(block, p.size)
    chunk[0] = from_chunk
    return block


cdef void pool_put(pool_chunk *chunk, void *block) noexcept nogil:
    if not has_room(chunk):
        enlist(chunk)
    (<void **>block)[0] = chunk.given_back
    chunk.given_back = block
    chunk.used -= 1
    seal(block, chunk.home.size)
    # An unused chunk is kept if no other chunk has room. So getting and putting one block in turn
    # does not allocate each time.
    if chunk.used == 0 and (chunk.next is not NULL or chunk.prev is not NULL):
        free_chunk(chunk)
