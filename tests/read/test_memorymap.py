"""Tests MemoryMap: the slots of an address space at one moment, kept after changes."""

from __future__ import annotations

import copy
import gc
import pickle
import random
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots import (
    BAD_HVA,
    Change,
    Flags,
    GuestMemfd,
    InvalidRegionError,
    MemoryMap,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    Slot,
)

STEP = 10
PAGES = 8


def make(slots: int) -> Memslots:
    vm = Memslots(max_slots=max(slots, 1) + 1, address_spaces=2)
    for id in range(slots):
        flags = (0, Flags.READONLY, Flags.LOG_DIRTY_PAGES, Flags(3))[id % 4]
        vm.create(id, id * STEP, PAGES, (slots - id) << 20, flags)
    return vm


def expect(m: MemoryMap, vm: Memslots, end: int) -> None:
    """Compares everything that both can be asked."""
    assert list(m) == list(vm) and len(m) == len(vm) and m.nr_pages == vm.nr_pages
    assert list(reversed(m)) == list(reversed(vm))
    gfns = array("Q", [*range(end), 1 << 40, (1 << 64) - 1])
    assert [m.lookup(gfn) for gfn in gfns] == [vm.lookup(gfn) for gfn in gfns]
    assert m.lookup_many(gfns) == vm.lookup_many(gfns)
    gpas = array("Q", [(gfn << 12 | gfn & 0xFFF) & (1 << 64) - 1 for gfn in gfns])
    for write in (False, True):
        hvas = m.translate(gpas, write=write)
        assert hvas == vm.translate(gpas, write=write)
        for gpa, hva in zip(gpas, hvas, strict=True):
            if hva != BAD_HVA:
                assert m.gpa_to_hva(gpa, write) == hva
                continue
            with pytest.raises((NotMappedError, ReadOnlyError)) as here:
                m.gpa_to_hva(gpa, write)
            with pytest.raises((NotMappedError, ReadOnlyError)) as there:
                vm.gpa_to_hva(gpa, write)
            assert type(here.value) is type(there.value)
            assert here.value.args == there.value.args
    for start in range(0, end, 7):
        for size in (0, 1, 9, end):
            assert m.in_gfn_range(start, start + size) == vm.in_gfn_range(start, start + size)
    for slot in vm:
        assert m[slot.id] == slot and m.get(slot.id) is m[slot.id] and slot in m
        assert m.lookup(slot.base_gfn) is m[slot.id]  # made once
        low, high = slot.userspace_addr, slot.userspace_addr + slot.memory_size
        for first, last in ((low - 1, low), (low, low + 1), (high - 1, high + 1), (0, 1 << 47)):
            found = m.in_hva_range(max(first, 0), last)
            assert sorted(found, key=str) == sorted(vm.in_hva_range(max(first, 0), last), key=str)
            assert [each[0].userspace_addr for each in found] == sorted(
                each[0].userspace_addr for each in found
            )
    assert m.get(1 << 20) is None and m.get(1 << 20, 5) == 5
    with pytest.raises(NoSuchSlotError):
        m[1 << 20]


@pytest.mark.parametrize("slots", [0, 1, 2, 16, 17, 100])
def test_it_answers_as_the_memslots_did(slots: int) -> None:
    vm = make(slots)
    same = make(slots)
    m = vm.map()
    assert m.as_id == 0 and m.generation == vm.generation
    expect(m, same, slots * STEP + 3)
    # The slots and the Memslots go; the map stays.
    for slot in list(vm):
        vm.delete(slot.id)
    expect(m, same, slots * STEP + 3)
    assert m != vm.map() or slots == 0
    del vm
    gc.collect()
    expect(m, same, slots * STEP + 3)


def test_a_change_leaves_it() -> None:
    vm = make(20)
    changes: list[Callable[[], object]] = [
        lambda: vm.set_flags(0, Flags.LOG_DIRTY_PAGES),
        lambda: vm.move(0, 1000),
        lambda: vm.delete(0),
        lambda: vm.create(0, 2000, 5, 0),
    ]
    maps = [vm.map()]
    kept = [list(vm)]
    for change in changes:
        change()
        maps.append(vm.map())
        kept.append(list(vm))
    assert [list(m) for m in maps] == kept
    assert [m.generation for m in maps] == sorted({m.generation for m in maps})
    assert len(set(maps)) == len(maps)
    vm.check()


def test_other_address_spaces() -> None:
    vm = make(3)
    vm.create(2, 5, 3, 0, as_id=1)
    m = vm.map(as_id=1)
    assert m.as_id == 1 and [slot.as_id for slot in m] == [1]
    assert m.generation == vm.address_space(1).generation
    assert vm[0] not in m
    with pytest.raises(InvalidRegionError):
        vm.map(2)


