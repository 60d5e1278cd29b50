"""What the kernel of this machine allows of a VM's slots, asked of the kernel itself.

The numbers of slots and of address spaces are capabilities. For the highest gfn and the end of user
space there are none: they are found by trying, with slots of a VM made for it. A slot's host memory
need not exist to make one.
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

_ends: dict[tuple[str, int], tuple[int, int]] = {}  # those that are known, by device and type of VM


def slots_and_spaces(vm: Fd) -> tuple[int, int]:
    """How many ids the kernel has, and how many address spaces."""
    slots, spaces = (
        vm.ioctl("KVM_CHECK_EXTENSION", ioctls.CHECK_EXTENSION, cap)
        for cap in (ioctls.Cap.NR_MEMSLOTS, ioctls.Cap.MULTI_ADDRESS_SPACE)
    )
    return slots or 32, spaces or 1  # what the API's documentation says of kernels that answer 0


def ends(device: str, vm_type: int) -> tuple[int, int]:
    """The highest gfn that a slot may hold, and the end of user space. Asked once in a process."""
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
    """Whether a slot of one page may be there. It is made for the answer, and goes again."""
    try:
        for size in (PAGE_SIZE, 0):
            region = ioctls.REGION.pack(0, 0, gpa, size, hva)
            vm.ioctl("KVM_SET_USER_MEMORY_REGION", ioctls.SET_USER_MEMORY_REGION, region)
    except KvmError as error:
        if error.errno != errno.EINVAL:  # no answer to the question, and not to be kept
            raise
        return False
    return True


def _highest(count: int, accepts: Callable[[int], bool]) -> int:
    """The greatest number below `count` that is accepted, 0 if none: below it all are."""
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
