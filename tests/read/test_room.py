"""Tests neighbours, holes and room: the cases that the state machine does not reach."""

from __future__ import annotations

from typing import Any

import pytest

from memslots import MemoryMap, Memslots, NotMappedError

LAST_PAGE = (1 << 64) - 1


@pytest.fixture
def vm() -> Memslots:
    vm = Memslots(max_gfn=(1 << 20) - 1)
    for id, base in enumerate((0x10, 0x18, 0x40, (1 << 20) - 8)):
        vm.create(id, base, 8, id << 20)
    return vm


@pytest.fixture(params=["Memslots", "AddressSpace", "Vcpu", "MemoryMap"])
def face(request: pytest.FixtureRequest, vm: Memslots) -> Any:
    faces = (vm, vm.address_space(0), vm.vcpu(), vm.map())
    (face,) = (face for face in faces if type(face).__name__ == request.param)
    return face


def test_at_the_ends(face: Any) -> None:
    assert face.floor(0) is None and face.floor(0xF) is None
    assert face.floor(LAST_PAGE).id == 3
    assert face.ceil(0).id == 0 and face.ceil(LAST_PAGE) is None
    assert face.span == (0x10, 1 << 20)
    assert face.holes(0, 0x50) == [(0, 0x10), (0x20, 0x40), (0x48, 0x50)]
    assert face.holes(0x12, 0x1F) == [] == face.holes(5, 5)
    assert face.holes(LAST_PAGE - 1, LAST_PAGE) == [(LAST_PAGE - 1, LAST_PAGE)]
    assert face.is_mapped(0x10, 0x20) and face.is_mapped(LAST_PAGE, LAST_PAGE)
    assert not face.is_mapped(0x10, 0x21) and not face.is_mapped(0xF, 0x20)
    assert not face.is_mapped(LAST_PAGE - 1, LAST_PAGE)


def test_without_an_end(vm: Memslots) -> None:
    assert vm.holes()[-1] == (0x48, (1 << 20) - 8)
    assert vm.holes(1 << 30) == []
    assert vm.find_hole(1 << 20) is None
    assert vm.find_hole((1 << 20) - 8 - 0x48) == 0x48
    m = vm.map()
    assert m.holes()[-1] == (1 << 20, (1 << 52) - 1)
    assert m.find_hole(1 << 20) == 1 << 20
    assert len(MemoryMap([*m, (1 << 20, 1 << 20, 0)])) == 5  # a slot can be there


def test_room(face: Any) -> None:
    assert face.find_hole(0x10) == 0
    assert face.find_hole(0x11) == 0x20
    assert face.find_hole(8, 1) == 1
    assert face.find_hole(8, 1, align=8) == 8
    assert face.find_hole(9, 1, align=8) == 0x20
    assert face.find_hole(0x20, 0x1A, 0x40) == 0x20
    assert face.find_hole(0x20, 0x21, 0x40) is None
    assert face.find_hole(1, align=LAST_PAGE) == 0
    assert face.find_hole(1, 1, align=LAST_PAGE) is None
    assert face.find_hole(1, 1, LAST_PAGE, LAST_PAGE) is None
    assert face.find_hole(LAST_PAGE, 0, LAST_PAGE) is None
    assert face.find_hole(1, LAST_PAGE - 1, LAST_PAGE) == LAST_PAGE - 1


def test_host_addresses(face: Any, vm: Memslots) -> None:
    assert face.hva_to_gpa(0x5678) == 0x10 << 12 | 0x5678
    assert face.hva_to_gpa((1 << 20) + 0x7FFF) == (0x18 << 12) + 0x7FFF
    for hva in (0x8000, LAST_PAGE):
        with pytest.raises(NotMappedError, match="no slot maps host address"):
            face.hva_to_gpa(hva)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda face: face.holes(2, 1), ValueError),
        (lambda face: face.is_mapped(2, 1), ValueError),
        (lambda face: face.find_hole(1, 2, 1), ValueError),
        (lambda face: face.find_hole(0), ValueError),
        (lambda face: face.find_hole(1, align=0), ValueError),
        (lambda face: face.find_hole(-1), OverflowError),
        (lambda face: face.floor("1"), TypeError),
        (lambda face: face.ceil(1 << 64), OverflowError),
        (lambda face: face.hva_to_gpa(1.5), TypeError),
    ],
)
def test_not_a_range(face: Any, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(face)


def test_nothing_is_there() -> None:
    vm = Memslots(max_gfn=99)
    for face in (vm, vm.map()):
        assert face.span is None and face.floor(5) is None and face.ceil(5) is None
        assert face.holes(0, 50) == [(0, 50)]
        assert face.find_hole(50, 50, 100) == 50
        assert not face.is_mapped(0, 1)
        with pytest.raises(NotMappedError):
            face.hva_to_gpa(0)
    assert vm.find_hole(101) is None and vm.find_hole(100) == 0


def test_no_memory_for_many_holes(drivers: Any) -> None:
    alloc = drivers("alloc")
    vm = Memslots()
    for id in range(40):
        vm.create(id, id * 10 + 1, 3, 0)
    live = alloc.live()
    alloc.fail_nth(1)
    try:
        with pytest.raises(MemoryError):
            vm.holes()
    finally:
        alloc.fail_nth(0)
    assert len(vm.holes()) == 41
    assert alloc.live() == live
