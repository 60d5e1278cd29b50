"""Tests many slots at once: Memslots(map) and create_many."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Callable
from typing import Any

import pytest
from allocations import each_failure
from backend import Backend, agree
from hypothesis import given
from hypothesis import strategies as st
from maps import maps
from model import state_of

from memslots import (
    Change,
    Flags,
    InvalidRegionError,
    MemoryMap,
    Memslots,
    NoRoomError,
    NoSuchSlotError,
    OverlapError,
    Slot,
)


def map_of(n: int, turned: bool = False) -> MemoryMap:
    """Returns a map of n slots, in reverse order in host memory if `turned`."""
    return MemoryMap([(3 * i, 2, ((n - i) if turned else i) << 20, i % 4) for i in range(n)])


@pytest.mark.parametrize("turned", [False, True])
def test_of_any_number_of_slots(turned: bool) -> None:
    """The checker walks the trees, which are built from the bottom up."""
    for n in [*range(70), 127, 128, 129, 1000]:
        m = map_of(n, turned)
        vm = Memslots(m)
        vm.check()
        assert vm.map() == m and list(vm) == list(m) and vm.nr_pages == m.nr_pages
        assert vm.generation == Memslots().generation
        for slot in list(m)[::7]:
            assert vm.lookup(slot.base_gfn + 1) == slot == vm.get(slot.id)
            assert vm.hva_to_gpa(slot.userspace_addr) == slot.guest_phys_addr
    for slot in list(vm)[::3]:
        vm.delete(slot.id)
        vm.check()
    vm.create(0, 1 << 30, 1, 0)
    vm.check()


@given(maps(), st.sampled_from([0, 1, 3]))
def test_as_if_created_one_by_one(m: MemoryMap, mode: int) -> None:
    vm = Memslots(map=m, manual_dirty_log=mode)
    one_by_one = Memslots(manual_dirty_log=mode)
    together = Memslots(manual_dirty_log=mode)
    for slot in m:
        one_by_one.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)
    assert together.create_many(m) == list(m) == list(vm)
    runs = one_by_one.take_dirty_runs()
    for other in (vm, together):
        other.check()
        assert other.map() == one_by_one.map()
        assert other.take_dirty_runs() == runs


def test_a_map_of_another_address_space() -> None:
    m = MemoryMap([(0, 1, 0)], as_id=1)
    vm = Memslots(m, address_spaces=2)
    assert len(vm) == 0 and list(vm.address_space(1)) == list(m)
    vm.check()
    with pytest.raises(InvalidRegionError, match="address space"):
        Memslots(m)


def test_with_a_backend() -> None:
    backend = Backend(100, max_gfn=200)
    m = map_of(9)
    vm = Memslots(backend=backend, max_gfn=200, max_slots=100, map=m)
    agree(vm, backend)
    assert vm.map() == m


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_slots": 9}, InvalidRegionError),
        ({"max_gfn": 27}, InvalidRegionError),
        ({"max_hva": 5 << 20}, InvalidRegionError),
    ],
)
def test_what_the_limits_refuse(limits: dict[str, int], error: type[Exception]) -> None:
    m = map_of(10)
    with pytest.raises(error) as refused:
        Memslots(map=m, **limits)  # type: ignore[call-overload]
    one_by_one = Memslots(**limits)
    with pytest.raises(error) as same:
        for slot in m:
            one_by_one.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    assert refused.value.args == same.value.args


def test_by_position_or_by_name() -> None:
    m = map_of(3)
    for vm in (Memslots(m, max_slots=5), Memslots(5, map=m), Memslots(max_slots=5, map=m)):
        assert vm.map() == m and vm.max_slots == 5
    with pytest.raises(TypeError, match="the map was given twice"):
        Memslots(m, map=m)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="max_slots was given twice"):
        Memslots(5, max_slots=5)  # type: ignore[call-overload]


def test_not_a_map() -> None:
    for wrong in ("abc", [(0, 1, 0)], 5.0):
        with pytest.raises(TypeError):
            Memslots(wrong)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="map must be a MemoryMap"):
            Memslots(map=wrong)  # type: ignore[call-overload]


def test_no_memory_for_a_memslots(drivers: Any) -> None:
    m = map_of(40, turned=True)

    def make() -> None:
        Memslots(map=m)
        gc.collect()

    assert each_failure(drivers("alloc"), make, gc.collect) > 10  # type: ignore[arg-type]


# create_many


def test_ids_and_what_is_there_already() -> None:
    vm = Memslots(max_slots=8)
    vm.create(1, 0, 1, 0)
    vm.create(3, 1, 1, 0)
    made = vm.create_many([(10, 1, 0), (20, 1, 0, 1, 2), (15, 1, 0), (30, 1, 0)])
    assert [(slot.id, slot.base_gfn) for slot in made] == [(0, 10), (4, 15), (2, 20), (5, 30)]
    with vm.transaction() as tx:
        tx.delete(0)
        assert [slot.id for slot in tx.create_many([(40, 1, 0)])] == [0]
        assert tx.create_many([]) == []
    vm.check()


WRONG: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda to: to.create_many([(50, 1, 0), (60, 1, 0, 0, 3)]), InvalidRegionError, "in use"),
    (lambda to: to.create_many([(50, 1, 0), (60, 1, 0, 0, 8)]), InvalidRegionError, "slot 8 of"),
    (lambda to: to.create_many([(50 + i, 1, 0) for i in range(7)]), NoRoomError, "no free id"),
    (lambda to: to.create_many([(50, 1, 0), (1 << 41, 1, 0)]), InvalidRegionError, "max_gfn"),
    (lambda to: to.create_many([(50, 1, 0)], as_id=1), InvalidRegionError, "address space"),
    (lambda to: to.create_many([(50, 2, 0), (51, 1, 0)]), OverlapError, "slots 0 and 1"),
    (lambda to: to.create_many(MemoryMap(), as_id=5), ValueError, "of address space 0, not 5"),
    (lambda to: to.create_many(5), TypeError, "not iterable"),
]


@pytest.mark.parametrize(("call", "error", "text"), WRONG)
def test_all_or_nothing(call: Callable[[Any], object], error: type[Exception], text: str) -> None:
    vm = Memslots(max_slots=8)
    vm.create(1, 0, 1, 0)
    vm.create(3, 1, 1, 0)
    before = state_of(vm)
    with pytest.raises(error, match=text):
        call(vm)
    assert state_of(vm) == before
    with vm.transaction() as tx:
        with pytest.raises(error, match=text):
            call(tx)
        assert tx.in_gfn_range(0, 1 << 50) == list(vm)
    assert state_of(vm) == before
    with pytest.raises(OverlapError):
        vm.create_many([(50, 1, 0), (0, 1, 0)])
    assert state_of(vm) == before


def test_into_an_empty_address_space() -> None:
    """It takes one pass and one swap; readers and generations are as after a transaction."""
    for turned in (False, True):
        vm = Memslots(address_spaces=2)
        vcpu = vm.vcpu()
        assert vcpu.lookup(0) is None
        m = map_of(300, turned)
        assert vm.create_many(m) == list(m) == list(vm)
        assert vm.generation == 2
        vm.check()
        assert vcpu.lookup(4) == m.lookup(4)
        vm.create_many(MemoryMap([(5, 1, 0, 0, 7)], as_id=1))
        assert [slot.id for slot in vm.address_space(1)] == [7]
        vm.delete(0)
        vm.check()


def test_the_address_space_is_an_integer() -> None:
    """With one pass or step by step."""
    for vm in (Memslots(), Memslots(map_of(1))):
        with pytest.raises(TypeError, match="as_id must be an integer, not 'float'"):
            vm.create_many(map_of(3), as_id=0.0)  # type: ignore[arg-type]
        vm.check()


def test_too_many_for_an_empty_one() -> None:
    vm = Memslots(max_slots=2)
    before = state_of(vm)
    with pytest.raises(NoRoomError):
        vm.create_many(MemoryMap([(5 * i, 1, 0) for i in range(3)]))
    with pytest.raises(InvalidRegionError):
        vm.create_many(MemoryMap([(0, 1, 0, 0, 2)]))
    assert state_of(vm) == before


def test_no_memory_for_an_empty_one(drivers: Any) -> None:
    vm = Memslots()
    vm.create(0, 0, 1, 0)
    vm.delete(0)  # the pool of slots keeps its memory for the next slots
    before = state_of(vm)
    m = map_of(12, turned=True)

    def unharmed() -> None:
        assert state_of(vm) == before
        vm.check()

    assert each_failure(drivers("alloc"), lambda: vm.create_many(m), unharmed) > 10
    assert vm.map() == m


def test_no_memory(drivers: Any) -> None:
    vm = Memslots()
    vm.create(0, 0, 1, 0)
    before = state_of(vm)

    def unharmed() -> None:
        assert state_of(vm) == before
        vm.check()

    m = map_of(20) - MemoryMap([(0, 4, 0)])
    assert each_failure(drivers("alloc"), lambda: vm.create_many(m), unharmed) > 10


def test_listeners_hear_of_each() -> None:
    told: list[tuple[Change, Slot | None]] = []

    class Listener:
        def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            told.append((change, new))

    vm = Memslots()
    vm.subscribe(Listener())
    made = vm.create_many(map_of(5))
    assert told == [(Change.CREATE, slot) for slot in made]
    assert made[1].flags is Flags.LOG_DIRTY_PAGES


# In a transaction: all at once if nothing was done yet, and changed afterwards.

ROWS = MemoryMap([(8 * n, 4, (n * 7 % 40) << 20, n & 1, 39 - n) for n in range(40)])


def of_both() -> tuple[Memslots, Memslots]:
    return Memslots(address_spaces=2), Memslots(address_spaces=2)


def test_readers_see_them_at_the_end() -> None:
    vm = Memslots()
    with vm.transaction() as tx:
        made = tx.create_many(ROWS)
        assert made == list(ROWS)
        assert len(vm) == 0
        assert vm.lookup(0) is None
        assert tx.lookup(8) == ROWS[38]
        assert tx.get(39) == ROWS[39]
        assert tx.free_id() == 40
    assert vm.map() == ROWS
    vm.check()
    for slot in list(vm):
        vm.delete(slot.id)
    vm.check()


def test_it_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The create_many of filling.pyx does not make them slot by slot."""
    filling = importlib.import_module("memslots.write.filling")

    def never(*_: object) -> None:
        raise AssertionError("slot by slot")

    monkeypatch.setattr(filling, "create_many", never)
    vm = Memslots()
    with vm.transaction() as tx:
        assert len(tx.create_many(ROWS)) == 40
    assert vm.create_many is not None
    other = Memslots()
    assert len(other.create_many(ROWS)) == 40
    with pytest.raises(AssertionError, match="slot by slot"), vm.transaction() as tx:
        tx.create_many(MemoryMap([(1 << 20, 1, 0)]))
    assert vm.map() == ROWS


