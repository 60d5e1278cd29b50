"""Buffers of batches: never copied, the type of their elements checked.

Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint64_t

cdef struct buffers:
    Py_buffer numbers  # uint64
    Py_buffer results  # as many elements; its buf is NULL if there is no output
    size_t count


# Acquires `given`, a C-contiguous buffer of uint64 that errors call `name`, and `out`. `out` is a
# writable buffer of as many elements of the type `element` ("int32" or "uint64"; None: there is no
# output). If `out` is None, makes one: a numpy array of the shape of `given` if that is a numpy
# array, otherwise an array.array. Returns the output. Pair with release_batch. Raises TypeError for
# an object that is no buffer or has other elements. Raises ValueError if a buffer is not
# contiguous, aligned, writable or of the right length. Raises ValueError, too, if the two overlap;
# but `out` may be `given` itself.
cdef object take_batch(object given, str name, str element, object out, buffers *taken)
cdef void release_batch(buffers *taken) noexcept

# A buffer of integers of any type that C has.
cdef struct column:
    Py_buffer buffer  # its buf is NULL if there is none
    size_t count  # of elements
    bint has_sign


# Acquires `given`, which errors call `name`. Pair with release_column. Raises TypeError for an
# object that is no buffer of integers in this machine's byte order, ValueError for a buffer that is
# not C-contiguous.
cdef int take_column(object given, str name, column *taken) except -1
cdef void release_column(column *taken) noexcept
# Reads an element. Returns False if it is negative.
cdef bint column_get(const column *from_, size_t i, uint64_t *value) noexcept nogil
# Returns the element as a Python integer, or `absent` if there is no buffer.
cdef object column_value(const column *from_, size_t i, uint64_t absent)
