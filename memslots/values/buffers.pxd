"""Buffers as batches take and give them: never copied, their elements' type checked.

Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint64_t

cdef struct buffers:
    Py_buffer numbers  # uint64
    Py_buffer results  # as many elements; its buf is NULL where there is no output
    size_t count


# Takes hold of `given`, a C-contiguous buffer of uint64, which errors call `name`, and of `out`, a
# writable one of as many elements of the type `element` ("int32" or "uint64"; None: there is no
# output). Where `out` is None one is made: numpy's, of the shape of `given`, where that is numpy's;
# otherwise an array.array. Gives the output. Pair with release_batch. TypeError for what is no
# buffer or has other elements, ValueError where one is not contiguous, not aligned, not writable,
# not as long as it must be, or where the two overlap (`out` may be `given` itself).
cdef object take_batch(object given, str name, str element, object out, buffers *taken)
cdef void release_batch(buffers *taken) noexcept

# A buffer of integers of any type that C has.
cdef struct column:
    Py_buffer buffer  # its buf is NULL where there is none
    size_t count  # of elements
    bint has_sign


# Takes hold of `given`, which errors call `name`; pair with release_column. TypeError for what is
# no buffer of integers in this machine's byte order, ValueError where it is not C-contiguous.
cdef int take_column(object given, str name, column *taken) except -1
cdef void release_column(column *taken) noexcept
# Reads an element. False: it is negative.
cdef bint column_get(const column *from_, size_t i, uint64_t *value) noexcept nogil
# The element as a Python integer; `absent` where there is no buffer.
cdef object column_value(const column *from_, size_t i, uint64_t absent)
