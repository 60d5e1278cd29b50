"""Tests memslots.core.pool: no block is handed out twice, and chunks are freed."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from memslots import Memslots

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.mark.parametrize("size", [64, 192])
def test_blocks_are_apart_and_aligned(drivers: Any, size: int) -> None:
    pool = drivers("pool").Pool(size)
    addresses = sorted(pool.address(pool.get()) for _ in range(500))
    assert all(address % 64 == 0 for address in addresses)
    assert all(b - a >= size for a, b in pairwise(addresses))


def test_a_block_given_back_is_the_next(drivers: Any) -> None:
    pool = drivers("pool").Pool()
    first, second = pool.get(), pool.get()
    address = pool.address(first)
    pool.put(first)
    assert pool.address(pool.get()) == address
    pool.put(second)


def test_at_random(drivers: Any) -> None:
    """Each block keeps its content whatever happens to the others; all memory is freed."""
    dice = random.Random(0)
    live = drivers("alloc").live()
    pool = drivers("pool").Pool(128)
    for most in (5, 300, 40, 1000, 0):
        while len(pool.numbers()) < most:
            for _ in range(dice.randrange(3)):
                pool.get()
            if pool.numbers() and dice.random() < 0.3:
                pool.put(dice.choice(pool.numbers()))
        while len(pool.numbers()) > most:
            pool.put(dice.choice(pool.numbers()))
    # The pool keeps at most one empty chunk for later.
    assert drivers("alloc").live() == live + 1
    del pool
    assert drivers("alloc").live() == live


def test_comes_and_goes_without_an_allocation(drivers: Any) -> None:
    alloc = drivers("alloc")
    for held in (0, 1, 31, 32, 33):
        pool = drivers("pool").Pool()
        for _ in range(held):
            pool.get()
        pool.put(pool.get())
        live = alloc.live()
        for _ in range(5):
            pool.put(pool.get())
            assert alloc.live() == live


def test_no_memory(drivers: Any) -> None:
    """Tests a failed allocation of a chunk, and of a block."""
    alloc = drivers("alloc")
    pool = drivers("pool").Pool()
    for _ in range(70):
        alloc.fail_nth(1)
        assert pool.get() is None
        assert pool.get() is not None


def test_a_chunk_in_use_is_not_taken_away(drivers: Any) -> None:
    live = drivers("alloc").live()
    pool = drivers("pool").Pool()
    kept = [pool.get() for _ in range(3)]
    pool.leave()
    assert drivers("alloc").live() == live + 1
    for number in kept:
        pool.put(number)
    del pool
    assert drivers("alloc").live() == live


def test_slots_that_went_take_no_memory(drivers: Any) -> None:
    vm = Memslots()
    live = drivers("alloc").live()
    for id in range(2000):
        vm.create(id, id, 1, 0)
    assert drivers("alloc").live() > live + 50
    for id in random.Random(0).sample(range(2000), 2000):
        vm.delete(id)
    assert drivers("alloc").live() <= live + 3
    vm.check()
