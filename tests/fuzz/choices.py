"""Turns bytes into choices and choices into bytes: an input of fuzz_calls.py consists of them.

A field decodes one value from the front of an input and encodes it again. Any bytes are an input.
After their end everything is zero, so a mutation never makes an input invalid. Small numbers take
one byte; so do numbers at a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from memslots import Flags

T = TypeVar("T")

PAGE_SHIFT = 12
MAX_HVA = (1 << 47) - 4096  # where user space ends

# The first byte of a number: the number itself if below PLAIN, else one of the edges.
PLAIN, TWO_BYTES, FOUR_BYTES, EIGHT_BYTES, ODD_ONE = 0xD0, 0xFC, 0xFD, 0xFE, 0xFF
WIDTHS = {TWO_BYTES: 2, FOUR_BYTES: 4, EIGHT_BYTES: 8}


class Index:
    """An integer that is not an int; if it raises, it is no integer."""

    def __init__(self, value: int | None) -> None:
        self.value = value

    def __index__(self) -> int:
        if self.value is None:
            raise ZeroDivisionError
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value})"


#: Objects that a caller may pass as an integer.
ODD: tuple[Any, ...] = (
    None, "1", 1.5, b"\1", -1, 1 << 32, 1 << 64, -(1 << 70), True, Flags.LOG_DIRTY_PAGES,
    Index(3), Index(-1), Index(1 << 64), Index(None), (), int,
)  # fmt: skip

#: Counts and gfns at limits: words of a dirty log, limits of the machines, widths.
NUMBER_EDGES = (
    255, 256, 4031, 4094, 4095, 4096, 32763, 32764, 0xFFFF, 0x10000, 0x10001, 0x10002, 0x10003,
    0x20000, 0xF0000, 0xFFFF0000, 1 << 28, (1 << 31) - 1, 1 << 31, 0xFFFFFFFF, (1 << 35) - 2,
    1 << 35, (1 << 40) - 1, 1 << 40, (1 << 40) - 64, (1 << 52) - 1, 1 << 52, (1 << 52) - 64,
    1 << 63, (1 << 64) - 1,
)  # fmt: skip
#: The same for addresses and sizes in bytes.
ADDRESS_EDGES = (
    1, 2048, 4095, 4097, 0x10800, 160 << 12, 161 << 12, 4096 << 12, (1 << 43) - 4096, 1 << 43,
    MAX_HVA + 4096, MAX_HVA, MAX_HVA - 4096, MAX_HVA - 8192, MAX_HVA - (5 << 12), MAX_HVA - 1,
    1 << 52, 1 << 63, (1 << 64) - 8192, (1 << 64) - 4096, (1 << 64) - 1,
)  # fmt: skip


class Choices:
    """An input, read from front to end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at].ljust(count, b"\0")


class Field(Protocol[T]):
    def decode(self, choices: Choices) -> T: ...

    def encode(self, value: T) -> bytes: ...


class Number:
    """An argument for an integer of so many bits; most values fit."""

    edges: tuple[int, ...] = NUMBER_EDGES
    shift = 0

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def decode(self, choices: Choices) -> Any:
        first = choices.byte()
        if first < PLAIN:
            return first << self.shift
        if first == ODD_ONE:
            return ODD[choices.byte() % len(ODD)]
        if first in WIDTHS:
            value = int.from_bytes(choices.take(WIDTHS[first]), "little")
            return value if first == EIGHT_BYTES else value << self.shift
        return self.edges[(first - PLAIN) % len(self.edges)]

    def encode(self, value: Any) -> bytes:
        for place, odd in enumerate(ODD):
            if value is odd:
                return bytes([ODD_ONE, place])
        number: int = value
        short = number >> self.shift
        if short << self.shift == number:
            if short < PLAIN:
                return bytes([short])
            for first in (TWO_BYTES, FOUR_BYTES):
                if short < 1 << 8 * WIDTHS[first]:
                    return bytes([first]) + short.to_bytes(WIDTHS[first], "little")
        return bytes([EIGHT_BYTES]) + number.to_bytes(8, "little")


class Address(Number):
    """The same in bytes; short ones are whole pages."""

    edges = ADDRESS_EDGES
    shift = PAGE_SHIFT


class Choice(Generic[T]):
    """One of a few values."""

    def __init__(self, among: Sequence[T]) -> None:
        self.among = among

    def decode(self, choices: Choices) -> T:
        return self.among[choices.byte() % len(self.among)]

    def encode(self, value: T) -> bytes:
        return bytes([self.among.index(value)])


class Byte:
    """One of several values, whose number is known only when the input runs."""

    def decode(self, choices: Choices) -> int:
        return choices.byte()

    def encode(self, value: int) -> bytes:
        return bytes([value])


class Bytes:
    MOST = 1 << 10

    def decode(self, choices: Choices) -> bytes:
        length = int.from_bytes(choices.take(2), "little") % (self.MOST + 1)
        return choices.take(length)

    def encode(self, value: bytes) -> bytes:
        return len(value).to_bytes(2, "little") + value


class Numbers:
    """Some integers that fit 64 bits."""

    MOST = 24
    one = Number(64)

    def decode(self, choices: Choices) -> list[int]:
        given = [self.one.decode(choices) for _ in range(choices.byte() % (self.MOST + 1))]
        return [n if type(n) is int and 0 <= n < 1 << 64 else 0 for n in given]

    def encode(self, value: list[int]) -> bytes:
        return bytes([len(value)]) + b"".join(map(self.one.encode, value))
