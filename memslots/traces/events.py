"""What a trace says, one record for each thing that matters to a VM's memory slots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: How many lost calls are remembered with their line and text; the others are only counted.
LOST_KEPT = 20

#: KVM_MEM_GUEST_MEMFD, the flag of KVM_SET_USER_MEMORY_REGION2 that names a guest_memfd.
GUEST_MEMFD_FLAG = 4


@dataclass(frozen=True, slots=True)
class RegionCall:
    """One KVM_SET_USER_MEMORY_REGION with the kernel's answer.

    The five fields of the struct have the kernel's names, order and units (bytes). `slot` carries
    the address space in bits 16-31. `errno` is 0 for success. `line` is where the call begins,
    `end_line` where its result stands; `time_ns` belongs to `end_line` (nanoseconds since the
    epoch, since midnight or since the first line, as the trace has it), so that times never go
    back.
    """

    line: int
    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    errno: int
    tid: int | None = None
    fd: int | None = None
    time_ns: int | None = None
    end_line: int = 0
    guest_memfd: int | None = None
    guest_memfd_offset: int | None = None

    @property
    def id(self) -> int:
        """The slot's id, bits 0-15 of `slot`."""
        return self.slot & 0xFFFF

    @property
    def as_id(self) -> int:
        """The address space, bits 16-31 of `slot`."""
        return self.slot >> 16


@dataclass(frozen=True, slots=True)
class VmCreated:
    """`tid` made a VM, and its process has it at `fd`; None: a log does not say where."""

    line: int
    tid: int | None
    fd: int | None


@dataclass(frozen=True, slots=True)
class FdClosed:
    """`tid` closed `fd`."""

    line: int
    tid: int | None
    fd: int


@dataclass(frozen=True, slots=True)
class FdDuplicated:
    """`tid` has what it has at `fd` at `new_fd` too: dup, dup2, dup3, fcntl(F_DUPFD)."""

    line: int
    tid: int | None
    fd: int
    new_fd: int


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """`parent` started `child`: a thread of its process, or a new process."""

    line: int
    parent: int | None
    child: int
    same_process: bool


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """`tid` is gone, or became another program: what was known of it is over."""

    line: int
    tid: int | None
    by_exec: bool = False


@dataclass(frozen=True, slots=True)
class Capability:
    """KVM_CHECK_EXTENSION of `name` (KVM_CAP_...) answered `value` to `tid`."""

    line: int
    tid: int | None
    name: str
    value: int


Event = RegionCall | VmCreated | FdClosed | FdDuplicated | TaskStarted | TaskEnded | Capability


@dataclass(frozen=True, slots=True)
class LostCall:
    """A memslot call that the trace has and that could not be decoded.

    `errno` is the recorded result where it could be read: a call that failed cannot have changed
    the map, one that succeeded, or whose result is not known (None), may have.
    """

    line: int
    reason: str
    text: str
    errno: int | None = None


# Without slots: pickle's protocols 0 and 1 refuse a class that has them and is not frozen.
@dataclass
class Counts:
    """How the lines of one input divide.

    `lines` is all of them; `calls` the decoded memslot calls; `lost` those that were not, by
    reason; `unrelated` the lines that are no part of any memslot call.
    """

    lines: int = 0
    calls: int = 0
    unrelated: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    #: Of the lost, how many may have changed the map: they succeeded, or nobody knows.
    lost_unknown: int = 0
    first_lost: list[LostCall] = field(default_factory=list)

    def lose(self, line: int, reason: str, text: str, errno: int | None = None) -> None:
        """Count a memslot call that could not be decoded."""
        self.lost[reason] += 1
        if not errno:
            self.lost_unknown += 1
        if len(self.first_lost) < LOST_KEPT:
            self.first_lost.append(LostCall(line, reason, shorten(text), errno))

    @property
    def lost_total(self) -> int:
        """All lost calls."""
        return self.lost.total()


def shorten(text: str, width: int = 160) -> str:
    """`text` fit to be printed: one line, no control characters, at most `width` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.strip())
    return text if len(text) <= width else text[: width - 3] + "..."
