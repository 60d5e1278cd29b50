"""Guests of the live kernel, and memory for them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from memslots.kvm import KvmVcpu, KvmVM

PAGE = 4096
# A write to this MSR makes KVM write the time, 12 bytes, to the guest address in the value.
MSR_KVM_WALL_CLOCK = 0x4B564D00


class HostMemory:
    """Pages of this process, for a guest."""

    def __init__(self, npages: int) -> None:
        self.bytes = mmap.mmap(-1, npages * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.end = self.address + npages * PAGE

    def holds(self, hva: int) -> bool:
        return self.address <= hva < self.end


CODE = 0x1000  # the address of a guest's code, in its RAM [0, 0x8000)
RAM_PAGES = 8


@contextmanager
def guest(code: bytes, **registers: int) -> Iterator[tuple[KvmVM, KvmVcpu, HostMemory]]:
    """Returns a VM of 32 KiB whose vCPU is to run code in 16-bit real mode, all segments at 0."""
    memory = HostMemory(RAM_PAGES)
    memory.bytes[CODE : CODE + len(code)] = code
    with KvmVM() as vm:
        vm.set_region(0, 0, 0, RAM_PAGES * PAGE, memory.address)
        vcpu = vm.create_vcpu()
        vcpu.set_sregs(cs_base=0, cs_selector=0)
        vcpu.set_regs(rip=CODE, rflags=2, rsp=0x7000, **registers)
        yield vm, vcpu, memory


def page_bits(*pages: int) -> bytes:
    """Returns the dirty log of 192 pages with these marked."""
    return sum(1 << page for page in pages).to_bytes(24, "little")
