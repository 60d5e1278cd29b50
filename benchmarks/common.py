"""What the benchmarks share: a Memslots of some size, the pages they ask for, fair comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from memslots import Memslots, Transaction
from memslots.baseline import ArrayMemslots

AnyMemslots: TypeAlias = Memslots | ArrayMemslots

# A small machine; what KVM had at most, for years; a size between; what it has at most now.
KVM_SIZES = (10, 509, 8194, 32764)
SIZES = (*KVM_SIZES, 1_000_000)  # and far beyond
STRUCTURES: dict[str, type[AnyMemslots]] = {"tree": Memslots, "array": ArrayMemslots}
PAGES = 512  # of each slot
PAGE_SIZE = 4096
HOST = 0x7D00_0000_0000  # room for a million slots below the end of user space
SEED = 20220113
MILLION = 1_000_000


def hva_of(id: int) -> int:
    """Where the host keeps a slot: side by side, so that two can become one."""
    return HOST + id * PAGES * PAGE_SIZE


def fill(vm: AnyMemslots, slots: int) -> None:
    """Slots of one size, side by side from gfn 0 on: slot gfn // PAGES holds the gfn."""
    for id in range(slots):
        vm.create(id, id * PAGES, PAGES, hva_of(id))


def make_memslots(slots: int) -> Memslots:
    """A Memslots with so many slots."""
    vm = Memslots()
    fill(vm, slots)
    return vm


def random_gfns(slots: int, count: int, seed: int = SEED) -> NDArray[np.uint64]:
    """Pages of the first slots, evenly."""
    return np.random.default_rng(seed).integers(0, slots * PAGES, count, dtype=np.uint64)


def merge(target: AnyMemslots | Transaction, first: int) -> None:
    """One slot in place of `first` and the next, in three changes."""
    target.delete(first + 1)
    target.delete(first)
    target.create(first, first * PAGES, 2 * PAGES, hva_of(first))


def split(target: AnyMemslots | Transaction, first: int) -> None:
    """What merge did, back, in three changes."""
    target.delete(first)
    target.create(first, first * PAGES, PAGES, hva_of(first))
    target.create(first + 1, (first + 1) * PAGES, PAGES, hva_of(first + 1))


def check_repeats(vm: AnyMemslots, there: Callable[[], object], back: Callable[[], object]) -> None:
    """Asserts that the one changes the map and the other changes it back."""
    before = list(vm)
    there()
    assert list(vm) != before
    back()
    assert list(vm) == before
    vm.check()


def medians(*measures: Callable[[], float], seconds: float = 0.8, rounds: int = 3) -> list[float]:
    """The median of each, measured in turn, so that a slow moment of the machine falls on all."""
    measured: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(measured) < rounds or time.perf_counter() < end:
        measured.append([measure() for measure in measures])
    return [statistics.median(column) for column in zip(*measured, strict=True)]


def seconds_of(step: Callable[[], object]) -> float:
    """How long a step takes, once."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def nanoseconds(step: Callable[[], object], count: int) -> float:
    """The median time of each of the `count` operations that a step makes."""
    return medians(lambda: seconds_of(step), seconds=0.05)[0] / count * 1e9
