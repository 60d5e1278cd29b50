"""Integers at the border to Python: fields of a given width, the page size, KVM's slot numbers."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint64_t

from memslots.core.slot cimport slot_number as number_of
from memslots.core.slot cimport slot_number_as_id, slot_number_id
from memslots.core.units cimport BAD_HVA as NO_HVA
from memslots.core.units cimport PAGE_SHIFT as SHIFT
from memslots.core.units cimport PAGE_SIZE as SIZE

# The constants of the core for Python code. integers.pyi says what each one is.
PAGE_SHIFT = SHIFT
PAGE_SIZE = SIZE
BAD_HVA = NO_HVA


cdef object integer_of(object value, str name):
    try:
        return PyNumber_Index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__!r}") from None


cdef uint64_t field_of(object value, str name, int bits) except? ERROR64:
    cdef object number = integer_of(value, name)
    if number < 0:
        raise OverflowError(f"{name} must not be negative: {number:#x}")
    if number.bit_length() > bits:
        raise OverflowError(f"{name} does not fit its {bits} bits: {number:#x}")
    return number


cdef object end_of(object value, str name):
    cdef object number = integer_of(value, name)
    return number if number == 1 << 64 else field_of(number, name, 64)


def field(value, name, bits):
    """Returns `value` as an integer of `bits` bits, at most 64, for the Python modules.

    Raises TypeError for an object that is no integer, OverflowError for one that does not fit. Both
    errors say `name`.
    """
    return field_of(value, name, bits)


def slot_number(id, as_id):
    """Returns the `slot` of the KVM calls: `as_id` in bits 16 to 31, `id` below.

    Raises OverflowError unless both are below 2**16.
    """
    return number_of(field_of(id, "slot", 16), field_of(as_id, "as_id", 16))


def split_number(number):
    """Returns the id and the address space that a `slot` of the KVM calls names."""
    cdef uint64_t whole = field_of(number, "slot", 32)
    return slot_number_id(whole), slot_number_as_id(whole)
