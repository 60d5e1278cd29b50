"""Helpers for the tests of the reader of strace's output."""

import io

from memslots.traces import (
    Event,
    RegionCall,
    Trace,
    open_trace,
)

STRUCT = (
    "{slot=1, flags=0, guest_phys_addr=0x1000, memory_size=8192, userspace_addr=0x7f0000000000}"
)
CALL = f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT}) = 0"


def read(text: str | bytes) -> tuple[list[Event], Trace]:
    data = text if isinstance(text, bytes) else text.encode()
    with open_trace("trace", "strace", io.BytesIO(data)) as trace:
        return list(trace), trace


def calls(text: str | bytes) -> list[RegionCall]:
    return [event for event in read(text)[0] if isinstance(event, RegionCall)]


def one(text: str) -> RegionCall:
    (call,) = calls(text if text.endswith("\n") else text + "\n")
    return call


def fields(call: RegionCall) -> tuple[int, int, int, int, int]:
    return (
        call.slot,
        call.flags,
        call.guest_phys_addr,
        call.memory_size,
        call.userspace_addr,
    )
