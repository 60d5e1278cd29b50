"""What the calls of a VM took in the kernel, if the trace has the times of `strace -T`."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import NamedTuple

from memslots.traces import RegionCall

#: Number of the slowest calls that are kept; the others are only added up.
SLOWEST_KEPT = 20


class Cost(NamedTuple):
    """The times of some calls, added up."""

    calls: int = 0
    total_ns: int = 0
    longest_ns: int = 0


_NONE = Cost()


class CostlyCall(NamedTuple):
    """One of the slowest calls, and its kind as `Costs.by_kind` has it."""

    call: RegionCall
    kind: str


# No slots: pickle's protocols 0 and 1 refuse a class that has slots and is not frozen.
@dataclass
class Costs:
    """The times of all calls of a VM that have one.

    A kind is that of the change (`CREATE`), the errno of a refusal (`EEXIST`), or `left out` for a
    call that succeeded but could not be replayed.
    """

    all: Cost = _NONE
    by_kind: dict[str, Cost] = field(default_factory=dict)
    _heap: list[tuple[int, int, CostlyCall]] = field(default_factory=list, init=False, repr=False)

    def add(self, call: RegionCall, kind: str) -> None:
        """Adds a call, if it has a time."""
        took = call.duration_ns
        if took is None:
            return
        # Of two calls that took the same time, the heap keeps the earlier one.
        item = (took, -self.all.calls, CostlyCall(call, kind))
        self.all = _with_one(self.all, took)
        self.by_kind[kind] = _with_one(self.by_kind.get(kind, _NONE), took)
        if len(self._heap) < SLOWEST_KEPT:
            heappush(self._heap, item)
        else:
            heappushpop(self._heap, item)

    @property
    def slowest(self) -> list[CostlyCall]:
        """Returns the slowest calls, at most SLOWEST_KEPT, the slowest first."""
        return [each for _, _, each in sorted(self._heap, reverse=True)]


def _with_one(cost: Cost, duration_ns: int) -> Cost:
    """Returns the cost with one more call."""
    longest = max(cost.longest_ns, duration_ns)
    return Cost(cost.calls + 1, cost.total_ns + duration_ns, longest)