def test_where_there_is_an_index_it_is_the_maps(drivers: Any) -> None:
    vm = make(300)
    m = vm.map()
    assert drivers("index").current(vm)
    asked = drivers("alloc").asked()
    others = [vm.map() for _ in range(10)]
    assert drivers("alloc").asked() == asked
    assert set(others) == {m}


def test_memory_is_given_back(drivers: Any) -> None:
    alloc = drivers("alloc")
    gc.collect()
    live = alloc.live()
    vm = make(300)
    maps = []
    for n in range(5):
        maps.append(vm.map())
        maps[-1][0], maps[-1].lookup(5)
        vm.set_flags(0, n & 1)
    del vm
    while maps:
        maps.pop(random.Random(len(maps)).randrange(len(maps)))
    gc.collect()
    assert alloc.live() == live


def test_no_memory(drivers: Any) -> None:
    alloc = drivers("alloc")
    slots = list(make(300))
    uses: list[Callable[[Memslots], object]] = [
        lambda vm: vm.map(),
        lambda vm: vm.map()[5],
        lambda vm: vm.map().in_hva_range(0, 1 << 40),
        lambda vm: MemoryMap(slots),
    ]
    for use in uses:
        failed = 0
        for nth in range(1, 20):
            vm = make(300)
            live, asked = alloc.live(), alloc.asked()
            alloc.fail_nth(nth)
            try:
                use(vm)
            except MemoryError:
                failed += 1
            finally:
                alloc.fail_nth(0)
            reached = alloc.asked() - asked >= nth
            del vm
            gc.collect()
            assert alloc.live() <= live
            if not reached:
                break
        else:
            raise AssertionError("the last allocation was not reached")
        # If the first try to make an index fails, there is a second.
        assert failed >= nth - 2


def test_in_a_listener_it_has_the_slot_that_is_about_to_go() -> None:
    vm = make(3)
    seen = []

    class Listener:
        def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            seen.append(vm.map())

    with vm.subscribe(Listener()):
        vm.delete(1)
    (m,) = seen
    assert m[1].flags == Flags.INVALID | Flags.READONLY
    with pytest.raises(NotMappedError, match="being deleted or moved"):
        m.gpa_to_hva(STEP << 12)
    assert pickle.loads(pickle.dumps(m)) == m


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_and_copying(protocol: int) -> None:
    for slots in (0, 1, 50):
        m = make(slots).map()
        for other in (pickle.loads(pickle.dumps(m, protocol)), copy.copy(m), copy.deepcopy(m)):
            assert other == m and hash(other) == hash(m)
            assert (other.generation, other.as_id) == (m.generation, m.as_id)
            assert other.nr_pages == m.nr_pages
            assert list(other) == list(m)


def test_made_of_slots() -> None:
    vm = make(30)
    slots = list(vm)
    random.Random(3).shuffle(slots)
    m = MemoryMap(slots)
    assert m == vm.map() and hash(m) == hash(vm.map())
    assert m.generation == 0
    expect(m, vm, 303)
    assert MemoryMap() == MemoryMap([]) == Memslots().map()
    assert list(MemoryMap([(5, 2, 0x1000), (0, 1, 0x8000, 2), (9, 1, 0x3000, 1, 0)])) == [
        Slot(1, 0, 0, 1, 0x8000, 2),
        Slot(2, 0, 5, 2, 0x1000),
        Slot(0, 0, 9, 1, 0x3000, 1),
    ]
    assert MemoryMap([(0, 1, 0)], as_id=3)[0].as_id == 3
    assert MemoryMap([(9, 1, 0), Slot(4, 2, 0, 1, 0)]).as_id == 2


