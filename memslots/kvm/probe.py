"""Asks the kernel of this machine for its limits on the slots of a VM.

The numbers of slots and of address spaces are capabilities. No capability tells the highest gfn or
the end of user space. The probe finds them by trying slots in a VM of its own. A slot can be made
although its host memory does not exist.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from memslots.errors import KvmError
from memslots.kvm import ioctls
from memslots.kvm.device import open_device
from memslots.kvm.fd import Fd
from memslots.values.integers import PAGE_SIZE

_HIGHEST_GFN_BITS = 52
_HIGHEST_HVA = (1 << 64) - PAGE_SIZE

_ends: dict[tuple[str, int], tuple[int, int]] = {}  # known limits, by device and type of VM


def slots_and_spaces(vm: Fd) -> tuple[int, int]:
    """Returns the number of slot ids that the kernel has, and the number of address spaces."""
    slots, spaces = (
        vm.ioctl("KVM_CHECK_EXTENSION", ioctls.CHECK_EXTENSION, cap)
        for cap in (ioctls.Cap.NR_MEMSLOTS, ioctls.Cap.MULTI_ADDRESS_SPACE)
    )
    return slots or 32, spaces or 1  # KVM's documentation says so of kernels that answer 0


def ends(device: str, vm_type: int) -> tuple[int, int]:
    """Returns the highest gfn that a slot may hold, and the end of user space.

    The kernel is asked once in a process.
    """
    known = _ends.get((device, vm_type))
    if known is None:
        known = _ends[device, vm_type] = _ask(device, vm_type)
    return known


def _ask(device: str, vm_type: int) -> tuple[int, int]:
    opened = open_device(device)
    try:
        vm = opened.create("KVM_CREATE_VM", ioctls.CREATE_VM, vm_type, "KvmVM")
    finally:
        opened.close()
    try:
        return _highest_gfn(vm), _end_of_user_space(vm)
    finally:
        vm.close()


def _accepts(vm: Fd, gpa: int, hva: int) -> bool:
    """Returns whether a slot of one page may be there: makes it and deletes it again."""
    try:
        for size in (PAGE_SIZE, 0):
            region = ioctls.REGION.pack(0, 0, gpa, size, hva)
            vm.ioctl("KVM_SET_USER_MEMORY_REGION", ioctls.SET_USER_MEMORY_REGION, region)
    except KvmError as error:
        if error.errno != errno.EINVAL:  # not an answer to the question: must not be cached
            raise
        return False
    return True


def _highest(count: int, accepts: Callable[[int], bool]) -> int:
    """Returns the greatest accepted number below `count`, or 0. All below it are accepted."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if accepts(middle):
            low = middle
        else:
            high = middle
    return low


def _highest_gfn(vm: Fd) -> int:
    return _highest(1 << _HIGHEST_GFN_BITS, lambda gfn: _accepts(vm, gfn * PAGE_SIZE, 0))


def _end_of_user_space(vm: Fd) -> int:
    pages = _HIGHEST_HVA // PAGE_SIZE
    return (_highest(pages, lambda page: _accepts(vm, 0, page * PAGE_SIZE)) + 1) * PAGE_SIZE
