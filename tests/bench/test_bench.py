"""Tests the timing, the series and the moves."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from memslots import Memslots, Slot
from memslots.baseline import ArrayMemslots
from memslots.bench import (
    AGAINST_SLOTS,
    QUICK,
    SERIES_SLOTS,
    STRUCTURES,
    TESTS,
    WrongAnswerError,
    places,
    plan,
    run,
    series,
)
from memslots.bench.computer import describe, installed
from memslots.bench.guest import (
    CHUNK,
    PAGES,
    PAIRS,
    RAM,
    AnyMemslots,
    Guest,
    chunk_starts,
    some_pairs,
)
from memslots.bench.moves import BATCH, move_active, move_inactive, reader
from memslots.bench.timing import Timing, expect, in_turn, timed

KINDS: list[type[AnyMemslots]] = [ArrayMemslots, Memslots]


# --- timing


def recorder(log: list[str], name: str, *samples: float) -> Any:
    def sample() -> list[float]:
        log.append(name)
        assert not gc.isenabled()
        return list(samples)

    return sample


def test_in_turn() -> None:
    log: list[str] = []
    effort = replace(QUICK, seconds=1e-9, rounds=3)
    assert gc.isenabled()
    first, second = in_turn([recorder(log, "a", 1.0, 3.0), recorder(log, "b", 5.0)], effort)
    assert gc.isenabled()
    # Slower than five times its seconds: there is time for one round only.
    assert log == ["a", "b"]
    assert first == Timing(rounds=1, samples=2, median=2.0, lower=1.5, upper=2.5)
    assert second == Timing(rounds=1, samples=1, median=5.0, lower=5.0, upper=5.0)


def test_in_turn_goes_backwards_every_other_round() -> None:
    log: list[str] = []
    # There is time for any number of rounds, so it makes the minimum of rounds.
    effort = replace(QUICK, seconds=0.0, rounds=1)
    in_turn([recorder(log, "a", 1.0)], effort)
    assert log == ["a"]
    log.clear()
    in_turn([recorder(log, "a", 1.0), recorder(log, "b", 1.0)], replace(QUICK, seconds=0.02))
    assert len(log) >= 2 * QUICK.rounds
    assert log[:8] == ["a", "b", "b", "a", "a", "b", "b", "a"][: len(log)]


def test_the_gc_runs_again_after_a_failure() -> None:
    def fail() -> list[float]:
        raise ValueError

    with pytest.raises(ValueError):
        in_turn([fail], QUICK)
    assert gc.isenabled()


def test_timed() -> None:
    (took,) = timed(lambda: time.sleep(0.01), 3.0)()
    assert took >= 0.03


def test_expect() -> None:
    expect([1], [1], "a list")
    with pytest.raises(WrongAnswerError, match=r"^a list: found \[2\], expected \[1\]$"):
        expect([2], [1], "a list")
    with pytest.raises(WrongAnswerError, match=r"found \[0, 0, .* \.\.\., expected"):
        expect([0] * 1000, [1], "a long list")


# --- the series


@pytest.mark.parametrize("slots", [2, 7, *SERIES_SLOTS])
def test_guest(slots: int) -> None:
    guest = Guest(slots)
    sizes = [npages for _, _, npages, _ in guest.creates]
    assert (len(sizes), sum(sizes)) == (slots, PAGES)
    assert max(sizes) - min(sizes) <= 1
    for (_, base, npages, hva), (_, next_base, _, next_hva) in pairwise(guest.creates):
        assert (base + npages, hva + npages * 4096) == (next_base, next_hva)
    assert [guest.id_of(base) for base in guest.bases[:-1]] == list(range(slots))
    assert [guest.id_of(end - 1) for end in guest.bases[1:]] == list(range(slots))


@pytest.mark.parametrize("kind", KINDS)
def test_guest_in_a_memslots(kind: type[AnyMemslots]) -> None:
    guest = Guest(7)
    vm = guest.make(kind)
    assert type(vm) is kind
    for start, end in [(0, PAGES), (5, 6), (guest.bases[2] - 1, guest.bases[3] + 1)]:
        found = vm.in_hva_range(RAM + start * 4096, RAM + end * 4096)
        assert [(slot.id, *rest) for slot, *rest in found] == guest.overlaps(start, end)


@pytest.mark.parametrize("slots", [2, 30, 509, 32764])
def test_the_work_is_the_whole_test(slots: int) -> None:
    """Each test makes as many calls as the table says, and visits each page and slot once."""
    guest = Guest(slots)
    every = some_pairs(PAIRS)
    assert every == list(range(PAIRS))
    starts = [chunk_starts(half, every) for half in (0, 1)]
    assert starts[0] + starts[1] == list(range(0, PAGES, CHUNK))
    parts = sorted({*range(0, PAGES + 1, CHUNK), *guest.bases})
    for name, ranges_of, touches, wanted in [
        ("map", places.slot_ranges, PAGES, list(pairwise(guest.bases))),
        ("unmap", places.page_ranges, PAGES, list(pairwise(range(PAGES + 1)))),
        (
            "unmap-2m",
            places.chunk_ranges,
            PAGES // CHUNK,
            list(pairwise(parts)),
        ),
    ]:
        ranges = [each for half in starts for each in ranges_of(guest, half)]
        assert ranges == wanted
        assert TESTS[name].operations(slots) == touches + len(ranges)
    assert TESTS["setup"].operations(slots) == len(guest.creates)


def test_some_pairs_are_spread() -> None:
    for count in range(1, PAIRS + 1):
        pairs = some_pairs(count)
        assert len(set(pairs)) == count
        assert pairs[0] == 0
        assert pairs[-1] < PAIRS


class Counting:
    """Counts the calls of the object it wraps, and those of its vCPUs."""

    def __init__(self, wrapped: Any, calls: dict[str, int]) -> None:
        self.wrapped = wrapped
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return getattr(self.wrapped, name)(*arguments)

        return call

    def vcpu(self) -> Counting:
        return Counting(self.wrapped.vcpu(), self.calls)


@pytest.mark.parametrize(
    ("test", "calls"),
    [
        ("map", {"lookup": PAGES, "in_hva_range": 30}),
        ("unmap", {"lookup": PAGES, "in_hva_range": PAGES}),
        ("unmap-2m", {"lookup": PAGES // CHUNK, "in_hva_range": PAGES // CHUNK + 28}),
        ("rw", {"gpa_to_hva": 2 * PAGES, "mark_dirty": PAGES}),
    ],
)
def test_what_is_timed(test: str, calls: dict[str, int]) -> None:
    """A sample times the calls that it claims, in the claimed number."""
    guest = Guest(30)
    made: dict[str, int] = {}
    vm: Any = Counting(guest.make(Memslots), made)
    case = TESTS[test].case(guest, vm, replace(QUICK, sample=60.0))
    made.clear()
    (took,) = case.sample()
    assert took > 0
    assert case.share == 1
    assert made == calls
    assert sum(made.values()) == TESTS[test].operations(30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("test", TESTS)
def test_each_case(test: str, kind: type[AnyMemslots]) -> None:
    guest = Guest(50)
    vm = guest.make(kind)
    case = TESTS[test].case(guest, vm, QUICK)
    for sampler in (case.sample, case.loop):
        samples = sampler()
        assert samples
        assert all(sample >= 0 for sample in samples)
    assert 0 < case.share <= 1
    # The test leaves the slots as they were.
    assert [(slot.id, slot.base_gfn) for slot in vm] == list(enumerate(guest.bases[:-1]))
    vm.check()


@pytest.mark.parametrize("test", ["map", "unmap", "unmap-2m"])
def test_a_wrong_look_up_is_seen(test: str) -> None:
    guest = Guest(50)
    vm = guest.make(Memslots)
    vm.delete(0)
    with pytest.raises(WrongAnswerError, match="lookup of gfn 0x0: found None, expected 0"):
        TESTS[test].case(guest, vm, QUICK)


def test_a_page_that_is_not_marked_is_seen() -> None:
    class Forgetful(Memslots):
        def mark_dirty(self, gfn: Any, as_id: Any = 0) -> None:
            if gfn != 1:
                super().mark_dirty(gfn, as_id)

    guest = Guest(50)
    with pytest.raises(WrongAnswerError, match="the log's bit of gfn 0x1: found 0, expected 1"):
        TESTS["rw"].case(guest, guest.make(Forgetful), QUICK)


def test_a_wrong_host_address_is_seen() -> None:
    guest = Guest(50)
    vm = guest.make(Memslots)
    vm.delete(0)
    vm.create(0, 0, guest.creates[0][2], RAM - 4096, 1)
    with pytest.raises(WrongAnswerError, match="gpa_to_hva of gfn 0x0"):
        TESTS["rw"].case(guest, vm, QUICK)


def test_a_wrong_walk_is_seen() -> None:
    guest = Guest(50)
    vm = guest.make(Memslots)
    halves = [([0], [(RAM, RAM + 4096)])]
    places.check_places(guest, vm, halves)
    vm.create(50, PAGES, 1, RAM)  # the same host page again
    with pytest.raises(WrongAnswerError, match="walk of hva"):
        places.check_places(guest, vm, halves)


def test_setup_sees_a_slot_too_few() -> None:
    guest = Guest(50)

    class Forgetful(Memslots):
        def create(self, slot: Any, *arguments: Any) -> Slot:
            return super().create(slot, *arguments) if slot == 0 else self[0]

    with pytest.raises(WrongAnswerError, match="slots and pages"):
        series.setup_case(guest, Forgetful(), QUICK).sample()
    with pytest.raises(WrongAnswerError, match="the slots"):
        guest.make(Forgetful)


def test_the_reported_figures() -> None:
    """The series' table has figures above 100 for the walks, and none for RW."""
    improvements = {
        (name, slots): before / after
        for name, test in TESTS.items()
        for slots, (before, after) in test.reported.items()
    }
    assert len(improvements) == 12
    assert {slots for _, slots in improvements} == {509, 8194, 32764}
    assert improvements["map", 8194] == pytest.approx(3.70, abs=0.01)
    assert improvements["unmap", 32764] == pytest.approx(110.5, abs=0.1)
    assert improvements["move-active", 32764] == pytest.approx(18.1, abs=0.1)
    assert improvements["setup", 509] == pytest.approx(1.68, abs=0.01)


