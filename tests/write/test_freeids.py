"""Tests free_id: the lowest id that no slot has, after any changes."""

from __future__ import annotations

import errno
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots import (
    BusyError,
    InvalidRegionError,
    MemoryMap,
    Memslots,
    NoRoomError,
    Transaction,
)

SLOTS = 12


def lowest(used: set[int]) -> int:
    return next(id for id in range(SLOTS + 1) if id not in used)


def ask(on: Memslots | Transaction, used: set[int], as_id: int) -> None:
    expected = lowest(used)
    if expected < SLOTS:
        assert on.free_id(as_id) == expected
        return
    with pytest.raises(NoRoomError, match=f"address space {as_id} has no free id") as caught:
        on.free_id(as_id=as_id)
    assert caught.value.errno == errno.ENOSPC


step = st.tuples(st.sampled_from(["create", "delete", "ask", "fill"]), st.integers(0, SLOTS - 1))
part = st.tuples(
    st.sampled_from(["alone", "together", "given up"]),
    st.integers(0, 1),
    st.lists(step, max_size=8),
)


def make(on: Memslots | Transaction, used: set[int], verb: str, id: int, as_id: int) -> None:
    if verb == "fill" and lowest(used) < SLOTS:
        verb, id = "create", on.free_id(as_id)
        assert id == lowest(used)
    if verb == "create" and id not in used:
        on.create(id, id * 10, 5, id << 20, as_id=as_id)
        used.add(id)
    elif verb == "delete" and id in used:
        on.delete(id, as_id)
        used.discard(id)
    elif verb == "ask":
        ask(on, used, as_id)


@given(st.lists(part, max_size=12))
def test_against_a_set(parts: list[tuple[str, int, list[tuple[str, int]]]]) -> None:
    vm = Memslots(SLOTS, address_spaces=2)
    used: list[set[int]] = [set(), set()]
    for how, as_id, steps in parts:
        if how == "alone":
            for verb, id in steps:
                make(vm, used[as_id], verb, id, as_id)
            continue
        staged = set(used[as_id])
        try:
            with vm.transaction() as tx:
                for verb, id in steps:
                    make(tx, staged, verb, id, as_id)
                ask(tx, staged, as_id)
                if how == "given up":
                    raise InterruptedError
        except InterruptedError:
            continue
        used[as_id] = staged
    for as_id in (0, 1):
        ask(vm, used[as_id], as_id)
    vm.check()


def test_deletions_by_other_ways() -> None:
    vm = Memslots()
    for id in range(5):
        vm.create(id, id, 1, 0)
    assert vm.free_id() == 5
    vm.set_region(3, 0, 0, 0, 0)
    assert vm.free_id() == 3
    with vm.transaction() as tx:
        tx.set_region(1, 0, 0, 0, 0)
        assert tx.free_id() == 1
        tx.create(1, 1, 1, 0)
        assert tx.free_id() == 3
    assert vm.free_id() == 3


def test_of_what_is_restored() -> None:
    import pickle

    vm = Memslots()
    for id in (0, 1, 2, 5):
        vm.create(id, id, 1, 0)
    assert pickle.loads(pickle.dumps(vm)).free_id() == 3


def test_who_may_not_ask() -> None:
    vm = Memslots(address_spaces=2)

    class Listener:
        def prepare(self, change: object, old: object, new: object) -> None:
            with pytest.raises(BusyError):
                vm.free_id()

    with vm.subscribe(Listener()):
        vm.create(0, 0, 1, 0)
    with vm.transaction() as tx:
        with pytest.raises(BusyError):
            vm.free_id()
        with pytest.raises(InvalidRegionError):
            tx.free_id(2)
    with pytest.raises(RuntimeError):
        tx.free_id()
    with pytest.raises(InvalidRegionError):
        vm.free_id(2)
    with pytest.raises(TypeError):
        vm.free_id("0")  # type: ignore[arg-type]


def test_it_does_not_walk_over_all_each_time() -> None:
    """The worst case of a cursor alone: an id goes and comes, and then the end is asked for."""
    vm = Memslots(20_001)
    with vm.transaction() as tx:
        for id in range(20_000):
            tx.create(id, id, 1, 0)
    dice = random.Random(1)
    began = time.process_time()
    for _ in range(5000):
        id = dice.randrange(20_000)
        vm.delete(id)
        assert vm.free_id() == id
        vm.create(id, id, 1, 0)
        assert vm.free_id() == 20_000
    took = time.process_time() - began
    # 10,000 walks over 20,000 ids would take minutes.
    assert took < 20


def test_a_few_slots_among_many_cost_no_walk_through_all() -> None:
    """create_many finds ids as free_id does. A walk from id 0 on takes a hundred times as long."""

    def seconds(slots: int) -> float:
        vm = Memslots(slots + 150, map=MemoryMap([(2 * i, 1, 0) for i in range(slots)]))
        vm.free_id()  # the first request is O(n)
        rounds = []
        for first in range(slots, slots + 150, 50):
            began = time.process_time()
            for id in range(first, first + 50):
                (made,) = vm.create_many([(2 * id, 1, 0)])
                assert made.id == id
            rounds.append(time.process_time() - began)
        return min(rounds)

    assert seconds(200_000) < 20 * seconds(100)
