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
        if last is None or last.end < start or _later(last, start) != run[2:]:
            runs.append(run)
        else:
            runs[-1] = last._replace(end=end)
    return runs


def _part(entry: Entry | None, start: int) -> Part | None:
    if entry is None:
        return None
    offset = None if entry.offset is None else entry.offset + start - entry.start
    return Part(entry.kind, entry.name, offset)


def _later(run: Run, start: int) -> tuple[Part | None, ...]:
    """Returns what a run has at `start`, before and after."""
    return tuple(
        part and part._replace(offset=None if part[2] is None else part[2] + start - run.start)
        for part in run[2:]
    )
