"""The reasons why a vCPU stops running: what `KvmVcpu.run` yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IoExit:
    """The guest used a port (x86's IN, OUT, INS, OUTS).

    Attributes
    ----------
    port : int
        The port's number.
    size : int
        Bytes of one access: 1, 2 or 4.
    count : int
        The number of accesses: more than 1 for a repeated string instruction.
    write : bool
        True for an OUT. False for an IN, which `KvmVcpu.answer` answers.
    data : bytes
        What an OUT wrote, size * count bytes; empty for an IN.
    """

    port: int
    size: int
    count: int
    write: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class MmioExit:
    """The guest accessed memory that no slot holds, or wrote to a READONLY slot.

    Attributes
    ----------
    gpa : int
        The guest address.
    size : int
        Bytes of the access: 1 to 8.
    write : bool
        True for a write. False for a read, which `KvmVcpu.answer` answers.
    data : bytes
        What a write wrote; empty for a read.
    """

    gpa: int
    size: int
    write: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest halted, and KVM does not wait for an interrupt by itself."""


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """The guest's processor shut down, for example after a triple fault."""


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """KVM could not go on. `suberror` 1: KVM could not emulate an instruction."""

    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FailEntryExit:
    """The processor refused to enter the guest, for a reason of its own."""

    reason: int


@dataclass(frozen=True, slots=True)
class SystemEventExit:
    """The guest asked for a reset or a power-off. `type` 1: off, 2: reset, 3: the guest crashed."""

    type: int


@dataclass(frozen=True, slots=True)
class MemoryFaultExit:
    """The guest accessed a slot's memory at a page that the host does not have.

    `flags`: bit 3 is set if the access was to guest_memfd memory. Kernels before 6.8 do not report
    this exit; with them `run` raises KvmError (EFAULT).
    """

    gpa: int
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class InterruptedExit:
    """`KvmVcpu.request_exit` was called."""


@dataclass(frozen=True, slots=True)
class OtherExit:
    """An exit that this binding does not decode; `reason` is the number of its KVM_EXIT_*."""

    reason: int


Exit = (
    IoExit
    | MmioExit
    | HltExit
    | ShutdownExit
    | InternalErrorExit
    | FailEntryExit
    | SystemEventExit
    | MemoryFaultExit
    | InterruptedExit
    | OtherExit
)
