"""Plans from one map to another, maps combined, and many slots made at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from common import PAGES, SEED, hva_of

from memslots import MemoryMap, Memslots, plan

SIZES = (509, 32764, 1_000_000)
GAP = PAGES + 1  # from one slot to the next
OTHER = 0x10_0000_0000  # added to a host address: memory that no slot has


def map_of(slots: int) -> MemoryMap:
    """Slots with a hole of one page after each."""
    numbers = np.arange(slots, dtype=np.uint64)
    return MemoryMap.from_arrays(
        numbers * GAP, np.full(slots, PAGES), numbers * (PAGES << 12) + hva_of(0)
    )


def changed(m: MemoryMap, how: str) -> MemoryMap:
    """One slot in a hundred with other flags, on other host memory, or moved up by a page."""
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
    """The best of a few."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best * 1e3


class Plan:
    """plan, where one slot in a hundred is different."""

    params = (SIZES[:2], ("flags", "memory", "moves"))
    param_names = ("slots", "changed")
    unit = "ms"

    def setup(self, slots: int, how: str) -> None:
        """Make both maps; see that a plan has the calls it should."""
        self.now = map_of(slots)
        self.wanted = changed(self.now, how)
        calls = len(plan(self.now, self.wanted, max_slots=2 * slots))
        assert calls == max(slots // 100, 1) * (2 if how == "memory" else 1)

    def track_plan(self, slots: int, how: str) -> float:
        """The time of one."""
        return milliseconds(lambda: plan(self.now, self.wanted, max_slots=2 * slots))


class Maps:
    """What makes maps of maps, and a Memslots of one; in ms."""

    params = (SIZES, ("from_arrays", "|", "-", "merged", "diff", "Memslots"))
    param_names = ("slots", "call")
    unit = "ms"

    def setup(self, slots: int, call: str) -> None:
        """Make what is combined."""
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
        """The time of one."""
        return milliseconds(self.call)


NAMES = ("base_gfn", "npages", "userspace_addr")


def main() -> None:
    """Print all of them."""
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
