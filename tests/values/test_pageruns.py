"""PageRuns, beside a set of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from memslots.values.pageruns import PageRuns

GFNS = st.integers(0, 24)
CHANGES = st.lists(st.tuples(GFNS, GFNS, st.booleans()), max_size=12)


@given(CHANGES, GFNS, GFNS)
def test_as_a_set(changes: list[tuple[int, int, bool]], start: int, end: int) -> None:
    runs, expected = PageRuns(), set[int]()
    for first, last, inside in changes:
        before, kept = runs, runs.bounds
        runs = runs.changed(first, last, inside)
        pages = set(range(first, last))
        expected = expected | pages if inside else expected - pages
        assert before.bounds == kept
        assert {gfn for gfn in range(30) if gfn in runs} == expected
        assert list(runs.bounds) == sorted(set(runs.bounds))
        assert bool(runs) == bool(expected)
    found = runs.runs(start, end)
    assert {gfn for a, b in found for gfn in range(a, b)} == expected & set(range(start, end))
    assert all(a < b for a, b in found)
    assert all(b < a for (_, b), (a, _) in pairwise(found))
