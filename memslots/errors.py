"""The errors of the package.

A call that the rules refuse raises an error with KVM's errno. Code written for ``fcntl.ioctl``
therefore keeps working. After any of these errors nothing has changed, unless the documentation of
the call says otherwise.
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
    "NoWindowError",
    "NotMappedError",
    "OverlapError",
    "ReadOnlyError",
    "SnapshotError",
    "TraceError",
    "WrongAnswerError",
]


class MemslotError(OSError):
    """The base class of all errors of this package.

    Attributes
    ----------
    errno : int
        The errno that the ioctl would fail with. If there is no such ioctl, the errno that best
        describes the error.
    strerror : str
        The rule, the slot and the values.
    rule : int, str or None
        The rule of set_region that refused the call (docs/rules.md), or None if no rule did. It is
        a number, or for a guest_memfd rule a string such as "G5".
    """

    rule: int | str | None

    def __init__(self, errno: int, strerror: str, rule: int | str | None = None) -> None:
        super().__init__(errno, strerror)
        self.rule = rule


class InvalidRegionError(MemslotError, ValueError):
    """A value breaks a rule (EINVAL)."""


class OverlapError(MemslotError):
    """The requested guest pages overlap those of another slot (EEXIST).

    Attributes
    ----------
    existing : Slot
        The slot in the way.
    requested : Slot
        The slot that the call asked for.
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
    """A plan cannot keep pages present all the time as asked (EBUSY)."""


class NoSuchSlotError(MemslotError, KeyError):
    """There is no such slot.

    As in KVM, the errno is EINVAL from a change, and ENOENT from the dirty log and from ``vm[id]``.
    """


class NotMappedError(MemslotError):
    """No slot holds the guest address, or its slot is INVALID (EFAULT)."""


class ReadOnlyError(MemslotError):
    """A write went to a guest address whose slot is READONLY (EFAULT)."""


class BusyError(MemslotError):
    """The calling thread asked for a change, a copy or a check in the middle of a change (EBUSY).

    This happens inside a listener, or in a finalizer that runs during a change.
    """


class SnapshotError(MemslotError, ValueError):
    """A file is not a complete snapshot; the message says what is wrong (EINVAL)."""


class TraceError(MemslotError, ValueError):
    """A file cannot be used as a trace (EINVAL, or the errno of opening or reading it).

    Attributes
    ----------
    name : str
        The file.
    reason : str
        What is wrong with it.
    line : int or None
        The line where reading stopped, or None if it stopped before the first line.
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
        # By default, pickle calls the class with errno and reason.
        arguments = (self.name, self.reason, self.line, self.errno or _errno.EINVAL)
        return type(self), arguments, self.__dict__


class KvmError(MemslotError):
    """KVM refused a call for a reason outside the rules; the errno names the reason."""


class KvmClosedError(KvmError, ValueError):
    """The KvmVM or KvmVcpu is closed (EBADF)."""


class KvmUnavailableError(KvmError):
    """KVM is missing or lacks a capability; the message says what to do.

    The errno comes from opening /dev/kvm (ENOENT, EACCES, ...), or is ENOTSUP for a missing
    capability.
    """


# The text of each property by its number. Each property is defined in the core file it belongs to.
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
    """``check()`` found a property that does not hold: the package has a bug (EUCLEAN).

    Attributes
    ----------
    property : str
        The property's number, such as ``"R3"``.
    where : str
        Where the property does not hold, or an empty string.
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
    """The code to be timed returns a wrong answer, so its time would mean nothing (EBADMSG)."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.EBADMSG, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[WrongAnswerError], tuple[str], dict[str, object]]:
        return type(self), (str(self),), self.__dict__


def no_snapshot(wrong: str) -> SnapshotError:
    """Returns the error for a file that is not a snapshot; `wrong` says why."""
    return SnapshotError(_errno.EINVAL, wrong)


def busy(what: str) -> BusyError:
    """Returns the error for ``what`` if the calling thread is already the writer."""
    return BusyError(_errno.EBUSY, f"{what}: this thread is in the middle of a change already")


def gone(gpa: int, slot: object) -> NotMappedError:
    """Returns the error for guest memory whose host memory has gone away."""
    return NotMappedError(
        _errno.EFAULT,
        f"gpa {gpa:#x} is in {slot}, whose host memory is not there: its file is too short or full,"
        " or lacks the page",
    )
