"""Calls that the kernel refuses and no rule does: the error says why, if that is known."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from livekernel import PAGE
from needs import needs_kvm

from memslots import Change, Flags, InvalidRegionError, MemslotError, OverlapError, Slot
from memslots.kvm import Cap, KvmError, KvmVM, ioctls
from memslots.kvm.refusals import Binding, why_memfd

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

SET = ioctls.SET_USER_MEMORY_REGION
SET2 = ioctls.SET_USER_MEMORY_REGION2


def test_the_flag_without_a_guest_memfd(fake: Any) -> None:
    """The missing guest_memfd does not become descriptor 0."""
    with KvmVM(device=fake.device) as vm:
        fake.caps[Cap.GUEST_MEMFD] = 1
        fake.fail(SET2, errno.EBADF)
        with pytest.raises(InvalidRegionError, match="not an open descriptor") as caught:
            vm.set_region2(0, 4, 0, PAGE, 0)
        assert caught.value.errno == errno.EBADF


@contextmanager
def vm_with_memfds() -> Iterator[tuple[KvmVM, int, int]]:
    """Returns a VM of this kernel and two files of four pages."""
    with KvmVM() as vm:
        if not vm.check_extension(Cap.GUEST_MEMFD):
            pytest.skip("this kernel has no KVM_CAP_GUEST_MEMFD for this type of VM")
        memfd, other = vm.create_guest_memfd(4 * PAGE), vm.create_guest_memfd(4 * PAGE)
        try:
            yield vm, memfd, other
        finally:
            os.close(memfd)
            os.close(other)


@needs_kvm
def test_guest_memfd() -> None:
    with vm_with_memfds() as (vm, memfd, other):
        assert vm.set_region2(0, 4, 0, 2 * PAGE, 0, memfd, 2 * PAGE) is Change.CREATE
        (slot,) = vm.slots
        assert slot.guest_memfd is not None
        assert (slot.guest_memfd.fileno(), slot.guest_memfd.size) == (memfd, 4 * PAGE)
        assert slot == Slot(0, 0, 0, 2, 0, 4, slot.guest_memfd, 2 * PAGE)
        vm.set_region(5, 0, 64 * PAGE, PAGE, 0)
        closed = os.dup(other)
        os.close(closed)
        wrong: list[tuple[tuple[int, ...], int, object]] = [
            ((0, 4, 8 * PAGE, 2 * PAGE, 0, memfd, 2 * PAGE), errno.EINVAL, "G5"),
            ((0, 4, 0, 2 * PAGE, 0, memfd, 2 * PAGE), errno.EINVAL, "G5"),
            ((0, 1, 0, 2 * PAGE, 0), errno.EINVAL, "G5"),
            ((5, 4, 64 * PAGE, PAGE, 0, other), errno.EINVAL, "G5"),
            ((0, 4, 1, 2 * PAGE, 0, memfd), errno.EINVAL, 2),
            ((1, 12, 8 * PAGE, PAGE, 0, memfd), errno.EINVAL, 1),
            ((1, 5, 8 * PAGE, PAGE, 0, memfd), errno.EINVAL, "G1"),
            ((1, 4, PAGE, PAGE, 0, memfd), errno.EEXIST, 6),
            ((1, 4, 8 * PAGE, 8 * PAGE, 0, memfd), errno.EINVAL, "G7"),
            ((1, 4, 8 * PAGE, PAGE, 0, memfd, 4 * PAGE), errno.EINVAL, "G7"),
            ((1, 4, 8 * PAGE, PAGE, 0, memfd, 1), errno.EINVAL, "G2"),
            ((1, 4, 8 * PAGE, PAGE, 0, memfd, 2**64 - PAGE), errno.EINVAL, "G2"),
            ((1, 4, 8 * PAGE, 2 * PAGE, 0, memfd, PAGE), errno.EINVAL, "G7"),
            ((1, 4, 8 * PAGE, PAGE, 0, closed), errno.EBADF, "G7"),
            ((1, 4, 8 * PAGE, PAGE, 0, -1), errno.EBADF, "G7"),
            ((1, 4, 8 * PAGE, PAGE, 0, vm.fileno()), errno.EINVAL, "G7"),
        ]
        for args, number, rule in wrong:
            with pytest.raises(MemslotError) as caught:
                vm.set_region2(*args)
            assert (caught.value.errno, caught.value.rule) == (number, rule), caught.value
        assert vm.set_region2(1, 4, 8 * PAGE, PAGE, 0, other, 2 * PAGE) is Change.CREATE
        assert vm.set_region(0, 0, 0, 0, 0) is Change.DELETE
        assert vm.set_region2(2, 4, 0, PAGE, 0, memfd, 3 * PAGE) is Change.CREATE


@needs_kvm
def test_a_guest_memfd_of_another_vm_or_none(tmp_path: Path) -> None:
    with vm_with_memfds() as (vm, _, _), vm_with_memfds() as (_, foreign, _):
        with pytest.raises(KvmError, match=f"descriptor {foreign} is not a guest_memfd of this VM"):
            vm.set_region2(0, 4, 0, PAGE, 0, foreign)
        plain = tmp_path / "plain"
        plain.write_bytes(bytes(PAGE))
        with plain.open() as file, pytest.raises(InvalidRegionError, match="not a guest_memfd's"):
            vm.set_region2(0, 4, 0, PAGE, 0, file.fileno())


@needs_kvm
def test_wrong_sizes_of_a_guest_memfd() -> None:
    with vm_with_memfds() as (vm, _, _):
        with pytest.raises(OverflowError, match="size"):
            vm.create_guest_memfd(1 << 64)
        with pytest.raises(KvmError) as refused:
            vm.create_guest_memfd(1)
        assert refused.value.errno == errno.EINVAL


def test_a_part_that_another_slot_has_by_a_kernel_of_7_2(fake: Any, tmp_path: Path) -> None:
    """Linux 7.2 answers EEXIST, which does not mean an overlap in guest memory."""
    fake.caps[Cap.GUEST_MEMFD] = 1
    path = tmp_path / "memory"
    path.write_bytes(bytes(4 * PAGE))
    with KvmVM(device=fake.device) as vm, path.open() as file, path.open() as again:
        vm.set_region2(3, 4, 0, 2 * PAGE, 0, file.fileno())
        fake.fail(SET2, errno.EEXIST)
        with pytest.raises(
            KvmError, match="overlaps the range of slot 3 of address space 0"
        ) as caught:
            vm.set_region2(4, 4, 8 * PAGE, 2 * PAGE, 0, again.fileno(), PAGE)
        assert caught.value.errno == errno.EEXIST
        assert not isinstance(caught.value, OverlapError)
        # If the guest ranges overlap, the error is that of the rule.
        fake.fail(SET2, errno.EEXIST)
        with pytest.raises(OverlapError) as overlap:
            vm.set_region2(4, 4, PAGE, 2 * PAGE, 0, again.fileno(), PAGE)
        assert overlap.value.existing.id == 3


@pytest.mark.parametrize("code", [errno.ENXIO, errno.EFAULT])
def test_a_log_of_a_vm_with_a_dirty_ring(fake: Any, code: int) -> None:
    why = "a VM with a dirty ring has no dirty logs" if code == errno.ENXIO else "no rule refuses"
    with KvmVM(device=fake.device) as vm:
        vm.set_region(0, Flags.LOG_DIRTY_PAGES, 0, PAGE, 0)
        fake.fail(ioctls.GET_DIRTY_LOG, code)
        with pytest.raises(KvmError, match=why) as caught:
            vm.get_dirty_log(0)
        assert caught.value.errno == code
        fake.fail(ioctls.CLEAR_DIRTY_LOG_OF_VM, code)
        with pytest.raises(KvmError, match=why) as caught:
            vm.clear_dirty_log(0, 0, 64, bytes(8))
        assert caught.value.errno == code


def test_no_reason_is_made_up() -> None:
    wanted = Binding(9, (1, 2), 4 * PAGE, 0, PAGE)
    held = {0: wanted, 2: Binding(9, (1, 2), 4 * PAGE, PAGE, PAGE)}
    for number in (errno.ENOMEM, errno.EIO):
        assert why_memfd(KvmError(number, "x"), wanted, held) is None
    for number in (errno.EEXIST, errno.EINVAL):
        refused = KvmError(number, "x")
        assert why_memfd(refused, None, held) is None
        why = why_memfd(refused, wanted, held)
        part = "[0x0, 0x1000) of guest_memfd 9"
        assert why == f"{part} overlaps the range of slot 0 of address space 0"
    beside = wanted._replace(offset=2 * PAGE)
    assert why_memfd(KvmError(errno.EEXIST, "x"), beside, held) is None
    why = why_memfd(KvmError(errno.EINVAL, "x"), beside, held)
    assert why == "descriptor 9 is not a guest_memfd of this VM"
