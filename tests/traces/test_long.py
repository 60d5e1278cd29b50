"""Tests that a long trace gives the same events whether lines are left out or not."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from memslots.traces import Event, Trace, open_trace
from memslots.traces import lines as lines_module
from memslots.traces.lines import Lines, Word
from memslots.traces.source import BLOCK
from memslots.traces.strace import words

TRACES = Path(__file__).parents[1] / "data" / "traces"
CALL = (
    "ioctl(11, KVM_SET_USER_MEMORY_REGION, {{slot={0}, flags=0, guest_phys_addr={1:#x}, "
    "memory_size=65536, userspace_addr={2:#x}}}{3}"
)
OTHERS = (
    "ioctl(18, KVM_RUN <unfinished ...>\n{0}<... ioctl resumed>, 0) = 0\n",
    "ioctl(18, KVM_RUN <unfinished ...>\n{0}<... ioctl resumed>, 0) = -1 EINTR (Interrupted)\n",
    "ioctl(12, KVM_IRQ_LINE, 0x7ffe <unfinished ...>\n{0}<... ioctl resumed>) = 0\n",
    "futex(0x5581, FUTEX_WAIT, 2, NULL <unfinished ...>\n{0}<... futex resumed>) = 0\n",
    'write(2, "ioctl(11, KVM_SET_USER_MEMORY_REGION", 36 <unfinished ...>\n'
    "{0}<... write resumed>) = 36\n",
    'read(7, "\\1\\0\\0", 8) = 8\n',
    "clone3({{flags=CLONE_VM|CLONE_FILES|CLONE_THREAD}}, 88) = 4300\n",
    "close(11 <unfinished ...>\n{0}<... close resumed>) = 0\n",
    "dup(11 <unfinished ...>\n{0}<... dup resumed>) = 13\n",
    "fcntl(11, F_DUPFD_CLOEXEC, 0 <unfinished ...>\n{0}<... fcntl resumed>) = 14\n",
    "vfork( <unfinished ...>\n{0}<... vfork resumed>) = 4301\n",
    "+++ exited with 0 +++\n",
    "ioctl(10, KVM_CREATE_VM, 0 <unfinished ...>\n{0}<... ioctl resumed>) = 11\n",
    "ioctl(10, KVM_CREATE_VM <unfinished ...>\n{0}<... ioctl resumed>, 0) = 11\n",
    "ioctl(10, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = 509\n",
    "ioctl(11, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffe) = 0\n",
    "strace: Process 4302 attached\n",
)

LINES_THAT_MATTER = [
    "7 ioctl(11, KVM_SET_USER_MEMORY_REGION, {slot=1",
    "7 ioctl(11, KVM_SET_USER_MEMORY_REGION2, 0x7ffe) = 0",
    "7 ioctl(9, KVM_CREATE_VM, 0) = 11",
    "7 ioctl(9, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = 32764",
    "7 ioctl(0x9, 0xae01, 0) = 0xb",
    "7 ioctl(11, 0x4020ae46, 0x7ffe) = 0",
    "7 ioctl(11, 0x40a0ae49, 0x7ffe) = 0",
    "7 ioctl(11, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffe) = 0",
    "7 futex(0x5581, FUTEX_WAIT, 2, NULL <unfinished ...>",
    "7 ioctl(9, KVM_CREATE_VM <unfinished ...>",
    *(f"7 <... {name} resumed>) = 12" for name in ("ioctl", "clone", "clone3", "vfork", "dup")),
    "7 <... ioctl resumed>, 0) = 11",
    *(f"7 {name}(11) = 12" for name in ("close", "dup", "dup2", "dup3")),
    *(f"7 {name}({{}}) = 12" for name in ("clone", "clone2", "clone3", "fork", "vfork")),
    *(f'7 {name}("/bin/sh") = 0' for name in ("execve", "execveat")),
    "7 fcntl(11<anon_inode:kvm-vm>, F_DUPFD_CLOEXEC, 0) = 12",
    "7 fcntl64(11, F_DUPFD, 0) = 12",
    "strace: Process 8 attached",
    "7 +++ exited with 0 +++",
    "7@1.2:kvm_set_user_memory Slot#0",
]


class EveryLine(Lines):
    """Lines that leaves out no line."""

    words = property(lambda self: None, lambda self, words: None)


def events(text: str, kind: type[Lines], monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    monkeypatch.setattr("memslots.traces.Lines", kind)
    with open_trace("long", "auto", io.BytesIO(text.encode())) as trace:
        found: list[Event] = list(trace)
        return found, trace.counts, trace.notes


def long_strace(prefix: str, blocks: int) -> str:
    """A trace in which calls and other lines take turns, in different orders."""
    parts: list[str] = []
    size = number = 0
    filling = 'read(7, "' + "x" * 90 + '", 512) = 90\n'
    while size < blocks * BLOCK:
        number += 1
        head = prefix.format(4242 + number % 5, number // 3600 % 24, number // 60 % 60, number % 60)
        other = head + OTHERS[number * 7 % len(OTHERS)].format(head)
        end = ") = 0\n" if number % 3 else f" <unfinished ...>\n{head}<... ioctl resumed>) = 0\n"
        call = head + CALL.format(number % 400, number << 16, number << 20, end)
        parts += [other, call if not number % 4 else "", (head + filling) * (number * 13 % 17)]
        size += sum(map(len, parts[-3:]))
    return "".join(parts)


@pytest.mark.parametrize(
    "prefix", ["{0} 17000{1:02}{2:02}{3}.123456 ", "[pid {0}] {1:02}:{2:02}:{3:02} ", "[pid  {0}] "]
)
def test_a_long_strace(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = long_strace(prefix, 4)
    some, every = (events(text, kind, monkeypatch) for kind in (Lines, EveryLine))
    assert some == every
    assert len(some[0]) > 600  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qemu-q35-ovmf-ttt-y.strace.gz", "qemu-pc-seabios.strace.gz"])
def test_recorded_traces_as_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a recorded trace, in other blocks and pieces each time."""
    text = gzip.decompress((TRACES / name).read_bytes()).decode()
    filling = "1 1700000000.000001 ioctl(18, KVM_RUN, 0) = 0\n"
    whole = "".join(text + filling * (1000 + 173 * n) for n in range(8))
    some, every = (events(whole, kind, monkeypatch) for kind in (Lines, EveryLine))
    assert some[0] == every[0]
    assert some[1] == every[1]


