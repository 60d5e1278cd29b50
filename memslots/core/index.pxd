"""The index of a set, for batches: its slots side by side by base gfn, at one generation.

A tree is searched by following pointers, each from memory that the one before had to be read for.
The index is worked out from it and never changed: where many questions are asked of the same slots,
searching it (search.pxd) costs far less, even with the making.

  I1  an index of the active set's generation holds that set's slots, in gfn order
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.core.search cimport search_keys
from memslots.core.slot cimport SLOT_INVALID, SLOT_READONLY, slot
from memslots.core.units cimport gfn_t, hva_t

# Half a line: what any answer needs to know of a slot.
cdef struct index_row:
    gfn_t base_gfn  # the first member: the key (search_lay)
    uint32_t npages  # at most 2**31 - 1, by rule 4
    int32_t id
    hva_t hva  # userspace_addr; in the bits below the page size, INDEX_NO_*
    slot *slot  # as long as the generation is the active set's

cdef enum:
    INDEX_NO_READ = 1 << 0  # the slot is INVALID
    INDEX_NO_WRITE = 1 << 1  # INVALID or READONLY

cdef struct index:
    uint64_t generation  # of the set whose slots these are
    uint32_t room  # for so many rows
    uint32_t count  # of rows
    index_row *rows  # by base_gfn
    void *keys_memory  # what the keys lie in
    search_keys keys  # the rows' base gfns, once index_seal has been called
    index *next  # of a list of those that are to be freed; NULL: the last

# Where an address space has its index. What to do with it is in index_policy.pxd.
cdef struct index_home:
    # The first line: read by every batch, seldom written.
    index *current  # the one published last, maybe of a generation that is past; NULL: none
    uint64_t first_line[7]
    # The second: written by batches that search the tree.
    index *retired  # those that `current` was before, whom a reader may still be in
    uint64_t generation  # the one that `searches` counts in
    # how often batches searched the tree since (about: several may count at once)
    uint64_t searches
    uint64_t second_line[5]


# An index with room for `room` slots (at least 1) of a set of this generation, or NULL: no memory.
cdef index *index_new(uint64_t generation, uint32_t room) noexcept nogil
# Puts in a slot, which lies after those put in before. There must be room.
cdef void index_add(index *ix, slot *s) noexcept nogil
# Makes it ready to be searched; at least one slot was put in. O(count).
cdef void index_seal(index *ix) noexcept nogil
# Gives back a list of them. NULL does nothing.
cdef void index_free(index *list) noexcept nogil


cdef inline bint index_has_gfn(const index_row *row, gfn_t gfn) noexcept nogil:
    """As slot_has_gfn."""
    return gfn - row.base_gfn < row.npages


cdef inline hva_t index_hva(const slot *s) noexcept nogil:
    """A slot's index_row.hva."""
    cdef hva_t hva = s.userspace_addr
    if s.flags & SLOT_INVALID:
        hva |= INDEX_NO_READ
    if s.flags & (SLOT_INVALID | SLOT_READONLY):
        hva |= INDEX_NO_WRITE
    return hva