@pytest.mark.parametrize(
    ("slots", "error", "text"),
    [
        ([(0, 5, 0), (4, 1, 0)], OverlapError, "slots 0 and 1 of the map have pages"),
        (
            [Slot(1, 0, 0, 1, 0), Slot(1, 0, 5, 1, 0)],
            InvalidRegionError,
            "slots 0 and 1 of the map have the id 1",
        ),
        ([Slot(1, 0, 0, 1, 0), Slot(1, 1, 5, 1, 0)], InvalidRegionError, "address space 1, not 0"),
        ([(0, 0, 0)], InvalidRegionError, "0 pages"),
        (
            [(0, 1, 5)],
            InvalidRegionError,
            "slot 0 of the map: userspace_addr 0x5 is not a multiple",
        ),
        ([(0, 1 << 31, 0)], InvalidRegionError, "more than 2147483647"),
        ([(0, 1, 0, 0, 1 << 31)], InvalidRegionError, "id 2147483648 is above"),
        ([(0, 1, 0, 64)], InvalidRegionError, "unknown flags"),
        ([(0, 1)], TypeError, "a slot is a Slot or"),
        ([(0, 1, 0, 0, 0, 0)], TypeError, "a slot is a Slot or"),
        ([5], TypeError, "not iterable"),
        ([("a", 1, 0)], TypeError, "base_gfn"),
        ([(-1, 1, 0)], OverflowError, "base_gfn"),
    ],
)
def test_not_a_map(slots: list[Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        MemoryMap(slots)


def test_it_is_immutable() -> None:
    m = MemoryMap([(0, 1, 0)])
    with pytest.raises(TypeError, match="immutable"):
        m.__init__([(0, 2, 0)])
    for empty in (MemoryMap(), Memslots().map()):
        with pytest.raises(TypeError, match="immutable"):
            empty.__init__([(0, 2, 0)])
        assert len(empty) == 0
    with pytest.raises(AttributeError):
        m.generation = 5  # type: ignore[misc]
    assert m != MemoryMap([(0, 1, 0)], as_id=1)
    assert m != 5
    assert m == MemoryMap([(0, 1, 0)], generation=9)
    for other in ((0, 2, 0), (1, 1, 0), (0, 1, 4096), (0, 1, 0, 1)):
        assert m != MemoryMap([other])


def test_ids_count_where_both_have_them() -> None:
    any_id, two, three = (MemoryMap([(0, 1, 0, 0, *id)]) for id in ((), (2,), (3,)))
    assert two != three
    assert any_id == two == any_id == three
    assert hash(any_id) == hash(two) == hash(three)
    assert [any_id[0]] == list(any_id) and any_id.get(2) is None


def test_repr() -> None:
    assert repr(make(3).map()) == "<MemoryMap of address space 0: 3 slots, generation 6>"


@given(st.data())
def test_host_addresses_that_overlap(data: st.DataObject) -> None:
    vm = Memslots(max_slots=40)
    for id in range(data.draw(st.integers(1, 30))):
        npages = data.draw(st.integers(1, 9))
        vm.create(id, id * 10, npages, data.draw(st.integers(0, 40)) << 12)
    m = vm.map()
    for _ in range(10):
        start = data.draw(st.integers(0, 60 << 12))
        end = start + data.draw(st.integers(0, 12 << 12))
        found = m.in_hva_range(start, end)
        assert sorted(found, key=str) == sorted(vm.in_hva_range(start, end), key=str)
        at = [(slot.userspace_addr, slot.base_gfn) for slot, _, _ in found]
        assert at == sorted(at)


def test_the_last_host_page() -> None:
    last = 2**64 - 4096
    map = MemoryMap([(5, 1, last)])
    (slot,) = map
    for start, end in ((last, 2**64), (2**64 - 1, 2**64), (0, 2**64), (0, last + 1)):
        assert map.in_hva_range(start, end) == [(slot, 5, 6)]
    assert map.in_hva_range(2**64 - 1, 2**64 - 1) == []
    assert map.hva_to_gpa(2**64 - 1) == 0x5FFF
    with pytest.raises(OverflowError, match="end does not fit its 64 bits: 0x10000000000000001"):
        map.in_hva_range(0, 2**64 + 1)
    with pytest.raises(OverflowError, match="end does not fit its 64 bits"):
        map.in_gfn_range(0, 2**64)  # there are 2**52 guest pages


def test_it_is_made_once() -> None:
    """An iterable of slots may make the map that it is given to."""
    m = MemoryMap.__new__(MemoryMap)

    def slots() -> Iterator[tuple[int, int, int]]:
        m.__init__([(0, 1, 0)])
        assert len(list(m)) == 1
        for gfn in range(1000):
            yield gfn, 1, 0

    with pytest.raises(TypeError, match="immutable"):
        m.__init__(slots())
    assert [slot.base_gfn for slot in m] == [0] and m.nr_pages == 1


def test_nothing_is_left_of_what_failed() -> None:
    m = MemoryMap.__new__(MemoryMap)
    private = Slot(0, 0, 0, 1, 0, 4, GuestMemfd(1 << 12), 0)
    with pytest.raises(OverlapError):
        m.__init__([private, (0, 1, 0)])
    m.__init__([(0, 1, 0)], generation=5)
    assert (m, m.generation, m.nr_pages) == (MemoryMap([(0, 1, 0)]), 5, 1)
