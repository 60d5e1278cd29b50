"""The index of a set: its slots side by side by base gfn, searched without following pointers.

A tree is searched by pointers, each from memory that the one before had to be read for. The index
is worked out from the tree (index_policy.pxd says when) and never changed: a search of it
(search.pxd) waits for memory a few times fewer, and batches wait for many numbers' memory at once.

  I1  the index of a set holds that set's slots, in gfn order

A set's index is the set's own as long as the set is not changed. Whoever wants to keep it longer
takes a reference (index_hold); of the rows they may then read all but `record`, and no slots.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.core.search cimport search_add, search_keys
from memslots.core.slot cimport region, slot
from memslots.core.units cimport PAGE_OFFSET_MASK, PAGE_SHIFT, gfn_t, hva_t

# Half a line: what any answer needs to know of a slot.
cdef struct index_row:
    gfn_t base_gfn
    uint32_t npages  # at most 2**31 - 1, by rule 4
    int32_t id
    hva_t hva  # userspace_addr; in the bits below the page size, INDEX_*
    void *record  # the slot's, as long as the set holds the slot

cdef enum:
    INDEX_LOGS = 1 << 0  # LOG_DIRTY_PAGES
    INDEX_READONLY = 1 << 1
    INDEX_GUEST_MEMFD = 1 << 2
    INDEX_INVALID = 1 << 3
    INDEX_FLAGS = (1 << 4) - 1  # all of these, which are the slot's
    INDEX_ANY_ID = 1 << 4  # of a MemoryMap: the slot may have any id; the one here is a proposal
    INDEX_INVALID_SHIFT = 13  # from SLOT_INVALID to INDEX_INVALID; the others are as in SLOT_*

cdef struct index:
    index_row *rows  # by base_gfn
    search_keys keys  # the rows' base gfns, once index_seal has been called
    slot **slots  # [i]: what row i is of, as long as the set holds it
    uint32_t room  # for so many rows
    uint32_t count  # of rows
    uint64_t references  # who keeps it: the set, and those who have called index_hold
    uint64_t lines[7]
    # On a line of its own, since readers without a cache write it: the row found last.
    index_row *last_used
    uint64_t last_line[7]

cdef enum:
    INDEX_FEW = 16  # rows whose keys are one node: an index of no more has room for as many


# An index with room for `room` slots, at least 1, or NULL: no memory. `first` and `last` are the
# base gfns of the first and the last of them. The caller has the only reference.
cdef index *index_new(uint32_t room, gfn_t first, gfn_t last) noexcept nogil
# Takes away all rows, to put in others: of as many slots at most if the index is of INDEX_FEW.
cdef void index_reset(index *ix, uint32_t room, gfn_t first, gfn_t last) noexcept nogil
# Makes it ready to be searched; all that there was room for was put in. O(1).
cdef void index_seal(index *ix) noexcept nogil
# Takes a reference to an index, which somebody else keeps meanwhile.
cdef void index_hold(index *ix) noexcept nogil
# Gives a reference back; frees the index with the last. NULL does nothing.
cdef void index_drop(index *ix) noexcept nogil


cdef inline bint index_has_gfn(const index_row *row, gfn_t gfn) noexcept nogil:
    """As slot_has_gfn."""
    return gfn - row.base_gfn < row.npages


cdef inline bint index_usable(const index_row *row, bint write) noexcept nogil:
    """As slot_usable."""
    return row is not NULL and not row.hva & (INDEX_INVALID | (INDEX_READONLY if write else 0))


cdef inline hva_t index_userspace_addr(const index_row *row) noexcept nogil:
    return row.hva & ~<hva_t>PAGE_OFFSET_MASK


cdef inline hva_t index_gfn_to_hva(const index_row *row, gfn_t gfn) noexcept nogil:
    """As slot_gfn_to_hva."""
    return index_userspace_addr(row) + ((gfn - row.base_gfn) << PAGE_SHIFT)


cdef inline hva_t index_hva(hva_t userspace_addr, uint32_t flags) noexcept nogil:
    """The index_row.hva of a slot."""
    return userspace_addr | ((flags | flags >> INDEX_INVALID_SHIFT) & INDEX_FLAGS)


cdef inline uint32_t index_flags(const index_row *row) noexcept nogil:
    """The flags of the slot that a row is of."""
    return <uint32_t>(
        (row.hva & (INDEX_LOGS | INDEX_READONLY | INDEX_GUEST_MEMFD))
        | (row.hva & INDEX_INVALID) << INDEX_INVALID_SHIFT
    )


cdef inline void index_fill(index_row *row, const slot *s) noexcept nogil:
    """Makes a row of a slot."""
    row.base_gfn = s.base_gfn
    row.npages = <uint32_t>s.npages
    row.id = <int32_t>s.id
    row.hva = index_hva(s.userspace_addr, s.flags)
    row.record = s.record


cdef inline void index_row_of(index_row *row, const region *r) noexcept nogil:
    """The same of a region, whose host address is a page's; without a record."""
    row.base_gfn = r.base_gfn
    row.npages = <uint32_t>r.npages
    row.id = <int32_t>r.id
    row.hva = index_hva(r.userspace_addr, r.flags)
    row.record = NULL


cdef inline void index_add_row(index *ix, const index_row *row) noexcept nogil:
    """Puts in a row, which lies after those put in before. There must be room. O(1)."""
    ix.rows[ix.count] = row[0]
    search_add(&ix.keys, ix.count, row.base_gfn)
    ix.count += 1


cdef inline void index_add(index *ix, slot *s) noexcept nogil:
    """Puts in the row of a slot likewise."""
    cdef index_row row
    index_fill(&row, s)
    ix.slots[ix.count] = s
    index_add_row(ix, &row)
