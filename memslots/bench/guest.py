"""The guest of the series' tests: 512 MiB, divided among a number of slots."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from memslots import PAGE_SHIFT, Flags, Memslots, Slot
from memslots.baseline import ArrayMemslots
from memslots.bench.timing import Effort, expect

#: The guest's memory in pages.
PAGES = 512 << 20 >> PAGE_SHIFT
#: 2 MiB in pages.
CHUNK = 2 << 20 >> PAGE_SHIFT
#: A chunk of the guest's lower half and the same chunk of the upper half are one pair.
PAIRS = PAGES // CHUNK // 2
#: The number of pairs that are checked before the timing.
CHECKED_PAIRS = 4
#: Where the host keeps the guest's first page; the others follow it.
RAM = 0x7F00_0000_0000

#: Either of the two that are compared.
AnyMemslots: TypeAlias = Memslots | ArrayMemslots


def hva_of(gfn: int) -> int:
    """Returns the host address of a page."""
    return RAM + (gfn << PAGE_SHIFT)


class Guest:
    """Slots 0, 1, ... in gfn order, without a hole. They share the pages as evenly as possible."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        #: The first gfn of each slot, and the end of the last.
        self.bases = [id * PAGES // slots for id in range(slots + 1)]
        #: The arguments of the `create` that makes each slot.
        self.creates = [
            (id, base, end - base, hva_of(base))
            for id, (base, end) in enumerate(zip(self.bases, self.bases[1:], strict=False))
        ]

    def id_of(self, gfn: int) -> int:
        """Returns the id of the slot that holds a page of the guest."""
        return bisect_right(self.bases, gfn) - 1

    def overlaps(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Returns (id, first gfn, end gfn) of each slot's part of the pages [start, end)."""
        ids = range(self.id_of(start), self.id_of(end - 1) + 1)
        return [(id, max(start, self.bases[id]), min(end, self.bases[id + 1])) for id in ids]

    def make(self, kind: type[AnyMemslots]) -> AnyMemslots:
        """Makes a Memslots of this guest, whose slots log, and checks it."""
        vm = kind()
        for create in self.creates:
            vm.create(*create, Flags.LOG_DIRTY_PAGES)
        wanted = [
            Slot(id, 0, base, npages, hva, Flags.LOG_DIRTY_PAGES)
            for id, base, npages, hva in self.creates
        ]
        expect(list(vm), wanted, "the slots")
        vm.check()
        return vm


def chunk_starts(half: int, pairs: Sequence[int]) -> list[int]:
    """Returns the first gfns of the chunks of `pairs` in one half."""
    return [(half * PAIRS + pair) * CHUNK for pair in pairs]


def some_pairs(count: int) -> list[int]:
    """Returns `count` pairs, spread evenly."""
    return [number * PAIRS // count for number in range(count)]


def affordable_pairs(work: Callable[[], object], effort: Effort) -> int:
    """Returns how many pairs fit in one round. `work` does CHECKED_PAIRS of them."""
    began = time.perf_counter()
    work()
    each = (time.perf_counter() - began) / CHECKED_PAIRS
    return max(1, min(PAIRS, int(effort.sample / each)))


def pages_of(starts: Sequence[int]) -> Iterator[int]:
    """Yields every page of the chunks, in order."""
    return (gfn for start in starts for gfn in range(start, start + CHUNK))
