"""Shared by the benchmarks: a Memslots of a given size, the pages to ask for, fair comparison."""

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

# A small machine's slots; KVM's limit for many years; a size between; KVM's limit today.
KVM_SIZES = (10, 509, 8194, 32764)
SIZES = (*KVM_SIZES, 1_000_000)  # and a size far beyond KVM's limit
STRUCTURES: dict[str, type[AnyMemslots]] = {"tree": Memslots, "array": ArrayMemslots}
PAGES = 512  # of each slot
PAGE_SIZE = 4096
HOST = 0x7D00_0000_0000  # room for a million slots below the end of user space
SEED = 20220113
MILLION = 1_000_000


def hva_of(id: int) -> int:
    """Returns the host address of a slot. Slots are adjacent, so two can become one."""
    return HOST + id * PAGES * PAGE_SIZE


def fill(vm: AnyMemslots, slots: int) -> None:
    """Creates adjacent slots of one size from gfn 0 on: slot gfn // PAGES holds the gfn."""
    for id in range(slots):
        vm.create(id, id * PAGES, PAGES, hva_of(id))


def make_memslots(slots: int) -> Memslots:
    """Returns a Memslots with `slots` slots."""
    vm = Memslots()
    fill(vm, slots)
    return vm


def random_gfns(slots: int, count: int, seed: int = SEED) -> NDArray[np.uint64]:
    """Returns random pages of the first `slots` slots, each equally likely."""
    return np.random.default_rng(seed).integers(0, slots * PAGES, count, dtype=np.uint64)


def merge(target: AnyMemslots | Transaction, first: int) -> None:
    """Replaces slot `first` and the next one by one slot, in three changes."""
    target.delete(first + 1)
    target.delete(first)
    target.create(first, first * PAGES, 2 * PAGES, hva_of(first))


def split(target: AnyMemslots | Transaction, first: int) -> None:
    """Undoes merge, in three changes."""
    target.delete(first)
    target.create(first, first * PAGES, PAGES, hva_of(first))
    target.create(first + 1, (first + 1) * PAGES, PAGES, hva_of(first + 1))


def check_repeats(vm: AnyMemslots, there: Callable[[], object], back: Callable[[], object]) -> None:
    """Asserts that `there` changes the map and `back` changes it back."""
    before = list(vm)
    there()
    assert list(vm) != before
    back()
    assert list(vm) == before
    vm.check()


def medians(*measures: Callable[[], float], seconds: float = 0.8, rounds: int = 3) -> list[float]:
    """Returns the median of each measure.

    Measures alternately, so a slow moment of the machine affects all.
    """
    measured: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(measured) < rounds or time.perf_counter() < end:
        measured.append([measure() for measure in measures])
    return [statistics.median(column) for column in zip(*measured, strict=True)]


def seconds_of(step: Callable[[], object]) -> float:
    """Returns the seconds that one run of a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def nanoseconds(step: Callable[[], object], count: int) -> float:
    """Returns the median time of each of the `count` operations of a step."""
    return medians(lambda: seconds_of(step), seconds=0.05)[0] / count * 1e9
