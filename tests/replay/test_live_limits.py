"""Tests limits of the kernel that differ from the replay's."""

from __future__ import annotations

import pytest
from livevm import CREATE, EEXIST, EINVAL, ENOMEM, HVA, MadeUpVM, beside, live_of, qemu, refuse

# --- limits that differ


@pytest.mark.parametrize(
    ("limits", "call", "told"),
    [
        ({"max_slots": 2}, qemu(2, 0, 0x1000), "max_slots is 2 here, 32764 in the replay"),
        (
            {"address_spaces": 1},
            qemu(1 << 16, 0, 0x1000),
            "address_spaces is 1 here, 2 in the replay",
        ),
        (
            {"max_gfn": 0xFF},
            qemu(0, 0xFF000, 0x2000),
            "max_gfn is 0xff here, 0xffffffffff in the replay",
        ),
        (
            {"max_hva": HVA},
            qemu(0, 0, 0x1000),
            "max_hva is 0x7f0000000000 here, 0x7ffffffff000 in the replay",
        ),
    ],
)
def test_a_smaller_limit_is_named(limits: dict[str, int], call: str, told: str) -> None:
    vm = beside(call, MadeUpVM(None, **limits))
    (found,) = vm.disagreements
    assert (found.recorded, found.ours, found.live) == (0, 0, EINVAL)
    assert found.live_why.endswith(f"; {told}")
    assert "cannot be made as in the map: slot" in found.live_followed
    assert live_of(vm).missing == vm.final_map
    assert len(vm.final_map) == 1
    assert live_of(vm).others == []


def test_a_greater_limit_is_named() -> None:
    vm = beside(qemu(0, 1 << 52, 0x1000, EINVAL), MadeUpVM(max_gfn=(1 << 44) - 1))
    (found,) = vm.disagreements
    assert (found.ours, found.live) == (EINVAL, 0)
    told = "max_gfn is 0xfffffffffff here, 0xffffffffff in the replay"
    assert found.live_why == f"no rule refuses it here: CREATE; {told}"
    assert found.live_followed == "slot 0 deleted"
    assert live_of(vm).same


def test_a_limit_that_is_not_the_reason_is_not_named() -> None:
    kernel = MadeUpVM({2: refuse(EINVAL), 4: refuse(EINVAL)}, max_gfn=0xFF)
    # A delete may name any address.
    vm = beside(CREATE + qemu(0, 0, 0x10000, flags=1) + qemu(0, 1 << 30, 0), kernel)
    assert [found.live_why for found in vm.disagreements] == ["made up: a value is wrong"] * 2


def test_a_slot_that_cannot_be_there_is_told_of_later() -> None:
    text = (
        CREATE
        + qemu(0, 0x100000, 0x10000)  # beyond the kernel's max_gfn
        + qemu(1, 0x108000, 0x1000, EEXIST)  # overlaps a slot that is not there
        + qemu(2, 0, 0x10000)  # in its old place, where neither has a slot
        + qemu(0, 0x100000, 0x10000, flags=1)
        + qemu(0, 0, 0)
        + qemu(0, 0x20000, 0x10000)  # refused for another reason
    )
    kernel = MadeUpVM({11: refuse(ENOMEM)}, max_gfn=0x108)
    vm = beside(text, kernel)
    lines = [found.call.line for found in vm.disagreements]
    assert lines == [2, 3, 5, 6, 7]
    moved, overlaps, flags, gone, last = vm.disagreements
    beyond = "slot 0 of address space 0, rule 7: the last gfn 0x10f is above max_gfn 0x108"
    assert moved.live_followed == f"slot 0 cannot be made as in the map: {beyond}, slot 0 deleted"
    since = "slot 0 is missing since line 2"
    assert (overlaps.live, overlaps.live_followed) == (0, "slot 1 deleted")
    assert overlaps.live_why == f"no rule refuses it here: CREATE; {since}"
    assert flags.live_why.endswith(f"max_gfn is 0x108 here, 0xffffffffff in the replay; {since}")
    assert (gone.live, gone.live_followed) == (EINVAL, "the same")
    assert gone.live_why.endswith(since)
    assert (last.live_why, last.live_followed) == ("made up: no memory", "CREATE of slot 0")
    assert live_of(vm).same
    assert [slot.id for slot in live_of(vm).slots] == [2, 0]


@pytest.mark.parametrize("taken", [True, False])
def test_a_slot_that_is_there_again_is_told_of_no_more(taken: bool) -> None:
    """The slot is back by a call that the map takes as a change of flags, or by what follows it."""
    wrong = {1: refuse(ENOMEM), 2: refuse(ENOMEM)}
    wrong |= {4: refuse(EINVAL)} if taken else {3: refuse(ENOMEM), 5: refuse(EINVAL)}
    text = CREATE + qemu(0, 0, 0x10000, flags=1) + qemu(0, 0, 0x10000)
    vm = beside(text, MadeUpVM(wrong))
    first, *others, last = vm.disagreements
    assert (first.call.line, first.live) == (1, ENOMEM)
    assert first.live_followed == "slot 0 cannot be made as in the map: made up: no memory"
    assert [(found.live_why, found.live_followed) for found in others] == (
        []
        if taken
        else [("made up: no memory; slot 0 is missing since line 1", "CREATE of slot 0")]
    )
    assert (last.call.line, last.live_why) == (3, "made up: a value is wrong")
    assert live_of(vm).same


def test_a_slot_that_is_not_there_means_nothing_to_another_space() -> None:
    kernel = MadeUpVM({3: refuse(ENOMEM)}, address_spaces=1)
    vm = beside(qemu(1 << 16, 0, 0x10000) + CREATE, kernel)
    assert vm.disagreements[1].live_why == "made up: no memory"
    assert [(slot.as_id, slot.id) for slot in live_of(vm).missing] == [(1, 0)]
