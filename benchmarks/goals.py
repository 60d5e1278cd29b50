"""Measures the goals of memslots in one run: `python benchmarks/goals.py [slots ...]`.

A figure is a median. Figures that are compared are measured alternately, so a slow moment of the
machine affects both. With numbers of slots as arguments, only the goals of these are measured.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from changes import CHANGES, Changer, sample
from common import KVM_SIZES, MILLION, PAGES, SIZES, AnyMemslots, medians, seconds_of
from guestmemory import read_random_ns
from guests import Guest
from importing import MODULES, import_ms, run
from lookups import LOOKUPS, repeat
from memory import growth
from rivals import NumpySearch, SortedNumpySearch, build_floor
from single import BETWEEN, between_ns, map_us, random_ns, slowest_us

Step = Callable[[], object]

LARGEST = KVM_SIZES[-1]
# The goals below are least speed-ups, by number of slots.
# A batch of random pages over numpy.
RANDOM = {10: 1.0, 509: 6.0, 8194: 7.0, LARGEST: 8.0, MILLION: 4.0}
ARRAY = {10: 1.0, LARGEST: 200.0}  # a change over the array
# A single look-up of a random page, with an index, over each package.
PEERS = {
    "superintervals": {10: 2.5, 509: 2.5, 8194: 2.3, LARGEST: 2.0, MILLION: 2.2},
    "BTrees.LLBTree": {10: 5.5, 509: 6.5, 8194: 6.0, LARGEST: 4.0, MILLION: 2.2},
    "list + bisect": {10: 4.5, 509: 4.5, 8194: 4.5, LARGEST: 4.5, MILLION: 4.5},
}
REGULAR = {"local": 6.0, "boot": 6.0, "sequential": 2.0}  # other batches over numpy, by case


class Row(NamedTuple):
    """One row of the table."""

    slots: int  # 0 if the figure has no number of slots
    what: str
    figure: float
    unit: str  # "x" means times
    goal: float | None  # None if the figure has no goal
    at_least: bool  # whether the goal is a minimum or a maximum

    def reached(self) -> bool | None:
        """Returns whether the figure reaches its goal, or None if it has no goal."""
        if self.goal is None:
            return None
        return self.figure >= self.goal if self.at_least else self.figure <= self.goal


def at_most(slots: int, what: str, figure: float, goal: float, unit: str = "x") -> Row:
    """Returns a figure that must not be above its goal."""
    return Row(slots, what, figure, unit, goal, False)


def at_least(slots: int, what: str, figure: float, goal: float) -> Row:
    """Returns a figure that must not be below its goal."""
    return Row(slots, what, figure, "x", goal, True)


def stated(slots: int, what: str, figure: float, unit: str) -> Row:
    """Returns a figure without a goal."""
    return Row(slots, what, figure, unit, None, False)


def times(*steps: Step) -> list[float]:
    """Returns the median seconds of each step, measured alternately."""
    return medians(*(partial(seconds_of, step) for step in steps), rounds=5)


def hot(slots: int) -> Iterator[Row]:
    """Measures single look-ups of one slot's pages, over calls of methods that do nothing."""
    guest = Guest(slots)
    vm = guest.make()
    gfns = guest.accesses("hot", LOOKUPS).gfns.tolist()
    slot = vm.lookup(gfns[0])
    assert slot is not None
    assert all(vm.lookup(gfn) is slot for gfn in gfns)
    empty = build_floor().Empty(slot)
    assert empty.bound(gfns[0]) is empty.unbound(gfns[0]) is slot
    methods = (vm.lookup, vm.vcpu().lookup, empty.bound, empty.unbound)
    shared, vcpu, bound, unbound = times(*(partial(repeat, method, gfns) for method in methods))
    for name, took in (
        ("empty method, binding=True", bound),
        ("empty method, binding=False", unbound),
    ):
        yield stated(slots, name, took / LOOKUPS * 1e9, "ns")
    for through, took in (("Memslots", shared), ("Vcpu", vcpu)):
        yield stated(slots, f"lookup, hot, {through}", took / LOOKUPS * 1e9, "ns")
        for binding, empty_took in (("True", bound), ("False", unbound)):
            what = f"lookup, hot, {through} / empty, binding={binding}"
            yield at_most(slots, what, took / empty_took, 1.0)


