"""Device registers: functions that answer an access where there is no slot."""

from __future__ import annotations

import errno
from collections.abc import Callable
from operator import index
from types import TracebackType
from typing import NamedTuple, NoReturn

from memslots.errors import InvalidRegionError
from memslots.values.forks import lock_across_forks

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], object]

_changing = lock_across_forks()  # while the ranges of any machine change


class _Range(NamedTuple):
    start: int
    end: int
    as_id: int
    read: Read | None
    write: Write | None


class MmioHandle:
    """A registered range. GuestMemory.on_mmio returns it; `close` ends the registration."""

    def __init__(self, registry: Mmio, range: _Range) -> None:
        self._registry = registry
        self._range = range

    def close(self) -> None:
        """Ends the registration. Closing again does nothing."""
        self._registry.remove(self._range)

    def __repr__(self) -> str:
        start, end, as_id, *_ = self._range
        closed = "" if self._registry.has(self._range) else ", closed"
        return f"<MmioHandle: gpa [{start:#x}, {end:#x}) of address space {as_id}{closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a MmioHandle cannot be pickled or copied: it belongs to its GuestMemory")

    def __enter__(self) -> MmioHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Mmio:
    """The registered ranges of one machine."""

    def __init__(self) -> None:
        self._ranges: tuple[_Range, ...] = ()  # smallest first; replaced, never changed in place

    def add(
        self, start: int, end: int, as_id: int, read: Read | None, write: Write | None
    ) -> MmioHandle:
        """Adds a range. ValueError: it is empty, or is registered already. TypeError."""
        if start >= end:
            raise ValueError(f"[{start:#x}, {end:#x}) must have an end above its start")
        for call in (read, write):
            if call is not None and not callable(call):
                raise TypeError(f"a callback must be callable, not {call!r}")
        made = _Range(start, end, as_id, read, write)
        handle = MmioHandle(self, made)  # before the range is there: this may fail
        with _changing:
            if any(one[:3] == made[:3] for one in self._ranges):
                raise ValueError(f"[{start:#x}, {end:#x}) has callbacks already")
            self._ranges = tuple(sorted((*self._ranges, made), key=lambda one: one.end - one.start))
        return handle

    def remove(self, gone: _Range) -> None:
        """Removes a range. Does nothing if it was removed before."""
        with _changing:
            self._ranges = tuple(one for one in self._ranges if one is not gone)

    def has(self, one: _Range) -> bool:
        """Returns whether a range is registered."""
        return any(one is other for other in self._ranges)

    def find(self, gpa: int, size: int, as_id: int) -> _Range | None:
        """Returns the smallest range that holds all of an access, or None. O(k)."""
        for one in self._ranges:
            if one.start <= gpa and gpa + size <= one.end and one.as_id == as_id:
                return one
        return None

    def read(self, gpa: int, size: int, as_id: int) -> int | None:
        """Returns the device's answer, or None if no device answers. Callback errors propagate."""
        found = self.find(gpa, size, as_id)
        if found is None or found.read is None:
            return None
        answer = found.read(gpa, size)
        try:
            value = index(answer)
        except TypeError:
            kind = type(answer).__name__
            raise TypeError(
                f"the device at gpa {gpa:#x} must return an integer, not {kind!r}"
            ) from None
        if not 0 <= value < 1 << (8 * size):
            raise InvalidRegionError(
                errno.EINVAL,
                f"the device at gpa {gpa:#x} returned {value:#x}, which does not fit {size} bytes",
            )
        return value

    def write(self, gpa: int, size: int, value: int, as_id: int) -> bool:
        """Passes a write to a device. Returns whether there is one. Callback errors propagate."""
        found = self.find(gpa, size, as_id)
        if found is None or found.write is None:
            return False
        found.write(gpa, size, value)
        return True
