"""Tests Vcpu: look-ups with a last-used slot of their own. Counts all hits and misses."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

import pytest

from memslots import Flags, InvalidRegionError, Memslots, Vcpu, VcpuStats

HVA = 0x7000_0000_0000


@pytest.fixture
def used(vm: Memslots) -> Memslots:
    """Slots 0 to 7 of 16 pages each, 32 apart; slot 0 of space 1."""
    for id in range(8):
        vm.create(id, 32 * id, 16, HVA, Flags.LOG_DIRTY_PAGES)
    vm.create(0, 0, 16, HVA, as_id=1)
    return vm


def test_a_new_one(used: Memslots) -> None:
    vcpu = used.vcpu()
    assert type(vcpu).__name__.endswith("Vcpu")
    assert isinstance(vcpu.stats, VcpuStats)
    assert vcpu.stats == (0, 0)
    assert (vcpu.as_id, used.vcpu(1).as_id, used.vcpu(as_id=1).as_id) == (0, 1, 1)


def test_hot_lookups_hit(used: Memslots) -> None:
    vcpu = used.vcpu()
    slot = used[3]
    for n in range(1, 1001):
        assert vcpu.lookup(96 + n % 16) is slot
        assert vcpu.stats == (n - 1, 1)


def test_alternating_lookups_miss(used: Memslots) -> None:
    vcpu = used.vcpu()
    for _ in range(100):
        assert vcpu.lookup(0) is used[0]
        assert vcpu.lookup(32) is used[1]
    assert vcpu.stats == (0, 200)


def test_both_ends_of_a_slot(used: Memslots) -> None:
    vcpu = used.vcpu()
    for gfn in (32, 47, 32, 47):
        assert vcpu.lookup(gfn) is used[1]
    assert vcpu.stats == (3, 1)
    assert vcpu.lookup(31) is None
    assert vcpu.lookup(48) is None
    assert vcpu.stats == (3, 3)


def test_no_slot_is_a_miss_each_time(used: Memslots) -> None:
    vcpu = used.vcpu()
    for _ in range(10):
        assert vcpu.lookup(16) is None
    assert vcpu.stats == (0, 10)


def test_gpa_to_hva_uses_it_too(used: Memslots) -> None:
    vcpu = used.vcpu()
    for offset in range(0, 16 << 12, 4096 + 8):
        assert vcpu.gpa_to_hva((32 << 12) + offset) == HVA + offset
    assert vcpu.stats.misses == 1
    assert vcpu.stats.hits == len(range(0, 16 << 12, 4096 + 8)) - 1


CHANGES: list[tuple[str, Callable[[Memslots], object]]] = [
    ("create", lambda vm: vm.create(20, 0x1000, 1, HVA)),
    ("delete another", lambda vm: vm.delete(7)),
    ("move another", lambda vm: vm.move(7, 0x1000)),
    ("flags of another", lambda vm: vm.set_flags(7, 0)),
    ("flags", lambda vm: vm.set_flags(1, 0)),
    ("a refused move", lambda vm: vm.move(7, 0x10000)),
]
NO_CHANGES: list[tuple[str, Callable[[Memslots], object]]] = [
    ("move to where it is", lambda vm: vm.move(1, 32)),
    ("the same flags", lambda vm: vm.set_flags(1, 1)),
    ("the same region", lambda vm: vm.set_region(1, 1, 32 << 12, 16 << 12, HVA)),
    ("a refused create", lambda vm: vm.create(20, 0x10000, 1, HVA)),
    ("an overlap", lambda vm: vm.create(20, 33, 1, HVA)),
    ("another address space", lambda vm: vm.delete(0, as_id=1)),
    ("dirty", lambda vm: vm.get_dirty_log(1)),
    ("others look", lambda vm: [vm.vcpu().lookup(gfn) for gfn in range(256)]),
    ("all look", lambda vm: [vm.lookup(gfn) for gfn in range(256)]),
]


def do(call: Callable[[Memslots], object], vm: Memslots) -> None:
    try:
        call(vm)
    except OSError:
        assert call.__code__ in {c.__code__ for n, c in CHANGES + NO_CHANGES if n.startswith("a")}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CHANGES])
def test_a_change_makes_the_next_lookup_miss(
    used: Memslots, call: Callable[[Memslots], object]
) -> None:
    """A last-used slot is valid for one generation only, whichever slot was changed."""
    vcpu = used.vcpu()
    assert [vcpu.lookup(gfn) for gfn in (32, 33)] == [used[1], used[1]]
    do(call, used)
    assert vcpu.lookup(33) is used[1]
    assert vcpu.stats == (1, 2)
    assert vcpu.lookup(34) is used[1]
    assert vcpu.stats == (2, 2)


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in NO_CHANGES])
def test_without_a_change_it_stays(used: Memslots, call: Callable[[Memslots], object]) -> None:
    vcpu = used.vcpu()
    vcpu.lookup(32)
    do(call, used)
    assert vcpu.lookup(33) is used[1]
    assert vcpu.stats == (1, 1)


def test_the_slot_itself_goes(used: Memslots) -> None:
    vcpu = used.vcpu()
    vcpu.lookup(32)
    used.delete(1)
    assert vcpu.lookup(32) is None
    used.create(1, 32, 16, HVA + 4096)
    assert vcpu.lookup(32) is used[1]
    assert vcpu.gpa_to_hva(32 << 12) == HVA + 4096
    assert vcpu.stats == (1, 3)


def test_a_vcpus_misses_are_its_own(used: Memslots) -> None:
    hot, cold = used.vcpu(), used.vcpu()
    hot.lookup(0)
    for n in range(200):
        assert cold.lookup(32 * (n % 8)) is used[n % 8]
        assert hot.lookup(n % 16) is used[0]
        assert used.lookup(32 * (n % 7)) is used[n % 7]
    assert hot.stats == (200, 1)
    assert cold.stats == (0, 200)


def test_each_in_its_space(used: Memslots) -> None:
    here, there = used.vcpu(0), used.vcpu(1)
    assert here.lookup(0) is used[0]
    assert there.lookup(0) is used.address_space(1)[0]
    assert there.lookup(32) is None
    used.move(0, 0x1000)
    assert there.lookup(1) is used.address_space(1)[0]
    assert here.lookup(1) is None
    assert there.stats == (1, 2)
    assert here.stats == (0, 2)


def test_the_rest_of_the_face(used: Memslots) -> None:
    vcpu = used.vcpu()
    assert list(vcpu) == list(used)
    assert (len(vcpu), vcpu.nr_pages) == (8, 128)
    assert vcpu.generation == used.generation
    assert vcpu[3] is used[3]
    assert vcpu.get(9) is None
    assert used[3] in vcpu
    assert vcpu.in_gfn_range(0, 33) == [used[0], used[1]]
    assert len(vcpu.in_hva_range(HVA, HVA + 1)) == 8
    assert list(vcpu.lookup_many(array("Q", [0, 16, 32]))) == [0, -1, 1]
    assert list(vcpu.translate(array("Q", [4096]))) == [HVA + 4096]


def test_it_keeps_its_machine_alive() -> None:
    vm = Memslots(4, address_spaces=2)
    slot = vm.create(0, 0, 16, HVA)
    vcpu, space = vm.vcpu(), vm.address_space(0)
    vcpu.lookup(0)
    del vm
    assert vcpu.lookup(1) is slot
    assert space.lookup(2) is slot
    assert list(vcpu) == [slot]
    del vcpu
    assert list(space) == [slot]
    del space
    assert slot.gfn_to_hva(3) == HVA + 3 * 4096


def test_a_bad_address_space(used: Memslots) -> None:
    with pytest.raises(InvalidRegionError, match="2"):
        used.vcpu(2)
    with pytest.raises(OverflowError):
        used.vcpu(-1)


def test_it_is_made_by_its_machine_only() -> None:
    with pytest.raises(TypeError):
        Vcpu()  # type: ignore[call-arg]


@pytest.mark.parametrize("face", ["vm", "space", "vcpu"])
def test_a_lookup_that_hits_allocates_nothing(used: Memslots, face: str) -> None:
    lookup = {
        "vm": used.lookup,
        "space": used.address_space(0).lookup,
        "vcpu": used.vcpu().lookup,
    }[face]
    gfns = [*range(32, 48)] * 64 + [16] * 64
    slot = used[1]
    assert all(lookup(gfn) is (slot if gfn > 16 else None) for gfn in gfns)
    before = sys.getallocatedblocks()
    for _ in range(100):
        for gfn in gfns:
            lookup(gfn)
    # The loop's own objects come and go; a leak of a block a look-up would be 100,000.
    assert sys.getallocatedblocks() - before < 50


def test_the_same_object_each_time(used: Memslots) -> None:
    """A slot has one Slot object, made once, whichever way it is found."""
    slot = used[2]
    faces = (used, used.address_space(0), used.vcpu())
    for face in faces:
        assert face.lookup(64) is slot
        assert face.lookup(79) is slot
        assert face[2] is slot
        assert face.get(2) is slot
        assert face.in_gfn_range(64, 65) == [slot]
        assert face.in_gfn_range(64, 65)[0] is slot
        assert next(s for s in face if s.id == 2) is slot
        assert next(s for s, _, _ in face.in_hva_range(HVA, HVA + 1) if s.id == 2) is slot
    used.create(9, 0x1000, 1, HVA)
    assert used.lookup(64) is slot  # another slot's change does not affect it
