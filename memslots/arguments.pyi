from typing import SupportsIndex

def field(value: SupportsIndex, name: str, bits: int) -> int:
    """`value` as an integer of `bits` bits, at most 64.

    TypeError for what is no integer, OverflowError for one that does not fit; both say `name`.
    """
