"""The index of a set: its slots side by side by base gfn, searched without following pointers.

A search of a tree follows pointers and waits for memory at each one. The index is made from the
tree (index_policy.pxd says when) and is never changed. A search of it (search.pxd) waits for memory
a few times fewer, and a batch waits for the memory of many numbers at once.

  I1  the index of a set holds that set's slots, in gfn order

A set keeps its index as long as the set is not changed. A caller that wants the index for longer
takes a reference (index_hold). With a reference it may read the rows except `record`, but not
`slots`.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.core.search cimport search_add, search_keys
from memslots.core.slot cimport region, slot
from memslots.core.units cimport PAGE_OFFSET_MASK, PAGE_SHIFT, gfn_t, hva_t

# What any answer needs to know of a slot, in half a cache line.
cdef struct index_row:
    gfn_t base_gfn
    uint32_t npages  # at most 2**31 - 1, by rule 4
    int32_t id
    hva_t hva  # userspace_addr, with INDEX_* in the bits below the page size
    void *record  # slot.record, valid as long as the set holds the slot

cdef enum:
    INDEX_LOGS = 1 << 0  # LOG_DIRTY_PAGES
    INDEX_READONLY = 1 << 1
    INDEX_GUEST_MEMFD = 1 << 2
    INDEX_INVALID = 1 << 3
    INDEX_FLAGS = (1 << 4) - 1  # all of the above: the flags of the slot
    INDEX_ANY_ID = 1 << 4  # in a MemoryMap: the slot may have any id; this id is a proposal
    INDEX_INVALID_SHIFT = 13  # from SLOT_INVALID to INDEX_INVALID; the others equal SLOT_*

cdef struct index:
    index_row *rows  # by base_gfn
    search_keys keys  # the rows' base gfns; searchable after index_seal
    slot **slots  # [i]: the slot of row i, valid as long as the set holds it
    uint32_t room  # the number of rows that the index is for
    uint32_t count  # the number of rows so far
    uint64_t references  # one for the set, and one for each index_hold
    uint64_t lines[7]
    # The row found last, on a line of its own: readers without a vCPU write it.
    index_row *last_used
    uint64_t last_line[7]

cdef enum:
    INDEX_FEW = 16  # rows whose keys fit one node; an index has memory for at least this many


# Returns an index for `room` slots, at least 1, or NULL if there is no memory. `first` and `last`
# are the base gfns of the first and the last slot. The caller has the only reference.
cdef index *index_new(uint32_t room, gfn_t first, gfn_t last) noexcept nogil
# Removes all rows, to make `room` others. An index with memory for INDEX_FEW rows can take at most
# INDEX_FEW others.
cdef void index_reset(index *ix, uint32_t room, gfn_t first, gfn_t last) noexcept nogil
# Makes an index searchable. All `room` rows must have been added. O(1).
cdef void index_seal(index *ix) noexcept nogil
# Takes a reference to an index. Another reference must keep the index alive meanwhile.
cdef void index_hold(index *ix) noexcept nogil
# Drops a reference. Frees the index with the last one. NULL does nothing.
cdef void index_drop(index *ix) noexcept nogil


cdef inline bint index_has_gfn(const index_row *row, gfn_t gfn) noexcept nogil:
    """Returns whether a row's slot has the gfn, as slot_has_gfn does."""
    return gfn - row.base_gfn < row.npages


cdef inline bint index_usable(const index_row *row, bint write) noexcept nogil:
    """Returns whether an access may use a row's slot, as slot_usable does. False for NULL."""
    return row is not NULL and not row.hva & (INDEX_INVALID | (INDEX_READONLY if write else 0))


cdef inline hva_t index_userspace_addr(const index_row *row) noexcept nogil:
    return row.hva & ~<hva_t>PAGE_OFFSET_MASK


cdef inline hva_t index_gfn_to_hva(const index_row *row, gfn_t gfn) noexcept nogil:
    """Returns the host address of a page that the row's slot has, as slot_gfn_to_hva does."""
    return index_userspace_addr(row) + ((gfn - row.base_gfn) << PAGE_SHIFT)


cdef inline hva_t index_hva(hva_t userspace_addr, uint32_t flags) noexcept nogil:
    """Returns index_row.hva for a slot with this host address and these flags."""
    return userspace_addr | ((flags | flags >> INDEX_INVALID_SHIFT) & INDEX_FLAGS)


cdef inline uint32_t index_flags(const index_row *row) noexcept nogil:
    """Returns the flags (SLOT_*) of a row's slot."""
    return <uint32_t>(
        (row.hva & (INDEX_LOGS | INDEX_READONLY | INDEX_GUEST_MEMFD))
        | (row.hva & INDEX_INVALID) << INDEX_INVALID_SHIFT
    )


cdef inline void index_fill(index_row *row, const slot *s) noexcept nogil:
    """Fills in the row of a slot."""
    row.base_gfn = s.base_gfn
    row.npages = <uint32_t>s.npages
    row.id = <int32_t>s.id
    row.hva = index_hva(s.userspace_addr, s.flags)
    row.record = s.record


cdef inline void index_row_of(index_row *row, const region *r) noexcept nogil:
    """Fills in the row of a region, without a record. Its host address must be page-aligned."""
    row.base_gfn = r.base_gfn
    row.npages = <uint32_t>r.npages
    row.id = <int32_t>r.id
    row.hva = index_hva(r.userspace_addr, r.flags)
    row.record = NULL


cdef inline void index_add_row(index *ix, const index_row *row) noexcept nogil:
    """Adds a row. It must lie after all rows added before, and there must be room. O(1)."""
    ix.rows[ix.count] = row[0]
    search_add(&ix.keys, ix.count, row.base_gfn)
    ix.count += 1


cdef inline void index_add(index *ix, slot *s) noexcept nogil:
    """Adds the row of a slot, as index_add_row does."""
    cdef index_row row
    index_fill(&row, s)
    ix.slots[ix.count] = s
    index_add_row(ix, &row)
