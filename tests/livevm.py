"""A made-up VM that answers as its kernel would, and replays with it."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memslots import Change, InvalidRegionError, Memslots, OverlapError, Slot
from memslots.errors import KvmError
from memslots.replay import Report, VmReport, replay
from memslots.replay.live import Live
from memslots.traces import open_trace

HVA = 0x7F0000000000
EEXIST, EINVAL, ENOMEM = errno.EEXIST, errno.EINVAL, errno.ENOMEM

Call = tuple[int, int, int, int, int]
#: A wrong action of a kernel.
Wrong = Callable[[Memslots, Call], Change]


def refuse(number: int) -> Wrong:
    def wrong(memslots: Memslots, call: Call) -> Change:
        if number == EEXIST:
            raise OverlapError(number, "made up: something is there")
        if number == EINVAL:
            raise InvalidRegionError(number, "made up: a value is wrong")
        raise KvmError(number, "made up: no memory")

    return wrong


class MadeUpVM:
    """A Memslots as a kernel's VM, whose k-th call (from 1) goes wrong."""

    def __init__(self, wrong: Mapping[int, Wrong] | None = None, **limits: int) -> None:
        self.memslots = Memslots(**limits)
        self.wrong = dict(wrong or {})
        self.calls: list[Call] = []
        self.closed = 0

    @property
    def limits(self) -> dict[str, int]:
        names = ("max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log")
        return {name: getattr(self.memslots, name) for name in names}

    @property
    def slots(self) -> Sequence[Slot]:
        assert not self.closed
        spaces = range(self.memslots.address_spaces)
        return [slot for as_id in spaces for slot in self.memslots.address_space(as_id)]

    def set_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, /
    ) -> Change:
        assert not self.closed
        call = slot, flags, guest_phys_addr, memory_size, userspace_addr
        self.calls.append(call)
        wrong = self.wrong.get(len(self.calls))
        return self.memslots.set_region(*call) if wrong is None else wrong(self.memslots, call)

    def close(self) -> None:
        self.closed += 1


def qemu(slot: int, gpa: int, size: int, ret: int = 0, flags: int = 0, ua: int = HVA) -> str:
    call = f"Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x}"
    return f"kvm_set_user_memory {call} ret={-ret}\n"


def strace(fd: int, slot: int, gpa: int, size: int) -> str:
    return (
        f"100  ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, "
        f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={HVA:#x}}}) = 0\n"
    )


def replay_text(text: str, live: Callable[[], Any]) -> Report:
    with open_trace("trace", "auto", io.BytesIO(text.encode())) as trace:
        return replay(trace, live=live)


def beside(text: str, kernel: MadeUpVM) -> VmReport:
    """Returns the report of a trace's only VM; checks that the kernel was closed once."""
    (vm,) = replay_text(text, lambda: kernel).vms
    assert kernel.closed == 1
    return vm


def live_of(vm: VmReport) -> Live:
    assert vm.live is not None
    return vm.live


CREATE = qemu(0, 0, 0x10000)


Shown = Callable[..., tuple[int, str, str]]


BORN = "100  ioctl(3, KVM_CREATE_VM, 0) = {}\n"
THREE = (
    "".join(BORN.format(fd) for fd in (7, 8, 9))
    + strace(8, 0, 0, 0x1000)
    + strace(9, 0, 0, 0x2000)
    + strace(8, 0, 0, 0)
)
