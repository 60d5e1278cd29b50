from typing import SupportsIndex

PAGE_SHIFT: int
"""log2 of the page size."""
PAGE_SIZE: int
"""The page size in bytes."""
BAD_HVA: int
"""The answer of ``translate`` for an address that no slot holds."""

def field(value: SupportsIndex, name: str, bits: int) -> int:
    """Returns `value` as an integer of `bits` bits, at most 64.

    Raises TypeError for an object that is no integer, OverflowError for one that does not fit. Both
    errors say `name`.
    """

def slot_number(id: SupportsIndex, as_id: SupportsIndex) -> int:
    """Returns the `slot` of the KVM calls: `as_id` in bits 16 to 31, `id` below.

    Raises OverflowError unless both are below 2**16.
    """

def split_number(number: SupportsIndex) -> tuple[int, int]:
    """Returns the id and the address space that a `slot` of the KVM calls names.

    Raises OverflowError unless `number` is below 2**32.
    """
