"""Gives any bytes to the trace readers and replay(): they may raise only TraceError.

The first byte chooses how the rest is passed: its format, its compression, its pieces.

`one_input` runs without atheris, too. As a script this fuzzes: docs/fuzzing.md says how.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's own folder on the path; the imports start from tests/.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from fuzz.engine import main

    main("fuzz.fuzz_traces")

from memslots.replay import Report, VmReport, replay
from memslots.traces import (
    FORMATS,
    Counts,
    Event,
    RegionCall,
    TraceError,
    mails,
    open_trace,
    simpletrace,
)
from memslots.traces.events import LOST_KEPT


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same bytes each time


#: The first byte chooses one of each: byte % 3, byte // 3 % 3, byte // 9 % 4.
PACKINGS: tuple[Callable[[bytes], bytes], ...] = (bytes, zipped, lzma.compress)
#: The most bytes for each read, and whether reading fails in the end.
PIECES = ((1 << 20, False), (7, False), (1024, False), (256, True))
#: The first bytes that tell an input is no text: gzip, xz, bzip2, zstd, zip, UTF-16, simpletrace.
MAGICS = (
    b"\x1f\x8b",
    b"\xfd7zXZ",
    b"BZh",
    b"\x28\xb5\x2f\xfd",
    b"PK\x03\x04",
    b"\xff\xfe",
    b"\xfe\xff",
    simpletrace.HEAD,
)
#: What a Disagreement says if the kernel's change could not be followed.
NOT_FOLLOWED = ("there was nothing to delete", "the call was left out")

#: The result of reading: the error, or the events and the report of their replay.
Outcome = TraceError | tuple[list[Event], Report]


class Pieces(io.BytesIO):
    """A stream that returns little at a time, as a pipe does."""

    def __init__(self, data: bytes, most: int, fails: bool) -> None:
        super().__init__(data)
        self.most = most
        self.fails = fails

    def read1(self, size: int | None = -1, /) -> bytes:
        piece = super().read1(self.most)
        if not piece and self.fails:
            raise OSError(5, "Input/output error")
        return piece


def one_input(data: bytes) -> None:
    """Passes one input in two ways. Raises AssertionError if something does not hold."""
    how, content = data[0] if data else 0, data[1:]
    format = how % 3
    packing = PACKINGS[how // 3 % 3]
    most, fails = PIECES[how // 9 % 4]
    packed = packing(content)
    whole = outcome(Pieces(packed, 1 << 20, False), format)
    is_text = not content.startswith(MAGICS)
    if is_text and isinstance(whole, tuple):
        assert whole[1].counts.lines == number_of_lines(content)
    if packing is not bytes and is_text:
        same(whole, outcome(Pieces(content, 1 << 20, False), format))
    if most < len(packed) or fails:
        pieces = outcome(Pieces(packed, most, fails), format)
        assert not (fails and isinstance(pieces, tuple))
        # Which unrelated lines are shown depends on the pieces, and a few of those lines carry
        # information. The number of lines does not depend on the pieces.
        if isinstance(pieces, tuple) and isinstance(whole, tuple):
            assert pieces[1].counts.lines == whole[1].counts.lines


def number_of_lines(content: bytes) -> int:
    """Returns the number of lines of a text. CR ends its lines if it has no LF."""
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    # The lines of a mail's part in base64 are those of its decoded text.
    content = b"".join(mails.decoded(iter([content])))
    return content.count(b"\n") + (not content.endswith(b"\n"))


def outcome(stream: Pieces, format: int) -> Outcome:
    """Reads and replays, and checks everything that must hold for any input."""
    data = stream.getvalue()
    try:
        with open_trace("input", FORMATS[format], stream) as trace:
            report = replay(trace)
    except TraceError as error:
        assert error.name == "input"
        assert error.reason
        assert str(error).isprintable()
        assert error.line is None or error.line >= 1
        return error
    twin = Pieces(data, stream.most, stream.fails)
    with open_trace("input", FORMATS[format], twin) as trace:
        events = list(trace)
    assert trace.counts == report.counts
    check_counts(report.counts, events)
    check_report(report)
    return events, report


def same(one: Outcome, other: Outcome) -> None:
    """Checks that a text read in two ways has the same events, or fails at the same line."""
    if isinstance(one, TraceError) or isinstance(other, TraceError):
        assert str(one) == str(other)
        return
    assert one[0] == other[0]
    for name in ("format", "counts", "notes"):
        assert getattr(one[1], name) == getattr(other[1], name)
    # Each replay makes its own guest_memfds, so the slots are compared as text.
    for one_vm, other_vm in zip(one[1].vms, other[1].vms, strict=True):
        assert list(map(repr, one_vm.final_map)) == list(map(repr, other_vm.final_map))


def check_counts(counts: Counts, events: list[Event]) -> None:
    """Checks that every line and every call is in exactly one count."""
    calls = [event for event in events if isinstance(event, RegionCall)]
    assert counts.calls == len(calls)
    assert 0 <= counts.unrelated <= counts.lines
    assert 0 <= counts.lost_unknown <= counts.lost_total
    assert len(counts.first_lost) == min(counts.lost_total, LOST_KEPT)
    # A line that has a call is a related line.
    assert (counts.calls + counts.lost_total > 0) == (counts.unrelated < counts.lines)
    for event in events:
        assert 1 <= event.line <= counts.lines
    for call in calls:
        assert call.line <= call.end_line <= counts.lines
        assert max(call.slot, call.flags) < 1 << 32
        assert max(call.guest_phys_addr, call.memory_size, call.userspace_addr) < 1 << 64
        assert call.errno >= 0
    for lost in counts.first_lost:
        assert 1 <= lost.line <= counts.lines
        assert lost.reason
        assert lost.text.isprintable()


def check_report(report: Report) -> None:
    """Checks that the numbers of a replay agree, and that its maps are whole."""
    assert report.counts.calls == sum(vm.calls for vm in report.vms)
    assert all(note for note in report.notes)
    for vm in report.vms:
        check_vm(vm)


def check_vm(vm: VmReport) -> None:
    vm.memslots.check()
    refused, done = vm.refused.total(), vm.operations.total()
    not_followed = [
        case for case in vm.disagreements if not case.recorded and case.followed in NOT_FOLLOWED
    ]
    # The replay did what the kernel did, or the report says why not.
    assert vm.calls == refused + done + len(not_followed)
    assert vm.outside <= refused
    assert all(case.recorded != case.ours for case in vm.disagreements)
    assert len(vm.final_map) <= vm.most_slots
    for gap in vm.gaps:
        assert gap.npages > 0
        assert gap.opened_line <= gap.closed_line
    assert vm.name
