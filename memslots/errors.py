"""The errors.

What refuses a call has the errno that KVM gives, so code written for ``fcntl.ioctl`` keeps working.

After any of them nothing has changed.
"""

from __future__ import annotations

import errno as _errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memslots.values.records import Slot

__all__ = [
    "BusyError",
    "InvalidRegionError",
    "InvariantError",
    "KvmClosedError",
    "KvmError",
    "KvmUnavailableError",
    "MemslotError",
    "NoRoomError",
    "NoSuchSlotError",
    "NotMappedError",
    "OverlapError",
    "ReadOnlyError",
    "SnapshotError",
    "TraceError",
    "WrongAnswerError",
]


class MemslotError(OSError):
    """What all errors of this package have in common.

    Attributes
    ----------
    errno : int
        What the ioctl would have failed with; where there is no such ioctl, what says best which
        kind of error it is.
    strerror : str
        Which rule, which slot, which values.
    rule : int, str or None
        The rule of set_region that refused (docs/rules.md), where one did: its number, or "G5" and
        so on, one of those about guest_memfd.
    """

    rule: int | str | None

    def __init__(self, errno: int, strerror: str, rule: int | str | None = None) -> None:
        super().__init__(errno, strerror)
        self.rule = rule


class InvalidRegionError(MemslotError, ValueError):
    """A value that the rules do not allow (EINVAL)."""


class OverlapError(MemslotError):
    """The guest pages asked for are, in part, another slot's (EEXIST).

    Attributes
    ----------
    existing : Slot
        The slot in the way.
    requested : Slot
        The slot that was to be.
    """

    existing: Slot
    requested: Slot

    def __init__(
        self,
        errno: int,
        strerror: str,
        rule: int | str | None = None,
        *,
        existing: Slot | None = None,
        requested: Slot | None = None,
    ) -> None:
        super().__init__(errno, strerror, rule)
        if existing is not None:
            self.existing = existing
        if requested is not None:
            self.requested = requested


class NoRoomError(MemslotError):
    """All ids of an address space are in use (ENOSPC)."""


class NoWindowError(MemslotError):
    """Pages that a plan is to keep cannot be there all the time (EBUSY)."""


class NoSuchSlotError(MemslotError, KeyError):
    """There is no such slot.

    EINVAL from a change, ENOENT from the dirty log and from ``vm[id]``, as KVM has it.
    """


class NotMappedError(MemslotError):
    """No slot holds the guest address, or the one that does is INVALID (EFAULT)."""


class ReadOnlyError(MemslotError):
    """A write to a guest address whose slot is READONLY (EFAULT)."""


class BusyError(MemslotError):
    """A change, a copy or a check while the same thread is making a change (EBUSY).

    From inside a listener, say, or from a finalizer that runs in between.
    """


class SnapshotError(MemslotError, ValueError):
    """A file is no snapshot, or not all of one; the message says what is wrong (EINVAL)."""


class TraceError(MemslotError, ValueError):
    """A file cannot be used as a trace (EINVAL, or what opening or reading it failed with).

    Attributes
    ----------
    name : str
        The file.
    reason : str
        What is wrong with it.
    line : int or None
        Where reading stopped; None: before the first line.
    """

    name: str
    reason: str
    line: int | None

    def __init__(
        self, name: str, reason: str, line: int | None = None, errno: int = _errno.EINVAL
    ) -> None:
        super().__init__(errno, reason)
        self.name = name
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        return f"{self.name}: {'' if self.line is None else f'line {self.line}: '}{self.reason}"

    def __reduce__(
        self,
    ) -> tuple[type[TraceError], tuple[str, str, int | None, int], dict[str, object]]:
        # The default calls the class with errno and reason.
        arguments = (self.name, self.reason, self.line, self.errno or _errno.EINVAL)
        return type(self), arguments, self.__dict__


class KvmError(MemslotError):
    """The kernel's KVM refused a call for a reason outside of the rules; its errno says which."""


class KvmClosedError(KvmError, ValueError):
    """The KvmVM or KvmVcpu is closed (EBADF)."""


class KvmUnavailableError(KvmError):
    """There is no KVM that could be used, or it lacks a capability; the message says what to do.

    ENOENT, EACCES and the like from opening /dev/kvm; ENOTSUP for a capability.
    """


# What each property says, by its number; the core states them where they belong.
PROPERTIES = {
    "R1": "in walking order the keys never fall",
    "R2": "the root is black",
    "R3": "a red node has no red child",
    "R4": "every way down passes the same number of black nodes",
    "R5": "a child's parent link names its parent",
    "H1": "a node has the greatest last byte of its subtree",
    "S1": "all three indexes hold the same slots",
    "S2": "no two slots share a gfn",
    "S3": "last-used is NULL or a slot of the set",
    "S4": "the counts of slots and pages agree with the slots",
    "P1": "between changes both sets hold the same slots",
    "P2": "between changes bit 63 of the generation is clear",
    "D1": "a slot has a dirty bitmap exactly if it logs, and no bit past its last page",
    "I1": "an index of the active set's generation holds that set's slots, in gfn order",
}


class InvariantError(MemslotError, AssertionError):
    """``check()`` found a property that does not hold: the package is broken (EUCLEAN).

    Attributes
    ----------
    property : str
        Its number, such as ``"R3"``.
    where : str
        Where it does not hold, or nothing.
    """

    property: str
    where: str

    def __init__(self, property: str, where: str = "") -> None:
        message = f"{property}: {PROPERTIES[property]}{where and ': not so ' + where}"
        super().__init__(_errno.EUCLEAN, message)
        self.property = property
        self.where = where

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[InvariantError], tuple[str, str], dict[str, object]]:
        return type(self), (self.property, self.where), self.__dict__


class WrongAnswerError(MemslotError, AssertionError):
    """What was to be timed gives a wrong answer, so its time would mean nothing (EBADMSG)."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.EBADMSG, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[WrongAnswerError], tuple[str], dict[str, object]]:
        return type(self), (str(self),), self.__dict__


def no_snapshot(wrong: str) -> SnapshotError:
    """The error for a file of which `wrong` says what is wrong."""
    return SnapshotError(_errno.EINVAL, wrong)


def busy(what: str) -> BusyError:
    """The error for ``what`` where the thread that asks for it is the writer already."""
    return BusyError(_errno.EBUSY, f"{what}: this thread is already in the middle of one")
