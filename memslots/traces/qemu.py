"""Reading QEMU's own trace: the lines of `-trace kvm_set_user_memory`, log back end.

Three forms are known: `Slot#N` with the space in bits 16-31, `AddrSpace#A Slot#N`, and the latter
with `guest_memfd=… guest_memfd_offset=…`. Each may follow `thread@seconds.microseconds:`. Other
output of QEMU and its guest may stand between. `ret` is 0 or -errno.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import replace

from memslots.traces.events import GUEST_MEMFD_FLAG, Counts, Event, RegionCall, VmCreated
from memslots.traces.lines import Lines, Word

WORDS = (Word(rb"kvm_set_user_memory"), Word(rb": starting up libvirt version", b"n"))

CALL = re.compile(
    r"(?:(?P<tid>\d{1,20})@(?P<seconds>\d{1,20})\.(?P<micros>\d{1,6}):\s*)?"
    r"kvm_set_user_memory (?:AddrSpace#(?P<space>\d{1,20}) )?Slot#(?P<slot>\d{1,20})"
    r" flags=(?P<flags>0x[0-9a-f]+) gpa=(?P<gpa>0x[0-9a-f]+) size=(?P<size>0x[0-9a-f]+)"
    r" ua=(?P<ua>0x[0-9a-f]+)"
    r"(?: guest_memfd=(?P<memfd>-?\d{1,20}) guest_memfd_offset=(?:0x)?(?P<offset>[0-9a-f]+))?"
    r" ret=(?P<ret>-?\d{1,20})(?![0-9@])"
    r"(?: restricted_fd=(?P<restricted>-?\d{1,20}) restricted_offset=(?:0x)?[0-9a-f]+)?"
)
#: The end of an event whose beginning was cut off, in the first line of a log.
_BEHEADED = re.compile(r"size=0x[0-9a-f]+ ua=0x[0-9a-f]+.{0,99} ret=-?\d+")
#: The event's name, but not QEMU's error messages with a similar name.
_EVENT = re.compile(r"kvm_set_user_memory(?![_a-z]|:(?! \{))")


#: QEMU's message on standard error for a call that failed; it has no host address.
_FAILED = re.compile(
    r"KVM_SET_USER_MEMORY_REGION2? failed, slot=(?P<slot>\d{1,20}), start=(?P<gpa>0x[0-9a-f]+), "
    r"size=(?P<size>0x[0-9a-f]+)(?:, flags=(?P<flags>0x[0-9a-f]+))?"
    r"(?:, guest_memfd=(?P<memfd>-?\d{1,20}), guest_memfd_offset=(?P<offset>0x[0-9a-f]+))?"
    r": (?P<error>[A-Z][A-Za-z ]*)"
)
_ERRORS = {os.strerror(number): number for number in errno.errorcode}
#: The line at which libvirt's log shows a new start of the machine.
_BOOT = re.compile(r": starting up libvirt version")

#: Named fields: `slot=0x0`, or `slot = 0`.
_FIELD = re.compile(r"\b([a-z_]+) ?= ?(-?(?:0x[0-9a-f]{1,16}|\d{1,20}))\b")
_FIELDS = ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr")
_TIME_OF_DAY = re.compile(r"\[(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)\.(?P<ns>\d{1,9})\]")
#: A line of simpletrace.py: the time since the line before, in microseconds.
_SIMPLE = re.compile(r"[a-z_0-9]+ (?P<us>\d{1,15})\.(?P<ns>\d{3}) pid=\d+ ")
_THREAD = re.compile(r"(?<!\d)\d+@\d+\.\d{1,6}:\s*$")
_FTRACE = re.compile(r"\s(?P<s>\d{1,12})\.(?P<ns>\d{6}): tracing_mark_write: $")


class QemuReader:
    """Iterates over the events of QEMU's log; `counts` is complete at the end."""

    def __init__(self, lines: Lines, counts: Counts) -> None:
        self.counts = counts
        self.notes: list[str] = []
        self._lines = lines
        self._simple_ns: int | None = None

    def __iter__(self) -> Iterator[Event]:
        self._lines.words = WORDS
        related = 0
        failed: list[RegionCall] = []
        boot: int | None = None
        for number, raw in self._lines:
            text = raw.decode("ascii", "replace").rstrip("\r")
            # Nearly every line is one event with nothing around it.
            whole = CALL.fullmatch(text)
            if whole is not None and boot is None and not self._lines.cut:
                related += 1
                if call := self._call(number, whole, None):
                    yield call
                continue
            elapsed = self._elapsed(text)
            starts = [found.start() for found in _EVENT.finditer(text)]
            if _BOOT.search(text):
                boot = number
            elif message := _FAILED.search(text):
                failed += _failed_call(message, number)
            if starts and boot is not None:
                # Without this event the calls would be counted to the machine before the restart.
                yield VmCreated(boot, None, None)
                boot = None
            related += bool(starts)
            if number == 1 and not starts and _BEHEADED.search(text):
                related += 1
                self.counts.lose(1, "the line's beginning is missing", text)
            last_line_cut = self._lines.cut and number == self._lines.total
            ends = [*starts[1:], len(text)]
            for before, start, end in zip([0, *starts], starts, ends, strict=False):
                found = CALL.match(text, _prefix_start(text, before, start))
                if found is None and (named := _by_names(text, start, end, number)):
                    time_ns = _time_of(text, before, start) if elapsed is None else elapsed
                    self.counts.calls += 1
                    yield replace(named, time_ns=time_ns)
                    continue
                cut = last_line_cut and (found is None or found.end() == len(text))
                if found is None or (cut and _may_go_on(found["ret"])):
                    reason = (
                        "cut off where the input ends"
                        if cut
                        else "not in a format of QEMU's log back end"
                    )
                    self.counts.lose(number, reason, text[start:end])
                elif call := self._call(number, found, _time_of(text, before, start)):
                    yield call
        if not self.counts.calls and not self.counts.lost_total:
            # In a log with events, each message repeats an event, so messages count only here.
            related += len(failed)
            self.counts.calls += len(failed)
            if failed:
                self.notes.append("the host addresses of the failed calls are not known")
            yield from failed
        self.counts.lines = self._lines.total
        self.counts.unrelated = self.counts.lines - related

    def _elapsed(self, text: str) -> int | None:
        """Returns the nanoseconds from the first simpletrace.py line to this line, or None."""
        found = _SIMPLE.match(text)
        if found is None:
            return self._simple_ns
        if self._simple_ns is None:
            # Every line adds to the time, so read all lines.
            self._lines.words = None
            self._simple_ns = 0
        self._simple_ns += int(found["us"]) * 1000 + int(found["ns"])
        return self._simple_ns

    def _call(self, number: int, found: re.Match[str], time_ns: int | None) -> RegionCall | None:
        """Returns the call, or counts it as lost if a number does not fit its field."""
        (
            tid,
            seconds,
            micros,
            space,
            slot_text,
            flags_text,
            gpa_text,
            size_text,
            ua_text,
            memfd_text,
            offset,
            ret_text,
            restricted,
        ) = found.groups()
        slot, flags, ret = int(slot_text), int(flags_text, 16), int(ret_text)
        gpa, size, ua = int(gpa_text, 16), int(size_text, 16), int(ua_text, 16)
        if space:
            # A slot that reaches into the space's bits would name another space.
            slot = slot | int(space) << 16 if slot >> 16 == 0 else -1
        if slot >> 32 or flags >> 32 or (gpa | size | ua) >> 64:
            self.counts.lose(number, "a number does not fit its field", found[0], -ret or None)
            return None
        if seconds:
            time_ns = int(seconds) * 10**9 + int(micros.ljust(6, "0")) * 1000
        given = memfd_text or restricted
        memfd = int(given) if given and given != "-1" else -1
        # QEMU 9.0 prints the flag, but not the guest_memfd's number.
        names_memfd = memfd >= 0 or (not given and not ret and bool(flags & GUEST_MEMFD_FLAG))
        self.counts.calls += 1
        return RegionCall(
            number,
            slot,
            flags,
            gpa,
            size,
            ua,
            -ret if ret < 0 else 0,
            int(tid) if tid else None,
            None,
            time_ns,
            number,
            memfd if names_memfd else None,
            int(offset, 16) if offset and memfd >= 0 else None,
        )


