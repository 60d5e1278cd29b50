"""Single look-ups as an emulator makes them: at random pages, between changes, beside peers.

The peers do the same work: find the last slot that begins at or below the page, and check whether
it holds the page.
"""

from __future__ import annotations

import importlib
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

import numpy as np
from common import KVM_SIZES, PAGES, SIZES, medians, nanoseconds, seconds_of
from guests import Guest
from lookups import LOOKUPS, repeat

from memslots import MemoryMap, Memslots, Vcpu

Ask = Callable[[list[int]], object]
#: Numbers of look-ups between two changes of flags.
BETWEEN = (1, 10, 30, 100, 1000, 10_000, 100_000)
#: Number of pages asked in one turn of a peer, and number of its turns. A turn is long enough that
#: the caches' contents from the peer before do not matter.
PART, TURNS = 400_000, 7
#: Number of calls timed one by one.
CALLS = 200_000


def indexed(vm: Memslots, guest: Guest) -> None:
    """Makes the index, by batches."""
    for _ in range(3):
        vm.lookup_many(guest.accesses("random").gfns)


def bisect_of(guest: Guest) -> Callable[[int], object]:
    """Returns a look-up in a sorted list by bisect."""
    bases, ends = guest.bases.tolist(), guest.ends.tolist()
    ids = list(range(guest.slots))

    def find(gfn: int) -> object:
        i = bisect_right(bases, gfn) - 1
        return ids[i] if i >= 0 and gfn < ends[i] else None

    return find


def tree_of(guest: Guest) -> Callable[[int], object]:
    """Returns a look-up in a BTrees.LLBTree of each slot's base and end."""
    tree = importlib.import_module("BTrees.LLBTree").LLBTree()
    tree.update(dict(zip(guest.bases.tolist(), guest.ends.tolist(), strict=True)))
    floor = tree.maxKey

    def find(gfn: int) -> object:
        try:
            base_gfn = floor(gfn)
        except ValueError:  # the gfn is below all slots
            return None
        return base_gfn if gfn < tree[base_gfn] else None

    return find


def intervals_of(guest: Guest) -> Callable[[int, int], list[int]]:
    """Returns the search method of superintervals, which takes the interval of one page."""
    intervals = importlib.import_module("superintervals").IntervalMap()
    for id, base_gfn in enumerate(guest.bases.tolist()):
        intervals.add(base_gfn, base_gfn + PAGES - 1, id)
    intervals.build()
    search: Callable[[int, int], list[int]] = intervals.search_values
    return search


def ask_both(method: Callable[[int, int], object], numbers: list[int]) -> None:
    """Does the same as `repeat`, for a method that takes a range."""
    for number in numbers:
        method(number, number)


def peers(guest: Guest, gfns: list[int], ids: list[int]) -> dict[str, Ask]:
    """Returns the loop over the pages for each installed peer, and checks the answers."""
    find = bisect_of(guest)
    assert [find(gfn) for gfn in gfns] == ids
    asks: dict[str, Ask] = {"list + bisect": partial(repeat, find)}
    try:
        tree = tree_of(guest)
    except ImportError:
        pass
    else:
        assert [tree(gfn) for gfn in gfns] == guest.bases[ids].tolist()
        asks["BTrees.LLBTree"] = partial(repeat, tree)
    try:
        intervals = intervals_of(guest)
    except ImportError:
        pass
    else:
        assert [intervals(gfn, gfn) for gfn in gfns] == [[id] for id in ids]
        asks["superintervals"] = partial(ask_both, intervals)
    return asks


def random_ns(slots: int) -> dict[str, float]:
    """Returns the nanoseconds of a look-up of a random page.

    Measures a Vcpu, a Memslots, a MemoryMap and each peer.
    """
    guest = Guest(slots)
    vm = guest.make()
    assert isinstance(vm, Memslots)
    asked = guest.accesses("random", PART)
    gfns, ids = asked.gfns.tolist(), asked.ids.tolist()
    indexed(vm, guest)
    m = vm.map()
    for face in (vm, m):
        assert [slot.id for slot in map(face.lookup, gfns) if slot is not None] == ids
    asks: dict[str, Ask] = {
        "Vcpu": partial(repeat, vm.vcpu().lookup),
        "Memslots": partial(repeat, vm.lookup),
        "MemoryMap": partial(repeat, m.lookup),
        **peers(guest, gfns, ids),
    }
    took: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(TURNS):
        for name, ask in asks.items():
            took[name].append(seconds_of(partial(ask, gfns)) / PART * 1e9)
    return {name: statistics.median(each) for name, each in took.items()}


