"""The look-ups that Memslots, AddressSpace and Vcpu share: by id, gfn, gpa, range, in order."""

from __future__ import annotations

import pytest

from memslots import Flags, Memslots, NoSuchSlotError, NotMappedError, ReadOnlyError, Slot

HVA = 0x7000_0000_0000


@pytest.fixture
def used(vm: Memslots) -> Memslots:
    """Slots are made out of gfn order.

    Host ranges of 7, 1 and 4 overlap; those of 1 and 4 are equal.
    """
    vm.create(1, 0x100, 0x10, HVA + 0x4000)
    vm.create(9, 0x300, 1, HVA + 0x80000, Flags.READONLY)
    vm.create(7, 0x110, 8, HVA)
    vm.create(4, 0x80, 0x10, HVA + 0x4000)
    return vm


def test_by_id(used: Memslots) -> None:
    assert used[9] == Slot(9, 0, 0x300, 1, HVA + 0x80000, 2)
    assert used.get(9) is used[9]
    assert used.get(8) is None
    assert used.get(8, "none") == "none"
    assert used.get(8, default=8) == 8
    assert used.get(9, "none") is used[9]
    for id in (8, 64, 2**31, 2**32 - 1):
        assert used.get(id) is None
        with pytest.raises(KeyError):
            used[id]
    with pytest.raises(NoSuchSlotError):
        used.address_space(1)[9]


def test_size_and_order(used: Memslots) -> None:
    assert len(used) == 4
    assert used.nr_pages == 0x10 + 1 + 8 + 0x10
    assert [slot.id for slot in used] == [4, 1, 7, 9]
    assert [slot.id for slot in used.address_space(0)] == [4, 1, 7, 9]
    assert list(used.address_space(1)) == []
    iterator = iter(used)
    assert next(iterator) is used[4]
    assert iter(iterator) is iterator


def test_reversed(used: Memslots) -> None:
    used.create(4, 1, 1, HVA, as_id=1)
    used.create(2, 9, 1, HVA, as_id=1)
    for face in (used, used.address_space(1), used.vcpu(1)):
        backwards = reversed(face)
        assert iter(backwards) is backwards
        found = list(backwards)
        assert found == list(face)[::-1]
        assert all(slot is face[slot.id] for slot in found)
    assert [slot.id for slot in reversed(used.address_space(1))] == [2, 4]
    backwards = reversed(used)
    used.delete(1)
    assert [slot.id for slot in backwards] == [9, 7, 1, 4]


def test_iteration_is_over_one_generation(used: Memslots) -> None:
    iterator = iter(used)
    first = next(iterator)
    used.delete(1)
    used.create(2, 0x200, 1, HVA)
    used.move(9, 0)
    assert [first.id, *(slot.id for slot in iterator)] == [4, 1, 7, 9]


def test_membership(used: Memslots) -> None:
    slot = used[4]
    assert slot in used
    assert Slot(4, 0, 0x80, 0x10, HVA + 0x4000) in used
    assert Slot(4, 1, 0x80, 0x10, HVA + 0x4000) not in used
    assert Slot(5, 0, 0x80, 0x10, HVA + 0x4000) not in used
    assert Slot(2**32 - 1, 0, 0x80, 0x10, HVA + 0x4000) not in used
    used.move(4, 0)
    assert slot not in used
    used.move(4, 0x80)
    assert slot in used
    for wrong in (4, "4", None, (4, 0)):
        with pytest.raises(TypeError):
            wrong in used  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize(
    ("gfn", "id"),
    [
        *[(0, None), (0x7F, None), (0x80, 4), (0x8F, 4), (0x90, None), (0xFF, None)],
        *[(0x100, 1), (0x10F, 1), (0x110, 7), (0x117, 7), (0x118, None), (0x300, 9)],
        *[(0x301, None), (2**40, None), (2**52 - 1, None), (2**64 - 1, None)],
    ],
)
def test_lookup(used: Memslots, gfn: int, id: int | None) -> None:
    want = None if id is None else used[id]
    for face in (used, used.address_space(0), used.vcpu()):
        assert face.lookup(gfn) is want


def test_gpa_to_hva(used: Memslots) -> None:
    assert used.gpa_to_hva(0x80000) == HVA + 0x4000
    assert used.gpa_to_hva(0x80FFF) == HVA + 0x4FFF
    assert used.gpa_to_hva(0x117FFF, write=True) == HVA + 0x7FFF
    assert used.gpa_to_hva(0x300008) == HVA + 0x80008
    with pytest.raises(ReadOnlyError):
        used.gpa_to_hva(0x300008, write=True)
    for gpa in (0x7FFFF, 0x90000, 0x118000, 2**64 - 1):
        with pytest.raises(NotMappedError):
            used.gpa_to_hva(gpa)


@pytest.mark.parametrize(
    ("start", "end", "want"),
    [
        (0, 2**64 - 1, [4, 1, 7, 9]),
        (0, 0x80, []),
        (0, 0x81, [4]),
        (0x8F, 0x100, [4]),
        (0x90, 0x100, []),
        (0x10F, 0x111, [1, 7]),
        (0x117, 0x301, [7, 9]),
        (0x118, 0x300, []),
        (0x105, 0x106, [1]),
        (0x105, 0x105, []),
    ],
)
def test_in_gfn_range(used: Memslots, start: int, end: int, want: list[int]) -> None:
    found = used.in_gfn_range(start, end)
    assert isinstance(found, list)
    assert [slot.id for slot in found] == want
    assert all(slot is used[slot.id] for slot in found)


@pytest.mark.parametrize(
    ("start", "end", "want"),
    [
        (0, HVA, []),
        (HVA, HVA + 1, [(7, 0x110, 0x111)]),
        (HVA + 0xFFF, HVA + 0x1001, [(7, 0x110, 0x112)]),
        (HVA + 0x3000, HVA + 0x4000, [(7, 0x113, 0x114)]),
        (HVA + 0x7000, HVA + 0x9000, [(7, 0x117, 0x118), (1, 0x103, 0x105), (4, 0x83, 0x85)]),
        (HVA + 0x13FFF, HVA + 0x80000, [(1, 0x10F, 0x110), (4, 0x8F, 0x90)]),
        (HVA + 0x14000, HVA + 0x80000, []),
        (HVA + 0x80800, 2**64 - 1, [(9, 0x300, 0x301)]),
        (HVA + 0x4000, HVA + 0x4000, []),
    ],
)
def test_in_hva_range(
    used: Memslots, start: int, end: int, want: list[tuple[int, int, int]]
) -> None:
    found = used.in_hva_range(start, end)
    assert isinstance(found, list)
    assert sorted((slot.id, *gfns) for slot, *gfns in found) == sorted(want)
    addresses = [slot.userspace_addr for slot, _, _ in found]
    assert addresses == sorted(addresses)


def test_ranges_the_wrong_way_round(used: Memslots) -> None:
    for face in (used, used.address_space(1), used.vcpu()):
        with pytest.raises(ValueError, match="2"):
            face.in_gfn_range(2, 1)
        with pytest.raises(ValueError, match="2"):
            face.in_hva_range(2, 1)
