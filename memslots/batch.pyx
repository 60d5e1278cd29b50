"""Batch calls. The contract is in batch.pxd."""

import array
import sys

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

from memslots.core.lookup cimport lookup_hvas, lookup_ids, lookup_mark_dirty
from memslots.core.srcu cimport srcu_enter, srcu_leave, srcu_reader
from memslots.core.units cimport hva_t
from memslots.sections cimport reader_of, section, section_enter, section_leave

cdef enum:
    # How many look-ups a batch makes before it leaves the readers' section and enters anew. Of a
    # batch no writer waits for more: some 20 microseconds, where each of them misses the
    # processor's caches. To enter costs less than one such miss.
    STRETCH = 64

# What an element may be called: C's names for integers of a size differ from system to system.
cdef dict FORMATS = {"int32": (b"i", b"l"), "uint64": (b"Q", b"L")}
cdef bytes NATIVE = b"@=<" if sys.byteorder == "little" else b"@=>"
# An array.array of one zero; multiplied, it is an output of any length.
cdef dict ZERO = {"int32": array.array("i", [0]), "uint64": array.array("Q", [0])}
cdef dict SIZES = {"int32": 4, "uint64": 8}


cdef int take_buffer(
    object buffer, str name, str element, bint writable, Py_buffer *view
) except -1:
    """Takes hold of a buffer of the named elements. Pair with PyBuffer_Release."""
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
    # Whoever has a numpy array has imported numpy; nobody else is made to.
    cdef object numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(given, numpy.ndarray):
        return numpy.empty(given.shape, dtype=element)
    return ZERO[element] * count


cdef void run(
    machine *m,
    space *sp,
    vcpu_cache *cache,
    batch_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil:
    """Does a batch stretch by stretch, each from one generation."""
    cdef size_t begin = 0
    cdef size_t stretch
    cdef srcu_reader *reader = reader_of(m, cache)
    cdef int side
    while begin < count:
        stretch = min(<size_t>STRETCH, count - begin)
        side = srcu_enter(reader)
        if kind == LOOKUP_IDS:
            lookup_ids(sp, cache, given + begin, <int32_t *>out + begin, stretch)
        elif kind == MARK_DIRTY:
            lookup_mark_dirty(sp, cache, given + begin, stretch)
        else:
            lookup_hvas(
                sp, cache, given + begin, <hva_t *>out + begin, stretch, kind == TRANSLATE_WRITE
            )
        srcu_leave(reader, side)
        begin += stretch


cdef object run_batch(
    machine *m, space *sp, vcpu_cache *own, batch_kind kind, object given, str name, object out
):
    cdef str element = "int32" if kind == LOOKUP_IDS else "uint64"
    cdef Py_buffer numbers
    cdef Py_buffer results
    cdef size_t count
    cdef section at
    # A copy of the face's cache, since another thread may use the face meanwhile; without one, a
    # cache for this batch.
    cdef vcpu_cache cache
    memset(&cache, 0, sizeof(cache))
    if own is not NULL:
        cache.reader = own.reader
        at = section_enter(m, own)
        if at.own is not NULL:
            cache.last_used = own.last_used
            cache.generation = own.generation
        section_leave(&at)
    take_buffer(given, name, "uint64", False, &numbers)
    # PyBuffer_Release leaves one alone that nobody took hold of
    memset(&results, 0, sizeof(results))
    try:
        count = numbers.len // numbers.itemsize
        if kind != MARK_DIRTY:
            if out is None:
                out = new_output(given, count, element)
            take_buffer(out, "out", element, True, &results)
            if <size_t>(results.len // results.itemsize) != count:
                raise ValueError(
                    f"out must have {count} elements, as {name} has,"
                    f" not {results.len // results.itemsize}"
                )
        with nogil:
            run(m, sp, &cache, kind, <const uint64_t *>numbers.buf, results.buf, count)
    finally:
        PyBuffer_Release(&results)
        PyBuffer_Release(&numbers)
    if own is not NULL:
        at = section_enter(m, own)
        if at.own is not NULL:
            own.last_used = cache.last_used
            own.generation = cache.generation
            own.hits += cache.hits
            own.misses += cache.misses
        section_leave(&at)
    return out
