"""Gaps: ranges of gfns that had a slot, lost it, and got one back.

A guest that touches such a page in between finds no memory there. One Gaps follows one address
space. Its caller reports every range that lost its slot and every range that got one.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """[base_gfn, base_gfn + npages) was without a slot from one line of the trace to another."""

    as_id: int
    base_gfn: int
    npages: int
    opened_line: int
    closed_line: int
    duration_ns: int | None

    @property
    def end_gfn(self) -> int:
        """Returns the first gfn after the gap."""
        return self.base_gfn + self.npages


@dataclass(slots=True)
class _Hole:
    """gfns [start, end) that have had no slot since `line`."""

    start: int
    end: int
    line: int
    time_ns: int | None


class Gaps:
    """Finds gaps. `closed` holds them in the order in which they closed, then in gfn order.

    Removing or adding a range takes O(log h + k) steps for h open holes, of which it touches k.
    """

    def __init__(self, as_id: int) -> None:
        self.as_id = as_id
        self.closed: list[Gap] = []
        self._holes: list[_Hole] = []  # disjoint, in gfn order; none of their gfns has a slot
        self._starts: list[int] = []  # of the holes

    def removed(self, start: int, end: int, line: int, time_ns: int | None) -> None:
        """Records that gfns [start, end), all in a slot until now, are in none any more."""
        if start < end:
            at = bisect_right(self._starts, start)
            self._starts.insert(at, start)
            self._holes.insert(at, _Hole(start, end, line, time_ns))

    def added(self, start: int, end: int, line: int, time_ns: int | None) -> None:
        """Records that gfns [start, end), none of them in a slot until now, are in one."""
        first = bisect_right(self._starts, start)
        if first and self._holes[first - 1].end > start:
            first -= 1
        last = first
        left: list[_Hole] = []
        while last < len(self._holes) and (hole := self._holes[last]).start < end:
            last += 1
            closed_start, closed_end = hole.start, hole.end
            if closed_start < start:
                left.append(_Hole(closed_start, start, hole.line, hole.time_ns))
                closed_start = start
            if closed_end > end:
                left.append(_Hole(end, closed_end, hole.line, hole.time_ns))
                closed_end = end
            self._close(closed_start, closed_end, hole, line, time_ns)
        self._holes[first:last] = left
        self._starts[first:last] = [hole.start for hole in left]

    def _close(self, start: int, end: int, hole: _Hole, line: int, time_ns: int | None) -> None:
        duration = None
        if time_ns is not None and hole.time_ns is not None:
            duration = time_ns - hole.time_ns
        self.closed.append(Gap(self.as_id, start, end - start, hole.line, line, duration))
