"""Finds the kernel's limits by asking."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from livekernel import PAGE
from needs import needs_kvm

from memslots import Change, InvalidRegionError, Memslots
from memslots.kvm import Cap, KvmError, KvmVM, ioctls


def test_found_by_trying(fake: Any) -> None:
    with KvmVM(device=fake.device) as vm:
        assert vm.limits == {
            "max_slots": 32764,
            "address_spaces": 1,
            "max_gfn": (1 << 36) - 1,
            "max_hva": 1 << 47,
            "manual_dirty_log": 0,
        }
        calls = len(fake.seen)
        assert vm.limits["max_gfn"] == (1 << 36) - 1
        assert len(fake.seen) == calls, "asked once in a process"


def test_of_an_old_kernel(fake: Any) -> None:
    """Without these capabilities it has 32 slots and one address space."""
    fake.caps = {}
    with KvmVM(device=fake.device) as vm:
        assert (vm.limits["max_slots"], vm.limits["address_spaces"]) == (32, 1)


def test_of_two_address_spaces(fake: Any) -> None:
    fake.caps[Cap.MULTI_ADDRESS_SPACE] = 2
    with KvmVM(device=fake.device, manual_dirty_log=3) as vm:
        assert vm.limits["address_spaces"] == 2
        assert vm.limits["manual_dirty_log"] == 3


@pytest.mark.usefixtures("no_descriptor_left")
def test_no_answer_is_not_kept(fake: Any) -> None:
    """ENOMEM says nothing about the limits: it is raised, and the next call asks again."""
    with KvmVM(device=fake.device) as vm:
        fake.fail(ioctls.SET_USER_MEMORY_REGION, errno.ENOMEM)
        with pytest.raises(KvmError) as caught:
            _ = vm.limits
        assert caught.value.errno == errno.ENOMEM
        assert vm.limits["max_gfn"] == (1 << 36) - 1


@needs_kvm
def test_the_ends_are_the_ends() -> None:
    with KvmVM() as vm:
        limits = vm.limits
        Memslots(**limits)
        gfn, hva, most = limits["max_gfn"], limits["max_hva"], limits["max_slots"]
        assert vm.set_region(0, 0, gfn * PAGE, PAGE, 0) is Change.CREATE
        assert vm.set_region(most - 1, 0, 0, PAGE, hva - PAGE) is Change.CREATE
        beyond = [
            (7, (1, 0, (gfn + 1) * PAGE, PAGE, 0)),
            (7, (1, 0, (gfn + 1) * PAGE, 2 * PAGE, 0)),
            (2, (1, 0, PAGE, PAGE, hva)),
            (2, (1, 0, PAGE, 2 * PAGE, hva - PAGE)),
            (2, (most, 0, PAGE, PAGE, 0)),
            (2, (limits["address_spaces"] << 16, 0, PAGE, PAGE, 0)),
        ]
        for rule, args in beyond:
            with pytest.raises(InvalidRegionError) as caught:
                vm.set_region(*args)
            assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, rule)
        assert [slot.id for slot in vm.slots] == [0, most - 1]
        assert vm.check_extension(Cap.NR_MEMSLOTS) == most
