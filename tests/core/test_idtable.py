"""Tests memslots.core.idtable alone, against a dict: every small size, and the largest ids."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.fixture(scope="module")
def idtable(drivers: Any) -> Any:
    return drivers("idtable")


def check(table: Any, model: dict[int, int], others: list[int]) -> None:
    assert table.count == len(model)
    for id, number in model.items():
        assert table.find(id) == number
    for id in others:
        assert table.find(id) == model.get(id)
    # A quarter is empty. Less than seven eighths are, except in the smallest tables.
    assert 4 * len(model) <= 3 * table.places
    assert table.places <= max(8, 8 * len(model))
    assert bool(table.places) == bool(model)


def test_an_empty_table_costs_nothing(idtable: Any) -> None:
    table = idtable.Table(1)
    check(table, {}, [0, 1, 2**31 - 1, 2**32 - 1])
    assert table.places == 0


def home(id: int, order: int) -> int:
    """Returns the place where a table of 1 << order places looks for an id first (idtable.pyx)."""
    return (id * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 64 - order


def ids_of_homes(*homes: int) -> list[int]:
    """Returns ids with these homes in a table of 16 places, and half of each in one of 8."""
    found: list[int] = []
    for wanted in homes:
        found.append(
            next(id for id in itertools.count(3) if id not in found and home(id, 4) == wanted)
        )
    return found


@pytest.mark.parametrize(
    ("ids", "tables"),
    [
        ([0, 1, 2, 2**31 - 1, 2**32 - 1, 8, 16], 8),
        (ids_of_homes(*[15] * 7), 5040),
        (ids_of_homes(14, 14, 15, 15, 0, 1, 1), 432),
        (ids_of_homes(12, 15, 13, 0, 15, 2, 14), 4),
        (ids_of_homes(0, 2, 4, 6, 8, 10, 12), 1),
    ],
    ids=["usual", "all at one home", "pairs across the end", "a run across the end", "apart"],
)
def test_every_order_of_addition_and_removal(idtable: Any, ids: list[int], tables: int) -> None:
    """Seven ids, of which the seventh makes the table grow; all of them lie in `tables` ways.

    A table's next steps do not depend on how it was made. So each table that additions and removals
    can make is visited once, and every possible step is made from it.
    """

    def after(steps: tuple[int, ...]) -> tuple[Any, dict[int, int]]:
        """Returns the table after `steps`, and its content.

        A step removes an item that is in the table, else it adds the item.
        """
        table = idtable.Table(len(ids))
        model: dict[int, int] = {}
        for number in steps:
            if model.pop(ids[number], None) is not None:
                table.remove(number)
                table.trim()
            else:
                table.add(number, ids[number])
                model[ids[number]] = number
        return table, model

    ways: dict[Any, tuple[int, ...]] = {(): ()}  # by state: the first steps that led there
    to_do: list[tuple[int, ...]] = [()]
    full = 0
    for steps in to_do:  # grows meanwhile
        for number in range(len(ids)):
            table, model = after((*steps, number))
            check(table, model, ids)
            state = table.state()
            if state not in ways:
                ways[state] = (*steps, number)
                to_do.append((*steps, number))
                full += len(model) == len(ids)
    assert full == tables


def test_ids_that_share_a_home_are_all_found(idtable: Any) -> None:
    """Runs of ids wrap around the table's end, with a hole at every place."""
    dice = random.Random(3)
    for _ in range(300):
        table = idtable.Table(6)
        ids = dice.sample(range(64), 6)
        for number, id in enumerate(ids):
            table.add(number, id)
        model = {id: number for number, id in enumerate(ids)}
        for number in dice.sample(range(6), 6):
            table.remove(number)
            table.trim()
            del model[ids[number]]
            check(table, model, list(range(64)))


