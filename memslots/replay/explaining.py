"""Explaining from all calls of a trace why its kernel refused a call that the rules allow."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from memslots.traces import RegionCall

_PAGE_SIZES = (16 << 10, 64 << 10, 1 << 20)
_ADDRESS_BITS = (36, 39, 40, 42, 44, 46, 48, 51)
#: The purposes of KVM's own slots on x86: first byte, end.
_OWN_SLOTS = {
    "the APIC page": (0xFEE00000, 0xFEE01000),
    "the identity map and the TSS, where QEMU has them": (0xFEFFC000, 0xFF000000),
    "the identity map and the TSS, where KVM has them": (0xFFFBC000, 0xFFFC0000),
}


@dataclass
class Succeeded:
    """What the successful calls that did not delete a slot have in common."""

    count: int = 0
    bits: int = 0  # the bitwise or of all addresses and sizes
    end: int = 0  # the highest end of guest memory

    def add(self, call: RegionCall) -> None:
        """Adds a successful call, unless it deleted a slot."""
        if call.memory_size:
            self.count += 1
            self.bits |= call.guest_phys_addr | call.memory_size | call.userspace_addr
            end = call.guest_phys_addr + call.memory_size
            if end > self.end:
                self.end = end


def explanation(call: RegionCall, others: Succeeded) -> str | None:
    """Returns why a kernel refused a call that no rule refuses, or None if that is not known."""
    return next(_explanations(call, others), None) if call.memory_size else None


def _explanations(call: RegionCall, others: Succeeded) -> Iterator[str]:
    start, end = call.guest_phys_addr, call.guest_phys_addr + call.memory_size
    if call.errno == errno.EEXIST:
        for what, (first, last) in _OWN_SLOTS.items():
            if start < last and first < end:
                yield f"KVM has a slot of its own there, for {what} ({first:#x})"
    elif call.errno == errno.EINVAL and others.count > 1:
        bits = start | call.memory_size | call.userspace_addr
        for size in reversed(_PAGE_SIZES):
            if bits & (size - 1) and not others.bits & (size - 1):
                name = f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
                fitting = f"all {others.count} successful calls fit those"
                yield f"its kernel had pages of {name}: {fitting}"
        for width in _ADDRESS_BITS:
            if others.end <= 1 << width < end:
                yield (
                    f"its guest addresses had {width} bits or a few more: all {others.count}"
                    f" successful calls end at or below {others.end:#x}"
                )
