"""The differences between two maps: page by page, and slot by slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memslots.read.table import COLUMNS, cells, flag_names, lines
from memslots.values.guestmemfd import GuestMemfd
from memslots.values.integers import PAGE_SHIFT
from memslots.values.records import Change, Flags, Slot, size_text

Range = tuple[int, int]  # [start_gfn, end_gfn)
_Memory = tuple[int, int, GuestMemfd | None, int]


class MemoryChange(NamedTuple):
    """Pages [start_gfn, end_gfn) that are on other host memory than before."""

    start_gfn: int
    end_gfn: int
    before: int
    """The host address of the first byte, before and after."""
    after: int


class FlagsChange(NamedTuple):
    """Pages [start_gfn, end_gfn) that have other flags than before."""

    start_gfn: int
    end_gfn: int
    before: Flags
    after: Flags


class SlotChange(NamedTuple):
    """A slot that came (CREATE), went (DELETE), moved, or has other flags.

    A slot that moved, or has other flags, is on the same host memory as before, and on the same
    range of the same guest_memfd, if it has one. A slot on other memory went, and another came.
    """

    change: Change
    before: Slot | None
    after: Slot | None


@dataclass(frozen=True)
class MapDiff:
    """The differences between two MemoryMaps; made by MemoryMap.diff.

    True if there are any. Prints like a diff: old slots and pages after `-`, new ones after `+`.
    """

    came: list[Range]
    """Pages [start_gfn, end_gfn) that only the second map has."""
    went: list[Range]
    """Pages that only the first has."""
    memory: list[MemoryChange]
    """Pages that both have, on different host memory."""
    flags: list[FlagsChange]
    """Pages that both have, with different flags."""
    slots: list[SlotChange]
    """The differences slot by slot, in order of base_gfn."""

    def __bool__(self) -> bool:
        return bool(self.slots)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        rows: list[tuple[str, ...]] = [(" ", *COLUMNS)]
        for _, before, after in self.slots:
            rows += [("-", *cells(before))] if before is not None else []
            rows += [("+", *cells(after))] if after is not None else []
        return "\n".join([*lines(rows), *self._pages()])

    def _pages(self) -> Iterator[str]:
        for sign, what, ranges in (("-", "went", self.went), ("+", "came", self.came)):
            for start, end in ranges:
                yield f"{sign} {_range(start, end)} {what}"
        for start, end, here, there in self.memory:
            yield f"! {_range(start, end)} hva {here:#x} is now {there:#x}"
        for start, end, old, new in self.flags:
            yield f"! {_range(start, end)} flags {flag_names(old)} are now {flag_names(new)}"


# Pickles name a value by its public module. It stays when the value's own module is moved.
for _value in (FlagsChange, MapDiff, MemoryChange, SlotChange):
    _value.__module__ = "memslots"
del _value


def _range(start: int, end: int) -> str:
    size = size_text((end - start) << PAGE_SHIFT)
    return f"gpa [{start << PAGE_SHIFT:#x}, {end << PAGE_SHIFT:#x}), {size}:"


def differences(first: Sequence[Slot], second: Sequence[Slot]) -> MapDiff:
    """Returns the MapDiff of two lists in gfn order. O(n + m), and O(k log k) for k changes."""
    diff = MapDiff([], [], [], [], _slots(first, second))
    for start, end, old, new in _runs(first, second):
        if new is None:
            _extend(diff.went, start, end)
        elif old is None:
            _extend(diff.came, start, end)
        else:
            here, there = old.gfn_to_hva(start), new.gfn_to_hva(start)
            if here != there:
                _add_memory(diff.memory, MemoryChange(start, end, here, there))
            if old.flags != new.flags:
                _add_flags(diff.flags, FlagsChange(start, end, old.flags, new.flags))
    return diff


def _runs(
    first: Sequence[Slot], second: Sequence[Slot]
) -> Iterator[tuple[int, int, Slot | None, Slot | None]]:
    """Yields runs of pages: (start, end, old, new).

    `old` and `new` are the slots of the lists that have the whole run, or None.
    """
    i = j = 0
    at = 0
    while i < len(first) or j < len(second):
        old = first[i] if i < len(first) else None
        new = second[j] if j < len(second) else None
        edges = [edge for s in (old, new) if s for edge in (s.base_gfn, s.end_gfn) if edge > at]
        end = min(edges)
        here = old if old is not None and old.base_gfn <= at else None
        there = new if new is not None and new.base_gfn <= at else None
        if here or there:
            yield at, end, here, there
        at = end
        i += old is not None and old.end_gfn == at
        j += new is not None and new.end_gfn == at


def _extend(ranges: list[Range], start: int, end: int) -> None:
    if ranges and ranges[-1][1] == start:
        start = ranges.pop()[0]
    ranges.append((start, end))


def _add_memory(runs: list[MemoryChange], run: MemoryChange) -> None:
    last = runs[-1] if runs else None
    if last and last.end_gfn == run.start_gfn:
        gone_on = (run.start_gfn - last.start_gfn) << PAGE_SHIFT
        if (last.before + gone_on, last.after + gone_on) == (run.before, run.after):
            run = MemoryChange(last.start_gfn, run.end_gfn, last.before, last.after)
            runs.pop()
    runs.append(run)


def _add_flags(runs: list[FlagsChange], run: FlagsChange) -> None:
    last = runs[-1] if runs else None
    if last and (last.end_gfn, *last[2:]) == (run.start_gfn, *run[2:]):
        run = FlagsChange(last.start_gfn, *run[1:])
        runs.pop()
    runs.append(run)


def _slots(first: Sequence[Slot], second: Sequence[Slot]) -> list[SlotChange]:
    """Pairs slots on the same host memory: first those in the same place, then in gfn order."""
    places = {slot.base_gfn: slot for slot in second}
    changes = []
    left: dict[_Memory, list[Slot]] = {}
    taken = set()
    for old in first:
        new = places.get(old.base_gfn)
        if new is None or _memory(old) != _memory(new):
            left.setdefault(_memory(old), []).append(old)
            continue
        taken.add(new.base_gfn)
        if old.flags != new.flags:
            changes.append(SlotChange(Change.FLAGS_ONLY, old, new))
    for slots in left.values():
        slots.reverse()
    for new in second:
        if new.base_gfn in taken:
            continue
        partners = left.get(_memory(new))
        if partners:
            changes.append(SlotChange(Change.MOVE, partners.pop(), new))
        else:
            changes.append(SlotChange(Change.CREATE, None, new))
    changes += [SlotChange(Change.DELETE, old, None) for slots in left.values() for old in slots]
    return sorted(changes, key=_place)


def _memory(slot: Slot) -> _Memory:
    return slot.userspace_addr, slot.npages, slot.guest_memfd, slot.guest_memfd_offset


def _place(change: SlotChange) -> tuple[int, bool]:
    slot = change.before or change.after
    assert slot is not None
    return slot.base_gfn, change.before is None