def _may_go_on(ret: str) -> bool:
    """Returns whether the input may end within a result: "-1" may be the beginning of "-17"."""
    return any(str(-number).startswith(ret) and ret != str(-number) for number in errno.errorcode)


def _failed_call(found: re.Match[str], line: int) -> Iterator[RegionCall]:
    """Yields the call of a message, if its numbers fit their fields."""
    slot, gpa, size = int(found["slot"]), int(found["gpa"], 16), int(found["size"], 16)
    number = _ERRORS.get(found["error"].strip())
    if number is not None and slot >> 32 == 0 and (gpa | size) >> 64 == 0:
        memfd = found["memfd"] or "-1"
        yield RegionCall(
            line=line,
            slot=slot,
            flags=int(found["flags"] or "0", 16) & 0xFFFFFFFF,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=0,
            errno=number,
            end_line=line,
            guest_memfd=None if memfd.startswith("-") else int(memfd),
            guest_memfd_offset=int(found["offset"], 16) if found["offset"] else None,
        )


def _by_names(text: str, start: int, end: int, line: int) -> RegionCall | None:
    """Returns the call of the event `text[start:end]`, as simpletrace.py and LTTng print it.

    Returns None if its fields have no names.
    """
    fields: dict[str, str] = dict(_FIELD.findall(text, start, end))
    try:
        slot, flags, gpa, size, ua = (_number(fields[name]) for name in _FIELDS)
        ret = _number(fields["ret"])
        space = _number(fields.get("as", "0"))
        memfd = _number(fields.get("fd", "-1"))
    except (KeyError, ValueError):
        return None
    if slot >> (16 if space else 32) or flags >> 32 or (gpa | size | ua) >> 64 or space >> 16:
        return None
    slot |= space << 16
    return RegionCall(
        line=line,
        slot=slot,
        flags=flags,
        guest_phys_addr=gpa,
        memory_size=size,
        userspace_addr=ua,
        errno=max(-_signed(ret), 0),
        end_line=line,
        guest_memfd=memfd if _signed(memfd) >= 0 else None,
    )


def _number(text: str) -> int:
    """Converts a decimal or hexadecimal number; a leading zero of a decimal means nothing."""
    return int(text, 16 if text.removeprefix("-")[:2] == "0x" else 10)


def _signed(number: int) -> int:
    """Returns the C int that may have been printed as an unsigned number."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


def _time_of(text: str, before: int, start: int) -> int | None:
    """Returns the time in nanoseconds between `before` and an LTTng or ftrace event, or None."""
    if written := _FTRACE.search(text, before, start):
        return int(written["s"]) * 10**9 + int(written["ns"]) * 1000
    found = _TIME_OF_DAY.match(text, 0, start)
    if found is None:
        return None
    hours, minutes, seconds = (int(found[name]) for name in ("h", "m", "s"))
    return ((hours * 60 + minutes) * 60 + seconds) * 10**9 + int(found["ns"].ljust(9, "0"))


def _prefix_start(text: str, before: int, start: int) -> int:
    """Returns where the event's `thread@time:` begins behind `before`; `start` if it has none."""
    found = _THREAD.search(text, before, start)
    return found.start() if found else start