@pytest.mark.parametrize("way", ["at once", "in a transaction"])
def test_one_pass_asks_for_no_changes(drivers: Any, way: str) -> None:
    """Slot by slot, each is a change as well, and the memory for these grows."""
    alloc = drivers("alloc")

    def asked(count: int, there: int) -> int:
        vm = Memslots()
        vm.create_many([(0, 1, 0)] * there)
        m = MemoryMap([(2 * i + 2, 1, i << 12, 0, i + 1) for i in range(count)])
        before = alloc.asked()
        if way == "at once":
            vm.create_many(m)
        else:
            with vm.transaction() as tx:
                tx.create_many(m)
        asked_for = int(alloc.asked() - before)
        vm.check()
        assert len(vm) == count + there
        return asked_for

    for count in (500, 2000):
        # A slot each, the list of them, and an id table of each set.
        assert asked(count, 0) == count + 3
        assert asked(count, 1) > count + 10


def test_nothing_is_left_of_it() -> None:
    vm = Memslots()
    before = vm.map()
    for after in (None, lambda tx: tx.delete(3), lambda tx: tx.create(50, 1 << 20, 1, 0)):
        with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
            tx.create_many(ROWS)
            if after is not None:
                after(tx)
            raise ZeroDivisionError
        assert vm.map() == before
        vm.check()
    tx = vm.transaction().__enter__()
    tx.create_many(ROWS)
    del tx
    assert vm.map() == before
    vm.check()
    vm.create_many(ROWS)
    assert vm.map() == ROWS
    vm.check()


