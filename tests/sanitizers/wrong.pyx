"""Programs that a sanitizer must stop, and one that it must not."""

from libc.stdlib cimport free, malloc


def right(int n):
    """Writes the last cell, and reads it."""
    cdef int *cells = <int *> malloc(n * sizeof(int))
    cells[n - 1] = n
    n = cells[n - 1]
    free(cells)
    return n


def beyond(int n):
    """Writes the cell after the last."""
    cdef int *cells = <int *> malloc(n * sizeof(int))
    cells[n] = n
    n = cells[n]
    free(cells)
    return n


def freed(int n):
    """Reads memory after it was freed."""
    cdef int *cells = <int *> malloc(n * sizeof(int))
    cells[0] = n
    free(cells)
    return cells[0]


def shift(int n):
    """Shifts by more than the width of the number."""
    cdef int one = 1
    return one << (n + 32)
