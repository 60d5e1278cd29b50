"""Buffers that a batch call takes or refuses: the makers, and the errors."""

from __future__ import annotations

import importlib
import importlib.util
from array import array
from collections.abc import Callable
from typing import Any

#: numpy is optional here too: without it an array.array takes its place.
numpy: Any = importlib.import_module("numpy") if importlib.util.find_spec("numpy") else None

SIZES = {"Q": 8, "i": 4}
Maker = Callable[[list[int]], Any]


def quads(values: list[int]) -> array[int]:
    return array("Q", values)


def of_numpy(values: list[int]) -> Any:
    return quads(values) if numpy is None else numpy.array(values, dtype="uint64")


def in_two_rows(values: list[int]) -> Any:
    if numpy is None or len(values) % 2:
        return quads(values)
    return of_numpy(values).reshape(2, -1)


#: Makers of input buffers.
IN: tuple[Maker, ...] = (
    quads,
    of_numpy,
    in_two_rows,
    lambda values: array("L", values),
    lambda values: memoryview(quads(values)),
    lambda values: memoryview(bytes(quads(values))).cast("Q"),
    lambda values: memoryview(quads([1, *values, 2]))[1:-1],
    lambda values: memoryview(bytearray(quads(values))).cast("Q"),
)

FOUR = quads([1, 2, 3, 4])
#: Objects that are no buffer of uint64, and the error.
WRONG_IN: tuple[tuple[Any, type[Exception]], ...] = (
    (array("q", [1]), TypeError),
    (array("I", [1]), TypeError),
    (array("d", [1]), TypeError),
    (b"12345678", TypeError),
    (bytearray(8), TypeError),
    ("12345678", TypeError),
    ([1], TypeError),
    (1, TypeError),
    (None, TypeError),
    (memoryview(FOUR)[::2], ValueError),
    (memoryview(FOUR)[::-1], ValueError),
    (memoryview(bytearray(33))[1:].cast("Q"), ValueError),
)


def of_length(code: str, count: int) -> array[int]:
    return array(code, [7] * count)


#: Makers of result buffers, by the code and the number of the elements.
OUT: tuple[Callable[[str, int], Any], ...] = (
    of_length,
    lambda code, count: memoryview(of_length(code, count)),
    lambda code, count: memoryview(of_length(code, count + 2))[1:-1],
    lambda code, count: (
        of_length(code, count)
        if numpy is None
        else numpy.zeros(count, ["uint64", "int32"][code == "i"])
    ),
)
#: Makers of buffers that cannot take the results, and the error.
WRONG_OUT: tuple[tuple[Callable[[str, int], Any], type[Exception]], ...] = (
    (lambda code, count: of_length(code, count + 1), ValueError),
    (lambda code, count: of_length(code, 2 * count + 4)[::2][: count + 2], ValueError),
    (lambda code, count: memoryview(of_length(code, 2 * count + 4))[::2], ValueError),
    (lambda code, count: memoryview(bytes(SIZES[code] * count)).cast(code), ValueError),  # type: ignore[call-overload]
    (lambda code, count: of_length("I", count), TypeError),
    (lambda code, count: of_length("q", count), TypeError),
    (lambda code, count: bytearray(SIZES[code] * count), TypeError),
    (lambda code, count: [7] * count, TypeError),
)
