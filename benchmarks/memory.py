"""Memory per slot: how much a fresh interpreter grows when slots are created.

The resident set counts everything: the slots, their nodes in both sets, tables, Slot objects, and
the rounding of the allocators. Only Linux reports its current size.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import SIZES, STRUCTURES
from guests import Guest

# A resident set is whole pages, so with few slots it says little about each.
LARGE = tuple(slots for slots in SIZES if slots >= 8194)

# The program of the fresh interpreter. Everything else exists before the first figure: modules, the
# arguments of the slots, the pages to ask for, room for the answers. All of it was used once.
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
    """Returns the bytes for each slot after creating all, and after a batch of a million.

    The first such batch may make an index that later batches use.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(slots), structure],
        cwd=Path(__file__).parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    created, looked_up = map(int, done.stdout.split())
    # A Slot object alone has an object's head and 6 fields, so a smaller figure would be wrong.
    assert looked_up >= created > 48 * slots
    return created / slots, looked_up / slots


class Memory:
    """Measures the bytes of a slot."""

    params = (LARGE, tuple(STRUCTURES))
    param_names = ("slots", "structure")
    unit = "bytes/slot"

    def setup(self, slots: int, structure: str) -> None:
        """Skips the combination that takes too long."""
        Guest(slots).empty(structure)

    def track_created(self, slots: int, structure: str) -> float:
        """Returns the bytes after all slots were created."""
        return growth(slots, structure)[0]

    def track_looked_up(self, slots: int, structure: str) -> float:
        """Returns the bytes after a batch of a million random pages was looked up, too."""
        return growth(slots, structure)[1]
