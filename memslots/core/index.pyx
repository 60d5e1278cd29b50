"""The index of a set. index.pxd has I1 and the contract of each function."""

from memslots.core.alloc cimport CACHE_LINE, alloc_block, alloc_free, alloc_whole_lines
from memslots.core.atomics cimport atomic_fetch_add, atomic_fetch_sub_acq_rel
from memslots.core.debug cimport debug_assert
from memslots.core.search cimport search_begin, search_end, search_size

cdef extern from *:
    """
    #define MEMSLOTS_CHECK_INDEX_LAYOUT(ix, line) do { \\
        _Static_assert(sizeof(*(ix)->rows) == (line) / 2, "a row is half a line"); \\
        _Static_assert(offsetof(__typeof__(*(ix)), keys.level) + 4 * sizeof(void *) == (line), \\
                       "what a search of 65,536 keys reads of the index is its first line"); \\
        _Static_assert(offsetof(__typeof__(*(ix)), last_used) % (line) == 0, \\
                       "what readers write has a line of its own"); \\
        _Static_assert(sizeof(*(ix)) % (line) == 0, "the rows begin with a line"); \\
    } while (0)
    """
    void check_layout "MEMSLOTS_CHECK_INDEX_LAYOUT"(index *, int) noexcept nogil


cdef index *index_new(uint32_t room, gfn_t first, gfn_t last) noexcept nogil:
    # One block for everything, since an index of a few slots is made and thrown away often.
    cdef uint32_t places = max(room, <uint32_t>INDEX_FEW)
    cdef size_t rows = alloc_whole_lines(places * sizeof(index_row))
    cdef size_t slots = alloc_whole_lines(places * sizeof(void *))
    cdef uint64_t span = ~<uint64_t>0 if places == INDEX_FEW else last - first
    cdef char *block = <char *>alloc_block(
        sizeof(index) + rows + slots + search_size(places, span)
    )
    cdef index *ix = <index *>block
    check_layout(ix, CACHE_LINE)
    if ix is NULL:
        return NULL
    block += sizeof(index)
    ix.rows = <index_row *>block
    ix.slots = <slot **>(block + rows)
    ix.references = 1
    index_reset(ix, room, first, last)
    return ix


cdef void index_reset(index *ix, uint32_t room, gfn_t first, gfn_t last) noexcept nogil:
    cdef uint32_t places = max(room, <uint32_t>INDEX_FEW)
    ix.room = room
    ix.count = 0
    ix.last_used = ix.rows
    search_begin(
        &ix.keys, <char *>ix.slots + alloc_whole_lines(places * sizeof(void *)), room, first, last
    )


cdef void index_seal(index *ix) noexcept nogil:
    debug_assert(ix.count == ix.room, b"index_seal: all slots were put in")
    search_end(&ix.keys)


cdef void index_hold(index *ix) noexcept nogil:
    atomic_fetch_add(&ix.references, 1)


cdef void index_drop(index *ix) noexcept nogil:
    # Acquire and release: the reads of all other holders come before the index is freed.
    if ix is not NULL and atomic_fetch_sub_acq_rel(&ix.references, 1) == 1:
        alloc_free(ix)
