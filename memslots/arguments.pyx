"""Python integers as fields of a given width, with errors that name the field."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint64_t


cdef uint64_t field_of(object value, str name, int bits) except? ERROR64:
    cdef object number
    try:
        number = PyNumber_Index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__!r}") from None
    if number < 0:
        raise OverflowError(f"{name} must not be negative: {number:#x}")
    if number.bit_length() > bits:
        raise OverflowError(f"{name} does not fit its {bits} bits: {number:#x}")
    return number


def field(value, name, bits):
    """`value` as an integer of `bits` bits, at most 64: for the parts of the package in Python.

    TypeError for what is no integer, OverflowError for one that does not fit; both say `name`.
    """
    return field_of(value, name, bits)
