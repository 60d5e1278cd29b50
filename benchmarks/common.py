"""What the benchmarks share: a Memslots of some size, the pages they ask for, fair comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memslots import Memslots, Transaction

# A small machine; what KVM had at most, for years; a size between; what it has at most now.
SIZES = (10, 509, 8194, 32764)
PAGES = 512  # of each slot
SEED = 20220113


def hva_of(id: int) -> int:
    """Where the host keeps a slot: side by side, so that two can become one."""
    return 0x7F00_0000_0000 + id * PAGES * 4096


def make_memslots(slots: int) -> Memslots:
    """Slots of one size, side by side from gfn 0 on: slot gfn // PAGES holds the gfn."""
    vm = Memslots()
    for id in range(slots):
        vm.create(id, id * PAGES, PAGES, hva_of(id))
    return vm


def random_gfns(slots: int, count: int, seed: int = SEED) -> NDArray[np.uint64]:
    """Pages of the first slots, evenly."""
    return np.random.default_rng(seed).integers(0, slots * PAGES, count, dtype=np.uint64)


def merge(target: Memslots | Transaction, first: int) -> None:
    """One slot in place of `first` and the next, in three changes."""
    target.delete(first + 1)
    target.delete(first)
    target.create(first, first * PAGES, 2 * PAGES, hva_of(first))


def split(target: Memslots | Transaction, first: int) -> None:
    """What merge did, back, in three changes."""
    target.delete(first)
    target.create(first, first * PAGES, PAGES, hva_of(first))
    target.create(first + 1, (first + 1) * PAGES, PAGES, hva_of(first + 1))


def check_repeats(vm: Memslots, there: Callable[[], object], back: Callable[[], object]) -> None:
    """Asserts that the one changes the map and the other changes it back."""
    before = list(vm)
    there()
    assert list(vm) != before
    back()
    assert list(vm) == before
    vm.check()


def medians(*measures: Callable[[], float], seconds: float = 0.8) -> list[float]:
    """The median of each, measured in turn, so that a slow moment of the machine falls on all."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 3 or time.perf_counter() < end:
        rounds.append([measure() for measure in measures])
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