# --- moves


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moves", [move_active, move_inactive])
def test_moves(moves: Any, kind: type[AnyMemslots]) -> None:
    guest = Guest(10)
    vm = guest.make(kind)
    case = moves(guest, vm, QUICK)
    before = vm.generation
    threads = threading.active_count()
    assert len(case.sample()) == 2 * QUICK.moves
    assert threading.active_count() == threads
    assert vm.generation >= before + 2 * QUICK.moves
    assert vm.lookup(PAGES) is None
    slot = vm.lookup(PAGES - 1)
    assert slot is not None
    assert slot.id == 9


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_reads(kind: type[AnyMemslots]) -> None:
    guest = Guest(10)
    vm = guest.make(kind)
    batches = []

    class Watched:
        def vcpu(self) -> Any:
            vcpu = vm.vcpu()

            class Read:
                def lookup_many(self, gfns: Any, out: Any) -> Any:
                    batches.append((threading.current_thread(), list(gfns)))
                    return vcpu.lookup_many(gfns, out)

            return Read()

    watched: Any = Watched()
    guard = threading.Lock()
    with reader(watched, range(5), guard):
        enough = time.monotonic() + 60
        while len(batches) < 10 and time.monotonic() < enough:
            time.sleep(0.001)
    assert len(batches) >= 10
    assert {len(gfns) for _, gfns in batches} == {BATCH}
    assert batches[0][1][:6] == [0, 1, 2, 3, 4, 0]
    assert threading.current_thread() not in {thread for thread, _ in batches}


