"""Lists of rows on their way into an index: adding, checking, sorting, cutting and joining rows.

A MemoryMap that is not taken from a set is made of such rows. In a list, the `record` of a row is
its number in the order given (rows_number). Error messages use this number.
"""

from libc.stdint cimport uint32_t

from memslots.core.index cimport index, index_row

# A list that grows.
cdef struct rows:
    index_row *at
    size_t count
    size_t room  # the number of rows that `at` has memory for
    bint failed  # there was no memory for a row, so rows are missing

cdef enum rows_fault:
    ROWS_GOOD
    ROWS_NO_MEMORY
    ROWS_TOO_MANY  # more rows than an index can have, or than there are ids
    ROWS_OVERLAP  # two rows share a page
    ROWS_SAME_ID  # two rows without INDEX_ANY_ID have the same id

# The rows that a fault is about: indexes into rows.at.
cdef struct rows_pair:
    size_t first
    size_t second


# Frees the list's memory and empties the list. A new list must be memset to 0.
cdef void rows_free(rows *r) noexcept nogil
# Makes room for `room` rows in all. Sets `failed` if there is no memory.
cdef void rows_reserve(rows *r, size_t room) noexcept nogil
# Adds a copy of a row and numbers it. Sets `failed` if there is no memory. O(1) amortised.
cdef void rows_add(rows *r, const index_row *row) noexcept nogil

# Adds the parts of the rows of `a` that lie outside of `b` (with keep_common: inside), in gfn
# order. If a row is cut, its first part keeps the id and the others get INDEX_ANY_ID. O(n + m).
cdef void rows_cut(rows *r, const index *a, const index *b, bint keep_common) noexcept nogil
# Adds the rows of `a`, neighbours joined. Neighbours are joined if they are contiguous in guest and
# in host memory, have the same flags (GUEST_MEMFD is none of them) and have at most `most` pages
# together. A joined row has the first id without INDEX_ANY_ID. O(n).
cdef void rows_join(rows *r, const index *a, uint32_t most) noexcept nogil
# Sets INDEX_ANY_ID on each row whose id a row of `other` without INDEX_ANY_ID has. Returns -1 if
# there is no memory, else 0. O(n + m).
cdef int rows_yield_ids(rows *r, const index *other) noexcept nogil

# Sorts and checks the rows and returns an index of them. Rows with INDEX_ANY_ID get the lowest free
# ids, in gfn order. On a fault, returns NULL and sets `why`, and `which` if it is about two rows.
# Without rows, returns NULL and ROWS_GOOD. O(n log n), O(n) if the rows are in order.
cdef index *rows_index(rows *r, rows_fault *why, rows_pair *which) noexcept nogil


cdef inline size_t rows_number(const index_row *row) noexcept nogil:
    """Returns the number of a row in the order given."""
    return <size_t>row.record
