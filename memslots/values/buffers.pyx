"""Buffers of batches. The contract is in buffers.pxd."""

import sys

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

# The formats that an element may have: C's names for integers of a size differ between systems.
cdef dict FORMATS = {"int32": (b"i", b"l"), "uint64": (b"Q", b"L")}
cdef bytes NATIVE = b"@=<" if sys.byteorder == "little" else b"@=>"
# By element: an array.array of one zero, made on first use. Multiplied, it is an output of any
# length.
cdef dict ZERO = {}
cdef dict SIZES = {"int32": 4, "uint64": 8}


cdef int take_buffer(
    object buffer, str name, str element, bint writable, Py_buffer *view
) except -1:
    cdef bytes format
    if not PyObject_CheckBuffer(buffer):
        raise TypeError(
            f"{name} must be a buffer of {element} (a numpy array, an array.array or a memoryview),"
            f" not {type(buffer).__name__!r}"
        )
    PyObject_GetBuffer(buffer, view, PyBUF_FORMAT | PyBUF_STRIDES)
    try:
        format = view.format if view.format is not NULL else b"B"
        if view.itemsize != SIZES[element] or format.lstrip(NATIVE) not in FORMATS[element]:
            raise TypeError(
                f"{name} must hold {element}, not elements of {view.itemsize} bytes with format"
                f" {format.decode()!r}"
            )
        if not PyBuffer_IsContiguous(view, b"C"):
            raise ValueError(f"{name} must be C-contiguous")
        if view.len != 0 and <size_t>view.buf % <size_t>view.itemsize:
            raise ValueError(f"{name} must be aligned to its elements, of {view.itemsize} bytes")
        if writable and view.readonly:
            raise ValueError(f"{name} must be writable")
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


cdef object new_output(object given, size_t count, str element):
    # A caller with a numpy array has imported numpy. No other caller has to import it.
    cdef object numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(given, numpy.ndarray):
        return numpy.empty(given.shape, dtype=element)
    zero = ZERO.get(element)
    if zero is None:
        import array

        # Not replaced if another thread was first: a third one may be about to use it.
        zero = ZERO.setdefault(element, array.array("i" if element == "int32" else "Q", [0]))
    return zero * count


cdef int refuse_overlap(const Py_buffer *given, str name, const Py_buffer *out) except -1:
    """Raises ValueError if results would be written over numbers that are not read yet."""
    cdef uintptr_t numbers = <uintptr_t>given.buf
    cdef uintptr_t results = <uintptr_t>out.buf
    if given.len == 0 or (numbers == results and given.itemsize == out.itemsize):
        return 0
    if numbers < results + <size_t>out.len and results < numbers + <size_t>given.len:
        raise ValueError(f"out overlaps {name} in part, so results would overwrite {name}")
    return 0


cdef object take_batch(object given, str name, str element, object out, buffers *taken):
    # PyBuffer_Release does nothing to a buffer that was not acquired.
    memset(taken, 0, sizeof(buffers))
    take_buffer(given, name, "uint64", False, &taken.numbers)
    try:
        taken.count = taken.numbers.len // taken.numbers.itemsize
        if element is not None:
            if out is None:
                out = new_output(given, taken.count, element)
            take_buffer(out, "out", element, True, &taken.results)
            if <size_t>(taken.results.len // taken.results.itemsize) != taken.count:
                raise ValueError(
                    f"out must have {taken.count} elements, as {name} has,"
                    f" not {taken.results.len // taken.results.itemsize}"
                )
            refuse_overlap(&taken.numbers, name, &taken.results)
    except BaseException:
        release_batch(taken)
        raise
    return out


cdef void release_batch(buffers *taken) noexcept:
    PyBuffer_Release(&taken.results)
    PyBuffer_Release(&taken.numbers)


cdef int take_column(object given, str name, column *taken) except -1:
    cdef bytes format
    if not PyObject_CheckBuffer(given):
        raise TypeError(
            f"{name} must be a buffer of integers (a numpy array, an array.array or a memoryview),"
            f" not {type(given).__name__!r}"
        )
    PyObject_GetBuffer(given, &taken.buffer, PyBUF_FORMAT | PyBUF_STRIDES)
    try:
        format = taken.buffer.format if taken.buffer.format is not NULL else b"B"
        format = format.lstrip(NATIVE)
        if len(format) != 1 or format not in b"bBhHiIlLqQnN":
            raise TypeError(
                f"{name} must hold integers of this machine, not elements of"
                f" {taken.buffer.itemsize} bytes with format {format.decode()!r}"
            )
        if not PyBuffer_IsContiguous(&taken.buffer, b"C"):
            raise ValueError(f"{name} must be C-contiguous")
    except BaseException:
        PyBuffer_Release(&taken.buffer)
        raise
    taken.has_sign = format in b"bhilqn"
    taken.count = taken.buffer.len // taken.buffer.itemsize
    return 0


cdef void release_column(column *taken) noexcept:
    PyBuffer_Release(&taken.buffer)


cdef bint column_get(const column *from_, size_t i, uint64_t *value) noexcept nogil:
    cdef size_t size = from_.buffer.itemsize
    # The element is copied because it need not be aligned.
    cdef const char *at = <const char *>from_.buffer.buf + i * size
    cdef uint8_t narrow
    cdef uint16_t short_
    cdef uint32_t half
    if size == 8:
        memcpy(value, at, 8)
    elif size == 4:
        memcpy(&half, at, 4)
        value[0] = half
    elif size == 2:
        memcpy(&short_, at, 2)
        value[0] = short_
    else:
        memcpy(&narrow, at, 1)
        value[0] = narrow
    return not (from_.has_sign and value[0] >> (8 * size - 1))


cdef object column_value(const column *from_, size_t i, uint64_t absent):
    cdef uint64_t value = absent
    cdef object number
    if from_.buffer.buf is NULL or column_get(from_, i, &value):
        return value
    number = value
    return number - 2 ** (8 * <object>from_.buffer.itemsize)
