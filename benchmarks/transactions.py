"""Changes in a transaction against the same changes one by one, without a reader."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from common import KVM_SIZES, check_repeats, make_memslots, medians, merge, split

from memslots import Flags

TIMES = 100  # repetitions in one measurement, since a change takes only microseconds


def seconds_of(there: Callable[[], object], back: Callable[[], object]) -> float:
    """Returns the seconds to make and undo changes TIMES times."""
    began = time.perf_counter()
    for _ in range(TIMES):
        there()
        back()
    return time.perf_counter() - began


class _Transactions:
    params = KVM_SIZES
    param_names = ("slots",)

    def setup(self, slots: int) -> None:
        """Makes the slots, and checks that each case changes the map and changes it back."""
        self.vm = make_memslots(slots)
        self.first = slots // 2
        check_repeats(self.vm, self.merge, self.split)
        check_repeats(self.vm, self.merge_singly, self.split_singly)
        check_repeats(self.vm, lambda: self.flag(1), lambda: self.flag(0))
        check_repeats(self.vm, lambda: self.flag_singly(1), lambda: self.flag_singly(0))
        self.merge()
        merged = self.vm[self.first]
        assert self.vm.get(self.first + 1) is None
        assert self.vm.lookup(merged.end_gfn - 1) is merged
        self.split()
        self.flag(1)
        assert [slot.flags for slot in self.vm].count(Flags.LOG_DIRTY_PAGES) == 3
        self.flag(0)

    def merge(self) -> None:
        with self.vm.transaction() as tx:
            merge(tx, self.first)

    def split(self) -> None:
        with self.vm.transaction() as tx:
            split(tx, self.first)

    def merge_singly(self) -> None:
        merge(self.vm, self.first)

    def split_singly(self) -> None:
        split(self.vm, self.first)

    def flag(self, flags: int) -> None:
        with self.vm.transaction() as tx:
            for id in range(self.first, self.first + 3):
                tx.set_flags(id, flags)

    def flag_singly(self, flags: int) -> None:
        for id in range(self.first, self.first + 3):
            self.vm.set_flags(id, flags)


class Times(_Transactions):
    """Times three changes and the three that undo them. A figure is the time of all six."""

    def time_merge_and_split(self, slots: int) -> None:
        """Runs two transactions of three changes."""
        self.merge()
        self.split()

    def time_merge_and_split_singly(self, slots: int) -> None:
        """Makes the same six changes one by one."""
        self.merge_singly()
        self.split_singly()

    def time_set_flags(self, slots: int) -> None:
        """Runs two transactions of three changes."""
        self.flag(1)
        self.flag(0)

    def time_set_flags_singly(self, slots: int) -> None:
        """Makes the same six changes one by one."""
        self.flag_singly(1)
        self.flag_singly(0)


class Ratios(_Transactions):
    """Compares the time of transactions with that of the single changes."""

    unit = "ratio"

    def track_ratio(self, slots: int) -> float:
        """Returns the ratio for merging and splitting."""
        together, singly = medians(
            partial(seconds_of, self.merge, self.split),
            partial(seconds_of, self.merge_singly, self.split_singly),
            seconds=0.5,
        )
        return together / singly

    def track_ratio_set_flags(self, slots: int) -> float:
        """Returns the ratio for setting flags."""
        together, singly = medians(
            partial(seconds_of, partial(self.flag, 1), partial(self.flag, 0)),
            partial(seconds_of, partial(self.flag_singly, 1), partial(self.flag_singly, 0)),
            seconds=0.5,
        )
        return together / singly
