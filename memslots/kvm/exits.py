"""Why a vCPU stopped running: what `KvmVcpu.run` yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IoExit:
    """The guest used a port (x86's IN, OUT, INS, OUTS).

    Attributes
    ----------
    port : int
        Its number.
    size : int
        Bytes of one access: 1, 2 or 4.
    count : int
        How many accesses: more than 1 for a repeated string instruction.
    write : bool
        OUT; else IN, which `KvmVcpu.answer` answers.
    data : bytes
        What an OUT wrote, size * count bytes; of an IN empty.
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
        Where, in bytes.
    size : int
        1 to 8 bytes.
    write : bool
        Else it is a read, which `KvmVcpu.answer` answers.
    data : bytes
        What it wrote; of a read empty.
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
    """The guest's processor shut down, as it does on a triple fault."""


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """KVM could not go on. `suberror` 1: it could not emulate an instruction."""

    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FailEntryExit:
    """The processor refused to enter the guest, for a reason of its own."""

    reason: int


@dataclass(frozen=True, slots=True)
class SystemEventExit:
    """The guest asked for a reset or to be powered off. `type` 1: off, 2: reset, 3: it crashed."""

    type: int


@dataclass(frozen=True, slots=True)
class MemoryFaultExit:
    """The guest accessed memory of a slot that the host does not have there.

    `flags`: bit 3 where it is to be guest_memfd's memory. Kernels before 6.8 tell nothing: there it
    is a KvmError (EFAULT).
    """

    gpa: int
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class InterruptedExit:
    """`KvmVcpu.request_exit` was called."""


@dataclass(frozen=True, slots=True)
class OtherExit:
    """A reason that this binding does not take apart; its number is that of KVM_EXIT_*."""

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
