"""Memory per slot: by how much creating slots makes a fresh interpreter grow.

What is counted is the resident set, so all there is: the slots, their nodes in both sets, tables,
Slot objects, and what the allocators round up to. Linux alone says how large it is now.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import SIZES, STRUCTURES
from guests import Guest

# A resident set is whole pages: with few slots it says little of each.
LARGE = tuple(slots for slots in SIZES if slots >= 8194)

# What runs in the fresh interpreter. All that is not the slots' is there before the first figure:
# modules, what the slots are made from, questions and room for the answers; and all was used once.
CHILD = """
import resource
import sys

import numpy as np
from guests import Guest

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

guest, structure = Guest(int(sys.argv[1])), sys.argv[2]
asked = guest.accesses("random")
ids = np.zeros(len(asked.ids), np.int32)
Guest(10).make(structure).lookup_many(asked.gfns, ids)
assert len(guest.regions) == guest.slots
vm = guest.empty(structure)
before = resident()
guest.fill(vm)
created = resident()
vm.lookup_many(asked.gfns, ids)
looked_up = resident()
assert len(vm) == guest.slots and np.array_equal(ids, asked.ids)
print(created - before, looked_up - before)
"""


def growth(slots: int, structure: str) -> tuple[float, float]:
    """Bytes for each slot: when all are created, and when a batch of a million has asked for them.

    The first such batch may make what later ones use.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(slots), structure],
        cwd=Path(__file__).parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    created, looked_up = map(int, done.stdout.split())
    # A Slot object alone has the head of an object and 6 fields: less was not measured.
    assert looked_up >= created > 48 * slots
    return created / slots, looked_up / slots


class Memory:
    """Bytes that a slot takes."""

    params = (LARGE, tuple(STRUCTURES))
    param_names = ("slots", "structure")
    unit = "bytes/slot"

    def setup(self, slots: int, structure: str) -> None:
        """Leave out what takes too long."""
        Guest(slots).empty(structure)

    def track_created(self, slots: int, structure: str) -> float:
        """When all slots are created."""
        return growth(slots, structure)[0]

    def track_looked_up(self, slots: int, structure: str) -> float:
        """When a batch of a million random pages was looked up, too."""
        return growth(slots, structure)[1]
