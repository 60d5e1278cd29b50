"""The events of a trace: one record for each event that matters to a VM's memory slots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from itertools import zip_longest

#: Number of lost calls kept with their line and text; the others are only counted.
LOST_KEPT = 20

#: KVM_MEM_GUEST_MEMFD, the flag of KVM_SET_USER_MEMORY_REGION2 that names a guest_memfd.
GUEST_MEMFD_FLAG = 4


@dataclass(frozen=True, slots=True, init=False)
class RegionCall:
    """One KVM_SET_USER_MEMORY_REGION with the kernel's answer.

    The five fields of the struct have the kernel's names, order and units (bytes). `slot` carries
    the address space in bits 16-31. `errno` is 0 for success. The call begins at `line`, and its
    result is at `end_line`. `time_ns` is the time of `end_line`, so times never go back. It counts
    nanoseconds since the epoch, midnight or the first line, depending on the trace. `duration_ns`
    is the time that the kernel took, as `strace -T` prints it, or None.
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
    duration_ns: int | None = None

    def __init__(
        self,
        line: int,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        errno: int,
        tid: int | None = None,
        fd: int | None = None,
        time_ns: int | None = None,
        end_line: int = 0,
        guest_memfd: int | None = None,
        guest_memfd_offset: int | None = None,
        duration_ns: int | None = None,
    ) -> None:
        # A frozen dataclass sets each field by its name through object.__setattr__. That takes
        # twice the time, a tenth of the time of reading a long log.
        _set_line(self, line)
        _set_slot(self, slot)
        _set_flags(self, flags)
        _set_guest_phys_addr(self, guest_phys_addr)
        _set_memory_size(self, memory_size)
        _set_userspace_addr(self, userspace_addr)
        _set_errno(self, errno)
        _set_tid(self, tid)
        _set_fd(self, fd)
        _set_time_ns(self, time_ns)
        _set_end_line(self, end_line)
        _set_guest_memfd(self, guest_memfd)
        _set_guest_memfd_offset(self, guest_memfd_offset)
        _set_duration_ns(self, duration_ns)

    @property
    def id(self) -> int:
        """Returns the slot's id, bits 0-15 of `slot`."""
        return self.slot & 0xFFFF

    @property
    def as_id(self) -> int:
        """Returns the address space, bits 16-31 of `slot`."""
        return self.slot >> 16


def _restore(call: RegionCall, state: list[object]) -> None:
    """Restores a call. A pickle of an older version has fewer fields."""
    for each, value in zip_longest(fields(call), state):
        object.__setattr__(call, each.name, value)


# Not in the class: `dataclass` of Python 3.11.2 puts its own in the place of that.
RegionCall.__setstate__ = _restore  # type: ignore[attr-defined,method-assign,unused-ignore]

(
    _set_line,
    _set_slot,
    _set_flags,
    _set_guest_phys_addr,
    _set_memory_size,
    _set_userspace_addr,
    _set_errno,
    _set_tid,
    _set_fd,
    _set_time_ns,
    _set_end_line,
    _set_guest_memfd,
    _set_guest_memfd_offset,
    _set_duration_ns,
) = (getattr(RegionCall, each.name).__set__ for each in fields(RegionCall))


@dataclass(frozen=True, slots=True)
class VmCreated:
    """`tid` created a VM, which its process holds at `fd`. None: the log does not name it."""

    line: int
    tid: int | None
    fd: int | None


@dataclass(frozen=True, slots=True)
class FdClosed:
    """`tid` closed `fd`, at which a VM may be. Other descriptors do not matter: no event."""

    line: int
    tid: int | None
    fd: int


@dataclass(frozen=True, slots=True)
class FdsClosed:
    """`tid` closed its descriptors from `first` to `last`: close_range.

    If `unshared`, it first took a copy of those that it shared with other threads.
    """

    line: int
    tid: int | None
    first: int
    last: int
    unshared: bool


@dataclass(frozen=True, slots=True)
class FdDuplicated:
    """`tid` duplicated `fd` to `new_fd`: dup, dup2, dup3, fcntl(F_DUPFD)."""

    line: int
    tid: int | None
    fd: int
    new_fd: int


@dataclass(frozen=True, slots=True)
class FdsReceived:
    """`tid` got `fds` from another task: by pidfd_getfd, or in a message (SCM_RIGHTS)."""

    line: int
    tid: int | None
    fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FdsUnshared:
    """`tid` has a copy of the descriptors that it shared with other threads: unshare."""

    line: int
    tid: int | None


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """`parent` started `child`.

    If `same_process`, they share their descriptors, as threads do. Else `child` has a copy of them.
    """

    line: int
    parent: int | None
    child: int
    same_process: bool


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """`tid` ended, or became another program (`by_exec`): earlier facts no longer hold."""

    line: int
    tid: int | None
    by_exec: bool = False


@dataclass(frozen=True, slots=True)
class Capability:
    """KVM_CHECK_EXTENSION of `name`, such as KVM_CAP_SYNC_MMU, answered `value` to `tid`."""

    line: int
    tid: int | None
    name: str
    value: int


Event = (
    RegionCall
    | VmCreated
    | FdClosed
    | FdDuplicated
    | FdsClosed
    | FdsReceived
    | FdsUnshared
    | TaskStarted
    | TaskEnded
    | Capability
)


@dataclass(frozen=True, slots=True)
class LostCall:
    """A memslot call in the trace that could not be decoded.

    `errno` is the recorded result, or None if it could not be read. A call that failed cannot have
    changed the map. A call that succeeded, or whose result is unknown, may have.
    """

    line: int
    reason: str
    text: str
    errno: int | None = None


# No slots: pickle's protocols 0 and 1 refuse a class that has slots and is not frozen.
@dataclass
class Counts:
    """How the lines of one input divide.

    `lines` counts all lines, and `calls` the decoded memslot calls. `lost` counts the undecoded
    calls by reason. `unrelated` counts the lines outside every memslot call.
    """

    lines: int = 0
    calls: int = 0
    unrelated: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    #: Number of lost calls that may have changed the map: they succeeded, or the result is unknown.
    lost_unknown: int = 0
    first_lost: list[LostCall] = field(default_factory=list)

    def lose(self, line: int, reason: str, text: str, errno: int | None = None) -> None:
        """Counts a memslot call that could not be decoded."""
        reason = shorten(reason)  # it may have a name of the trace
        self.lost[reason] += 1
        if not errno:
            self.lost_unknown += 1
        if len(self.first_lost) < LOST_KEPT:
            self.first_lost.append(LostCall(line, reason, shorten(text), errno))

    @property
    def lost_total(self) -> int:
        """Returns the number of lost calls."""
        return self.lost.total()


def shorten(text: str, width: int = 160) -> str:
    """Returns `text` on one line, without control characters, of at most `width` characters."""
    text = text.strip()
    kept = text if len(text) <= width else text[: width - 3] + "..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in kept)
