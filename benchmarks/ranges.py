"""The slots in a range of guest pages or of host memory, and all slots.

A figure is the time of one call. There are a thousand ranges, in random order.
"""

from __future__ import annotations

from collections.abc import Callable

from common import PAGE_SIZE, PAGES, SIZES, STRUCTURES, nanoseconds
from guests import Guest

from memslots import Memslots

Range = tuple[int, int]

CALLS = 1000
MANY = 100  # slots in a range with many, or all slots if there are fewer


def repeat(method: Callable[[int, int], object], ranges: list[Range]) -> None:
    """Calls a method for each range."""
    for start, end in ranges:
        method(start, end)


class _Ranges:
    def lay_out(self, slots: int, structure: str, finds: str) -> None:
        """Makes the slots, and chooses the first slot of each range."""
        self.guest = Guest(slots)
        self.vm = self.guest.make(structure)
        self.count = {"none": 0, "one": 1, "many": min(MANY, slots)}[finds]
        firsts = self.guest.random.integers(0, slots - max(self.count, 1) + 1, CALLS)
        self.firsts: list[int] = firsts.tolist()

    def ranges(self, starts: list[int], size: int) -> list[Range]:
        """Returns ranges from within the first slot to within the last, or in the hole after it."""
        if self.count == 0:
            return [(starts[first] + size, starts[first] + size + 1) for first in self.firsts]
        lasts = [first + self.count - 1 for first in self.firsts]
        return [
            (starts[first] + size // 4, starts[last] + size // 2)
            for first, last in zip(self.firsts, lasts, strict=True)
        ]

    def ids(self) -> list[list[int]]:
        """Returns the ids that each range must find."""
        return [list(range(first, first + self.count)) for first in self.firsts]


class InRange(_Ranges):
    """Times in_gfn_range and in_hva_range."""

    params = (SIZES, tuple(STRUCTURES), ("none", "one", "many"))
    param_names = ("slots", "structure", "finds")
    unit = "ns"

    def setup(self, slots: int, structure: str, finds: str) -> None:
        """Makes the slots, and checks the answers of all ranges."""
        self.lay_out(slots, structure, finds)
        self.gfns = self.ranges(self.guest.bases.tolist(), PAGES)
        self.hvas = self.ranges(self.guest.hosts.tolist(), PAGES * PAGE_SIZE)
        by_gfn = [self.vm.in_gfn_range(*gfns) for gfns in self.gfns]
        assert [[slot.id for slot in found] for found in by_gfn] == self.ids()
        by_hva = [self.vm.in_hva_range(*hvas) for hvas in self.hvas]
        assert [[slot.id for slot, _, _ in found] for found in by_hva] == self.ids()
        for found in by_hva:
            if found:
                assert found[0][1] == found[0][0].base_gfn + PAGES // 4
                assert found[-1][2] == found[-1][0].base_gfn + PAGES // 2

    def track_in_gfn_range(self, slots: int, structure: str, finds: str) -> float:
        """Returns the time of one call for a range of gfns."""
        return nanoseconds(lambda: repeat(self.vm.in_gfn_range, self.gfns), CALLS)

    def track_in_hva_range(self, slots: int, structure: str, finds: str) -> float:
        """Returns the time of one call for a range of host memory."""
        return nanoseconds(lambda: repeat(self.vm.in_hva_range, self.hvas), CALLS)


class Iteration:
    """Times a walk over all slots in gfn order."""

    params = (SIZES, tuple(STRUCTURES))
    param_names = ("slots", "structure")
    unit = "ns"

    def setup(self, slots: int, structure: str) -> None:
        """Makes the slots, and checks their order."""
        guest = Guest(slots)
        self.vm = guest.make(structure)
        assert [slot.base_gfn for slot in self.vm] == guest.bases.tolist()

    def iterate(self) -> None:
        for _ in self.vm:
            pass

    def track_iteration(self, slots: int, structure: str) -> float:
        """Returns the time of each slot."""
        return nanoseconds(self.iterate, slots)


class Room:
    """Times floor, ceil, find_hole and is_mapped through a Memslots, at random pages."""

    params = (SIZES, ("floor", "ceil", "find_hole", "is_mapped"))
    param_names = ("slots", "call")
    unit = "ns"

    def setup(self, slots: int, call: str) -> None:
        """Makes the slots, and checks all answers."""
        guest = Guest(slots)
        vm = guest.make()
        assert isinstance(vm, Memslots)
        asked = guest.accesses("random", CALLS)
        gfns, ids = asked.gfns.tolist(), asked.ids.tolist()
        bases, ends = guest.bases.tolist(), guest.ends.tolist()
        calls: dict[str, Callable[[int], object]] = {
            "floor": vm.floor,
            "ceil": vm.ceil,
            "find_hole": lambda gfn: vm.find_hole(1, gfn),
            "is_mapped": lambda gfn: vm.is_mapped(gfn, gfn + 1),
        }
        self.call, self.gfns = calls[call], gfns
        for gfn, id in zip(gfns, ids, strict=True):
            after = vm.ceil(gfn)
            assert vm.floor(gfn) is vm[id]
            assert after is (vm[id] if gfn == bases[id] else vm.get(id + 1))
            assert vm.find_hole(1, gfn) == ends[id]
            assert vm.is_mapped(gfn, ends[id]) and not vm.is_mapped(gfn, ends[id] + 1)

    def track_call(self, slots: int, call: str) -> float:
        """Returns the time of one call."""

        def repeat_all() -> None:
            for gfn in self.gfns:
                self.call(gfn)

        return nanoseconds(repeat_all, CALLS)
