"""Reading QEMU's own trace: the lines of `-trace kvm_set_user_memory`, log back end.

Three forms are known: `Slot#N` with the space in bits 16-31, `AddrSpace#A Slot#N`, and the latter
with `guest_memfd=… guest_memfd_offset=…`; each with `thread@seconds.microseconds:` in front or not,
among whatever else QEMU and its guest wrote. `ret` is 0 or -errno.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from memslots.traces.events import Counts, Event, RegionCall
from memslots.traces.lines import Lines

WORDS = (b"kvm_set_user_memory",)

CALL = re.compile(
    r"(?:(?P<tid>\d{1,20})@(?P<seconds>\d{1,20})\.(?P<micros>\d{1,6}):\s*)?"
    r"kvm_set_user_memory (?:AddrSpace#(?P<space>\d{1,20}) )?Slot#(?P<slot>\d{1,20})"
    r" flags=(?P<flags>0x[0-9a-f]+) gpa=(?P<gpa>0x[0-9a-f]+) size=(?P<size>0x[0-9a-f]+)"
    r" ua=(?P<ua>0x[0-9a-f]+)"
    r"(?: guest_memfd=(?P<memfd>-?\d{1,20}) guest_memfd_offset=(?:0x)?[0-9a-f]+)?"
    r" ret=(?P<ret>-?\d{1,20})(?![0-9])"
)
#: The end of an event, at the start of a log that was cut out of another.
_BEHEADED = re.compile(r"size=0x[0-9a-f]+ ua=0x[0-9a-f]+.* ret=-?\d+")
#: The event, and not QEMU's error message of a similar name.
_EVENT = re.compile(r"kvm_set_user_memory(?![_a-z:])")


class QemuReader:
    """Events out of QEMU's log; `counts` is complete when they are used up."""

    def __init__(self, lines: Lines, counts: Counts) -> None:
        self.counts = counts
        self.notes: list[str] = []
        self._lines = lines

    def __iter__(self) -> Iterator[Event]:
        self._lines.words = WORDS
        related = 0
        for number, raw in self._lines:
            text = raw.decode("ascii", "replace").rstrip("\r")
            starts = [found.start() for found in _EVENT.finditer(text)]
            related += bool(starts)
            if number == 1 and not starts and _BEHEADED.search(text):
                related += 1
                self.counts.lose(1, "the line's beginning is missing", text)
            last_line_cut = self._lines.cut and number == self._lines.total
            for start in starts:
                found = CALL.match(text, _prefix_start(text, start))
                cut = last_line_cut and (found is None or found.end() == len(text))
                # "ret=-1" may be the beginning of "ret=-17": only what follows ends a number.
                if found is None or (cut and found["ret"] != "0"):
                    reason = (
                        "cut off where the input ends"
                        if cut
                        else "not in a form that QEMU's log back end has"
                    )
                    self.counts.lose(number, reason, text[start:])
                else:
                    yield from self._call(number, found)
        self.counts.lines = self._lines.total
        self.counts.unrelated = self.counts.lines - related

    def _call(self, number: int, found: re.Match[str]) -> Iterator[Event]:
        space = int(found["space"] or 0)
        slot = space << 16 | int(found["slot"]) if found["space"] else int(found["slot"])
        flags, ret = int(found["flags"], 16), int(found["ret"])
        gpa, size, ua = (int(found[name], 16) for name in ("gpa", "size", "ua"))
        if slot >> 32 or flags >> 32 or (gpa | size | ua) >> 64:
            self.counts.lose(number, "a number does not fit its field", found[0], -ret or None)
            return
        time_ns = None
        if found["seconds"]:
            time_ns = int(found["seconds"]) * 10**9 + int(found["micros"].ljust(6, "0")) * 1000
        memfd = int(found["memfd"]) if found["memfd"] else -1
        self.counts.calls += 1
        yield RegionCall(
            line=number,
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=ua,
            errno=max(-ret, 0),
            tid=int(found["tid"]) if found["tid"] else None,
            time_ns=time_ns,
            end_line=number,
            guest_memfd=memfd if memfd >= 0 else None,
        )


def _prefix_start(text: str, start: int) -> int:
    """Where the `thread@time:` in front of an event begins, if it has one."""
    found = re.search(r"\d+@\d+\.\d{1,6}:\s*$", text[:start])
    return found.start() if found else start