def between_ns(slots: int, lookups: int, rounds: int = 50) -> float:
    """Returns the nanoseconds of a look-up of a random page, with `lookups` after each change."""
    guest = Guest(slots)
    vm = guest.make()
    face = vm.vcpu()
    gfns = guest.accesses("random", max(LOOKUPS, lookups)).gfns.tolist()
    took = []
    place = 0
    for n in range(max(5, min(rounds, 2_000_000 // lookups))):
        vm.set_flags(n % slots, 1)
        vm.set_flags(n % slots, 0)
        if place + lookups > len(gfns):
            place = 0
        part = gfns[place : place + lookups]
        place += lookups
        took.append(seconds_of(partial(repeat, face.lookup, part)))
    return statistics.median(took) / lookups * 1e9


def each_us(method: Callable[[int], object], gfns: list[int]) -> float:
    """Returns the 99.9th percentile of calls timed one by one, in microseconds."""
    clock = time.perf_counter_ns
    took = []
    for gfn in gfns:
        began = clock()
        method(gfn)
        took.append(clock() - began)
    return float(np.percentile(took, 99.9)) / 1000


def slowest_us(slots: int) -> tuple[float, float]:
    """Returns the slowest look-ups in microseconds: while an index is being made, and with it."""
    guest = Guest(slots)
    vm = guest.make()
    gfns = guest.accesses("random", CALLS).gfns.tolist()
    making, there = [], []
    for _ in range(5):
        vm.set_flags(0, 1)
        vm.set_flags(0, 0)
        # Do all but the last few searches that an index needs, so a timed look-up makes the index.
        repeat(vm.lookup, guest.accesses("random", max(1, slots + 900)).gfns.tolist())
        making.append(each_us(vm.lookup, gfns))
        repeat(vm.lookup, gfns)
        there.append(each_us(vm.lookup, gfns))
    return statistics.median(making), statistics.median(there)


def map_us(slots: int) -> tuple[float, float, float]:
    """Returns the microseconds of vm.map() with an index and without one.

    The third figure is what a batch pays for making an index.
    """
    guest = Guest(slots)
    vm = guest.make()
    assert isinstance(vm, Memslots)
    gfns = guest.accesses("random", 1 << 16).gfns
    one, out = gfns[:1], np.empty(len(gfns), np.int32)
    vm.map()
    there = nanoseconds(lambda: [vm.map() for _ in range(1000)], 1000) / 1000

    def change() -> None:
        vm.set_flags(0, 1)
        vm.set_flags(0, 0)

    def batch() -> float:
        change()
        return seconds_of(partial(vm.lookup_many, gfns, out))

    def answers() -> float:
        return seconds_of(partial(vm.lookup_many, gfns, out))

    def made() -> float:
        change()
        return seconds_of(vm.map)

    assert len(vm.lookup_many(one)) == 1
    by_map, by_batch, by_index = medians(made, batch, answers, rounds=9)
    return there, by_map * 1e6, (by_batch - by_index) * 1e6


class Random:
    """Times lookup of a random page, with an index."""

    params = (SIZES, ("Vcpu", "Memslots", "MemoryMap"))
    param_names = ("slots", "through")
    unit = "ns"

    def setup(self, slots: int, through: str) -> None:
        """Makes the slots and the index."""
        guest = Guest(slots)
        vm = guest.make()
        assert isinstance(vm, Memslots)
        indexed(vm, guest)
        faces: dict[str, Memslots | Vcpu | MemoryMap] = {
            "Vcpu": vm.vcpu(),
            "Memslots": vm,
            "MemoryMap": vm.map(),
        }
        self.face = faces[through]
        self.gfns = guest.accesses("random", LOOKUPS).gfns.tolist()
        repeat(self.face.lookup, self.gfns)

    def track_lookup(self, slots: int, through: str) -> float:
        """Returns the time of one call."""
        return nanoseconds(partial(repeat, self.face.lookup, self.gfns), LOOKUPS)


class Between:
    """Times lookup of a random page, between changes of flags."""

    params = (KVM_SIZES, BETWEEN)
    param_names = ("slots", "lookups for each change")
    unit = "ns"

    def track_lookup(self, slots: int, lookups: int) -> float:
        """Returns the time of one call."""
        return between_ns(slots, lookups)


class Slowest:
    """Measures the 99.9th percentile of single look-ups."""

    params = ((KVM_SIZES[-1], SIZES[-1]), ("while it is made", "when it is there"))
    param_names = ("slots", "index")
    unit = "µs"

    def track_percentile(self, slots: int, index: str) -> float:
        """Returns the percentile of calls timed one by one, including the clock's own time."""
        return slowest_us(slots)[index == "when it is there"]


class Map:
    """Times vm.map()."""

    params = (SIZES, ("with an index", "without"))
    param_names = ("slots", "index")
    unit = "µs"

    def track_map(self, slots: int, index: str) -> float:
        """Returns the time of one call."""
        return map_us(slots)[index == "without"]
