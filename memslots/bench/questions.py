"""The questions to memslots and its rivals: which slot's id holds a gfn, or -1 for none."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence

from memslots import PAGE_SHIFT, Slot

SEED = 20220113
#: A local batch has runs of this many consecutive gfns.
RUN = 64
#: Pages of a slot, and of the hole that follows every fourth slot.
NPAGES = (64, 192)
HOLE = (1, 64)
FIRST_GFN = 0x100
RAM = 0x7F00_0000_0000


def layout(slots: int) -> list[Slot]:
    """Returns slots of many sizes in gfn order, with holes. The ids are shuffled."""
    dice = random.Random(SEED)
    ids = dice.sample(range(slots), slots)
    made = []
    gfn = FIRST_GFN
    for number, id in enumerate(ids):
        npages = dice.randint(*NPAGES)
        made.append(Slot(id, 0, gfn, npages, RAM + (gfn << PAGE_SHIFT)))
        gfn += npages
        if number % 4 == 0:
            gfn += dice.randint(*HOLE)
    return made


class Questions:
    """Lists of gfns of each kind, and the right answers, which the layout itself gives."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self._bases = [slot.base_gfn for slot in slots]
        self._dice = random.Random(SEED)

    def answer(self, gfn: int) -> int:
        """Returns the id of the slot that holds a page, or -1."""
        index = bisect_right(self._bases, gfn) - 1
        if index < 0 or gfn not in self.slots[index]:
            return -1
        return self.slots[index].id

    def _in(self, slot: Slot) -> int:
        return self._dice.randrange(slot.base_gfn, slot.end_gfn)

    def hot(self, count: int) -> list[int]:
        """Returns pages of the middle slot."""
        slot = self.slots[len(self.slots) // 2]
        return [self._in(slot) for _ in range(count)]

    def sequential(self, count: int) -> list[int]:
        """Returns page after page, from the first slot to the last, holes too, over and over."""
        first, end = self.slots[0].base_gfn, self.slots[-1].end_gfn
        return [first + number % (end - first) for number in range(count)]

    def random(self, count: int) -> list[int]:
        """Returns random pages of random slots."""
        return [self._in(slot) for slot in self._dice.choices(self.slots, k=count)]

    def miss(self, count: int) -> list[int]:
        """Returns random pages in no slot: in holes, and below and above all slots."""
        end = self.slots[-1].end_gfn
        holes = [(0, FIRST_GFN), (end, end + FIRST_GFN)]
        for below, above in zip(self.slots, self.slots[1:], strict=False):
            if below.end_gfn < above.base_gfn:
                holes.append((below.end_gfn, above.base_gfn))
        return [self._dice.randrange(*hole) for hole in self._dice.choices(holes, k=count)]

    def local(self, count: int) -> list[int]:
        """Returns runs of 64 consecutive pages, each run within a random slot."""
        gfns: list[int] = []
        while len(gfns) < count:
            slot = self._dice.choice(self.slots)
            start = self._dice.randrange(slot.base_gfn, slot.end_gfn - RUN + 1)
            gfns.extend(range(start, start + RUN))
        return gfns[:count]

    def victims(self, count: int) -> list[Slot]:
        """Returns random slots to delete and create again."""
        return self._dice.choices(self.slots, k=count)