@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 2)), max_size=120))
@settings(deadline=None)
def test_any_sequence_against_a_dict(idtable: Any, steps: list[tuple[int, int]]) -> None:
    """Items 24 to 47 are the copies that replace puts in place of items 0 to 23."""
    table = idtable.Table(48)
    model: dict[int, int] = {}
    for number, step in steps:
        id = (number * 2654435761) % 2**32
        if id not in model:
            table.add(number, id)
            model[id] = number
        elif step == 0:
            double = (model[id] + 24) % 48
            table.replace(model[id], double)
            model[id] = double
        else:
            table.remove(model.pop(id))
            table.trim()
        check(table, model, [0, id, id + 1])


@pytest.mark.parametrize("stride", [1, 2, 64, 4096, 65536, 2**20, 12345])
def test_no_stride_of_ids_makes_it_slow(idtable: Any, stride: int) -> None:
    size = min(2000, 2**31 // stride)
    table = idtable.Table(size)
    for number in range(size):
        table.add(number, number * stride)
    assert table.longest_probe() < 100
    assert table.find(stride * size + 1) is None


def test_memory_is_in_proportion_to_the_ids_in_use(idtable: Any) -> None:
    size = 20_000
    table = idtable.Table(size)
    dice = random.Random(9)
    ids = dice.sample(range(2**31), size)
    for number, id in enumerate(ids):
        table.add(number, id)
        assert table.places <= max(8, 4 * (number + 1))
    assert all(table.find(id) == number for number, id in enumerate(ids))
    for number in range(size - 10):
        table.remove(number)
        if number % 7 == 0:  # also trims by more than half at once
            table.trim()
    table.trim()
    check(table, {ids[number]: number for number in range(size - 10, size)}, ids[:100])
    for number in range(size - 10, size):
        table.remove(number)
    assert table.places > 0
    table.trim()
    assert table.places == 0


@pytest.mark.parametrize("left", [1, 2, 3, 8, 9, 15, 16, 17])
def test_a_trim_leaves_room_to_grow(idtable: Any, left: int) -> None:
    table = idtable.Table(200)
    for number in range(200):
        table.add(number, number)
    for number in range(left, 200):
        table.remove(number)
    table.trim()
    assert max(8, 4 * left) <= table.places <= max(8, 8 * left)
    check(table, {number: number for number in range(left)}, [left])


def test_a_spare_that_is_not_used_is_given_back(idtable: Any, drivers: Any) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    table = idtable.Table(8)
    assert table.get_and_drop_spare()
    assert alloc.live() == live
    table.add(0, 7)
    assert not table.get_and_drop_spare()
    check(table, {7: 0}, [8])


def test_no_memory_to_grow_and_none_to_shrink(idtable: Any, drivers: Any) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    table = idtable.Table(100)
    for number in range(6):
        table.add(number, number)
    alloc.fail_nth(1)
    with pytest.raises(MemoryError):
        table.add(6, 6)
    check(table, {number: number for number in range(6)}, [6])
    for number in range(6, 100):
        table.add(number, number)
    places = table.places
    for number in range(99, 0, -1):
        alloc.fail_nth(1)
        table.remove(number)
        table.trim()  # keeps the larger table
        assert table.find(0) == 0
        assert table.find(number) is None
    alloc.fail_nth(0)
    assert table.places == places
    table.remove(0)
    table.trim()
    assert (table.places, alloc.live()) == (0, live)


def test_memory_for_many_additions_is_got_at_once(idtable: Any, drivers: Any) -> None:
    alloc = drivers("alloc")
    table = idtable.Table(1000)
    asked = alloc.asked()
    table.add_all(range(1000))
    assert alloc.asked() == asked + 1
    check(table, {number: number for number in range(1000)}, [1000])


def test_what_was_removed_can_be_added_again_without_memory(idtable: Any, drivers: Any) -> None:
    alloc = drivers("alloc")
    table = idtable.Table(100)
    table.add_all(range(100))
    for number in range(100):
        table.remove(number)
    asked = alloc.asked()
    table.add_all(range(100))
    assert alloc.asked() == asked
    check(table, {number: number for number in range(100)}, [100])