@pytest.mark.parametrize("between", [0, BLOCK // 25])
def test_requests_as_numbers_after_requests_by_name(between: int) -> None:
    """Two recordings in one file: numbers are found right beside names, and far from them."""
    named = "ioctl(18, KVM_RUN, 0) = 0\n" * (2 * BLOCK // 26)
    raw = "ioctl(18, 0xae80, 0) = 0\n" * between
    call = "ioctl(11, 0x4020ae46, {slot=1, flags=0, guest_phys_addr=0, memory_size=4096, "
    text = named + raw + call + "userspace_addr=0x10000}) = 0\n"
    with open_trace("joined", "strace", io.BytesIO(text.encode())) as trace:
        assert len(list(trace)) == 1
        assert trace.counts.calls == 1


@pytest.mark.parametrize("line", LINES_THAT_MATTER)
def test_each_line_that_matters_is_read(line: str) -> None:
    filling = "[pid 7] ioctl(18<anon_inode:kvm-vcpu:0>, KVM_RUN, 0) = 0\n" * (BLOCK // 50)
    lines = Lines(pieces_of(f"{filling}{line}\n{filling}".encode()))
    lines.words = words({11})
    assert line.encode() in [text for _, text in lines]
    assert lines.total == 2 * filling.count("\n") + 1


def pieces_of(text: bytes) -> Iterator[bytes]:
    for at in range(0, len(text), BLOCK):
        yield text[at : at + BLOCK]


def test_words_with_a_rare_byte() -> None:
    filler = b"-" * 99 + b"\n"
    block = BLOCK // 100 + 1
    text = b"word\n" + filler * block + b"word\n" + filler * block + b"no word\n" + filler * block
    text += b"word!\n" + filler * block
    lines = Lines(pieces_of(text))
    lines.words = (Word(b"word", b"!"),)
    found = [line for _, line in lines if b"word" in line]
    assert found == [b"word", b"word!"]
    assert lines.total == text.count(b"\n")


def test_long_lines_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is longer than a piece is a piece of its own."""
    long = b"x" * (3 * lines_module.PIECE)
    text = b"\n".join([b"first", long, long + b"word" + long, b"word", long, b"end"])
    lines = Lines(pieces_of(text))
    lines.long_lines = True
    lines.words = (Word(b"word"),)
    numbers = [number for number, line in lines if b"word" in line]
    assert numbers == [3, 4]
    assert lines.total == 6


def test_a_trace_has_a_quoted_mail_later(monkeypatch: pytest.MonkeyPatch) -> None:
    call = (
        "kvm_set_user_memory AddrSpace#0 Slot#0 flags=3D0x0 gpa=3D0x0 size=3D0x1000=\n"
        " ua=3D0x7f0000000000 guest_memfd=3D-1 guest_memfd_offset=3D0x0 ret=3D0\n"
    )
    first = (
        "kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x0 gpa=0x10000 size=0x1000 ua=0x7f00 ret=0\n"
    )
    header = "Content-Transfer-Encoding: quoted-printable\n\n"
    text = first + "a line of a mail\n" * (2 * BLOCK // 17) + header + call
    with Trace(open_trace("mails", "auto", io.BytesIO(text.encode())).source) as trace:
        assert [call.slot for call in trace] == [1, 0]  # type: ignore[union-attr]