SLOT_5 = next(slot for slot in ROWS if slot.id == 5)


def refused(tx: Any) -> None:
    with pytest.raises(NoSuchSlotError):
        tx.move(99, 0)


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda tx: None,
    "move": lambda tx: tx.move(5, 1 << 20),
    "delete": lambda tx: tx.delete(5),
    "all deleted": lambda tx: [tx.delete(n) for n in range(40)],
    "flags": lambda tx: tx.set_flags(6, 1),
    "create": lambda tx: tx.create(40, 4, 4, 0),
    "delete and create": lambda tx: (tx.delete(39), tx.create(39, 0, 8, 0, 1)),
    "many more": lambda tx: tx.create_many(MemoryMap([(1 << 20, 1, 0), (1 << 21, 1, 0)])),
    "unmap": lambda tx: tx.unmap(2, 100),
    "split": lambda tx: tx.split(20, 8 * 19 + 1),
    "another space": lambda tx: tx.create(7, 0, 4, 0, as_id=1),
    "both spaces at once": lambda tx: tx.create_many(MemoryMap([(4, 4, 0, 1)], 1)),
    "a change that is refused": lambda tx: refused(tx),
    "set_region": lambda tx: tx.set_region(5, 0, 1 << 30, 0x4000, SLOT_5.userspace_addr),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_after(change: Callable[[Any], object]) -> None:
    """Later changes work as if all slots had been created one by one."""
    at_once, one_by_one = of_both()
    with at_once.transaction() as tx:
        tx.create_many(ROWS)
        change(tx)
    with one_by_one.transaction() as tx:
        for slot in ROWS:
            tx.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)
        change(tx)
    for as_id in range(2):
        assert at_once.map(as_id) == one_by_one.map(as_id)
        assert [s.id for s in at_once.address_space(as_id)] == [
            s.id for s in one_by_one.address_space(as_id)
        ]
    at_once.check()
    assert at_once.free_id() == one_by_one.free_id()
    for vm in (at_once, one_by_one):
        vm.mark_dirty_range(0, 1 << 22)
    assert at_once.take_dirty_runs() == one_by_one.take_dirty_runs()
    for slot in list(at_once):
        at_once.delete(slot.id)
    at_once.check()


