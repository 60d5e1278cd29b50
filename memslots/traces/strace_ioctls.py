"""The ioctls of a strace that matter to memory slots: their arguments and results.

The struct of KVM_SET_USER_MEMORY_REGION is read by the names that strace prints for its fields. The
longer struct of KVM_SET_USER_MEMORY_REGION2 is read too if strace prints these names for it. strace
6.1 prints only an address, so the call is lost.
"""

from __future__ import annotations

import errno
import re
from typing import Literal, NamedTuple

from memslots.traces.clock import nanoseconds
from memslots.traces.events import GUEST_MEMFD_FLAG, Capability, Counts, RegionCall, VmCreated
from memslots.traces.strace_inner import ARGUMENT_NAME

Kind = Literal["", "region", "region2", "create_vm", "check_extension"]

FLAG_NAMES = {
    "KVM_MEM_LOG_DIRTY_PAGES": 1,
    "KVM_MEM_READONLY": 2,
    "KVM_MEM_GUEST_MEMFD": GUEST_MEMFD_FLAG,
    "KVM_MEM_PRIVATE": GUEST_MEMFD_FLAG,  # the flag's name before Linux merged it
}
#: The capabilities that shape a VM's slots, by number.
CAPABILITIES = {10: "KVM_CAP_NR_MEMSLOTS", 118: "KVM_CAP_MULTI_ADDRESS_SPACE"}

#: An older strace prints 0 for _IOC_NONE.
_IOC = r"_IOC\((?:_IOC_(?:NONE|WRITE)|0), 0xae, "
_REQUESTS: tuple[tuple[str, Kind], ...] = (
    (rf"KVM_SET_USER_MEMORY_REGION2\b|0x40a0ae49\b|{_IOC}0x49, 0xa0\)", "region2"),
    (rf"KVM_SET_USER_MEMORY_REGION\b|0x4020ae46\b|{_IOC}0x46, 0x20\)", "region"),
    (rf"KVM_CREATE_VM\b|0xae01\b|{_IOC}0x0?1, 0(?:x0+)?\)", "create_vm"),
    (rf"KVM_CHECK_EXTENSION\b|0xae03\b|{_IOC}0x0?3, 0(?:x0+)?\)", "check_extension"),
)
_REQUEST = tuple((re.compile(pattern), kind) for pattern, kind in _REQUESTS)
#: Requests by their plain names, which need no search.
_BY_NAME: dict[str, Kind] = {
    "KVM_SET_USER_MEMORY_REGION": "region",
    "KVM_CREATE_VM": "create_vm",
    "KVM_CHECK_EXTENSION": "check_extension",
}
#: fd (with -y's name), request, and the rest from the argument on.
_IOCTL = re.compile(
    rf"ioctl\({ARGUMENT_NAME}(?P<fd>0x[0-9a-f]{{1,16}}|-?\d{{1,20}})(?:<.*?>(?=, ))?, "
    rf"{ARGUMENT_NAME}"
    r"(?P<request>_IO[A-Z]*\([^)]*\)|[^,{)]*)(?P<rest>.*)$",
    re.DOTALL,
)
_ARGUMENT = re.compile(rf"\A, {ARGUMENT_NAME}")
_RESULT = re.compile(
    r"\)\s*= (?P<value>\?|0x[0-9a-f]+|-?\d{1,20}(?![\dx]))"
    r"(?:<[^>]*>+)?(?: (?:(?P<name>E[A-Z0-9]+)\b|\(errno (?P<number>\d{1,20})\)))?(?P<tail>.*)$"
)
_OTHER_CALL = re.compile(r"[a-z0-9]\(|resumed>")
#: What strace prints behind the name of an error that only the kernel knows.
_UNKNOWN_ERROR = re.compile(r" \(Unknown error (\d{1,6})\)")
#: The errno of a call that the kernel began again (ERESTARTSYS and its kin).
_RESTARTED = 512
#: The time that -T prints behind the result, its error and its remarks.
_TOOK = re.compile(r"(?: \([^()]*\))* <(\d{1,9}(?:\.\d{1,9})?)>")
_FIELD = re.compile(r"(\w+)=([^,{}]*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_WIDTH = {
    "slot": 32,
    "flags": 32,
    "guest_phys_addr": 64,
    "memory_size": 64,
    "userspace_addr": 64,
}


class UndecodedError(ValueError):
    """A part of a call cannot be read; the message is the reason."""


class Ioctl(NamedTuple):
    """The parts of an ioctl. `kind` is "" if the ioctl does not matter here."""

    kind: Kind
    fd: int
    rest: str


