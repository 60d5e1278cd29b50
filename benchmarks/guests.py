"""A map with holes, in guest memory and in host memory, and pages of it whose answer is known.

Slot i begins at bases[i], in host memory at hosts[i]. All have PAGES pages, so that page p of them
all, counted from 0, is page p % PAGES of slot p // PAGES: what a look-up must give is known before
any is made, by arithmetic alone.
"""

from __future__ import annotations

import lzma
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import HOST, KVM_SIZES, MILLION, PAGE_SIZE, PAGES, SEED, STRUCTURES, AnyMemslots
from numpy.typing import NDArray

from memslots import BAD_HVA

Numbers = NDArray[np.uint64]

HOLE = 64  # pages, at most, between a slot and the next; in host memory it is one
LOCAL = 64  # consecutive accesses within one slot
BOOT_PAGES = (512 << 20) // PAGE_SIZE  # the memory of the guest whose boot was recorded
CASES = ("random", "sequential", "local", "miss", "boot")


class Accesses(NamedTuple):
    """What is asked and what must be answered."""

    gfns: Numbers
    ids: NDArray[np.int32]  # -1: in a hole
    gpas: Numbers  # anywhere in those pages
    hvas: Numbers  # BAD_HVA: in a hole


def boot_gfns() -> Numbers:
    """The gfns of a million consecutive accesses of a guest that boots."""
    with lzma.open(Path(__file__).parent / "data" / "linux-boot-gfns.npy.xz") as file:
        gfns: NDArray[np.uint32] = np.load(file)
    return gfns.astype(np.uint64)


class Guest:
    """Where the slots are, and the accesses."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.random = np.random.default_rng(SEED)
        self.holes = self.random.integers(1, HOLE + 1, slots, dtype=np.uint64)
        self.bases: Numbers = np.arange(slots, dtype=np.uint64) * PAGES
        self.bases[1:] += np.cumsum(self.holes[:-1])
        self.ends: Numbers = self.bases + PAGES
        self.hosts: Numbers = HOST + np.arange(slots, dtype=np.uint64) * (PAGES + 1) * PAGE_SIZE

    @cached_property
    def regions(self) -> list[tuple[int, int, int, int]]:
        """What create takes for each slot."""
        columns = (self.bases.tolist(), repeat(PAGES), self.hosts.tolist())
        return list(zip(range(self.slots), *columns, strict=False))

    def empty(self, structure: str = "tree", manual_dirty_log: int = 0) -> AnyMemslots:
        """A Memslots with room for the slots.

        The array takes no million: each change copies all of it, so that to create them would take
        an hour.
        """
        if structure == "array" and self.slots > KVM_SIZES[-1]:
            raise NotImplementedError
        room = max(self.slots, KVM_SIZES[-1])
        return STRUCTURES[structure](room, manual_dirty_log=manual_dirty_log)

    def fill(self, target: AnyMemslots, flags: int = 0) -> None:
        """Creates the slots, one by one."""
        create = target.create
        for region in self.regions:
            create(*region, flags)

    def make(
        self, structure: str = "tree", flags: int = 0, manual_dirty_log: int = 0
    ) -> AnyMemslots:
        """A Memslots with the slots in it."""
        vm = self.empty(structure, manual_dirty_log)
        self.fill(vm, flags)
        assert len(vm) == self.slots
        assert vm.nr_pages == self.slots * PAGES
        return vm

    def accesses(self, case: str, count: int = MILLION) -> Accesses:
        """Some of CASES; "hot" is the pages of one slot, in no order."""
        pages = self.slots * PAGES
        numbers = np.arange(count, dtype=np.uint64)
        if case == "random":
            return self.hits(self.random.integers(0, pages, count, dtype=np.uint64))
        if case == "sequential":
            return self.hits(numbers % pages)
        if case == "local":
            runs = self.random.integers(0, self.slots, -(-count // LOCAL), dtype=np.uint64)
            within = self.random.integers(0, PAGES, count, dtype=np.uint64)
            return self.hits(np.repeat(runs, LOCAL)[:count] * PAGES + within)
        if case == "hot":
            within = self.random.integers(0, PAGES, count, dtype=np.uint64)
            return self.hits(self.slots // 2 * PAGES + within)
        if case == "miss":
            before = self.random.integers(0, self.slots, count)
            within = self.random.integers(0, self.holes[before], dtype=np.uint64)
            return self.misses(self.ends[before] + within)
        assert case == "boot"
        return self.boot(boot_gfns()[:count])

    def hits(self, pages: Numbers) -> Accesses:
        """Accesses to pages of the slots, by number."""
        index, within = pages // PAGES, pages % PAGES
        gfns = self.bases[index] + within
        offsets = self.random.integers(0, PAGE_SIZE, len(pages), dtype=np.uint64)
        hvas = self.hosts[index] + within * PAGE_SIZE + offsets
        return Accesses(gfns, index.astype(np.int32), gfns * PAGE_SIZE + offsets, hvas)

    def misses(self, gfns: Numbers) -> Accesses:
        """Accesses to pages of the holes."""
        hvas = np.full(len(gfns), BAD_HVA, np.uint64)
        return Accesses(gfns, np.full(len(gfns), -1, np.int32), gfns * PAGE_SIZE, hvas)

    def boot(self, gfns: Numbers) -> Accesses:
        """The real guest's accesses, its memory laid evenly over the slots.

        What is beyond its memory (devices) is beyond the slots.
        """
        there = gfns < BOOT_PAGES
        hits = self.hits(gfns % BOOT_PAGES * (self.slots * PAGES) // BOOT_PAGES)
        misses = self.misses(self.ends[-1] + gfns)
        return Accesses(
            np.where(there, hits.gfns, misses.gfns),
            np.where(there, hits.ids, misses.ids),
            np.where(there, hits.gpas, misses.gpas),
            np.where(there, hits.hvas, misses.hvas),
        )
