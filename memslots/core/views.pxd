"""The rows of an index by id and by host address, for a MemoryMap."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.idtable cimport idtable
from memslots.core.index cimport index, index_row, index_userspace_addr
from memslots.core.units cimport PAGE_SHIFT, hva_t

cdef struct views:
    idtable ids  # of rows
    uint32_t count  # the length of the two arrays
    const index_row **by_hva  # by userspace_addr, then by base_gfn
    hva_t *reach  # [i]: the greatest last host byte of by_hva[0] to by_hva[i]


# Returns the views of an index, or NULL if there is no memory. O(n log n).
cdef views *views_new(index *ix) noexcept nogil
# Frees views. NULL does nothing.
cdef void views_free(views *v) noexcept nogil
# Returns the place of the first row in by_hva that ends at or after `first`, or `count` if there is
# none. O(log n).
cdef uint32_t views_first_reaching(const views *v, hva_t first) noexcept nogil


cdef inline hva_t views_last_hva(const index_row *row) noexcept nogil:
    """Returns the last host byte of a row."""
    return index_userspace_addr(row) + (<uint64_t>row.npages << PAGE_SHIFT) - 1
