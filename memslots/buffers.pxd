"""Buffers as batches take and give them: never copied, their elements' type checked.

Not installed: Cython code outside goes through memslots.pxd.
"""

# Takes hold of a C-contiguous buffer of elements, "int32" or "uint64", which errors call `name`.
# Pair with PyBuffer_Release. TypeError for what is no buffer or has other elements, ValueError
# where it is not contiguous, not aligned, or is to be written and is read-only.
cdef int take_buffer(
    object buffer, str name, str element, bint writable, Py_buffer *view
) except -1
# A new array of `count` elements for what is worked out from `given`: numpy's, of the shape of
# `given`, where that is numpy's; otherwise an array.array.
cdef object new_output(object given, size_t count, str element)
