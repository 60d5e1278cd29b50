"""Tests transactions: legal as a whole and step by step, and what readers see."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from fourslots import HVA, LOG, four_slots, step, steps
from hypothesis import given
from hypothesis import strategies as st
from model import state_of, unchanged

from memslots import (
    Change,
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    OverlapError,
    Slot,
    Transaction,
)


@pytest.fixture
def vm() -> Memslots:
    return four_slots()


def places(vm: Memslots) -> dict[int, tuple[int, int]]:
    return {slot.id: (slot.base_gfn, slot.npages) for slot in vm}


# Legal as a whole, whatever the steps in between.


def test_two_slots_trade_places(vm: Memslots) -> None:
    with vm.transaction() as tx:
        assert tx.move(0, 0x10) == tx.get(0)
        tx.move(1, 0x00)
    assert places(vm) == {1: (0, 0x10), 0: (0x10, 0x10), 2: (0x20, 0x10), 3: (0x30, 0x10)}
    vm.check()


def test_a_slot_between_two_steps_is_freed_at_once(drivers: Any, vm: Memslots) -> None:
    alloc = drivers("alloc")
    with vm.transaction() as tx:
        live = alloc.live()
        made = tx.create(9, 0x100, 8, HVA, LOG)
        references = sys.getrefcount(made)
        assert alloc.live() > live  # its dirty log
        tx.set_flags(9, 0)
        assert sys.getrefcount(made) == references - 1
        assert alloc.live() <= live + 1  # the id table may have grown
    vm.check()


def test_three_slots_rotate(vm: Memslots) -> None:
    with vm.transaction() as tx:
        for id in range(3):
            tx.move(id, 0x10 * ((id + 1) % 3))
    assert [slot.id for slot in vm] == [2, 0, 1, 3]
    vm.check()


def test_a_slot_is_split_in_three(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.create(7, 0x14, 4, HVA)  # over slot 1, which goes a step later
        was = tx.delete(1)
        tx.create(1, 0x10, 4, was.userspace_addr)
        tx.create(8, 0x18, 8, was.userspace_addr + 0x8000, Flags.READONLY)
    assert places(vm) == {
        0: (0, 0x10),
        1: (0x10, 4),
        7: (0x14, 4),
        8: (0x18, 8),
        2: (0x20, 0x10),
        3: (0x30, 0x10),
    }
    vm.check()


def test_a_slot_is_resized_and_gets_another_host_address(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.delete(1)
        tx.create(1, 0x12, 2, HVA + 0x7000)
    assert vm[1] == Slot(1, 0, 0x12, 2, HVA + 0x7000)
    assert [entry[0].id for entry in vm.in_hva_range(HVA + 0x7000, HVA + 0x7001)] == [0, 1]
    assert vm.nr_pages == 0x32
    vm.check()


def test_both_address_spaces(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.delete(0)
        tx.set_region(1 << 16 | 5, 0, 0x5000, 0x1000, HVA)
        assert tx.lookup(5, as_id=1) == tx.get(5, as_id=1)
        assert tx.get(5) is None
    assert (vm.generation, vm.address_space(1).generation) == (8 + 2, 1 + 2)
    assert vm.address_space(1).lookup(5) is not None
    assert vm.lookup(5) is None
    vm.check()


# The rules for the whole, and for the steps.


def test_one_id_in_both_address_spaces_many_times() -> None:
    """There are more changes than a transaction holds without allocating."""
    vm = Memslots(max_slots=32, address_spaces=2)
    with vm.transaction() as tx:
        for id in range(10):
            for as_id in (0, 1):
                tx.create(id, id * 10, 5, id << 20, as_id=as_id)
        for id in range(10):
            tx.move(id, id * 10 + 200, as_id=id % 2)
            assert tx.get(id, as_id=id % 2) != tx.get(id, as_id=1 - id % 2)
        tx.delete(3, as_id=0)
    for as_id in (0, 1):
        bases = {slot.id: slot.base_gfn for slot in vm.address_space(as_id)}
        assert bases == {
            id: id * 10 + 200 * (id % 2 == as_id) for id in range(10) if (id, as_id) != (3, 0)
        }
    vm.check()


def test_an_overlap_at_the_end_is_refused(vm: Memslots) -> None:
    with unchanged(vm), pytest.raises(OverlapError) as caught, vm.transaction() as tx:
        tx.delete(3)
        tx.move(0, 0x18)
    assert caught.value.rule == 6
    assert {caught.value.existing.id, caught.value.requested.id} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (lambda tx: tx.create(0, 0x90, 1, HVA), InvalidRegionError),
        (lambda tx: tx.create(9, 0x90, 0, HVA), InvalidRegionError),
        (lambda tx: tx.create(9, 1 << 40, 1, HVA), InvalidRegionError),
        (lambda tx: tx.create(9, 0x90, 1, HVA + 1), InvalidRegionError),
        (lambda tx: tx.set_region(0, 0, 0, 0x20000, HVA), InvalidRegionError),
        (lambda tx: tx.set_flags(0, Flags.READONLY), InvalidRegionError),
        (lambda tx: tx.move(0, 1 << 41), InvalidRegionError),
        (lambda tx: tx.delete(9), NoSuchSlotError),
        (lambda tx: tx.move(0, "1"), TypeError),
        (lambda tx: tx.move(0, -1), OverflowError),
    ],
)
def test_a_step_that_breaks_a_rule_is_as_if_not_made(
    vm: Memslots, step: Callable[[Transaction], object], error: type[Exception]
) -> None:
    with vm.transaction() as tx:
        tx.move(1, 0x50)
        with pytest.raises(error):
            step(tx)
        tx.move(2, 0x10)
    assert places(vm) == {0: (0, 0x10), 2: (0x10, 0x10), 3: (0x30, 0x10), 1: (0x50, 0x10)}
    vm.check()


def test_an_exception_in_the_body_changes_nothing(vm: Memslots) -> None:
    with unchanged(vm), pytest.raises(ZeroDivisionError), vm.transaction() as tx:
        tx.delete(3)
        tx.create(9, 0x30, 8, HVA, LOG)
        tx.move(0, 0x80)
        tx.set_flags(0, LOG)
        tx.delete(0)
        raise ZeroDivisionError


def test_nothing_at_all_and_nothing_in_the_end(vm: Memslots) -> None:
    before = state_of(vm)
    with vm.transaction():
        pass
    with vm.transaction() as tx:
        assert tx.set_region(0, 0, 0, 0x10000, HVA) is Change.NONE
        tx.create(9, 0x90, 1, HVA)
        tx.delete(9)
        tx.create(9, 0x91, 2, HVA)
        tx.delete(9)
    assert vm.get(9) is None
    after = state_of(vm)
    assert (before, after) == (after, before)
    vm.check()


# The view of readers.


def test_readers_see_nothing_before_the_end(vm: Memslots) -> None:
    vcpu = vm.vcpu()
    gfns = array("Q", range(0x40))
    before = vm.lookup_many(gfns)
    slots = list(vm)
    generation = vm.generation
    with vm.transaction() as tx:
        tx.delete(0)
        tx.move(1, 0x00)
        tx.create(0, 0x10, 4, HVA)
        assert tx.lookup(0x02) is tx.get(1)
        assert tx.lookup(0x14) is None
        for face in (vm, vcpu, vm.address_space(0)):
            assert list(face) == slots
            assert face.lookup_many(gfns) == before
            assert face.lookup(0x02) is slots[0]
            assert face.generation == generation
    assert vm.generation == generation + 2  # one swap, in one of two address spaces
    assert vcpu.lookup(0x02) is vm[1]
    assert vm.lookup(0x14) is None
    assert vm.lookup(0x13) is vm[0]


def test_lookup_where_slots_lie_over_one_another(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.create(8, 0x12, 2, HVA)
        tx.create(9, 0x16, 2, HVA)
        found = [tx.lookup(gfn) for gfn in range(0x10, 0x20)]
        ids = [slot.id for slot in found if slot is not None]
        assert ids == [1, 1, 8, 8, 1, 1, 9, 9, *[1] * 8]
        tx.delete(8)
        tx.delete(9)
    vm.check()


def test_lookup_of_a_slot_under_many_others(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.create(9, 0x00, 0x50, HVA)
        found = [tx.lookup(gfn) for gfn in (0x00, 0x10, 0x3F, 0x40, 0x4F, 0x50)]
        ids = [None if slot is None else slot.id for slot in found]
        assert ids[1:] == [1, 3, 9, 9, None]
        assert ids[0] in (0, 9)  # both slots begin there
        tx.delete(9)
    vm.check()


def test_dirty_logs_go_with_their_slots(vm: Memslots) -> None:
    marked = bytes([2, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
        tx.set_flags(3, 0)
        tx.set_flags(3, LOG)
        raise ZeroDivisionError
    with vm.transaction() as tx:
        tx.move(3, 0x60)
        tx.move(3, 0x70)
        vm.mark_dirty(0x32)  # readers still find the slot there
        tx.set_flags(1, LOG)
    assert vm.get_dirty_log(3) == bytes([6, 0, 0, 0, 0, 0, 0, 0])
    vm.mark_dirty(0x71)
    with vm.transaction() as tx:
        was = tx.delete(3)
        # Another slot, in the same place and on the same memory.
        tx.create(3, 0x70, 0x10, was.userspace_addr, LOG)
    assert vm.get_dirty_log(3) == marked
    vm.mark_dirty(0x71)
    with vm.transaction() as tx:
        tx.set_flags(3, 0)
        tx.set_flags(3, LOG)  # off and on again
        tx.set_flags(1, 0)
    assert vm.get_dirty_log(3) == marked
    vm.mark_dirty(0x71)
    with vm.transaction() as tx:
        tx.delete(3)
        tx.create(3, 0x70, 0x10, HVA + 0x100_0000, LOG)  # other memory: a new log
    assert vm.get_dirty_log(3) == bytes(8)
    vm.check()


def disjoint(model: dict[int, tuple[int, int, int]]) -> bool:
    held = [gfn for base, npages, _ in model.values() for gfn in range(base, base + npages)]
    return len(held) == len(set(held))


@given(st.lists(st.tuples(st.lists(steps, max_size=8), st.booleans()), max_size=8))
def test_any_transactions_against_a_dict(transactions: list[tuple[list[Any], bool]]) -> None:
    vm = Memslots(max_slots=5)
    model: dict[int, tuple[int, int, int]] = {}
    for calls, give_up in transactions:
        trial = dict(model)
        before = state_of(vm)
        seen = list(vm), vm.generation
        try:
            with vm.transaction() as tx:
                for call in calls:
                    verb, id, *rest = call
                    if verb == "create":
                        rest.insert(2, HVA + 0x10000 * id)
                    try:
                        getattr(tx, verb)(id, *rest)
                    except MemslotError:
                        assert not step(trial, call)
                    else:
                        assert step(trial, call)
                    assert {id: slot.flags for id in trial if (slot := tx.get(id))} == {
                        id: entry[2] for id, entry in trial.items()
                    }
                    for gfn in range(16):
                        slot = tx.lookup(gfn)
                        holders = [
                            id for id, (base, n, _) in trial.items() if base <= gfn < base + n
                        ]
                        assert (slot.id in holders) if slot is not None else not holders
                    assert (list(vm), vm.generation) == seen
                if give_up:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert state_of(vm) == before
        except OverlapError:
            assert not disjoint(trial)
            assert state_of(vm) == before
        else:
            assert disjoint(trial)
            model = trial
        vm.check()
        assert {s.id: (s.base_gfn, s.npages, int(s.flags)) for s in vm} == model
        assert [s.base_gfn for s in vm] == sorted(base for base, _, _ in model.values())
        assert [vm.lookup(gfn) for gfn in range(16)] == [
            next((s for s in vm if gfn in s), None) for gfn in range(16)
        ]


@pytest.mark.parametrize("as_id", [1, 31, 32, 2**32 - 1])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lookup", (0,)), ("get", (0,)), ("in_gfn_range", (0, 1)), ("free_id", ()),
        ("create", (0, 0, 1, 0)), ("create_many", ([],)), ("move", (0, 1)), ("set_flags", (0, 0)),
        ("delete", (0,)), ("unmap", (0, 1)), ("protect", (0, 1, 0)), ("split", (0, 1)),
        ("merge", (0, 1)),
    ],
)  # fmt: skip
def test_there_is_no_such_address_space(
    name: str, arguments: tuple[object, ...], as_id: int
) -> None:
    refused = pytest.raises(InvalidRegionError, match=f"there is no address space {as_id};")
    with Memslots().transaction() as tx, refused:
        getattr(tx, name)(*arguments, as_id=as_id)
