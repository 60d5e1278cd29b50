"""Rows on their way into an index: put in, checked, sorted, cut, joined.

A MemoryMap that is not taken from a set is made of these. While they are here `record` is the
number of the row as it was given (rows_number), which is what errors call it by.
"""

from libc.stdint cimport uint32_t

from memslots.core.index cimport index, index_row

# A list that grows.
cdef struct rows:
    index_row *at
    size_t count
    size_t room  # for so many
    bint failed  # there was no memory for one: `count` is not all

cdef enum rows_fault:
    ROWS_GOOD
    ROWS_NO_MEMORY
    ROWS_TOO_MANY  # than an index can have, or than there are ids
    ROWS_OVERLAP  # two have a page in common
    ROWS_SAME_ID  # two have an id in common, which both are to have

# Which rows a fault is about: indexes into rows.at.
cdef struct rows_pair:
    size_t first
    size_t second


# What begins is memset to 0; frees what a list has.
cdef void rows_free(rows *r) noexcept nogil
# Makes room for so many in all. Fails as rows_add does.
cdef void rows_reserve(rows *r, size_t room) noexcept nogil
# Puts in a copy of a row, with a number; sets `failed` where there is no memory. O(1) over many.
cdef void rows_add(rows *r, const index_row *row) noexcept nogil

# What of `a` lies outside of `b` (keep_common: inside), in gfn order. Of a row that is cut the
# first part keeps the id, the others may have any (INDEX_ANY_ID). O(n + m).
cdef void rows_cut(rows *r, const index *a, const index *b, bint keep_common) noexcept nogil
# The rows of `a`, with neighbours joined that go on in guest and in host memory and have the same
# flags, up to `most` pages; the first gives the id. O(n).
cdef void rows_join(rows *r, const index *a, uint32_t most) noexcept nogil
# Lets rows have any id whose id a row of `other` is to have. -1: no memory. O(n + m).
cdef int rows_yield_ids(rows *r, const index *other) noexcept nogil

# Sorts, checks and makes an index, whose rows with INDEX_ANY_ID get the lowest ids that are free,
# in gfn order. NULL and `why` otherwise; NULL and ROWS_GOOD for no rows. O(n log n), O(n) where
# they are in order.
cdef index *rows_index(rows *r, rows_fault *why, rows_pair *which) noexcept nogil


cdef inline size_t rows_number(const index_row *row) noexcept nogil:
    """The number of a row as it was given."""
    return <size_t>row.record