def test_an_overlap_is_refused_at_the_end() -> None:
    vm = Memslots()
    with pytest.raises(OverlapError), vm.transaction() as tx:
        tx.create_many(ROWS)
        tx.create(50, 1, 1, 0)
    assert len(vm) == 0
    vm.check()


def test_no_memory_for_a_change_after(drivers: Any) -> None:
    vm = Memslots()

    def attempt() -> None:
        with vm.transaction() as tx:
            tx.create_many(ROWS)
            tx.move(5, 1 << 20)
            tx.create(60, 1 << 21, 1, 0)
            raise_at_the_end()

    def raise_at_the_end() -> None:
        raise KeyError

    def whole() -> None:
        with contextlib.suppress(KeyError):
            attempt()

    def unharmed() -> None:
        assert len(vm) == 0
        vm.check()

    whole()  # the pool of slots keeps its memory for the next slots
    assert each_failure(drivers("alloc"), whole, unharmed) > 10


def test_the_iterable_runs_before_the_change() -> None:
    """It may use the Memslots, and changes of other threads need not wait for it."""
    vm = Memslots()
    vm.create(0, 0x1000, 1, 0)
    made = vm.create_many((id * 4, 1, 0, 0, vm.free_id() + id) for id in range(3))
    assert [slot.id for slot in made] == [1, 2, 3]
    vm.check()


def test_a_list_takes_one_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("memslots.write.filling"), "create_many", None)
    vm = Memslots()
    assert [slot.id for slot in vm.create_many([(8, 1, 0), (0, 1, 0)])] == [0, 1]
    vm.check()