class Result(NamedTuple):
    """The result of a call: `value` is None for `?`, `errno` 0 for success.

    `tail` is the text behind the value and the error's name.
    """

    value: int | None
    errno: int
    tail: str

    @property
    def injected(self) -> bool:
        """Returns whether strace itself made the result."""
        return "(INJECTED)" in self.tail

    @property
    def duration_ns(self) -> int | None:
        """Returns the time that the kernel took, if strace printed it (-T)."""
        took = _TOOK.match(self.tail)
        return nanoseconds(took[1]) if took else None


def split_ioctl(text: str) -> Ioctl:
    """Splits the line of an ioctl into its parts, from its name on."""
    found = _IOCTL.match(text)
    if found is None:
        return Ioctl("region" if "KVM_SET_USER_MEMORY_REGION" in text else "", -1, "")
    number, request, rest = found.groups()
    fd = int(number, 16 if number.startswith("0x") else 10)
    if request in _BY_NAME:
        return Ioctl(_BY_NAME[request], fd, rest)
    for pattern, kind in _REQUEST:
        if pattern.search(request):
            return Ioctl(kind, fd, rest)
    # The request's name may be cut off or in two parts, or other text may follow it directly. No
    # other request begins with KVM_SET_U.
    request = request.replace(" ", "")
    name = "KVM_SET_USER_MEMORY_REGION"
    cut = request.startswith("KVM_SET_U") and name.startswith(request)
    return Ioctl("region" if cut or request.startswith(name) else "", fd, rest)


def read_result(text: str) -> Result:
    """Returns the result at the end of `text`. Raises UndecodedError if there is none."""
    found = None
    # The last ") = " belongs to the result; earlier ones belong to an argument.
    at = text.rfind(") ")
    while at >= 0 and found is None:
        found = _RESULT.match(text, at)
        at = text.rfind(") ", 0, at)
    if found is None:
        if ")\t" in text:
            return read_result(text.replace("\t", " "))
        raise UndecodedError("the line has no result (cut off?)")
    return _result(found)


def _ioctl_result(rest: str) -> Result:
    """Returns the result in the rest of an ioctl. Raises UndecodedError if there is none.

    Another call may follow on the line, so the first result counts. If a call begins before that
    result, the result is the other call's.
    """
    found = None
    at = rest.find(")", rest.find("}") + 1)
    while at >= 0 and found is None:
        found = _RESULT.match(rest, at)
        at = rest.find(")", at + 1)
    if found is None:
        return read_result(rest)
    end = found.start()
    # Two fast searches for single characters find nothing in most lines.
    if (rest.find("(", 0, end) >= 0 or rest.find(">", 0, end) >= 0) and (
        _OTHER_CALL.search(rest, 0, end)
    ):
        raise UndecodedError("the line has no result (cut off?)")
    return _result(found)


def _result(found: re.Match[str]) -> Result:
    digits, name, code, tail = found.groups()
    if digits == "?":
        restarted = (name or "").startswith("ERESTART")
        return Result(None, _RESTARTED if restarted else 0, tail)
    value = int(digits, 16 if digits.startswith("0x") else 10)
    if value >> 63 == 1:
        value -= 1 << 64  # a negative number, printed without its sign
    if value >= 0:
        return Result(value, 0, tail)
    if value < -1 and not name:
        return Result(value, -value, tail)
    if code:
        return Result(value, int(code), tail)
    number = getattr(errno, name or "", None)
    if number is None and (unknown := _UNKNOWN_ERROR.match(tail)):
        number = int(unknown[1])
    if not isinstance(number, int):
        raise UndecodedError(f"its error {name or value} has no number")
    return Result(value, number, tail)


def read_number(text: str, bits: int, name: str) -> int:
    """Converts a decimal or hexadecimal number of at most `bits` bits.

    Raises UndecodedError if it is no number or does not fit.
    """
    text = text.strip()
    try:
        if not text.isalnum():  # int() accepts signs and underscores too
            raise ValueError(text)
        value = int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        raise UndecodedError(f"{name} is not a number") from None
    if value >> bits:
        raise UndecodedError(f"{name} does not fit {bits} bits")
    return value


