"""A map with holes in guest memory and in host memory, and accesses with known answers.

Slot i begins at bases[i], and in host memory at hosts[i]. All slots have PAGES pages. Counting the
pages of all slots from 0, page p is page p % PAGES of slot p // PAGES. So arithmetic alone tells
what each look-up must return.
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

HOLE = 64  # most pages between a slot and the next; in host memory one page
LOCAL = 64  # consecutive accesses within one slot
BOOT_PAGES = (512 << 20) // PAGE_SIZE  # the memory of the guest whose boot was recorded
CASES = ("random", "sequential", "local", "miss", "boot")


class Accesses(NamedTuple):
    """The pages and addresses to ask for, and the right answers."""

    gfns: Numbers
    ids: NDArray[np.int32]  # -1 in a hole
    gpas: Numbers  # addresses in these pages
    hvas: Numbers  # BAD_HVA in a hole


def boot_gfns() -> Numbers:
    """Returns the gfns of a million consecutive accesses of a booting guest."""
    with lzma.open(Path(__file__).parent / "data" / "linux-boot-gfns.npy.xz") as file:
        gfns: NDArray[np.uint32] = np.load(file)
    return gfns.astype(np.uint64)


class Guest:
    """The places of the slots, and the accesses."""

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
        """Returns the arguments of create for each slot."""
        columns = (self.bases.tolist(), repeat(PAGES), self.hosts.tolist())
        return list(zip(range(self.slots), *columns, strict=False))

    def empty(self, structure: str = "tree", manual_dirty_log: int = 0) -> AnyMemslots:
        """Returns a Memslots with room for the slots.

        Raises NotImplementedError for an array of a million slots. Each change copies the whole
        array, so creating the slots would take an hour.
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
        """Returns a Memslots with the slots in it."""
        vm = self.empty(structure, manual_dirty_log)
        self.fill(vm, flags)
        assert len(vm) == self.slots
        assert vm.nr_pages == self.slots * PAGES
        return vm

    def accesses(self, case: str, count: int = MILLION) -> Accesses:
        """Returns accesses of one of CASES, or for "hot" random pages of one slot."""
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
        """Returns accesses to pages of the slots, given by their numbers."""
        index, within = pages // PAGES, pages % PAGES
        gfns = self.bases[index] + within
        offsets = self.random.integers(0, PAGE_SIZE, len(pages), dtype=np.uint64)
        hvas = self.hosts[index] + within * PAGE_SIZE + offsets
        return Accesses(gfns, index.astype(np.int32), gfns * PAGE_SIZE + offsets, hvas)

    def misses(self, gfns: Numbers) -> Accesses:
        """Returns accesses to pages in holes."""
        hvas = np.full(len(gfns), BAD_HVA, np.uint64)
        return Accesses(gfns, np.full(len(gfns), -1, np.int32), gfns * PAGE_SIZE, hvas)

    def boot(self, gfns: Numbers) -> Accesses:
        """Returns the real guest's accesses, with its memory spread evenly over the slots.

        Accesses beyond its memory (to devices) are beyond the slots.
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
