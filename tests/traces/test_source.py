"""Opens, decompresses, splits and recognises inputs."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.traces import FORMATS, RegionCall, TraceError, open_trace
from memslots.traces.lines import LINE_LIMIT, Lines, LineTooLongError, Word
from memslots.traces.source import BLOCK, Source

CALL = (
    "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0x1000, "
    "memory_size=8192, userspace_addr=0x7f0000000000}) = 0\n"
)
QEMU = "kvm_set_user_memory Slot#1 flags=0x2 gpa=0xffc84000 size=0x37c000 ua=0x7f149ec00000 ret=0\n"


def content(data: bytes) -> bytes:
    return b"".join(Source("x", io.BytesIO(data)).blocks())


def outcome(data: bytes) -> tuple[str, int, int]:
    with open_trace("x", "auto", io.BytesIO(data)) as trace:
        calls = sum(isinstance(event, RegionCall) for event in trace)
    return trace.format, calls, trace.counts.lines


def failure(data: bytes) -> TraceError:
    with open_trace("x", "auto", io.BytesIO(data)) as trace, pytest.raises(TraceError) as caught:
        list(trace)
    return caught.value


class InPieces(io.BytesIO):
    """A stream that returns data in pieces that end at the cuts, as a pipe may."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        super().__init__(data)
        edges = [0, *sorted(cuts), len(data)]
        self.pieces = iter([data[a:b] for a, b in itertools.pairwise(edges) if a < b])

    def read1(self, size: int | None = -1, /) -> bytes:
        return next(self.pieces, b"")


@given(
    st.lists(st.sampled_from([b"a", b"\r", b"bc\n"]), min_size=7).map(b"".join),
    st.lists(st.integers(0, 20)),
)
def test_ends_of_lines_in_any_blocks(data: bytes, cuts: list[int]) -> None:
    def lines(data: bytes, cuts: list[int]) -> bytes:
        return b"".join(Source("x", InPieces(data, cuts)).text())

    data = data.replace(b"\n", b"\r\r\n") + b"\r\r\n"
    first = data.index(b"\n") + 1
    whole = lines(data, [first])
    assert whole == lines(data, [first, *(cut + first for cut in cuts)])
    assert whole.count(b"\n") == data.count(b"\n") and b"\r\n" not in whole
    alone = data.replace(b"\n", b"")
    assert lines(alone, cuts) == alone.replace(b"\r", b"\n")


# --- compression, told by content

TEXT = (CALL * 20_000).encode()


@pytest.mark.parametrize(
    "packed",
    [
        TEXT,
        gzip.compress(TEXT),
        gzip.compress(TEXT[:999]) + gzip.compress(TEXT[999:]),
        gzip.compress(TEXT) + bytes(512),
        lzma.compress(TEXT),
        lzma.compress(TEXT[:999]) + lzma.compress(TEXT[999:]),
        lzma.compress(TEXT) + bytes(512),
    ],
    ids=["plain", "gz", "gz-members", "gz-padded", "xz", "xz-streams", "xz-padded"],
)
def test_decompressed(packed: bytes) -> None:
    assert content(packed) == TEXT


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("data", [b"", b"x", bytes(3 * BLOCK)])
def test_decompressed_sizes(pack: type[bytes], data: bytes) -> None:
    assert content(pack(data)) == data


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_blocks_stay_small(pack: type[bytes]) -> None:
    """A compressed file of zeros does not become one huge block."""
    source = Source("x", io.BytesIO(pack(bytes(64 * BLOCK))))
    assert max(len(block) for block in source.blocks()) <= BLOCK


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.99])
def test_truncated_compression(pack: type[bytes], part: float) -> None:
    packed = pack(TEXT)
    error = failure(packed[: int(len(packed) * part)])
    assert "truncated" in error.reason


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (lzma.compress, "xz")])
def test_damaged_compression(pack: type[bytes], name: str) -> None:
    packed = bytearray(pack(TEXT))
    packed[len(packed) // 2] ^= 0xFF
    assert f"{name} compression is damaged" in failure(bytes(packed)).reason


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"BZh91AY&SY", "bzip2 -dc"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd -dc"),
        (b"PK\x03\x04", "unzip -p"),
        (CALL.encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + CALL.encode("utf-16-be"), "UTF-16"),
    ],
)
def test_what_else_it_may_be(data: bytes, hint: str) -> None:
    assert hint in failure(data).reason


