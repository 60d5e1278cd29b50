"""Pieces of one size. The contract of each function is in pool.pxd."""

from libc.stdint cimport uint32_t

from memslots.core.alloc cimport CACHE_LINE, alloc_free, alloc_lines, alloc_refused
from memslots.core.debug cimport debug_assert

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    /* A piece that is not handed out is as if it were freed, but for the word that leads on. */
    #define memslots_lend(piece, size) ASAN_UNPOISON_MEMORY_REGION(piece, size)
    #define memslots_seal(piece, size) \\
        ASAN_POISON_MEMORY_REGION((char *)(piece) + sizeof(void *), (size) - sizeof(void *))
    #else
    #define memslots_lend(piece, size) ((void)(piece), (void)(size))
    #define memslots_seal(piece, size) ((void)(piece), (void)(size))
    #endif
    """
    void lend "memslots_lend"(void *piece, size_t size) noexcept nogil
    void seal "memslots_seal"(void *piece, size_t size) noexcept nogil

cdef enum:
    PIECES = 32  # to a chunk


cdef inline void *piece_at(pool_chunk *chunk, uint32_t place) noexcept nogil:
    return <char *>chunk + CACHE_LINE + place * chunk.home.size


cdef inline bint has_room(const pool_chunk *chunk) noexcept nogil:
    return chunk.used < PIECES


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
    cdef pool_chunk *chunk = <pool_chunk *>alloc_lines(CACHE_LINE + PIECES * p.size)
    cdef uint32_t place
    if chunk is not NULL:
        chunk.home = p
        for place in range(<uint32_t>PIECES):
            seal(piece_at(chunk, place), p.size)
        enlist(chunk)
    return chunk


cdef void free_chunk(pool_chunk *chunk) noexcept nogil:
    delist(chunk)
    lend(piece_at(chunk, 0), PIECES * chunk.home.size)
    alloc_free(chunk)


cdef void pool_init(pool *p, size_t size) noexcept nogil:
    debug_assert(sizeof(pool_chunk) <= CACHE_LINE, b"pool_init: pieces begin a line after a chunk")
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
    cdef void *piece
    if from_chunk is NULL:
        from_chunk = new_chunk(p)
        if from_chunk is NULL:
            return NULL
    elif alloc_refused():
        return NULL
    piece = from_chunk.given_back
    if piece is not NULL:
        from_chunk.given_back = (<void **>piece)[0]
    else:
        piece = piece_at(from_chunk, from_chunk.fresh)
        from_chunk.fresh += 1
    from_chunk.used += 1
    if not has_room(from_chunk):
        delist(from_chunk)
    lend(piece, p.size)
    chunk[0] = from_chunk
    return piece


cdef void pool_put(pool_chunk *chunk, void *piece) noexcept nogil:
    if not has_room(chunk):
        enlist(chunk)
    (<void **>piece)[0] = chunk.given_back
    chunk.given_back = piece
    chunk.used -= 1
    seal(piece, chunk.home.size)
    # Of those that nothing is taken from one is kept, for whoever comes and goes.
    if chunk.used == 0 and (chunk.next is not NULL or chunk.prev is not NULL):
        free_chunk(chunk)
