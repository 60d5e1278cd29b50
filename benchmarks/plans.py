"""Plans from one map to another, combined maps, and many slots created at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from common import PAGES, SEED, hva_of

from memslots import MemoryMap, Memslots, plan

SIZES = (509, 32764, 1_000_000)
GAP = PAGES + 1  # from one slot to the next
OTHER = 0x10_0000_0000  # added to a host address, gives memory that no slot has


def map_of(slots: int) -> MemoryMap:
    """Returns a map of slots with a hole of one page after each."""
    numbers = np.arange(slots, dtype=np.uint64)
    return MemoryMap.from_arrays(
        numbers * GAP, np.full(slots, PAGES), numbers * (PAGES << 12) + hva_of(0)
    )


def changed(m: MemoryMap, how: str) -> MemoryMap:
    """Changes the flags, the host memory or the place of one slot in a hundred."""
    chosen = np.random.default_rng(SEED).choice(len(m), max(len(m) // 100, 1), replace=False)
    slots = list(m)
    flags, hva, gfn = how == "flags", OTHER * (how == "memory"), GAP * len(m) * (how == "moves")
    new = MemoryMap(
        [
            (slots[i].base_gfn + gfn, slots[i].npages, slots[i].userspace_addr + hva, flags)
            for i in chosen
        ]
    )
    old = MemoryMap([slots[i] for i in chosen])
    return (m - old) | new


def milliseconds(call: Callable[[], object]) -> float:
    """Returns the best time of five calls."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best * 1e3


class Plan:
    """Times plan between maps in which one slot in a hundred differs."""

    params = (SIZES[:2], ("flags", "memory", "moves"))
    param_names = ("slots", "changed")
    unit = "ms"

    def setup(self, slots: int, how: str) -> None:
        """Makes both maps, and checks that a plan has the right number of calls."""
        self.now = map_of(slots)
        self.wanted = changed(self.now, how)
        calls = len(plan(self.now, self.wanted, max_slots=2 * slots))
        assert calls == max(slots // 100, 1) * (2 if how == "memory" else 1)

    def track_plan(self, slots: int, how: str) -> float:
        """Returns the time of one call."""
        return milliseconds(lambda: plan(self.now, self.wanted, max_slots=2 * slots))


class Maps:
    """Times the operations that make maps from maps, and a Memslots from a map."""

    params = (SIZES, ("from_arrays", "|", "-", "merged", "diff", "Memslots"))
    param_names = ("slots", "call")
    unit = "ms"

    def setup(self, slots: int, call: str) -> None:
        """Makes the maps to combine."""
        m = map_of(slots)
        other = MemoryMap([(0, slots * PAGES // 2, 1 << 46)])
        columns = [np.array([getattr(s, name) for s in m], np.uint64) for name in NAMES]
        self.call: Callable[[], object] = {
            "from_arrays": lambda: MemoryMap.from_arrays(*columns),
            "|": lambda: m | other,
            "-": lambda: m - other,
            "merged": m.merged,
            "diff": lambda: m.diff(m),
            "Memslots": lambda: Memslots(slots, map=m),
        }[call]
        assert MemoryMap.from_arrays(*columns) == m
        assert (m | other) - other == m - other

    def track_call(self, slots: int, call: str) -> float:
        """Returns the time of one call."""
        return milliseconds(self.call)


NAMES = ("base_gfn", "npages", "userspace_addr")


def main() -> None:
    """Prints all figures."""
    for slots in Plan.params[0]:
        for how in Plan.params[1]:
            one = Plan()
            one.setup(slots, how)
            print(f"{slots:>8} plan, {how:<12} {one.track_plan(slots, how):10.3f} ms")
    for slots in Maps.params[0]:
        for call in Maps.params[1]:
            two = Maps()
            two.setup(slots, call)
            print(f"{slots:>8} {call:<18} {two.track_call(slots, call):10.3f} ms")


if __name__ == "__main__":
    main()