# --- files


def test_file_and_position(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(TEXT)
    with Source(path) as source:
        assert (source.size, source.position) == (len(TEXT), 0)
        seen: list[int] = []
        source.watch = lambda source: seen.append(source.position)
        assert b"".join(source.blocks()) == TEXT
        assert source.position == seen[-1] == len(TEXT)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing", "no such file"), (".", "is a directory"), ("a\0b", "null byte")],
)
def test_unusable_paths(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TraceError, match=reason):
        open_trace(path)


def test_a_directory_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TraceError, match="permission denied") as caught:
        open_trace("trace")
    assert caught.value.errno == errno.EACCES


def test_an_error_while_reading() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    source = Source("x", Broken())  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="input/output error") as caught:
        list(source.blocks())
    assert caught.value.errno == errno.EIO


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match="auto, strace, qemu"):
        open_trace("x", "perf")  # type: ignore[arg-type]
    assert FORMATS == ("auto", "strace", "qemu")


# --- lines


def blocks_of(text: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        yield text[start:end]


@given(
    st.lists(st.sampled_from([b"", b"a", b"xx", b"word", b"a word b", b"other", b"wor"])),
    st.booleans(),
    st.lists(st.integers(0, 10**6)),
)
def test_lines_with_a_word(parts: list[bytes], ended: bool, cuts: list[int]) -> None:
    text = b"\n".join(parts) + (b"\n" if ended and parts else b"")
    expected = text.split(b"\n")
    if not expected[-1]:
        expected.pop()
    lines = Lines(blocks_of(text, cuts))
    lines.words = (Word(b"word"), Word(b"oth"))
    found = list(lines)
    assert lines.total == len(expected)
    assert all(expected[number - 1] == line for number, line in found)
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    wanted = {n for n, line in enumerate(expected, 1) if b"word" in line or b"oth" in line}
    assert wanted <= {number for number, _ in found}
    assert lines.cut == (bool(expected) and not text.endswith(b"\n"))
    every = Lines(blocks_of(text, cuts))
    assert list(every) == list(enumerate(expected, 1))


def test_the_next_line_too() -> None:
    lines = Lines(iter([b"first\nword\nplain\nplain\nword\n"]))
    lines.words = (Word(b"word"),)
    found = []
    for number, line in lines:
        found.append(number)
        lines.next_too = line == b"word"
    assert found == [1, 2, 3, 5]


def test_a_line_put_back() -> None:
    lines = Lines(iter([b"a\nb\n"]))
    lines.put_back(*next(lines))
    assert list(lines) == [(1, b"a"), (2, b"b")]


@pytest.mark.parametrize("step", [1000, BLOCK, 5 * LINE_LIMIT])
def test_a_very_long_line(step: int) -> None:
    text = b"before\n" + b"x" * (3 * LINE_LIMIT) + b"\nafter\nlast"
    lines = Lines(text[at : at + step] for at in range(0, len(text), step))
    lines.long_lines = True
    found = list(lines)
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [line for _, line in found][2:] == [b"after", b"last"]
    if step < LINE_LIMIT:
        with pytest.raises(LineTooLongError):
            list(Lines(text[at : at + step] for at in range(0, len(text), step)))


# --- recognition


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (CALL, "strace"),
        ("8379  " + CALL, "strace"),
        ("strace: Process 100 attached with 3 threads\n[pid 100] " + CALL, "strace"),
        ("100 <... futex resumed>) = 0\n" + CALL, "strace"),
        ("100 futex(0x7f, FUTEX_WAIT <unfinished ...>\n" + CALL, "strace"),
        ("+++ exited with 0 +++\n" + CALL, "strace"),
        ("--- SIGCHLD {si_signo=SIGCHLD} ---\n" + CALL, "strace"),
        ("some log\n\n113:8379  " + CALL, "strace"),
        ("\ufeff" + CALL, "strace"),
        (QEMU, "qemu"),
        ("8@1.000001:" + QEMU, "qemu"),
        ("qemu-system-x86_64: warning: (something) = odd\n--- a/file\n+++ b/file\n" + QEMU, "qemu"),
        ("f(a, b)\n" + QEMU, "qemu"),
        (CALL[30:] + CALL, "strace"),
        (QEMU[30:] + QEMU, "qemu"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_recognised(text: str, format: str, end: str) -> None:
    assert outcome(text.replace("\n", end).encode())[:2] == (format, 1)


@pytest.mark.parametrize("call", [CALL, QEMU])
def test_a_first_line_without_its_beginning_is_lost(call: str) -> None:
    with open_trace("x", "auto", io.BytesIO((call[30:] + call).encode())) as trace:
        assert len(list(trace)) == 1
    assert dict(trace.counts.lost) == {"the line's beginning is missing": 1}
    assert trace.counts.unrelated == 0


def test_qemus_lines_in_a_traced_write_are_stracess() -> None:
    text = f'write(2, "{QEMU.strip()}", 90) = 90\n{CALL}'
    assert outcome(text.encode()) == ("strace", 1, 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\n", "neither"),
        (b"hello\nworld\n", "line 3: neither"),
        (bytes(range(256)) * 4, "binary"),
        (b"x" * 10_000_000, "line 1: the line is longer than 1 MiB"),
        (bytes(10_000_000), "line 1: the line is longer than 1 MiB"),
    ],
)
def test_not_recognised(data: bytes, reason: str) -> None:
    assert reason in str(failure(data))


@given(st.binary(max_size=2000))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a trace or raise a TraceError."""
    for format in FORMATS:
        with open_trace("x", format, io.BytesIO(data)) as trace:
            try:
                list(trace)
            except TraceError as error:
                assert error.reason


@given(st.binary(max_size=200), st.sampled_from([CALL, QEMU]))
def test_a_trace_with_any_bytes_behind(data: bytes, call: str) -> None:
    with open_trace("x", "auto", io.BytesIO(call.encode() + data)) as trace:
        list(trace)
    assert trace.counts.calls >= 1


MESSAGE = (
    "qemu-system-x86_64: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=2, "
    "start=0x1000, size=0x1000: File exists\n"
)


def test_a_message_in_front_of_a_trace() -> None:
    """A report may begin with QEMU's message; the trace behind it counts."""
    assert outcome((MESSAGE + "under strace:\n" + CALL * 2).encode()) == ("strace", 2, 4)
    assert outcome((MESSAGE + QEMU * 2).encode())[:2] == ("qemu", 2)
    assert outcome((MESSAGE + "no trace\n" + MESSAGE).encode()) == ("qemu", 2, 3)
    far = MESSAGE + "text\n" * 20_000
    assert outcome((far + CALL).encode())[:2] == ("qemu", 1)


def test_a_trace_with_a_very_long_line_in_it() -> None:
    text = CALL + 'write(2, "' + "x" * 10_000_000 + '", 9) = 9\n' + CALL
    assert outcome(text.encode()) == ("strace", 2, 3)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(gzip.compress(CALL.encode()))

    monkeypatch.setattr("sys.stdin", Stdin)
    with open_trace("-") as trace:
        assert len(list(trace)) == 1
    assert trace.name == "standard input"
    assert not Stdin.buffer.closed
