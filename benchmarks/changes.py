"""Times single changes without a reader.

A slot is changed and changed back, then the next slot: at most a thousand slots, in random order,
take turns. Each change is timed by itself, since undoing it may take a different time. The clock's
own time is subtracted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle

from common import KVM_SIZES, SIZES, STRUCTURES, AnyMemslots, medians, seconds_of
from guests import HOLE, Guest

from memslots import Flags

Step = Callable[[], object]
Pair = tuple[Step, Step]

TURNS = 1000
# The pair of steps in which each change is measured, and which of the two steps it is.
CHANGES = {
    "create": ("delete and create", slice(1, None, 2)),
    "delete": ("delete and create", slice(0, None, 2)),
    "move": ("move", slice(None)),
    "set_flags": ("set_flags", slice(None)),
}


def sample(pairs: list[Pair], seconds: float = 0.1) -> list[float]:
    """Returns the nanoseconds of each step.

    Runs the two steps of a pair, then those of the next pair, until `seconds` have passed.
    """
    clock = time.perf_counter_ns
    idle = statistics.median(-clock() + clock() for _ in range(1000))
    took = []
    end = time.perf_counter() + seconds
    for pair in cycle(pairs):
        for step in pair:
            began = clock()
            step()
            took.append(clock() - began - idle)
        if time.perf_counter() > end:
            break
    return took


class Changer:
    """Makes changes of a guest's slots, each with the change that undoes it."""

    def __init__(self, guest: Guest, vm: AnyMemslots) -> None:
        self.guest = guest
        self.vm = vm
        self.far = int(guest.ends[-1]) + HOLE  # a gfn beyond all slots, to which slots move
        ids = guest.random.permutation(guest.slots)[:TURNS].tolist()
        self.pairs = {
            "delete and create": [self.delete_and_create(id) for id in ids],
            "move": [self.move(id) for id in ids],
            "set_flags": [self.set_flags(id) for id in ids],
        }
        self.check(ids[0])

    def delete_and_create(self, id: int) -> Pair:
        return partial(self.vm.delete, id), partial(self.vm.create, *self.guest.regions[id])

    def move(self, id: int) -> Pair:
        base_gfn = int(self.guest.bases[id])
        return partial(self.vm.move, id, self.far), partial(self.vm.move, id, base_gfn)

    def set_flags(self, id: int) -> Pair:
        return partial(self.vm.set_flags, id, 1), partial(self.vm.set_flags, id, 0)

    def check(self, id: int) -> None:
        """Asserts that each change changes the right things and is undone."""
        vm, base_gfn, before = self.vm, int(self.guest.bases[id]), self.vm[id]
        assert vm.lookup(base_gfn) is before

        there, back = self.delete_and_create(id)
        there()
        assert vm.get(id) is None
        assert vm.lookup(base_gfn) is None
        assert len(vm) == self.guest.slots - 1
        back()
        assert vm.lookup(base_gfn) == before
        assert len(vm) == self.guest.slots

        there, back = self.move(id)
        there()
        assert vm.lookup(base_gfn) is None
        assert vm.lookup(self.far) is vm[id]
        back()
        assert vm.lookup(base_gfn) == before
        assert vm.lookup(self.far) is None

        there, back = self.set_flags(id)
        there()
        assert vm[id].flags == Flags.LOG_DIRTY_PAGES
        back()
        assert vm.lookup(base_gfn) == before


class Change:
    """Times one change of one slot."""

    params = (SIZES, tuple(STRUCTURES), tuple(CHANGES))
    param_names = ("slots", "structure", "change")
    unit = "ns"

    def setup(self, slots: int, structure: str, change: str) -> None:
        """Makes the slots, and checks that every change is made and undone."""
        guest = Guest(slots)
        self.changer = Changer(guest, guest.make(structure))

    def track_change(self, slots: int, structure: str, change: str) -> float:
        """Returns the median time."""
        pair, which = CHANGES[change]
        return statistics.median(sample(self.changer.pairs[pair])[which])


class Build:
    """Times the creation of all slots, one by one, in an empty Memslots."""

    params = (SIZES, tuple(STRUCTURES))
    param_names = ("slots", "structure")
    unit = "ns"

    def setup(self, slots: int, structure: str) -> None:
        """Lays out the slots."""
        self.guest = Guest(slots)
        assert len(self.guest.make(structure)) == len(self.guest.regions) == slots

    def build(self, structure: str) -> float:
        vm = self.guest.empty(structure)
        return seconds_of(partial(self.guest.fill, vm))

    def track_build(self, slots: int, structure: str) -> float:
        """Returns the time of each create."""
        rounds = 3 if slots < KVM_SIZES[-1] else 1  # the largest take seconds
        build = partial(self.build, structure)
        return medians(build, seconds=0.1, rounds=rounds)[0] / slots * 1e9
