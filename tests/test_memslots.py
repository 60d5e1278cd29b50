"""Tests Memslots: construction, changes, address spaces, limits, very many slots, threads."""

from __future__ import annotations

import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from model import unchanged

from memslots import (
    Change,
    Flags,
    InvalidRegionError,
    Memslots,
    NotMappedError,
    OverlapError,
    Slot,
)

HVA = 0x7000_0000_0000
MAX_HVA = (1 << 47) - 4096


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


# Construction


def test_the_limits_are_attributes() -> None:
    vm = Memslots()
    assert (vm.max_slots, vm.address_spaces, vm.manual_dirty_log) == (32764, 1, 0)
    assert (vm.max_gfn, vm.max_hva) == ((1 << 40) - 1, MAX_HVA)
    vm = Memslots(5, address_spaces=3, max_gfn=99, max_hva=1 << 20, manual_dirty_log=3)
    assert (vm.max_slots, vm.address_spaces, vm.manual_dirty_log) == (5, 3, 3)
    assert (vm.max_gfn, vm.max_hva) == (99, 1 << 20)
    for name in ("max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log"):
        with pytest.raises(AttributeError):
            setattr(vm, name, 1)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_slots": 0},
        {"max_slots": 2**31},
        {"address_spaces": 0},
        {"address_spaces": 17},
        {"manual_dirty_log": 2},
        {"manual_dirty_log": 4},
    ],
)
def test_bad_limits(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Memslots(**limits)


@pytest.mark.parametrize(
    "name", ["max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log"]
)
def test_limits_of_wrong_types(name: str) -> None:
    for wrong in ("1", 1.0, None):
        limits: dict[str, Any] = {name: wrong}
        with pytest.raises(TypeError):
            Memslots(**limits)
    for low in (-1, 1 << 64):
        with pytest.raises((ValueError, OverflowError)):
            Memslots(**{name: low})


def test_limits_after_the_first_are_by_keyword() -> None:
    with pytest.raises(TypeError):
        Memslots(5, 2)  # type: ignore[call-overload]


# Changes


def test_the_kvm_call(vm: Memslots) -> None:
    assert vm.set_region(3, 1, 0x10000, 0x4000, HVA) is Change.CREATE
    assert vm[3] == Slot(3, 0, 0x10, 4, HVA, Flags.LOG_DIRTY_PAGES)
    assert vm.generation == 2
    assert vm.set_region(3, 1, 0x10000, 0x4000, HVA) is Change.NONE
    assert vm.generation == 2
    assert vm.set_region(3, 0, 0x10000, 0x4000, HVA) is Change.FLAGS_ONLY
    assert vm.generation == 4
    assert vm.set_region(3, 1, 0x20000, 0x4000, HVA) is Change.MOVE
    assert vm[3] == Slot(3, 0, 0x20, 4, HVA, 1)
    assert vm.generation == 8
    assert vm.set_region(3, 0, 0, 0, 0) is Change.DELETE
    assert vm.generation == 12
    assert len(vm) == 0
    names = {"slot": 3, "flags": 0, "guest_phys_addr": 0, "memory_size": 4096}
    assert vm.set_region(**names, userspace_addr=HVA) is Change.CREATE


def test_the_verbs(vm: Memslots) -> None:
    slot = vm.create(3, 0x10, 4, HVA, flags=1)
    assert slot == Slot(3, 0, 0x10, 4, HVA, 1)
    assert slot is vm[3]
    moved = vm.move(3, 0x20)
    assert moved == Slot(3, 0, 0x20, 4, HVA, 1)
    assert moved is vm[3]
    assert vm.move(3, 0x20) is moved
    quiet = vm.set_flags(3, 0)
    assert quiet == Slot(3, 0, 0x20, 4, HVA)
    assert vm.set_flags(3, 0) is quiet
    assert vm.generation == 2 + 4 + 2
    gone = vm.delete(3)
    assert gone == quiet
    assert not gone.flags & Flags.INVALID
    assert vm.generation == 12
    # A Slot stays the same whatever happens to its slot.
    assert (slot.base_gfn, moved.base_gfn, slot.flags) == (0x10, 0x20, 1)
    del vm
    assert slot.gfn_to_hva(0x11) == HVA + 4096


def test_address_spaces_do_not_meet(vm: Memslots) -> None:
    other = vm.address_space(1)
    assert type(other).__name__.endswith("AddressSpace")
    assert (other.as_id, vm.as_id, vm.address_space(0).as_id) == (1, 0, 0)
    assert (vm.generation, other.generation) == (0, 1)
    vm.create(3, 0x10, 4, HVA)
    vm.create(3, 0x12, 4, HVA, as_id=1)
    vm.set_region(1 << 16 | 4, 0, 0x30000, 4096, HVA)
    assert (vm.generation, other.generation) == (2, 5)
    assert [slot.id for slot in vm] == [3]
    assert [(slot.as_id, slot.id) for slot in other] == [(1, 3), (1, 4)]
    assert (vm.nr_pages, other.nr_pages) == (4, 5)
    assert vm.lookup(0x14) is None
    assert other.lookup(0x14) is other[3]
    assert other[3] not in vm
    assert vm[3] not in other
    assert vm[3] in vm.address_space(0)
    vm.move(3, 0x40, as_id=1)
    vm.set_flags(3, 1, as_id=1)
    vm.delete(3)
    assert list(vm) == []
    assert other[3] == Slot(3, 1, 0x40, 4, HVA, 1)


@pytest.mark.parametrize("as_id", [2, 16, 0xFFFF])
def test_no_such_address_space(vm: Memslots, as_id: int) -> None:
    for call in (
        lambda: vm.address_space(as_id),
        lambda: vm.vcpu(as_id),
        lambda: vm.mark_dirty(0, as_id=as_id),
    ):
        with unchanged(vm), pytest.raises(ValueError, match=str(as_id)):
            call()


@pytest.mark.parametrize("wrong", ["0", 0.0, None])
def test_address_space_of_wrong_types(vm: Memslots, wrong: Any) -> None:
    with pytest.raises(TypeError):
        vm.address_space(wrong)
    with pytest.raises(TypeError):
        vm.vcpu(wrong)
    with pytest.raises(TypeError):
        vm.create(0, 0, 1, 0, as_id=wrong)


def test_anything_with_an_index_will_do(vm: Memslots) -> None:
    assert vm.set_region(Index(3), Index(1), Index(0), Index(4096), Index(HVA)) is Change.CREATE
    assert vm[Index(3)] is vm.lookup(Index(0))
    assert vm.create(True, True, True, Index(HVA)).id == 1
    assert vm.gpa_to_hva(Index(0x10)) == HVA + 0x10


def test_weak_references() -> None:
    vm = Memslots()
    gone: list[object] = []
    reference = weakref.ref(vm, gone.append)
    assert reference() is vm
    vcpu = vm.vcpu()
    del vm
    gc.collect()
    assert reference() is not None  # the Vcpu keeps the Memslots
    del vcpu
    gc.collect()
    assert reference() is None
    assert gone == [reference]


# Limits


def test_the_last_id() -> None:
    vm = Memslots(2**31 - 1)
    last = 2**31 - 2
    for n, id in enumerate((0, last, 0xFFFF, 0x10000, 1 << 24)):
        assert vm.create(id, 16 * n, 1, HVA).id == id
        vm.check()
    assert vm.lookup(16) is vm[last]
    assert list(vm.lookup_many(memoryview(bytearray(8)).cast("Q"))) == [0]
    with unchanged(vm), pytest.raises(InvalidRegionError):
        vm.create(last + 1, 0x1000, 1, HVA)
    vm.move(last, 0x1000)
    vm.set_flags(last, 1)
    vm.mark_dirty(0x1000)
    assert vm.get_dirty_log(last) == b"\1" + bytes(7)
    assert vm.delete(last) == Slot(last, 0, 0x1000, 1, HVA, 1)
    assert sorted(slot.id for slot in vm) == [0, 0xFFFF, 0x10000, 1 << 24]


def test_only_one_slot() -> None:
    vm = Memslots(1)
    vm.create(0, 0, 1, HVA)
    with unchanged(vm), pytest.raises(InvalidRegionError):
        vm.create(1, 1, 1, HVA)


def test_the_greatest_slot() -> None:
    vm = Memslots(4)
    most = 2**31 - 1
    assert vm.create(0, 0, most, 0).memory_size == most << 12
    assert vm.create(1, most, most, 0).end_gfn == 2 * most
    assert vm.nr_pages == 2 * most
    assert vm.gpa_to_hva((2 * most << 12) - 1) == (most << 12) - 1
    with unchanged(vm), pytest.raises(InvalidRegionError) as caught:
        vm.create(2, 2 * most, most + 1, 0)
    assert caught.value.rule == 4


def test_the_top_of_guest_memory() -> None:
    vm = Memslots(4, max_gfn=(1 << 52) - 1)
    top = vm.create(0, (1 << 52) - 3, 2, HVA)
    assert vm.lookup((1 << 52) - 2) is top
    assert vm.lookup((1 << 52) - 1) is None
    assert vm.gpa_to_hva(2**64 - 4097) == HVA + 8191
    with pytest.raises(NotMappedError):
        vm.gpa_to_hva(2**64 - 4096)
    with unchanged(vm), pytest.raises(InvalidRegionError) as caught:
        vm.create(1, (1 << 52) - 1, 1, HVA)  # the slot ends at 2**64 bytes, which wraps to 0
    assert caught.value.rule == 2


def test_max_gfn(vm: Memslots) -> None:
    vm.create(0, 0xFFFF, 1, HVA)
    vm.delete(0)
    with unchanged(vm), pytest.raises(InvalidRegionError) as caught:
        vm.create(0, 0xFFFF, 2, HVA)
    assert caught.value.rule == 7


@pytest.mark.parametrize("max_hva", [MAX_HVA, 1 << 20, (1 << 64) - 4096])
def test_max_hva(max_hva: int) -> None:
    vm = Memslots(4, max_hva=max_hva)
    vm.create(0, 0, 1, max_hva - 4096)
    vm.create(1, 1, 2, max_hva - 8192)
    assert len(vm.in_hva_range(max_hva - 1, max_hva)) == 2
    with unchanged(vm), pytest.raises(InvalidRegionError) as caught:
        vm.create(2, 3, 3, max_hva - 8192)
    assert caught.value.rule == 2
    assert vm.set_region(0, 0, 0, 0, max_hva) is Change.DELETE


# Many


def test_lookup_has_no_name_for_its_gfn(vm: Memslots) -> None:
    """CPython then passes the gfn unchanged, which is the fastest call there is."""
    with pytest.raises(TypeError, match="keyword"):
        vm.lookup(gfn=1)  # type: ignore[call-arg]


def test_as_many_slots_as_kvm_has() -> None:
    vm = Memslots()
    ids = list(range(32764))
    shuffled = random.Random(1)
    shuffled.shuffle(ids)
    for id in ids:
        vm.create(id, 2 * id, 1 + (id & 1), HVA + (id % 1000 << 12))
    vm.check()
    assert len(vm) == 32764
    assert [slot.id for slot in vm] == list(range(32764))
    assert vm.nr_pages == 32764 * 3 // 2
    for gfn in range(0, 65528, 97):
        slot = vm.lookup(gfn)
        assert (slot and slot.id) == (gfn // 2 if gfn % 2 == 0 or gfn // 2 & 1 else None)
    shuffled.shuffle(ids)
    for id in ids[:16382]:
        vm.delete(id)
    vm.check()
    assert [slot.id for slot in vm] == sorted(ids[16382:])


def test_changes_from_several_threads() -> None:
    """Four threads, each with its own slots; the generation counts every swap of all of them."""
    vm = Memslots(4000)
    start = Barrier(4)

    def work(thread: int) -> int:
        refused = 0
        own = range(thread * 1000, thread * 1000 + 1000)
        start.wait()
        for id in own:
            vm.create(id, 2 * id, 1, HVA)
        for id in own:
            try:
                vm.create((id + 1000) % 4000, 2 * id, 1, HVA)  # overlaps this thread's own slot
            except (OverlapError, InvalidRegionError):
                refused += 1
            vm.move(id, 2 * id + 1)
            if id % 2:
                vm.delete(id)
        return refused

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [1000] * 4
    vm.check()
    assert [slot.id for slot in vm] == list(range(0, 4000, 2))
    assert vm.generation == 4000 + 2 * 4000 + 2 * 2000
