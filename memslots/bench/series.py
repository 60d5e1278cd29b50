"""The tests by which the series showed its gain. Each does the work of the data structure.

A test takes a guest and one of the two kinds of Memslots, asserts that the answers are right, and
gives what is to be timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memslots import PAGE_SHIFT
from memslots.bench.guest import (
    CHECKED_PAIRS,
    CHUNK,
    PAGES,
    PAIRS,
    AnyMemslots,
    Guest,
    affordable_pairs,
    chunk_starts,
    hva_of,
    pages_of,
    some_pairs,
)
from memslots.bench.moves import move_active, move_inactive
from memslots.bench.places import chunk_ranges, page_ranges, places_case, slot_ranges
from memslots.bench.timing import Case, Effort, Timing, empty_loop, expect, timed

#: The series' numbers of slots, and those of a run that is only to show that all works.
SERIES_SLOTS = (10, 30, 50, 100, 509, 8194, 32764)
QUICK_SLOTS = (10, 509)


@dataclass(frozen=True, slots=True)
class Test:
    """One test of the series, or `rw`."""

    name: str
    title: str
    #: What a figure is the time of.
    of: str
    #: The number of calls that the test makes with a number of slots.
    operations: Callable[[int], int]
    case: Callable[[Guest, AnyMemslots, Effort], Case]
    #: Seconds before and after that the series reported, by number of slots.
    reported: dict[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One test at one number of slots. `before` is the time of the array, `after` of the trees."""

    test: str
    slots: int
    of: str
    #: The number of calls that the whole test makes.
    operations: int
    before: Timing
    after: Timing
    #: The time of the loops alone, which is part of both times.
    loop: Timing
    #: The shares of the test that were timed. The seconds are scaled to the whole test.
    share_before: float
    share_after: float
    #: before / after, as the series reported it.
    reported: float | None

    @property
    def improvement(self) -> float:
        """The time of the array divided by the time of the trees."""
        return self.before.median / self.after.median

    @property
    def above(self) -> bool | None:
        """Whether the improvement is above the reported one, or None if none was reported."""
        return None if self.reported is None else self.improvement > self.reported


# --- slot setup


def create_all(guest: Guest, kind: type[AnyMemslots]) -> AnyMemslots:
    """Creates all slots in an empty Memslots."""
    vm = kind()
    create = vm.create
    for id, base_gfn, npages, userspace_addr in guest.creates:
        create(id, base_gfn, npages, userspace_addr)
    return vm


def setup_case(guest: Guest, vm: AnyMemslots, effort: Effort) -> Case:
    """Returns the case of creating all slots. It uses only the class of `vm`, which was checked."""
    kind = type(vm)

    def sample() -> list[float]:
        began = time.perf_counter()
        made = create_all(guest, kind)
        took = time.perf_counter() - began
        expect((len(made), made.nr_pages), (guest.slots, PAGES), "slots and pages")
        return [took]

    return Case(sample, timed(lambda: empty_loop([guest.creates])))


# --- rw


def read_and_write(vm: AnyMemslots, gfns: Sequence[int]) -> None:
    """Writes every page through the guest's Vcpu, marks it, and reads it as the host."""
    guest = vm.vcpu().gpa_to_hva
    host = vm.gpa_to_hva
    mark_dirty = vm.mark_dirty
    for gfn in gfns:
        guest(gfn << PAGE_SHIFT, True)
        mark_dirty(gfn)
        host(gfn << PAGE_SHIFT)


def check_read_and_write(guest: Guest, vm: AnyMemslots, gfns: Sequence[int]) -> None:
    """Checks that both find every page, and that every page is marked in its slot's log."""
    read_and_write(vm, gfns)
    vcpu = vm.vcpu()
    logs: dict[int, int] = {}
    for gfn in gfns:
        gpa = gfn << PAGE_SHIFT
        hvas = (vcpu.gpa_to_hva(gpa, True), vm.gpa_to_hva(gpa))
        expect(hvas, (hva_of(gfn), hva_of(gfn)), f"gpa_to_hva of gfn {gfn:#x}")
        id = guest.id_of(gfn)
        if id not in logs:
            logs[id] = int.from_bytes(vm.get_dirty_log(id), "little")
        expect(logs[id] >> (gfn - guest.bases[id]) & 1, 1, f"the log's bit of gfn {gfn:#x}")


def rw_case(guest: Guest, vm: AnyMemslots, effort: Effort) -> Case:
    """Returns the case that reads and writes all pages, in gfn order."""

    def gfns_of(count: int) -> list[int]:
        pairs = some_pairs(count)
        return [*pages_of(chunk_starts(0, pairs)), *pages_of(chunk_starts(1, pairs))]

    few = gfns_of(CHECKED_PAIRS)
    check_read_and_write(guest, vm, few)
    count = affordable_pairs(lambda: read_and_write(vm, few), effort)
    gfns = gfns_of(count)
    times = PAIRS / count
    return Case(
        timed(lambda: read_and_write(vm, gfns), times),
        timed(lambda: empty_loop([gfns]), times),
        count / PAIRS,
    )


def unmap_2m_operations(slots: int) -> int:
    """Returns the number of touches, one a chunk, and of unmappings, one a slot's part of it."""
    chunks = range(0, PAGES, CHUNK)
    return len(chunks) + len({*chunks, *Guest(slots).bases[:-1]})


WHOLE, ONE_MOVE = "the whole test", "one move"

#: Every test, in the order of the table; the figures are those of KVM's memslot_perf_test.
TESTS: dict[str, Test] = {
    test.name: test
    for test in (
        Test(
            "map", "Map", WHOLE, lambda slots: PAGES + slots, places_case(pages_of, slot_ranges),
            {8194: (0.200, 0.0541), 509: (0.0232, 0.0223)},
        ),
        Test(
            "unmap", "Unmap", WHOLE, lambda _: 2 * PAGES, places_case(pages_of, page_ranges),
            {32764: (3.88, 0.0351), 509: (0.0724, 0.0315)},
        ),
        Test(
            "unmap-2m", "Unmap 2M", WHOLE, unmap_2m_operations,
            places_case(iter, chunk_ranges),
            {32764: (3.88, 0.0348), 509: (0.00155, 0.000869)},
        ),
        Test(
            "move-active", "Move active", ONE_MOVE, lambda _: 1, move_active,
            {32764: (0.00142, 0.0000786), 509: (0.000101, 0.0000792)},
        ),
        Test(
            "move-inactive", "Move inactive", ONE_MOVE, lambda _: 1, move_inactive,
            {32764: (0.00148, 0.0000880), 509: (0.000108, 0.0000847)},
        ),
        Test(
            "setup", "Slot setup", WHOLE, lambda slots: slots, setup_case,
            {32764: (16.1, 0.59), 509: (0.0135, 0.00803)},
        ),
        Test("rw", "RW", WHOLE, lambda _: 3 * PAGES, rw_case, {}),
    )
}  # fmt: skip
