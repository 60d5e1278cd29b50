"""The tests map, unmap and unmap 2M: touch one half and unmap the other, then the reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from memslots import PAGE_SHIFT
from memslots.bench.guest import (
    CHECKED_PAIRS,
    CHUNK,
    PAIRS,
    AnyMemslots,
    Guest,
    affordable_pairs,
    chunk_starts,
    hva_of,
    pages_of,
    some_pairs,
)
from memslots.bench.timing import Case, Effort, empty_loop, expect, timed

#: The gfns that the guest touches in chunks, by their first gfns.
Touched: TypeAlias = Callable[[Sequence[int]], Iterator[int]]
#: The ranges of guest pages that the host unmaps for chunks, by their first gfns.
Unmapped: TypeAlias = Callable[[Guest, Sequence[int]], Iterator[tuple[int, int]]]
#: For each half in turn: the gfns that the guest touches, the host ranges that are unmapped.
Halves = list[tuple[list[int], list[tuple[int, int]]]]


def slot_ranges(guest: Guest, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the ranges that the map test unmaps: each slot that begins in the chunks."""
    for start in starts:
        for id, _, _ in guest.overlaps(start, start + CHUNK):
            if guest.bases[id] >= start:
                yield guest.bases[id], guest.bases[id + 1]


def page_ranges(guest: Guest, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the ranges that the unmap test unmaps: each page."""
    return ((gfn, gfn + 1) for gfn in pages_of(starts))


def chunk_ranges(guest: Guest, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the ranges that the unmap 2M test unmaps: each slot's part of each chunk."""
    for start in starts:
        for _, first, end in guest.overlaps(start, start + CHUNK):
            yield first, end


def trade_places(vm: AnyMemslots, halves: Halves) -> None:
    """Touches the pages of one half and unmaps the other half, then the reverse."""
    touch = vm.vcpu().lookup
    unmap = vm.in_hva_range
    for gfns, ranges in halves:
        for gfn in gfns:
            touch(gfn)
        for start, end in ranges:
            unmap(start, end)


def check_places(guest: Guest, vm: AnyMemslots, halves: Halves) -> None:
    """Checks every answer. Raises WrongAnswerError for a wrong one."""
    vcpu = vm.vcpu()
    for gfns, ranges in halves:
        for gfn in gfns:
            slot = vcpu.lookup(gfn)
            expect(slot and slot.id, guest.id_of(gfn), f"lookup of gfn {gfn:#x}")
        for start, end in ranges:
            found = [(slot.id, first, last) for slot, first, last in vm.in_hva_range(start, end)]
            first, last = ((hva - hva_of(0)) >> PAGE_SHIFT for hva in (start, end))
            expect(found, guest.overlaps(first, last), f"walk of hva {start:#x}")


def _halves(guest: Guest, pairs: Sequence[int], touched: Touched, unmapped: Unmapped) -> Halves:
    def half(number: int) -> tuple[list[int], list[tuple[int, int]]]:
        ranges = unmapped(guest, chunk_starts(1 - number, pairs))
        return (
            list(touched(chunk_starts(number, pairs))),
            [(hva_of(start), hva_of(end)) for start, end in ranges],
        )

    return [half(0), half(1)]


def places_case(
    touched: Touched, unmapped: Unmapped
) -> Callable[[Guest, AnyMemslots, Effort], Case]:
    """Makes a test: the guest touches pages of each chunk, and the host unmaps ranges of it."""

    def case(guest: Guest, vm: AnyMemslots, effort: Effort) -> Case:
        few = _halves(guest, some_pairs(CHECKED_PAIRS), touched, unmapped)
        check_places(guest, vm, few)
        count = affordable_pairs(lambda: trade_places(vm, few), effort)
        halves = _halves(guest, some_pairs(count), touched, unmapped)
        lists = [items for half in halves for items in half]
        times = PAIRS / count
        return Case(
            timed(lambda: trade_places(vm, halves), times),
            timed(lambda: empty_loop(lists), times),
            count / PAIRS,
        )

    return case
