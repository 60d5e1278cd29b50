"""The index of a set, for batches. I1 and the contract of each function are in index.pxd."""

from memslots.core.alloc cimport alloc_free, alloc_lines, alloc_zeroed
from memslots.core.debug cimport debug_assert
from memslots.core.search cimport search_lay, search_size

cdef index *index_new(uint64_t generation, uint32_t room) noexcept nogil:
    cdef index *ix = <index *>alloc_zeroed(sizeof(index))
    if ix is NULL:
        return NULL
    ix.generation = generation
    ix.room = room
    ix.rows = <index_row *>alloc_lines(room * sizeof(index_row))
    ix.keys_memory = alloc_lines(search_size(room))
    if ix.rows is NULL or ix.keys_memory is NULL:
        index_free(ix)
        return NULL
    return ix


cdef void index_add(index *ix, slot *s) noexcept nogil:
    cdef index_row *row = &ix.rows[ix.count]
    debug_assert(ix.count < ix.room, b"index_add: there is room")
    row.base_gfn = s.base_gfn
    row.npages = <uint32_t>s.npages
    row.id = <int32_t>s.id
    row.hva = index_hva(s)
    row.slot = s
    ix.count += 1


cdef void index_seal(index *ix) noexcept nogil:
    search_lay(&ix.keys, ix.keys_memory, ix.count, ix.rows, sizeof(index_row))


cdef void index_free(index *list) noexcept nogil:
    cdef index *ix
    while list is not NULL:
        ix = list
        list = ix.next
        alloc_free(ix.rows)
        alloc_free(ix.keys_memory)
        alloc_free(ix)