def single_random(slots: int) -> Iterator[Row]:
    """Measures single look-ups of random pages with an index, against other packages."""
    took = random_ns(slots)
    for name in ("Vcpu", "Memslots", "MemoryMap"):
        yield stated(slots, f"lookup, random, {name}", took[name], "ns")
    for name, goals in PEERS.items():
        if name in took:
            figure = took[name] / took["Vcpu"]
            yield at_least(slots, f"lookup, random: {name} / memslots", figure, goals[slots])


def between_changes(slots: int) -> Iterator[Row]:
    """Measures single look-ups, with different numbers of look-ups between two changes."""
    for lookups in BETWEEN:
        yield stated(
            slots, f"lookup, {lookups:,} for each change", between_ns(slots, lookups), "ns"
        )


def slowest(slots: int) -> Iterator[Row]:
    """Measures the slowest look-ups while an index is made."""
    making, there = slowest_us(slots)
    yield stated(slots, "lookup, 99.9th percentile, index there", there, "µs")
    what = "lookup, 99.9th percentile, index being made, above that"
    yield at_most(slots, what, making - there, 5.0, "µs")


def maps(slots: int) -> Iterator[Row]:
    """Measures vm.map()."""
    there, made, batch = map_us(slots)
    yield at_most(slots, "map(), index there", there, 0.2, "µs")
    if batch:  # the difference of two times, which may be none
        yield at_most(slots, "map() / what a batch pays for an index", made / batch, 1.2)


def reads(slots: int) -> Iterator[Row]:
    """Measures GuestMemory.read_u32 at random addresses, beside struct on one flat buffer."""
    ours, plain = read_random_ns(slots)
    yield stated(slots, "read_u32, random", ours, "ns")
    yield at_most(slots, "read_u32, random / struct.unpack_from", ours / plain, 1.5)


class Batch:
    """A batch of a million look-ups by memslots and by its rivals. All answers are checked."""

    def __init__(self, guest: Guest, vm: AnyMemslots, case: str) -> None:
        self.asked = guest.accesses(case)
        self.ids = np.empty(MILLION, np.int32)
        self.memslots = partial(vm.lookup_many, self.asked.gfns, self.ids)
        self.numpy = partial(NumpySearch(guest).lookup_many, self.asked.gfns, self.ids)
        self.sorted = partial(SortedNumpySearch(guest).lookup_many, self.asked.gfns, self.ids)
        for step in (self.memslots, self.numpy, self.sorted):
            self.ids.fill(-2)
            step()
            assert np.array_equal(self.ids, self.asked.ids)

    def one_range(self, one_range: Callable[..., None]) -> Step:
        """Returns the loop that tests every page against one range, with id 0."""
        ids = np.empty(MILLION, np.int32)
        step = partial(one_range, self.asked.gfns, ids, int(self.asked.gfns[0]), PAGES, 0)
        step()
        assert np.array_equal(ids, np.where(self.asked.gfns - self.asked.gfns[0] < PAGES, 0, -1))
        return step


def batches(slots: int) -> Iterator[Row]:
    """Measures batches against numpy."""
    guest = Guest(slots)
    vm = guest.make()
    batch = Batch(guest, vm, "random")
    own, plain, ordered = times(batch.memslots, batch.numpy, batch.sorted)
    yield stated(slots, "batch, random", own / MILLION * 1e9, "ns")
    yield at_least(slots, "batch, random: numpy / memslots", plain / own, RANDOM[slots])
    yield stated(slots, "batch, random: numpy, pages sorted first / memslots", ordered / own, "x")
    if slots != LARGEST:
        return
    one_range = build_floor().one_range
    for case, goal in REGULAR.items():
        batch = Batch(guest, vm, case)
        own, plain, floor = times(batch.memslots, batch.numpy, batch.one_range(one_range))
        yield stated(slots, f"batch, {case}", own / MILLION * 1e9, "ns")
        yield at_least(slots, f"batch, {case}: numpy / memslots", plain / own, goal)
        if case != "sequential":
            yield at_most(slots, f"batch, {case}: memslots / one cached range", own / floor, 1.5)


