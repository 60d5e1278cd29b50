"""Moments of a replay between which its page shows a plan, and these plans.

Moment n is the map after n changes. A page cannot make plans itself, and a trace of n changes has
n**2 pairs of moments. So the page has the plans of the pairs that count most, within limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memslots import PAGE_SHIFT, MemoryMap, Slot, plan
from memslots.read.table import cells
from memslots.replay import VmReport
from memslots.values.records import size_text

#: Most plans of a VM.
MOST_PLANS = 1000
#: Most slots, of both maps of all plans of a VM together. It bounds the calls of the plans too.
MOST_SLOTS = 100_000

Pair = tuple[int, int]


def rearrangements(gaps: Iterable[Pair]) -> list[Pair]:
    """Returns the pairs of moments between which guest memory was absent and came back.

    `gaps` has the moment after a range went, and the moment after it came back, for each gap. Gaps
    that overlap are one rearrangement.
    """
    found: list[Pair] = []
    for went, back in sorted(gaps):
        if found and went <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], back)
        else:
            found.append((went - 1, back))
    return found


def plans_document(vm: VmReport, rearranged: Iterable[Pair]) -> dict[str, Any]:
    """Returns the plans between moments of a VM, for its page.

    `calls` has each different call once. Each of the `pairs` has two moments, the numbers of the
    calls of the plan from one to the other, and the windows in which memory is absent.
    """
    chosen = list(_affordable(vm, _pairs(len(vm.history), [*rearranged])))
    maps = _maps(vm, {moment for pair in chosen for moment in pair})
    numbers: dict[tuple[str, ...], int] = {}
    pairs = []
    for first, last in chosen:
        calls: list[int] = []
        windows: list[tuple[Any, ...]] = []
        for before, after in zip(maps[first], maps[last], strict=True):
            made = plan(before, after, max_slots=vm.memslots.max_slots, max_gfn=vm.memslots.max_gfn)
            for start, end, gone, back in made.windows:
                place = (hex(start << PAGE_SHIFT), hex(end << PAGE_SHIFT))
                size = size_text((end - start) << PAGE_SHIFT)
                windows.append(
                    (str(after.as_id), *place, size, len(calls) + gone, len(calls) + back)
                )
            for step in made.steps:
                call = (step.change.name, *cells(step.slot))
                calls.append(numbers.setdefault(call, len(numbers)))
        pairs.append((first, last, calls, windows))
    return {"calls": list(numbers), "pairs": pairs}


def _pairs(changes: int, rearranged: list[Pair]) -> Iterator[Pair]:
    """Yields pairs of moments, those that count most first.

    Those are the rearrangements, and the whole trace. All moments follow if they are few, else all
    pairs of those before or after a rearrangement.
    """
    first = [*rearranged, (0, changes)]
    yield from first
    offered: Sequence[int] = range(changes + 1)
    if changes * (changes + 1) // 2 > MOST_PLANS:
        offered = sorted({moment for pair in first for moment in pair})
    for far in range(1, len(offered)):
        yield from zip(offered, offered[far:], strict=False)


def _affordable(vm: VmReport, pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yields different pairs until one of the limits is reached."""
    slots = [len(there) for there in _slots(vm)]
    seen: set[Pair] = set()
    left = MOST_SLOTS
    for pair in pairs:
        if pair in seen:
            continue
        left -= slots[pair[0]] + slots[pair[1]]
        if left < 0 or len(seen) == MOST_PLANS:
            return
        seen.add(pair)
        yield pair


def _slots(vm: VmReport) -> Iterator[dict[tuple[int, int], Slot]]:
    """Yields the slots of each moment, by address space and id; the same dictionary each time."""
    there: dict[tuple[int, int], Slot] = {}
    yield there
    for _, _, gone, new in vm.history:
        for slot in gone:
            del there[slot.as_id, slot.id]
        if new is not None:
            there[new.as_id, new.id] = new
        yield there


def _maps(vm: VmReport, moments: set[int]) -> dict[int, list[MemoryMap]]:
    """Returns the maps of all address spaces at some moments."""
    spaces = range(vm.memslots.address_spaces)
    return {
        moment: [
            MemoryMap([slot for slot in there.values() if slot.as_id == as_id], as_id)
            for as_id in spaces
        ]
        for moment, there in enumerate(_slots(vm))
        if moment in moments
    }
