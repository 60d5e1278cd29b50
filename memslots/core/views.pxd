"""The rows of an index by id and by host address, for those who keep the index as a value."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.idtable cimport idtable
from memslots.core.index cimport index, index_row, index_userspace_addr
from memslots.core.units cimport PAGE_SHIFT, hva_t

cdef struct views:
    idtable ids  # of rows
    uint32_t count  # of those that follow
    const index_row **by_hva  # by userspace_addr, then by base_gfn
    hva_t *reach  # [i]: the last host byte of any of by_hva[0] to by_hva[i]


# Works out the views of an index, or NULL: no memory. O(n log n).
cdef views *views_new(index *ix) noexcept nogil
# NULL does nothing.
cdef void views_free(views *v) noexcept nogil
# The first place in by_hva from which on there may be one that ends at `first` or after it.
# O(log n).
cdef uint32_t views_first_reaching(const views *v, hva_t first) noexcept nogil


cdef inline hva_t views_last_hva(const index_row *row) noexcept nogil:
    """The last host byte of a row."""
    return index_userspace_addr(row) + (<uint64_t>row.npages << PAGE_SHIFT) - 1
