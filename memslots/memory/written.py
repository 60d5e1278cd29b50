"""Marks memory that was written through views, in the dirty logs of the slots that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memslots.memory.backing import address_of
from memslots.values.records import Flags

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory
    from memslots.memslots import Memslots


def mark_memory(vm: Memslots, start: int, end: int) -> None:
    """Marks host memory [start, end) in every slot on it that has a log."""
    for as_id in range(vm.address_spaces):
        for slot, first, last in vm.address_space(as_id).in_hva_range(start, end):
            if slot.flags & Flags.LOG_DIRTY_PAGES:
                vm.mark_dirty_range(first, last, as_id)


class Written:
    """Guest memory that is written through `views`. Its slots may change before `mark`."""

    def __init__(self, memory: GuestMemory, gpa: int, n: int) -> None:
        self._memory = memory
        self._gpa = gpa
        self._reader = memory.vm.address_space(memory.as_id)
        self._generation = self._reader.generation  # first, so that no later change is missed
        self.views = memory.views(gpa, n, write=True)

    def mark(self, n: int) -> None:
        """Marks the first `n` bytes. If the slots changed, marks all slots that have the memory."""
        if self._reader.generation == self._generation:
            self._memory.mark_dirty(self._gpa, n)
        if self._reader.generation == self._generation:
            return
        for view in self.views:
            size = min(n, len(view))
            start = address_of(view)
            mark_memory(self._memory.vm, start, start + size)
            n -= size
