# cython: language_level=3
"""Drives memslots.core.alloc: the allocation counter, and allocations made to fail."""

from memslots.core.alloc cimport (
    alloc_asked,
    alloc_fail_nth,
    alloc_free,
    alloc_lines,
    alloc_live,
    alloc_zeroed,
)


def live():
    return alloc_live()


def asked():
    return alloc_asked()


def fail_nth(n):
    alloc_fail_nth(n)


def block(size, lines):
    """Gets a block of memory; gives its address and its bytes, or None where there is none.
    Gives it back.
    """
    cdef size_t count = size
    cdef void *got = alloc_lines(count) if lines else alloc_zeroed(count)
    cdef unsigned char *memory = <unsigned char *>got
    if memory is NULL:
        return None
    found = <size_t>memory, bytes(memory[:count])
    alloc_free(memory)
    return found


def free_null():
    cdef void *nothing = NULL
    alloc_free(nothing)
