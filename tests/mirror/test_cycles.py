"""Tests which slots step aside, against all choices."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from memslots.mirror.cycles import least_breaks


def has_circle(waits: list[list[int]], without: set[int]) -> bool:
    left = {i for i in range(len(waits)) if i not in without}
    while left:
        free = {i for i in left if not left.intersection(waits[i])}
        if not free:
            return True
        left -= free
    return False


def least_cost(waits: list[list[int]], cost: list[int]) -> int:
    nodes = range(len(waits))
    return min(
        sum(cost[i] for i in chosen)
        for count in range(len(waits) + 1)
        for chosen in combinations(nodes, count)
        if not has_circle(waits, set(chosen))
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    count = draw(st.integers(0, 7))
    waits = [
        sorted(draw(st.sets(st.sampled_from([j for j in range(count) if j != i]))))
        if count > 1
        else []
        for i in range(count)
    ]
    return waits, draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))


@given(graphs())
def test_no_choice_costs_less(graph: tuple[list[list[int]], list[int]]) -> None:
    waits, cost = graph
    found = least_breaks(waits, cost)
    assert not has_circle(waits, set(found))
    assert sum(cost[i] for i in found) == least_cost(waits, cost)


def test_a_long_circle() -> None:
    count = 5000
    cost = [2] * count
    cost[1234] = 1
    assert least_breaks([[(i + 1) % count] for i in range(count)], cost) == [1234]


def test_a_large_knot_ends() -> None:
    """Every node waits for every other: all but one step aside."""
    count = 40
    waits = [[j for j in range(count) if j != i] for i in range(count)]
    assert len(least_breaks(waits, [1] * count)) == count - 1
