"""Tests Slot, Flags, Change and the constants: values, limits, equality and reprs."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

import memslots
from memslots import Change, Flags, InvalidRegionError, NotMappedError, Slot, VcpuStats
from memslots.values.integers import slot_number

SLOT = Slot(7, 1, 0x100, 64, 0x7F00_0000_0000, Flags.LOG_DIRTY_PAGES)


class Seven:
    def __index__(self) -> int:
        return 7


def test_constants() -> None:
    assert memslots.BAD_HVA == 2**64 - 1
    assert memslots.PAGE_SHIFT == 12
    assert memslots.PAGE_SIZE == 4096
    assert [int(flag) for flag in Flags] == [1, 2, 4, 1 << 16]
    assert [flag.name for flag in Flags] == [
        "LOG_DIRTY_PAGES",
        "READONLY",
        "GUEST_MEMFD",
        "INVALID",
    ]


def test_slot_number() -> None:
    assert slot_number(3, 1) == 0x1_0003
    assert slot_number(0xFFFF, 0xFFFF) == 0xFFFF_FFFF
    for id, as_id in ((1 << 16, 0), (0, 1 << 16), (-1, 0)):
        with pytest.raises(OverflowError):
            slot_number(id, as_id)


def test_the_kinds_of_change() -> None:
    names = [change.name for change in Change]
    assert sorted(names) == ["CREATE", "DELETE", "FLAGS_ONLY", "MOVE", "NONE"]


def test_slot_fields() -> None:
    assert (SLOT.id, SLOT.as_id, SLOT.base_gfn, SLOT.npages) == (7, 1, 0x100, 64)
    assert SLOT.userspace_addr == 0x7F00_0000_0000
    assert SLOT.flags == Flags.LOG_DIRTY_PAGES
    assert isinstance(SLOT.flags, Flags)
    assert SLOT.end_gfn == 0x140
    assert SLOT.guest_phys_addr == 0x100000
    assert SLOT.memory_size == 64 * 4096
    assert Slot(0, 0, 0, 1, 0).flags == Flags(0)


def test_slot_is_immutable() -> None:
    for name in ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags", "end_gfn"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(SLOT, name, 3)
    with pytest.raises((AttributeError, TypeError)):
        SLOT.new_name = 3  # type: ignore[attr-defined]


def test_slot_is_made_once() -> None:
    """The __index__ of an argument may make the Slot that it is given to."""
    slot = Slot.__new__(Slot)

    class Making:
        def __index__(self) -> int:
            slot.__init__(7, 1, 0x100, 64, SLOT.userspace_addr, 1)
            return 3

    for arguments in ((Making(), 0, 0, 1, 0), (0, 0, 0, 1, 0)):
        with pytest.raises(TypeError, match="immutable"):
            slot.__init__(*arguments)
        assert slot == SLOT


@pytest.mark.parametrize(
    ("gfn", "inside"), [(0xFF, False), (0x100, True), (0x13F, True), (0x140, False), (0, False)]
)
def test_gfn_in_slot(gfn: int, inside: bool) -> None:
    assert (gfn in SLOT) is inside
    if inside:
        assert SLOT.gfn_to_hva(gfn) == SLOT.userspace_addr + (gfn - 0x100) * 4096
    else:
        with pytest.raises(NotMappedError, match=f"{gfn:#x}"):
            SLOT.gfn_to_hva(gfn)


def test_equality_and_hash_go_by_value() -> None:
    same = Slot(7, 1, 0x100, 64, 0x7F00_0000_0000, 1)
    assert same == SLOT
    assert (same != SLOT) is False
    assert hash(same) == hash(SLOT)
    assert len({same, SLOT}) == 1
    others = [
        Slot(8, 1, 0x100, 64, 0x7F00_0000_0000, 1),
        Slot(7, 0, 0x100, 64, 0x7F00_0000_0000, 1),
        Slot(7, 1, 0x101, 64, 0x7F00_0000_0000, 1),
        Slot(7, 1, 0x100, 63, 0x7F00_0000_0000, 1),
        Slot(7, 1, 0x100, 64, 0x7F00_0000_1000, 1),
        Slot(7, 1, 0x100, 64, 0x7F00_0000_0000, 0),
    ]
    assert all(other != SLOT for other in others)
    assert len({SLOT, *others}) == 7
    assert SLOT != (7, 1, 0x100, 64, 0x7F00_0000_0000, 1)
    assert SLOT != "slot"
    with pytest.raises(TypeError):
        same > SLOT  # type: ignore[operator]  # noqa: B015


def test_repr_reads_well() -> None:
    text = repr(SLOT)
    assert text.startswith(("Slot(", "<Slot"))
    for part in ("7", "0x100", "0x7f0000000000", "LOG_DIRTY_PAGES"):
        assert part in text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_slot_pickles(protocol: int) -> None:
    again = pickle.loads(pickle.dumps(SLOT, protocol))
    assert again == SLOT
    assert isinstance(again.flags, Flags)


def test_slot_copies() -> None:
    assert copy.copy(SLOT) == SLOT
    assert copy.deepcopy([SLOT]) == [SLOT]
    invalid = Slot(1, 0, 2, 3, 4096, Flags.INVALID | Flags.READONLY)
    assert pickle.loads(pickle.dumps(invalid)) == invalid


def test_slot_takes_anything_with_an_index() -> None:
    slot = Slot(Seven(), False, Seven(), True, 4096)
    assert (slot.id, slot.as_id, slot.base_gfn, slot.npages) == (7, 0, 7, 1)
    assert Seven() in slot
    assert slot.gfn_to_hva(Seven()) == 4096


@pytest.mark.parametrize("wrong", ["1", 1.0, None, b"1", [1]])
@pytest.mark.parametrize("field", range(6))
def test_slot_of_wrong_types(field: int, wrong: object) -> None:
    values: list[object] = [1, 0, 2, 3, 4096, 0]
    values[field] = wrong
    with pytest.raises(TypeError):
        Slot(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "name", "width"),
    [
        (0, "id", 32),
        (1, "as_id", 32),
        (2, "base_gfn", 64),
        (3, "npages", 64),
        (4, "userspace_addr", 64),
        (5, "flags", 32),
    ],
)
def test_slot_of_values_that_do_not_fit(field: int, name: str, width: int) -> None:
    for value in (-1, 1 << width, -(1 << 70)):
        values = [1, 0, 2, 3, 4096, 0]
        values[field] = value
        with pytest.raises(OverflowError, match=name):
            Slot(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base_gfn", "npages", "hva"),
    [
        *[(0, 2**52, 0), (1, 2**52 - 1, 0), (2**52 - 1, 1, 0), (2**52, 1, 0), (2**64 - 1, 1, 0)],
        *[(0, 2**64 - 1, 0), (0, 2**52 - 1, 4097), (0, 1, 2**64 - 4095), (0, 0, 0)],
    ],
)
def test_slots_that_are_no_runs_of_pages(base_gfn: int, npages: int, hva: int) -> None:
    with pytest.raises(InvalidRegionError) as caught:
        Slot(0, 0, base_gfn, npages, hva)
    assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, None)
    assert f"{npages} pages" in str(caught.value)


def test_the_greatest_slots() -> None:
    all_of_it = Slot(0, 0, 0, 2**52 - 1, 4096)
    assert (all_of_it.end_gfn, all_of_it.memory_size) == (2**52 - 1, 2**64 - 4096)
    assert all_of_it.gfn_to_hva(2**52 - 2) == 2**64 - 4096
    assert 2**52 - 2 in all_of_it
    assert 2**52 - 1 not in all_of_it
    last = Slot(2**32 - 1, 2**32 - 1, 2**52 - 2, 1, 2**64 - 4096)
    assert (last.end_gfn, last.guest_phys_addr) == (2**52 - 1, 2**64 - 8192)
    for slot in (all_of_it, last):
        assert pickle.loads(pickle.dumps(slot)) == slot


@pytest.mark.parametrize("wrong", ["x", 2.0, None])
def test_gfns_of_wrong_types(wrong: object) -> None:
    with pytest.raises(TypeError):
        wrong in SLOT  # type: ignore[operator]  # noqa: B015
    with pytest.raises(TypeError):
        SLOT.gfn_to_hva(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 1 << 64])
def test_gfns_that_do_not_fit(wrong: int) -> None:
    with pytest.raises(OverflowError, match="gfn"):
        SLOT.gfn_to_hva(wrong)
    with pytest.raises(OverflowError, match="gfn"):
        wrong in SLOT  # noqa: B015


def test_vcpu_stats() -> None:
    stats = VcpuStats(3, 4)
    assert stats == (3, 4)
    assert (stats.hits, stats.misses) == (3, 4)
