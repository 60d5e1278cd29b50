"""Tests memslots.core.search: every kind of search against bisect, with every layout of keys."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

KINDS = ("portable", "avx2", "avx512")


@pytest.fixture
def kind(request: pytest.FixtureRequest, drivers: Any) -> Iterator[str]:
    driver = drivers("search")
    try:
        if not driver.use(request.param):
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
    finally:
        driver.use(driver.best())


def expect(keys: list[int], wanted: list[int], places: list[int]) -> None:
    for number, place in zip(wanted, places, strict=True):
        assert 0 <= place < len(keys)
        if number >= keys[0]:
            assert place == bisect_right(keys, number) - 1


def around(keys: list[int], dice: random.Random) -> list[int]:
    some = dice.sample(keys, min(len(keys), 200))
    near = [key + step for key in some for step in (-1, 0, 1) if 0 <= key + step < 1 << 64]
    return [*near, 0, 1, 1 << 32, (1 << 32) - 1, 1 << 52, (1 << 64) - 1, keys[0], keys[-1]]


@pytest.mark.parametrize("kind", KINDS, indirect=True)
@pytest.mark.parametrize(
    ("spacing", "origin", "narrow"),
    [
        (1, 0, True),
        (3, 17, True),
        (1 << 20, 1 << 51, True),  # wide apart, but all of them multiples
        ((1 << 32) + 1, 5, False),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 255, 256, 257, 272, 273, 4096, 4097, 70_000])
def test_against_bisect(
    drivers: Any, kind: str, count: int, spacing: int, origin: int, narrow: bool
) -> None:
    keys = [origin + i * spacing for i in range(count)]
    laid = drivers("search").Keys(keys)
    assert laid.narrow == (narrow or count == 1)
    dice = random.Random(count)
    wanted = around(keys, dice)
    dice.shuffle(wanted)
    block = drivers("search").BLOCK
    for size in (1, 15, 16, 17, 33, block):
        for begin in range(0, len(wanted), size):
            some = wanted[begin : begin + size]
            expect(keys, some, laid.places(some))
    expect(keys, wanted, [laid.place(number) for number in wanted])


@given(st.data())
def test_random_keys(drivers: Any, data: st.DataObject) -> None:
    driver = drivers("search")
    top = data.draw(st.sampled_from([1 << 8, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 52]))
    shift = data.draw(st.integers(0, 9))
    chosen = data.draw(st.sets(st.integers(0, top), min_size=1, max_size=300))
    keys = sorted(key << shift for key in chosen)
    wanted = data.draw(
        st.lists(
            st.one_of(st.sampled_from(keys), st.integers(0, (1 << 64) - 1), st.integers(0, top)),
            min_size=1,
            max_size=driver.BLOCK,
        )
    )
    try:
        for kind in KINDS:
            if driver.use(kind):
                laid = driver.Keys(keys)
                expect(keys, wanted, laid.places(wanted))
                expect(keys, wanted, [laid.place(number) for number in wanted])
    finally:
        driver.use(driver.best())


def test_the_greatest_narrow_key(drivers: Any) -> None:
    """The filler of the nodes is a 32-bit number itself, so no key may be that great."""
    top = (1 << 32) - 1
    for last, narrow in ((top - 1, True), (top, False)):
        laid = drivers("search").Keys([0, 1, last])
        assert laid.narrow == narrow
        wanted = [0, 1, 2, last - 1, last, last + 1, 1 << 40, (1 << 64) - 1]
        assert laid.places(wanted) == [0, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_tree_of_nodes_is_as_low_as_it_can_be(drivers: Any, kind: str) -> None:
    for count, levels in ((1, 1), (16, 1), (17, 2), (256, 2), (257, 3), (4096, 3), (4097, 4)):
        assert drivers("search").Keys(list(range(count))).levels == levels
