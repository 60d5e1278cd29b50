"""Single look-ups, through a Memslots (all its threads share a last-used slot) and a Vcpu.

A figure is the time of one look-up in a loop over a list of ints, and includes the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from common import KVM_SIZES, SIZES, STRUCTURES, nanoseconds
from guests import Guest

LOOKUPS = 100_000  # enough for random look-ups to reach nearly every slot of 32,764
FACES = ("memslots", "vcpu")


def repeat(method: Callable[[int], object], numbers: list[int]) -> None:
    """Calls a method for each number."""
    for number in numbers:
        method(number)


class Lookup:
    """Times lookup of pages of one slot, of all slots in order, of all at random, and of holes."""

    params = (SIZES, tuple(STRUCTURES), FACES, ("hot", "sequential", "random", "miss"))
    param_names = ("slots", "structure", "through", "case")
    unit = "ns"

    def setup(self, slots: int, structure: str, through: str, case: str) -> None:
        """Makes the slots, and checks a look-up of every page."""
        if slots > KVM_SIZES[-1] and through == "vcpu":
            raise NotImplementedError  # the search is the same, and making the slots takes seconds
        guest = Guest(slots)
        self.vm = guest.make(structure)
        self.face = self.vm.vcpu() if through == "vcpu" else self.vm
        asked = guest.accesses(case, LOOKUPS)
        self.gfns = asked.gfns.tolist()
        found = map(self.face.lookup, self.gfns)
        assert [-1 if slot is None else slot.id for slot in found] == asked.ids.tolist()

    def track_lookup(self, slots: int, structure: str, through: str, case: str) -> float:
        """Returns the time of one call."""
        return nanoseconds(partial(repeat, self.face.lookup, self.gfns), LOOKUPS)


class GpaToHva:
    """Times gpa_to_hva through a Memslots. Holes are left out, since they raise an error."""

    params = (SIZES, tuple(STRUCTURES), ("hot", "random"))
    param_names = ("slots", "structure", "case")
    unit = "ns"

    def setup(self, slots: int, structure: str, case: str) -> None:
        """Makes the slots, and checks a translation of every address."""
        guest = Guest(slots)
        self.vm = guest.make(structure)
        asked = guest.accesses(case, LOOKUPS)
        self.gpas = asked.gpas.tolist()
        assert list(map(self.vm.gpa_to_hva, self.gpas)) == asked.hvas.tolist()

    def track_gpa_to_hva(self, slots: int, structure: str, case: str) -> float:
        """Returns the time of one call."""
        return nanoseconds(partial(repeat, self.vm.gpa_to_hva, self.gpas), LOOKUPS)
