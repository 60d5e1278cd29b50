"""Tests memslots.core.rbtree alone: every small case, and large ones at random.

R1 to R5 are checked at every step.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXHAUSTIVE = 7


@pytest.fixture(scope="module")
def rbtree(drivers: Any) -> Any:
    return drivers("rbtree")


def check(tree: Any, expected: list[int]) -> None:
    """Checks the properties, and that both walks give exactly the expected numbers."""
    count, depth = tree.check()
    assert count == len(expected)
    assert depth <= 2 * math.log2(count + 1)
    assert tree.forward() == expected
    assert tree.backward() == expected[::-1]


def test_an_empty_tree(rbtree: Any) -> None:
    tree = rbtree.Tree(1)
    check(tree, [])
    assert tree.floor(0) is None
    assert tree.lower_bound(2**64 - 1) is None


@pytest.mark.parametrize("size", range(1, EXHAUSTIVE + 1))
def test_every_order_of_insertion_and_erasure(rbtree: Any, size: int) -> None:
    # If several orders of insertion lead to the same tree, they go on in the same way. One of them
    # is enough.
    trees: dict[Any, tuple[int, ...]] = {}
    for order in itertools.permutations(range(size)):
        tree = rbtree.Tree(size)
        for done, number in enumerate(order, 1):
            tree.insert(number, 10 * number)
            assert tree.check()[0] == done
        check(tree, list(range(size)))
        trees.setdefault(tree.shape(), order)
    assert size < 4 or len(trees) > 1

    for order in trees.values():
        for erasures in itertools.permutations(range(size)):
            tree = rbtree.Tree(size)
            for number in order:
                tree.insert(number, 10 * number)
            for done, number in enumerate(erasures, 1):
                tree.erase(number)
                assert tree.check()[0] == size - done
                assert tree.forward() == sorted(erasures[done:])


@pytest.mark.parametrize("size", range(1, 6))
def test_every_pattern_of_equal_keys(rbtree: Any, size: int) -> None:
    for keys in itertools.product(range(3), repeat=size):
        tree = rbtree.Tree(size)
        for number, key in enumerate(keys):
            tree.insert(number, key)
            # Equal keys are in order of insertion.
            check(tree, sorted(range(number + 1), key=lambda n: (keys[n], n)))
        left = tree.forward()
        for number in range(size):
            tree.erase(number)
            left.remove(number)
            check(tree, left)


@pytest.mark.parametrize("size", range(1, EXHAUSTIVE + 1))
def test_replace_at_every_place(rbtree: Any, size: int) -> None:
    for place in range(size):
        tree = rbtree.Tree(size + 1)
        for number in range(size):
            tree.insert(number, 10 * number)
        tree.replace(place, size, 10 * place + 5)  # another key that sorts into the same place
        expected = list(range(size))
        expected[place] = size
        check(tree, expected)
        tree.insert(place, 10 * place)  # the old node is free and can be inserted again
        expected.insert(place, place)
        check(tree, expected)


@pytest.mark.parametrize("size", range(1, EXHAUSTIVE + 1))
def test_floor_and_lower_bound_at_every_key(rbtree: Any, size: int) -> None:
    tree = rbtree.Tree(size)
    keys = [10 * number + 10 for number in range(size)]
    for number, key in enumerate(keys):
        tree.insert(number, key)
    for key in [*range(10 * size + 20), 2**64 - 1]:
        assert tree.floor(key) == max((n for n in range(size) if keys[n] <= key), default=None)
        assert tree.lower_bound(key) == min(
            (n for n in range(size) if keys[n] >= key), default=None
        )


def test_keys_at_both_ends_of_the_numbers(rbtree: Any) -> None:
    tree = rbtree.Tree(3)
    for number, key in enumerate([0, 2**64 - 1, 2**63]):
        tree.insert(number, key)
    check(tree, [0, 2, 1])
    assert [tree.floor(key) for key in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 0, 2, 1]
    assert [tree.lower_bound(key) for key in (0, 1, 2**63 + 1, 2**64 - 1)] == [0, 2, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 7)), max_size=60))
@settings(deadline=None)
def test_any_sequence_against_a_list(rbtree: Any, steps: list[tuple[int, int]]) -> None:
    """A step removes its node if it is in the tree, else inserts it with the key.

    The model is a sorted list.
    """
    tree = rbtree.Tree(16)
    model: list[tuple[int, int]] = []  # (key, number)
    for number, key in steps:
        found = [entry for entry in model if entry[1] == number]
        if found:
            tree.erase(number)
            model.remove(found[0])
        else:
            tree.insert(number, key)
            after = [i for i, (other, _) in enumerate(model) if other > key]
            model.insert(after[0] if after else len(model), (key, number))
        check(tree, [number for _, number in model])


@pytest.mark.parametrize("size", [1000, 30_000])
def test_large_trees_at_random(rbtree: Any, size: int) -> None:
    dice = random.Random(size)
    tree = rbtree.Tree(size)
    numbers = list(range(size))
    dice.shuffle(numbers)
    for number in numbers:
        tree.insert(number, 3 * number)
    check(tree, list(range(size)))
    for _ in range(200):
        key = dice.randrange(3 * size)
        assert tree.floor(key) == key // 3
        assert tree.lower_bound(key) == (-(-key // 3) if key <= 3 * (size - 1) else None)
    gone = set(dice.sample(numbers, size - 7))
    for step, number in enumerate(gone):
        tree.erase(number)
        if step % (size // 50) == 0:
            tree.check()
    check(tree, sorted(set(numbers) - gone))


@pytest.mark.parametrize("reverse", [False, True])
def test_sorted_insertion_stays_balanced(rbtree: Any, reverse: bool) -> None:
    size = 4096
    tree = rbtree.Tree(size)
    for number in sorted(range(size), reverse=reverse):
        tree.insert(number, number)
    check(tree, list(range(size)))
