from __future__ import annotations

import inspect
from dataclasses import MISSING, FrozenInstanceError, astuple, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.traces import RegionCall
from memslots.traces.gaps import Gap, Gaps


def test_one_gap() -> None:
    gaps = Gaps(1)
    gaps.removed(10, 20, 3, 100)
    assert gaps.closed == []
    gaps.added(10, 20, 5, 250)
    assert gaps.closed == [Gap(1, 10, 10, 3, 5, 150)]
    assert gaps.closed[0].end_gfn == 20


def test_never_refilled_and_never_there_before() -> None:
    gaps = Gaps(0)
    gaps.added(0, 10, 1, None)
    gaps.removed(0, 10, 2, None)
    gaps.added(20, 30, 3, None)
    assert gaps.closed == []


def test_refilled_in_parts() -> None:
    gaps = Gaps(0)
    gaps.removed(0, 100, 1, None)
    gaps.added(10, 20, 2, None)
    gaps.added(90, 120, 3, None)
    assert gaps.closed == [Gap(0, 10, 10, 1, 2, None), Gap(0, 90, 10, 1, 3, None)]


def test_two_holes_refilled_at_once() -> None:
    gaps = Gaps(0)
    gaps.removed(0, 10, 1, 1)
    gaps.removed(10, 20, 2, 2)
    gaps.removed(30, 40, 2, None)
    gaps.added(5, 35, 3, 10)
    assert gaps.closed == [
        Gap(0, 5, 5, 1, 3, 9),
        Gap(0, 10, 10, 2, 3, 8),
        Gap(0, 30, 5, 2, 3, None),
    ]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=40))
def test_against_one_gfn_at_a_time(ranges: list[tuple[int, int]]) -> None:
    """Each range is toggled: added if none of it is there, else its present part is removed."""
    gaps = Gaps(0)
    taken: set[int] = set()
    lost: dict[int, int] = {}
    expected: set[tuple[int, int, int]] = set()
    for line, (start, length) in enumerate(ranges):
        span = range(start, start + length)
        if not taken.intersection(span):
            gaps.added(start, start + length, line, line)
            taken.update(span)
            expected |= {(gfn, lost.pop(gfn), line) for gfn in span if gfn in lost}
        elif taken.issuperset(span):
            gaps.removed(start, start + length, line, line)
            taken.difference_update(span)
            lost |= dict.fromkeys(span, line)
    found = [
        (gfn, gap.opened_line, gap.closed_line)
        for gap in gaps.closed
        for gfn in range(gap.base_gfn, gap.end_gfn)
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert all(gap.duration_ns == gap.closed_line - gap.opened_line for gap in gaps.closed)


def test_many() -> None:
    """The cost is about linear in the number of ranges, so this is quick."""
    gaps = Gaps(0)
    for n in range(20_000):
        gaps.removed(2 * n, 2 * n + 1, n, None)
    gaps.added(0, 40_000, 20_000, None)
    assert len(gaps.closed) == 20_000


@pytest.mark.parametrize("kind", [Gap, RegionCall])
def test_the_written_constructors(kind: type[Gap] | type[RegionCall]) -> None:
    """These two have constructors of their own, which must take and set every field."""
    names = [each.name for each in fields(kind)]
    assert list(inspect.signature(kind).parameters) == names
    made = kind(*range(len(names)))
    assert astuple(made) == tuple(range(len(names)))
    with pytest.raises(FrozenInstanceError):
        setattr(made, names[0], 7)
    for each, taken in zip(fields(kind), inspect.signature(kind).parameters.values(), strict=True):
        assert taken.default == (taken.empty if each.default is MISSING else each.default)
