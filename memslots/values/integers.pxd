"""Python integers as fields of a given width, with errors that name the field."""

from cpython.exc cimport PyErr_Clear
from cpython.long cimport PyLong_CheckExact
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "Python.h":
    # Declared here because cpython.long's declaration would raise. `quick` clears the error, and
    # field_of raises one that names the field.
    uint64_t long_as_u64 "PyLong_AsUnsignedLongLong"(object value) noexcept

cdef extern from *:
    """
    /* Returns the value of a small plain int, read from CPython's own fields; UINT64_MAX for
       anything else. CPython's own call for this takes longer than finding a slot. */
    static inline uint64_t memslots_small(PyObject *value)
    {
        if (!PyLong_CheckExact(value))
            return UINT64_MAX;
    #if PY_VERSION_HEX >= 0x030C0000
        if (PyUnstable_Long_IsCompact((PyLongObject *)value)) {
            const Py_ssize_t number = PyUnstable_Long_CompactValue((PyLongObject *)value);
            if (number >= 0)
                return (uint64_t)number;
        }
    #else
        const digit *digits = ((PyLongObject *)value)->ob_digit;
        switch (Py_SIZE(value)) {  /* the sign is the size's */
            case 0: return 0;
            case 1: return digits[0];
            case 2: return digits[0] | (uint64_t)digits[1] << PyLong_SHIFT;
        }
    #endif
        return UINT64_MAX;
    }
    """
    uint64_t small "memslots_small"(object value) noexcept
    const uint64_t ERROR64 "UINT64_MAX"
    const uint32_t ERROR32 "UINT32_MAX"


# Returns the value of a field `bits` wide. Raises TypeError for an object that is no integer,
# OverflowError for one that does not fit. Both errors name the field.
cdef uint64_t field_of(object value, str name, int bits) except? ERROR64

# Returns the end of a range of addresses as an int: as field_of with 64 bits, but 2**64, the end of
# all addresses, too.
cdef object end_of(object value, str name)


cdef inline uint64_t quick(object value) noexcept:
    """Returns the value of a plain int that fits 64 bits; ERROR64 for anything else."""
    cdef uint64_t number = small(value)
    if number == ERROR64 and PyLong_CheckExact(value):
        number = long_as_u64(value)
        if number == ERROR64:
            PyErr_Clear()
    return number


cdef inline uint64_t u64(object value, str name) except? ERROR64:
    """Returns the value of a 64-bit field."""
    cdef uint64_t number = quick(value)
    return number if number != ERROR64 else field_of(value, name, 64)


cdef inline uint32_t u32(object value, str name) except? ERROR32:
    """Returns the value of a 32-bit field."""
    cdef uint64_t number = quick(value)
    return <uint32_t>(number if number < ERROR32 else field_of(value, name, 32))
