"""PageRuns: a set of guest pages, as the runs of gfns that it holds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class PageRuns:
    """An immutable set of gfns. Any number of threads may use one. n is the number of runs."""

    __slots__ = ("bounds",)

    #: The first gfn of each run and the gfn after its last, ascending. No two are equal.
    bounds: tuple[int, ...]

    def __init__(self, bounds: tuple[int, ...] = ()) -> None:
        self.bounds = bounds

    def __contains__(self, gfn: int) -> bool:
        """Returns whether the page is in the set. O(log n)."""
        return bisect_right(self.bounds, gfn) % 2 == 1

    def __bool__(self) -> bool:
        return bool(self.bounds)

    def changed(self, start: int, end: int, inside: bool) -> PageRuns:
        """Returns the set with the pages [start, end) in it, or without them. O(n)."""
        if start >= end:
            return self
        # An even place is outside of every run: a bound at it begins one.
        low = bisect_left(self.bounds, start)
        high = bisect_right(self.bounds, end)
        first = (start,) if (low % 2 == 0) == inside else ()
        last = (end,) if (high % 2 == 0) == inside else ()
        return PageRuns((*self.bounds[:low], *first, *last, *self.bounds[high:]))

    def runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """Returns the runs of the set in [start, end), in order. O(log n + k) for k runs."""
        if start >= end:
            return []
        low = bisect_right(self.bounds, start) // 2 * 2
        high = bisect_left(self.bounds, end)
        bounds = self.bounds[low : high + high % 2]
        pairs = zip(bounds[::2], bounds[1::2], strict=True)
        return [(max(first, start), min(last, end)) for first, last in pairs]
