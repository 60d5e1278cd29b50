"""Dirty logs, with logging on in every slot."""

from __future__ import annotations

import numpy as np
from common import (
    KVM_SIZES,
    MILLION,
    PAGES,
    STRUCTURES,
    medians,
    nanoseconds,
    seconds_of,
)
from guests import Guest, Numbers

from memslots import Flags

MARKS = 100_000  # number of a batch's pages that are marked one by one
LOGS = 1000


def log_of(pages: Numbers) -> bytes:
    """Returns the bitmap of a slot in which these pages were written, counted from its first."""
    written = np.zeros(PAGES, np.uint8)
    written[pages] = 1
    return np.packbits(written, bitorder="little").tobytes()


class Mark:
    """Times mark_dirty in a loop over a list, and mark_dirty_many for a batch of a million."""

    params = (KVM_SIZES, tuple(STRUCTURES), ("random", "sequential"))
    param_names = ("slots", "structure", "case")
    unit = "ns"

    def setup(self, slots: int, structure: str, case: str) -> None:
        """Makes the slots, marks all pages both ways, and checks the logs of some slots."""
        guest = Guest(slots)
        self.vm = guest.make(structure, Flags.LOG_DIRTY_PAGES)
        asked = guest.accesses(case)
        self.gfns, self.some = asked.gfns, asked.gfns[:MARKS].tolist()
        pages = asked.gfns - guest.bases[asked.ids]
        some = np.unique(asked.ids[:MARKS])[:100].tolist()
        for mark, count in ((self.mark, MARKS), (self.mark_many, MILLION)):
            mark()
            for id in some:  # getting a log clears it
                of_slot = asked.ids[:count] == id
                assert self.vm.get_dirty_log(id) == log_of(pages[:count][of_slot])

    def mark(self) -> None:
        mark_dirty = self.vm.mark_dirty
        for gfn in self.some:
            mark_dirty(gfn)

    def mark_many(self) -> None:
        self.vm.mark_dirty_many(self.gfns)

    def track_mark_dirty(self, slots: int, structure: str, case: str) -> float:
        """Returns the time of one page."""
        return nanoseconds(self.mark, MARKS)

    def track_mark_dirty_many(self, slots: int, structure: str, case: str) -> float:
        """Returns the time of one page."""
        return nanoseconds(self.mark_many, MILLION)


class Log:
    """Times the logs of at most a thousand slots in random order. Every second page is marked."""

    params = (KVM_SIZES, tuple(STRUCTURES), ("get_dirty_log", "clear_dirty_log"))
    param_names = ("slots", "structure", "call")
    unit = "ns"

    def setup(self, slots: int, structure: str, call: str) -> None:
        """Makes the slots, and checks that the log has the pages before the call and none after."""
        guest = Guest(slots)
        clears = call == "clear_dirty_log"
        self.vm = guest.make(structure, Flags.LOG_DIRTY_PAGES, manual_dirty_log=int(clears))
        self.ids = guest.random.permutation(slots)[:LOGS].tolist()
        every_second = np.arange(0, PAGES, 2, dtype=np.uint64)
        self.log = log_of(every_second)
        self.gfns = (guest.bases[self.ids][:, None] + every_second).ravel()
        self.calls = self.clear if clears else self.get
        self.vm.mark_dirty_many(self.gfns)
        for id in self.ids:
            assert self.vm.get_dirty_log(id) == self.log
        self.calls()
        for id in self.ids:
            assert not any(self.vm.get_dirty_log(id))

    def get(self) -> None:
        get_dirty_log = self.vm.get_dirty_log
        for id in self.ids:
            get_dirty_log(id)

    def clear(self) -> None:
        clear_dirty_log = self.vm.clear_dirty_log
        for id in self.ids:
            clear_dirty_log(id, 0, PAGES, self.log)

    def track_log(self, slots: int, structure: str, call: str) -> float:
        """Returns the time of one call."""

        def measure() -> float:
            self.vm.mark_dirty_many(self.gfns)
            return seconds_of(self.calls)

        return medians(measure, seconds=0.1)[0] / len(self.ids) * 1e9
