"""Tests memslots.core.hvatree alone: compares overlaps with a linear search.

R1 to R5 and H1 are checked at every step.
"""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TOP = 2**64 - 1
Range = tuple[int, int]


@pytest.fixture(scope="module")
def hvatree(drivers: Any) -> Any:
    return drivers("hvatree")


def check(ranges: Any, model: dict[int, Range], queries: list[Range]) -> None:
    assert ranges.check()[0] == len(model)
    for first, last in queries:
        found = ranges.overlaps(first, last)
        expected = [n for n, (a, b) in model.items() if a <= last and b >= first]
        assert sorted(found) == sorted(expected)
        assert len(set(found)) == len(found)
        assert [model[n][0] for n in found] == sorted(model[n][0] for n in found)


SMALL = [(a, b) for a in range(4) for b in range(a, 4)]  # the ten ranges within [0, 3]
SMALL_QUERIES = [(a, b) for a in range(5) for b in range(a, 5)]


@pytest.mark.parametrize("size", range(1, 4))
def test_every_set_of_small_ranges(hvatree: Any, size: int) -> None:
    for chosen in itertools.product(SMALL, repeat=size):
        ranges = hvatree.Ranges(size)
        model = {}
        for number, (first, last) in enumerate(chosen):
            ranges.insert(number, first, last)
            model[number] = (first, last)
        check(ranges, model, SMALL_QUERIES)
        for number in range(size):
            ranges.erase(number)
            del model[number]
            check(ranges, model, SMALL_QUERIES[::3])


@pytest.mark.parametrize("lengths", [[50, 3, 200, 1, 90, 20, 7], [5] * 7, [9, 8, 7, 6, 5, 4, 3]])
def test_every_order_of_insertion_and_erasure(hvatree: Any, lengths: list[int]) -> None:
    """The greatest last byte of seven ranges comes from anywhere in a subtree.

    A tree's next steps do not depend on how it was made. So each tree that insertions and erasures
    can make is visited once, and every possible step is made from it.
    """
    spans = {number: (10 * number, 10 * number + length) for number, length in enumerate(lengths)}
    queries = [(first, first) for first in range(0, 300, 7)] + [(0, TOP), (15, 35)]

    def after(steps: tuple[int, ...]) -> tuple[Any, dict[int, Range]]:
        """Returns the tree after `steps`, and its content.

        A step erases a range that is in the tree, else it inserts the range.
        """
        ranges = hvatree.Ranges(len(spans))
        model: dict[int, Range] = {}
        for number in steps:
            if model.pop(number, None) is not None:
                ranges.erase(number)
            else:
                model[number] = spans[number]
                ranges.insert(number, *spans[number])
        return ranges, model

    ways: dict[Any, tuple[int, ...]] = {None: ()}  # by shape: the first steps that led there
    full = 0
    to_do: list[tuple[int, ...]] = [()]
    for steps in to_do:  # grows meanwhile
        for number in spans:
            ranges, model = after((*steps, number))
            check(ranges, model, queries)
            if ranges.shape() not in ways:
                ways[ranges.shape()] = (*steps, number)
                to_do.append((*steps, number))
                full += len(model) == len(spans)
    assert 1 < full <= 33  # red-black trees of seven nodes


def test_equal_ranges_are_all_found(hvatree: Any) -> None:
    ranges = hvatree.Ranges(50)
    for number in range(50):
        ranges.insert(number, 100, 199)
    assert ranges.overlaps(150, 150) == list(range(50))
    assert ranges.overlaps(0, 99) == ranges.overlaps(200, TOP) == []


def test_the_last_address(hvatree: Any) -> None:
    ranges = hvatree.Ranges(2)
    ranges.insert(0, TOP - 4095, TOP)
    ranges.insert(1, 0, 4095)
    check(
        ranges,
        {0: (TOP - 4095, TOP), 1: (0, 4095)},
        [(TOP, TOP), (0, 0), (4096, TOP - 4096), (0, TOP)],
    )


def test_replace_by_a_shorter_and_a_longer_range(hvatree: Any) -> None:
    ranges = hvatree.Ranges(9)
    model = {number: (10 * number, 10 * number + 5) for number in range(8)}
    for number, (first, last) in model.items():
        ranges.insert(number, first, last)
    for last in (500, 30):
        ranges.replace(3, 8, last)
        del model[3]
        model[8] = (30, last)
        check(ranges, model, [(a, a) for a in range(0, 100, 5)])
        ranges.replace(8, 3, 35)
        del model[8]
        model[3] = (30, 35)


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 30), st.integers(0, 12)), max_size=50),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), min_size=3, max_size=3),
)
@settings(deadline=None)
def test_any_sequence_against_a_dict(
    hvatree: Any, steps: list[tuple[int, int, int]], queries: list[tuple[int, int]]
) -> None:
    ranges = hvatree.Ranges(12)
    model: dict[int, Range] = {}
    for number, first, length in steps:
        if model.pop(number, None) is not None:
            ranges.erase(number)
        else:
            model[number] = (first, first + length)
            ranges.insert(number, first, first + length)
        check(ranges, model, [(a, a + b) for a, b in queries])


def test_large_trees_at_random(hvatree: Any) -> None:
    dice = random.Random(5)
    size = 3000
    ranges = hvatree.Ranges(size)
    model: dict[int, Range] = {}
    for number in range(size):
        first = dice.randrange(1 << 40)
        model[number] = (first, first + dice.choice([1, 1 << 10, 1 << 30, 1 << 36]))
        ranges.insert(number, *model[number])
    for number in dice.sample(range(size), size // 2):
        ranges.erase(number)
        del model[number]
    queries = [
        (a, a + dice.choice([0, 1 << 20, 1 << 35])) for a in dice.choices(range(1 << 40), k=30)
    ]
    check(ranges, model, queries)


def test_one_overlap_among_a_million_is_not_searched_for_linearly(hvatree: Any) -> None:
    """A thousand times the ranges cost far less than a thousand times as much: O(log n + k)."""

    def seconds(size: int) -> float:
        ranges = hvatree.Ranges(size)
        for number in range(size):
            ranges.insert(number, 16 * number, 16 * number + 15)
        dice = random.Random(1)
        queries = [16 * dice.randrange(size) for _ in range(2000)]
        times = []
        for _ in range(5):  # the best: another process may take the cache meanwhile
            begin = time.process_time()
            for first in queries:
                assert ranges.count_overlaps(first, first + 15) == 1
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(1_000_000) < 100 * seconds(1000)
