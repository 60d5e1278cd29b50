"""Readers that turn strace's output and QEMU's trace into memslot calls with their results.

A trace yields its events::

    with open_trace("qemu.strace.gz") as trace:
        for event in trace:
            ...
    print(trace.format, trace.counts)

This sub-package needs only the standard library and `memslots.errors`.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, Literal

from memslots.errors import TraceError
from memslots.traces.events import (
    Capability,
    Counts,
    Event,
    FdClosed,
    FdDuplicated,
    FdsClosed,
    FdsReceived,
    FdsUnshared,
    LostCall,
    RegionCall,
    TaskEnded,
    TaskStarted,
    VmCreated,
)
from memslots.traces.lines import Lines, LineTooLongError
from memslots.traces.qemu import QemuReader
from memslots.traces.source import Source
from memslots.traces.strace import ATTACHED, HEAD, StraceReader
from memslots.traces.strace_inner import memslot_calls
from memslots.traces.tracers import OtherTracers

__all__ = [
    "FORMATS",
    "Capability",
    "Counts",
    "Event",
    "FdClosed",
    "FdDuplicated",
    "FdsClosed",
    "FdsReceived",
    "FdsUnshared",
    "Format",
    "LostCall",
    "RegionCall",
    "TaskEnded",
    "TaskStarted",
    "Trace",
    "TraceError",
    "VmCreated",
    "open_trace",
]

# A pickle names each value by this module, so pickles stay readable if the value's module moves.
for _value in (
    Capability,
    Counts,
    FdClosed,
    FdDuplicated,
    FdsClosed,
    FdsReceived,
    FdsUnshared,
    LostCall,
    RegionCall,
    TaskEnded,
    TaskStarted,
    VmCreated,
):
    _value.__module__ = __name__
del _value

Format = Literal["auto", "strace", "qemu"]
FORMATS: tuple[Format, ...] = ("auto", "strace", "qemu")

_HINTS: dict[Format, str] = {
    "strace": "did the VMM use KVM, and did strace trace ioctl and follow the threads (-f)?",
    "qemu": "was QEMU run with -accel kvm and -trace kvm_set_user_memory?",
}
#: The end of a strace line: a result, or `<unfinished ...>`.
_RESULT = re.compile(r"\) += (?:\?|-?\d+|0x[0-9a-f]+)|<unfinished \.\.\.>$")
#: Lines that one call is looked for in. Each is searched again with all before it.
_MOST_INTERRUPTED = 64
#: QEMU's event with named fields.
_EVENT = re.compile(r"kvm_set_user_memory\b")
_NAMED_FIELD = re.compile(r"\bguest_phys_addr ?= ?\w")
#: How the reason of a TraceError begins if a file is in no known form.
NO_TRACE = "neither strace's output nor QEMU's kvm_set_user_memory trace"
#: QEMU's message of a failed call. It may stand in front of a trace that somebody pasted.
_MESSAGE = re.compile(r"KVM_SET_USER_MEMORY_REGION2? failed, slot=\d")
_LOOKED_AHEAD = 10_000  # lines behind the first such message


class Trace:
    """One opened trace: iterate over it once for its events.

    Afterwards `format` is "strace" or "qemu". `counts` says how the lines divide, and `notes`
    holds remarks for the user. Iterating raises TraceError if the input cannot be used.
    """

    def __init__(self, source: Source, format: Format = "auto") -> None:
        self.source = source
        self.name = source.name
        self.format = format
        self.counts = Counts()
        self.notes: list[str] = []

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def __iter__(self) -> Iterator[Event]:
        lines = Lines(self.source.text())
        try:
            yield from self._events(lines)
        except LineTooLongError:
            reason = "the line is longer than 1 MiB: this is no text, or no trace"
            raise TraceError(self.name, reason, lines.total + 1) from None
        except TraceError as error:
            if error.line is None and lines.total:
                number = error.errno or errno.EINVAL
                raise TraceError(self.name, error.reason, lines.total + 1, number) from None
            raise
        counts = self.counts
        if not counts.calls and not counts.lost_total:
            plural = "" if counts.lines == 1 else "s"
            hint = self.notes[0] if self.notes else _HINTS[self.format]
            reason = f"no memslot call in its {counts.lines} line{plural}: {hint}"
            raise TraceError(self.name, reason)

    def _events(self, lines: Lines) -> Iterator[Event]:
        if self.format == "auto":
            self.format = self._recognise(lines)
        lines.long_lines = True
        reader: StraceReader | QemuReader
        if self.format == "strace":
            reader = StraceReader(lines, self.counts)
        else:
            reader = QemuReader(lines, self.counts)
        yield from reader
        self.notes += reader.notes

    def _recognise(self, lines: Lines) -> Format:
        """Reads up to the first line that is clearly strace's or QEMU's, and puts it back.

        QEMU's messages of failed calls count only if no trace follows them soon.
        """
        nul = False
        messages: list[tuple[int, bytes]] = []
        # From strace's first message on: the next line may continue its line. Other programs'
        # output has these messages too.
        kept: deque[tuple[int, bytes]] = deque(maxlen=_MOST_INTERRUPTED)
        beginning = ""
        interrupted = 0
        for number, raw in lines:
            nul = nul or b"\0" in raw
            text = raw.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace").rstrip("\r")
            found = _recognised(beginning + text)
            if found is not None:
                for line in [(number, raw), *reversed(kept)]:
                    lines.put_back(*line)
                return found
            attached = ATTACHED.search(text)
            if attached or kept:
                kept.append((number, raw))
            if attached and interrupted < _MOST_INTERRUPTED:
                interrupted += 1
                beginning += text[: attached.start()]
            elif text:
                interrupted, beginning = 0, ""
            if _MESSAGE.search(text):
                messages.append((number, raw))
            if messages and number > messages[0][0] + _LOOKED_AHEAD:
                break
        if messages or kept:
            for number, raw in reversed(messages or kept):
                lines.put_back(number, raw)
            return "qemu" if messages else "strace"
        if not lines.total:
            raise TraceError(self.name, "it is empty")
        reason = NO_TRACE
        if nul:
            reason += " (it has zero bytes: is it binary?)"
        raise TraceError(self.name, reason)


def _recognised(text: str) -> Format | None:
    event = _EVENT.search(text, text.rfind("ioctl(") + 1)
    if event is not None and _NAMED_FIELD.search(text, event.end()):
        return "qemu"
    head = HEAD.match(text)
    if head is not None:
        if head["resumed"] or head["ended"] or head["signal"]:
            return "strace"
        if _RESULT.search(text, head.end()):
            return "strace"
    if memslot_calls(text) or re.search(
        r"ioctl\((?:fd: )?-?\d+(?:<[^\"]*>)?, (?:cmd: )?[K_0]|guest_phys_addr=[^=]*memory_size=",
        text,
    ):
        return "strace"
    if OtherTracers().has_call(text):
        return "strace"
    if re.search(r"kvm_set_user_memory (?:AddrSpace#|Slot#)|size=0x[0-9a-f]+ ua=0x", text):
        return "qemu"
    return None


def open_trace(
    path: str | os.PathLike[str], format: Format = "auto", stream: BinaryIO | None = None
) -> Trace:
    """Opens a trace: a file (plain, gzip or xz, recognised by content) or `-` for standard input.

    If `stream` is given, reads that binary stream and uses `path` as its name. Raises TraceError
    if the file cannot be opened.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    return Trace(Source(path, stream), format)