def test_what_the_reader_raises_is_not_lost() -> None:
    vm: Any = Guest(10)  # not a machine at all
    with pytest.raises(AttributeError, match="vcpu"), reader(vm, [0], nullcontext()):
        pass


# --- a run


def test_plan() -> None:
    everything = plan([], SERIES_SLOTS, AGAINST_SLOTS)
    assert len(everything.tests) == 7
    assert len(everything) == 7 * (7 + 1) + 3 * (8 + 1)
    some = plan(["single", "map"], [10], [20])
    assert [test.name for test in some.tests] == ["map"]
    assert {case.test for case in some.cases} == {"single"}
    assert len(plan(["single"], [10], [])) == 0


@pytest.mark.usefixtures("foreign_warnings")
def test_run() -> None:
    told: list[str] = []
    chosen = plan(["setup", "map", "changes"], [10, 30], [10, 30])
    report = run(chosen, QUICK, told.append)
    assert len(told) == len(chosen)
    assert [(row.test, row.slots) for row in report.rows] == [
        ("map", 10), ("map", 30), ("setup", 10), ("setup", 30),
    ]  # fmt: skip
    assert [(each.test, each.slots) for each in report.against] == [
        ("changes", 10),
        ("changes", 30),
    ]
    assert report.machine == describe()
    assert report.absent.keys() == {
        structure.name
        for structure in STRUCTURES
        if any(installed(name) is None for name in structure.requires)
    }


def test_row() -> None:
    timing = Timing(1, 1, 2.0, 2.0, 2.0)
    row = series.Row(
        "map", 10, "one", 1, replace(timing, median=6.0), timing, timing, 1.0, 1.0, reported=2.9
    )
    assert (row.improvement, row.above) == (3.0, True)
    assert replace(row, reported=3.0).above is False
    assert replace(row, reported=None).above is None


def test_machine() -> None:
    machine = describe()
    assert machine.cpus >= 1
    assert machine.cpu
    assert machine.memory is None or machine.memory > 1 << 20
    assert machine.python.split()[1] == sys.version.split()[0]


def test_installed() -> None:
    assert installed("pytest") == pytest.__version__
    assert installed("no_such_module_at_all") is None


def test_the_import_is_light() -> None:
    code = (
        "import sys, memslots\n"
        "assert not any('bench' in name for name in sys.modules), 'memslots imports it'\n"
        "import memslots.bench\n"
        "heavy = {'numpy', 'numba', 'matplotlib', 'click', 'rich', 'BTrees', 'sortedcontainers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