def read_flags(text: str) -> int:
    """Reads flags: `KVM_MEM_LOG_DIRTY_PAGES|0x8`, `0x10 /* KVM_MEM_??? */`, `2`, `0`."""
    flags = 0
    if text == "0":  # most often
        return flags
    for part in _COMMENT.sub("", text).split("|"):
        part = part.strip()
        if part in FLAG_NAMES:
            flags |= FLAG_NAMES[part]
        elif part.startswith("KVM_MEM_"):
            raise UndecodedError(f"the number of its flag {part} is not known")
        else:
            flags |= read_number(part, 32, "flags")
    return flags


def read_struct(text: str) -> tuple[dict[str, int], str]:
    """Returns the fields of the struct that `text` begins with, and the text after the struct.

    Raises UndecodedError if a field cannot be read.
    """
    if not text.startswith("{"):
        raise UndecodedError("strace did not decode the struct")
    end = text.find("}")
    if end < 0:
        raise UndecodedError("the struct is cut off")
    found = dict(_FIELD.findall(text[:end]))
    if missing := [name for name in _WIDTH if name not in found]:
        what = "the struct is elided" if "..." in text[:end] else f"the struct has no {missing[0]}"
        raise UndecodedError(what)
    fields = {
        name: read_flags(found[name]) if name == "flags" else read_number(found[name], bits, name)
        for name, bits in _WIDTH.items()
    }
    if "guest_memfd" in found and fields["flags"] & GUEST_MEMFD_FLAG:
        fields["guest_memfd"] = read_number(
            re.sub(r"<.*", "", found["guest_memfd"]), 32, "guest_memfd"
        )
        offset = found.get("guest_memfd_offset", "")
        if re.fullmatch("0x[0-9a-f]+|[0-9]+", offset):
            fields["guest_memfd_offset"] = read_number(offset, 64, "guest_memfd_offset")
    return fields, text[end + 1 :]


class IoctlReader:
    """Turns whole ioctl lines into events, and counts the memslot calls that it cannot decode."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.decoded = 0
        self.lines = 0  # number of lines with memslot calls, decoded or lost
        self.counted: set[int] = set()  # those of them on which another call may stand

    def read(
        self, first: int, number: int, text: str, tid: int | None, time_ns: int | None, cut: bool
    ) -> RegionCall | VmCreated | Capability | None:
        """Returns the event of the ioctl `text` in lines `first` to `number`, or None.

        `cut` is true if the input ends within the line.
        """
        ioctl = split_ioctl(text)
        if ioctl.kind in ("region", "region2"):
            return self._region(first, number, text, ioctl, tid, time_ns, cut)
        if not ioctl.kind:
            return None
        try:
            result = _ioctl_result(ioctl.rest or text.partition("(")[2])
        except UndecodedError:
            return None
        if result.value is None or result.errno:
            return None
        if ioctl.kind == "create_vm":
            return VmCreated(first, tid, result.value)
        if name := _capability(_ARGUMENT.sub(", ", ioctl.rest)):
            return Capability(first, tid, name, result.value)
        return None

    def count_lines(self, first: int, number: int) -> None:
        """Counts the lines of a call, except those that another call counted."""
        counted = self.counted
        before = len(counted)
        counted.add(first)
        counted.add(number)
        self.lines += len(counted) - before

    def _region(
        self,
        first: int,
        number: int,
        text: str,
        ioctl: Ioctl,
        tid: int | None,
        time_ns: int | None,
        cut: bool,
    ) -> RegionCall | None:
        result: Result | None = None
        self.count_lines(first, number)
        try:
            try:
                result = _ioctl_result(ioctl.rest or text.partition("(")[2])
            except UndecodedError:
                if cut:
                    raise UndecodedError("cut off where the input ends") from None
                raise
            if result.injected:
                raise UndecodedError("its result is strace's own (INJECTED), not the kernel's")
            if result.value is None:
                again = (
                    "the kernel began it again" if result.errno else "its result is not known (?)"
                )
                raise UndecodedError(again)
            fields, _ = read_struct(_ARGUMENT.sub("", ioctl.rest))
        except UndecodedError as error:
            name = "KVM_SET_USER_MEMORY_REGION2: " if ioctl.kind == "region2" else ""
            known = None
            if result is not None and (result.errno or result.value is not None):
                known = result.errno
            self.counts.lose(first, name + str(error), text, known)
            return None
        self.decoded += 1
        return RegionCall(
            line=first, tid=tid, fd=ioctl.fd, time_ns=time_ns, end_line=number,
            errno=result.errno, duration_ns=result.duration_ns, **fields,
        )  # fmt: skip


def _capability(rest: str) -> str | None:
    for number, name in CAPABILITIES.items():
        if name in rest or re.match(rf", (?:{number}|{number:#x})\b", rest):
            return name
    return None
