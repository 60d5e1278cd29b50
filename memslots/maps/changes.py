"""The differences between two maps: runs of addresses that have something else than before."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from memslots.maps.entries import Entry, Map


class Part(NamedTuple):
    """What a run of addresses has."""

    kind: str
    name: str
    offset: int | None
    """Offset of the run's first byte in its block of RAM."""


class Run(NamedTuple):
    """Addresses [start, end), with what they had and have; None is nothing."""

    start: int
    end: int
    before: Part | None
    after: Part | None


def changed_runs(first: Map, second: Map) -> list[Run]:
    """Returns the runs that differ, in order of their addresses. O(n log n) for n entries."""
    edges = sorted({edge for one in (first, second) for e in one for edge in (e.start, e.end)})
    runs: list[Run] = []
    for start, end in pairwise(edges):
        run = Run(start, end, _part(first.get(start), start), _part(second.get(start), start))
        if run.before == run.after:
            continue
        last = runs[-1] if runs else None
        if last is not None and last.end == start:
            size = start - last.start
            if all(_goes_on(*parts, size) for parts in ((last[2], run[2]), (last[3], run[3]))):
                runs[-1] = last._replace(end=end)
                continue
        runs.append(run)
    return runs


def _part(entry: Entry | None, start: int) -> Part | None:
    if entry is None:
        return None
    offset = None if entry.offset is None else entry.offset + start - entry.start
    return Part(entry.kind, entry.name, offset)


def _goes_on(before: Part | None, after: Part | None, size: int) -> bool:
    """Returns whether `after` continues `before`, which begins `size` bytes earlier."""
    if before is not None and before.offset is not None:
        before = before._replace(offset=before.offset + size)
    return before == after