def change_ns(guest: Guest, structure: str) -> dict[str, float]:
    """Returns the median time of each change, and of a create with its delete."""
    changer = Changer(guest, guest.make(structure))
    took = {name: sample(changer.pairs[name], 0.5) for name in changer.pairs}
    figures = {
        name: statistics.median(took[pair][which]) for name, (pair, which) in CHANGES.items()
    }
    both = took["delete and create"]
    pairs = [there + back for there, back in zip(both[::2], both[1::2], strict=True)]
    return figures | {"create + delete": statistics.median(pairs)}


def changes(slots: int) -> Iterator[Row]:
    """Measures changes against the array, and against the same changes with 10 slots."""
    guest = Guest(slots)
    tree = change_ns(guest, "tree")
    for name, took in tree.items():
        yield stated(slots, name, took, "ns")
    if slots == LARGEST:
        yield at_most(slots, "create + delete", tree["create + delete"] / 1000, 1.5, "µs")
        few = change_ns(Guest(SIZES[0]), "tree")
        for name in CHANGES:
            yield at_most(slots, f"{name} / the same at 10 slots", tree[name] / few[name], 4.0)
    if slots in ARRAY:
        array = change_ns(guest, "array")
        for name in CHANGES:
            yield at_least(slots, f"{name}: array / tree", array[name] / tree[name], ARRAY[slots])


def memory(slots: int) -> Iterator[Row]:
    """Measures the growth of a fresh interpreter's resident set."""
    created, looked_up = growth(slots, "tree")
    yield stated(slots, "memory when created, a slot", created, "bytes")
    yield at_most(slots, "memory with the batches' index, a slot", looked_up, 400, "bytes")


def importing() -> Iterator[Row]:
    """Measures `import memslots` in fresh interpreters."""
    modules = int(run(MODULES))  # asserts that numpy is not one of them
    yield at_most(0, "import memslots, over an empty interpreter", import_ms(), 10, "ms")
    yield stated(0, "import memslots: modules of the package, no numpy", modules, "modules")


def rows(slots: int) -> Iterator[Row]:
    """Measures all rows of a number of slots."""
    if slots == LARGEST:
        yield from hot(slots)
    yield from single_random(slots)
    if slots in KVM_SIZES:
        yield from between_changes(slots)
    if slots in (LARGEST, MILLION):
        yield from slowest(slots)
    yield from maps(slots)
    if slots == LARGEST:
        yield from reads(slots)
    yield from batches(slots)
    if slots in (*ARRAY, MILLION):
        yield from changes(slots)
    if slots == LARGEST:
        yield from memory(slots)


def show(row: Row) -> Row:
    """Prints a row, and returns it."""
    reached = {True: "reached", False: "MISSED", None: ""}[row.reached()]
    goal = "-"
    if row.goal is not None:
        goal = f"{'>=' if row.at_least else '<='} {row.goal:g} {row.unit}"
    figure = f"{row.figure:.4g} {row.unit}"
    print(f"{row.slots or '':>8}  {row.what:<56}{figure:>14}  {goal:<14}{reached}", flush=True)
    return row


def measured(sizes: Sequence[int]) -> Iterator[Row]:
    """Measures the rows of these numbers of slots. Without numbers, measures all rows."""
    for slots in sizes or SIZES:
        yield from rows(slots)
    if not sizes:
        yield from importing()


def main() -> None:
    """Prints the table, for the given numbers of slots or for all."""
    given = [int(argument) for argument in sys.argv[1:]]
    if not set(given) <= set(SIZES):
        raise SystemExit(f"usage: goals.py [slots ...], of {', '.join(map(str, SIZES))}")
    print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, numpy {np.__version__}")
    print(f"{'slots':>8}  {'what':<56}{'figure':>14}  goal")
    missed = sum(show(row).reached() is False for row in measured(given))
    print(f"{missed} missed")


if __name__ == "__main__":
    main()
