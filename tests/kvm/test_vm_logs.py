"""Tests the dirty logs of a VM of the kernel."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

import pytest
from livekernel import MSR_KVM_WALL_CLOCK, PAGE, HostMemory, page_bits
from needs import needs_kvm

from memslots import (
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
)
from memslots.kvm import KvmError, KvmVM, ioctls

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

LOG = Flags.LOG_DIRTY_PAGES
SET = ioctls.SET_USER_MEMORY_REGION

# Dirty logs


def live(mode: int) -> tuple[KvmVM, Any]:
    """Returns slot 1 and a function that makes the kernel write.

    The slot logs and has 130 pages from gfn 16 on.
    """
    memory = HostMemory(130)
    vm = KvmVM(manual_dirty_log=mode)
    vm.set_region(1, LOG, 16 * PAGE, 130 * PAGE, memory.address)
    vcpu = vm.create_vcpu()

    def write(page: int) -> None:
        assert memory.bytes
        vcpu.set_msr(MSR_KVM_WALL_CLOCK, (16 + page) * PAGE)

    return vm, write


@needs_kvm
@pytest.mark.parametrize("mode", [0, 1, 3])
def test_dirty_log(mode: int) -> None:
    vm, write = live(mode)
    with vm:
        assert vm.get_dirty_log(1) == page_bits(*range(130 if mode == 3 else 0))
        vm.clear_dirty_log(1, 0, 130, b"\xff" * 24)
        for page in (0, 65, 129):
            write(page)
        log = vm.get_dirty_log(1)
        assert isinstance(log, bytearray)
        assert log == page_bits(0, 65, 129)
        assert vm.get_dirty_log(1) == (page_bits(0, 65, 129) if mode else page_bits())
        write(0)
        vm.clear_dirty_log(1, 64, 66, memoryview(page_bits(1, 65)[:16]))
        assert vm.get_dirty_log(1) == page_bits(0)
        vm.set_region(1, 0, 16 * PAGE, 130 * PAGE, vm.slots[0].userspace_addr)
        with pytest.raises(NoSuchSlotError, match="has no dirty log"):
            vm.get_dirty_log(1)


@needs_kvm
def test_dirty_log_refusals() -> None:
    vm, _ = live(1)
    calls: list[Callable[[Any], object]] = [
        lambda vm: vm.get_dirty_log(2),
        lambda vm: vm.get_dirty_log(1, as_id=9),
        lambda vm: vm.get_dirty_log(0xFFFF),
        lambda vm: vm.get_dirty_log(1 << 20),
        lambda vm: vm.clear_dirty_log(2, 0, 64, bytes(8)),
        lambda vm: vm.clear_dirty_log(1, 1, 64, bytes(8)),
        lambda vm: vm.clear_dirty_log(1, 0, 63, bytes(8)),
        lambda vm: vm.clear_dirty_log(1, 192, 0, bytes(8)),
        lambda vm: vm.clear_dirty_log(1, 0, 130, bytes(23)),
        lambda vm: vm.clear_dirty_log(1, 0, 64, b""),
        lambda vm: vm.clear_dirty_log(1, 0, 1 << 32, bytes(8)),
        lambda vm: vm.clear_dirty_log(1, -1, 64, bytes(8)),
        lambda vm: vm.clear_dirty_log(1, "0", 64, bytes(8)),
        lambda vm: vm.get_dirty_log(1.0),
        lambda vm: vm.get_dirty_log(-1),
    ]
    with vm:
        twin = Memslots(**vm.limits)
        twin.create(1, 16, 130, vm.slots[0].userspace_addr, LOG)
        for call in calls:
            with pytest.raises((MemslotError, TypeError, OverflowError)) as ours:
                call(twin)
            with pytest.raises(type(ours.value), match=f"^{re.escape(str(ours.value))}$"):
                call(vm)
        for wrong in (8, None, "1" * 8, [1] * 8):
            with pytest.raises(TypeError):
                vm.clear_dirty_log(1, 0, 64, wrong)  # type: ignore[arg-type]


def test_dirty_log_refused_for_no_rule(fake: Any) -> None:
    with KvmVM(device=fake.device) as vm:
        vm.set_region(1, LOG, 0, PAGE, 0)
        fake.fail(ioctls.GET_DIRTY_LOG, errno.ENOMEM)
        fake.fail(ioctls.CLEAR_DIRTY_LOG_OF_VM, errno.ENOMEM)
        for call in (
            lambda: vm.get_dirty_log(1),
            lambda: vm.clear_dirty_log(1, 0, 1, bytes(8)),
        ):
            with pytest.raises(KvmError, match="slot 1 of address space 0: no rule") as caught:
                call()
            assert caught.value.errno == errno.ENOMEM


def test_room_for_the_log(fake: Any) -> None:
    """The buffer for the kernel is as long as the slot's log, also after a refused call."""
    with KvmVM(device=fake.device) as vm:
        vm.set_region(1, LOG, 0, 65 * PAGE, 0)
        fake.fail(SET, errno.EINVAL)
        with pytest.raises(InvalidRegionError):
            vm.set_region(1, LOG, 0, 1 << 43, 0)
        assert vm._room == {1: 65}
        assert len(vm.get_dirty_log(1)) == 16
        fake.fail(SET, errno.EINVAL)
        with pytest.raises(InvalidRegionError):
            vm.set_region(0xFFFFFFFF, LOG, 0, 1 << 43, 0)
        assert vm._room == {1: 65}
        vm.set_region(1, 0, 0, 0, 0)
        assert vm._room == {}
