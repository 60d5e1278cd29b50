"""Python integers as fields of a given width, with errors that name the field."""

from cpython.exc cimport PyErr_Clear
from cpython.long cimport PyLong_CheckExact
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "Python.h":
    # Declared here because cpython.long's would raise; what it gives besides a number is sorted out
    # by field_of.
    uint64_t long_as_u64 "PyLong_AsUnsignedLongLong"(object value) noexcept

cdef extern from *:
    const uint64_t ERROR64 "UINT64_MAX"
    const uint32_t ERROR32 "UINT32_MAX"


# The value of a field `bits` wide. TypeError for what is no integer, OverflowError for one that
# does not fit; both name the field.
cdef uint64_t field_of(object value, str name, int bits) except? ERROR64


cdef inline uint64_t quick(object value) noexcept:
    """The value of a plain int that fits 64 bits; ERROR64 for everything else."""
    cdef uint64_t number = ERROR64
    if PyLong_CheckExact(value):
        number = long_as_u64(value)
        if number == ERROR64:
            PyErr_Clear()
    return number


cdef inline uint64_t u64(object value, str name) except? ERROR64:
    """The value of a 64-bit field."""
    cdef uint64_t number = quick(value)
    return number if number != ERROR64 else field_of(value, name, 64)


cdef inline uint32_t u32(object value, str name) except? ERROR32:
    """The value of a 32-bit field."""
    cdef uint64_t number = quick(value)
    return <uint32_t>(number if number < ERROR32 else field_of(value, name, 32))
