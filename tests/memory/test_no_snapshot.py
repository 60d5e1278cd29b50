"""Files that are not snapshots, and files that may be."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snapshots import (
    EHDR,
    PAGE,
    PHDR,
    USUAL,
    Layout,
    Place,
    Segment,
    contents,
    core,
    scribble,
    untouched,
)

from memslots import NotMappedError, SnapshotError
from memslots.memory.guestmemory import GuestMemory
from memslots.memory.segments import Segments

# Files that are no snapshot


def patched(data: bytes, at: int, form: str, *values: Any) -> bytes:
    out = bytearray(data)
    struct.pack_into("<" + form, out, at, *values)
    return bytes(out)


FIRST = EHDR.size  # the first program header
WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "cut off: its header"),
    "text": (lambda data: b"hello, world\n" * 100, "not a snapshot"),
    "no magic": (lambda data: patched(data, 0, "B", 0), "not a snapshot"),
    "32-bit": (lambda data: patched(data, 4, "B", 1), "not a snapshot"),
    "big-endian": (lambda data: patched(data, 5, "B", 2), "not a snapshot"),
    "no class": (lambda data: patched(data, 4, "B", 3), "not a snapshot"),
    "no byte order": (lambda data: patched(data, 5, "B", 0), "not a snapshot"),
    "a program": (lambda data: patched(data, 16, "H", 2), "core"),
    "segments of another size": (lambda data: patched(data, 54, "H", 64), "not a snapshot"),
    "list beyond the end": (lambda data: patched(data, 32, "Q", len(data)), "list of segments"),
    "list far beyond": (lambda data: patched(data, 32, "Q", (1 << 64) - 1), "list of segments"),
    "too long a list": (lambda data: patched(data, 56, "H", 0xFFFE), "list of segments"),
    "no section": (lambda data: patched(data, 56, "H", 0xFFFF), "no section"),
    "sections of another size": (
        lambda data: patched(patched(patched(data, 56, "H", 0xFFFF), 40, "Q", PAGE), 58, "H", 40),
        "sections of 40 bytes",
    ),
    "a section beyond the end": (
        lambda data: patched(patched(data, 56, "H", 0xFFFF), 40, "Q", 1 << 63),
        "first section",
    ),
    "more in the file": (
        lambda data: patched(data, FIRST + 40, "Q", PAGE),
        "0x46000 bytes exceed the size 0x1000",
    ),
    "memory beyond the end": (
        lambda data: patched(data, FIRST + 8, "Q", len(data) - PAGE),
        "gpa 0x0 ends at",
    ),
    "memory far beyond": (lambda data: patched(data, FIRST + 8, "Q", 1 << 63), "gpa 0x0 ends at"),
    "memory that wraps": (
        lambda data: patched(data, FIRST + 24, "Q", (1 << 64) - PAGE),
        "beyond the last guest address",
    ),
    "another address space": (
        lambda data: patched(data, FIRST + 4, "I", 7 | 2 << 20),
        "of address space 2; there are 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_not_a_snapshot(usual: GuestMemory, path: Path, name: str) -> None:
    usual.dump(path)
    make, message = WRONG[name]
    path.write_bytes(make(path.read_bytes()))
    with untouched(usual), pytest.raises(SnapshotError, match=message) as caught:
        usual.restore(path)
    assert (caught.value.strerror or "").startswith(f"{path}: ")


@pytest.mark.parametrize("where", ["nowhere", ""])
def test_what_cannot_be_opened(usual: GuestMemory, tmp_path: Path, where: str) -> None:
    with untouched(usual), pytest.raises((FileNotFoundError, IsADirectoryError)):
        usual.restore(tmp_path / where)


def test_cut_off_anywhere(usual: GuestMemory, path: Path) -> None:
    usual.dump(path)
    data = path.read_bytes()
    ends = range(EHDR.size + 4 * PHDR.size + 1)
    pages = range(PAGE, len(data), PAGE)
    lengths = {*ends, *pages, *(at - 1 for at in pages), *(at + 1 for at in pages), len(data) - 1}
    with untouched(usual):
        for length in sorted(lengths, reverse=True):
            os.truncate(path, length)
            with pytest.raises(SnapshotError, match="cut off"):
                usual.restore(path)


@pytest.mark.parametrize("how", ["shorter", "error", "signal"])
def test_a_restore_that_fails_half_way_marks_what_it_wrote(
    usual: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    usual.dump(path)
    target = USUAL.make()
    preadv = os.preadv
    calls: list[int] = []

    def some(fd: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) < 3:
            return preadv(fd, [views[0][: 5 * PAGE]], offset)
        if how == "error":
            raise OSError(errno.EIO, "no")
        if how == "signal":
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(os, "preadv", some)
    error = {"shorter": SnapshotError, "error": OSError, "signal": KeyboardInterrupt}[how]
    with pytest.raises(error):
        target.restore(path)
    assert target.read(0, 10 * PAGE) == usual.read(0, 10 * PAGE)
    # All pages side by side in the file: how much of them was read is unknown.
    assert target.vm.take_dirty_runs() == [(0, 0, 80), (0, 90, 220)]


def test_a_core_as_qemu_makes_it(path: Path) -> None:
    """A note comes first, flags and alignment are 0, and memory begins at no page of the file."""
    note = b"CORE" + bytes(353)
    low, high = random.Random(0).randbytes(4 * PAGE), random.Random(1).randbytes(2 * PAGE)
    at = EHDR.size + 4 * PHDR.size
    first = at + len(note)
    path.write_bytes(
        core(
            Segment(4, 0, at, 0, 0, len(note), len(note), 0),
            Segment(1, 0, first, 0, 0, len(low), len(low), 0),
            Segment(
                1, 0, first + len(low), 0xFFFF_8000_0000_0000, 8 * PAGE, len(high), len(high), 0
            ),
            Segment(1, 0, 0, 0, 1 << 40, 0, 0, 0),  # a segment of no bytes
            tail=note + low + high,
        )
    )
    mem = Layout([10], [Place(0, 0, 10, 0, 0)]).make()
    assert mem.restore(path) == 6 * PAGE
    assert mem.read(0, 10 * PAGE) == low + bytes(4 * PAGE) + high
    assert mem.vm.take_dirty_runs() == [(0, 0, 4), (0, 8, 10)]


def test_a_core_whose_memory_is_not_whole_pages(path: Path) -> None:
    data = random.Random(0).randbytes(PAGE + 10)
    at = EHDR.size + PHDR.size
    segment = Segment(1, 0, at, 0, PAGE - 5, len(data), len(data), 0)
    path.write_bytes(core(segment, tail=data))
    mem = Layout([10], [Place(0, 0, 10, 0, 0)]).make()
    assert mem.restore(path) == len(data)
    assert mem.read(0, 3 * PAGE) == bytes(PAGE - 5) + data + bytes(PAGE - 5)
    assert mem.vm.take_dirty_runs() == [(0, 0, 3)]


# Overlapping segments


def process_core(where: list[int], size: int = PAGE) -> bytes:
    """Returns a core with a segment at each guest address, each with other bytes and vaddr."""
    first = EHDR.size + PHDR.size * len(where)
    segments = [
        Segment(1, 7, first + i * size, 0x400000 + i * size, gpa, size, size, PAGE)
        for i, gpa in enumerate(where)
    ]
    return core(*segments, tail=random.Random(0).randbytes(size * len(where)))


@pytest.mark.parametrize(
    ("where", "size"),
    [
        ([0, 0], PAGE),
        ([0] * 3000, 16),
        ([0, 2 * PAGE, PAGE], PAGE + 1),
        ([PAGE, 3 * PAGE, 0], PAGE + 1),
        ([8 * PAGE, 0, 4 * PAGE, 8 * PAGE - 1], 1 * PAGE),
    ],
)
def test_a_processs_own_core_is_refused(path: Path, where: list[int], size: int) -> None:
    path.write_bytes(process_core(where, size))
    mem = Layout([20], [Place(0, 0, 20, 0, 0)]).make()
    with untouched(mem), pytest.raises(SnapshotError, match="overlap and have different bytes"):
        mem.restore(path)


def test_segments_that_share_their_bytes_may_overlap(path: Path) -> None:
    """A dump may have a page once for each of its virtual addresses."""
    data = random.Random(0).randbytes(4 * PAGE)
    at = EHDR.size + 4 * PHDR.size
    path.write_bytes(
        core(
            *(
                Segment(1, 7, at + first * PAGE, vaddr, first * PAGE, pages * PAGE, pages * PAGE, 0)
                for first, pages, vaddr in [(0, 4, 0), (1, 2, 1 << 40), (1, 1, 1 << 41), (3, 1, 7)]
            ),
            tail=data,
        )
    )
    mem = Layout([10], [Place(0, 0, 10, 0, 0)]).make()
    mem.restore(path)
    assert mem.read(0, 4 * PAGE) == data


def test_segments_of_two_address_spaces_do_not_overlap(path: Path) -> None:
    mem = Layout([10], [Place(0, 0, 5, 0, 0), Place(1, 0, 5, 0, 5)]).make()
    scribble(mem, 1)
    mem.dump(path)
    before = contents(mem)
    scribble(mem, 2)
    mem.restore(path)
    assert contents(mem) == before


def test_one_segment_of_no_slot_is_refused_before_anything_is_written(path: Path) -> None:
    path.write_bytes(process_core([0, PAGE, 2 * PAGE, 1 << 46]))
    mem = Layout([20], [Place(0, 0, 20, 0, 0)]).make()
    with untouched(mem), pytest.raises(NotMappedError, match=f"{1 << 46:#x}"):
        mem.restore(path)


spans = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, 2)), max_size=8)


@given(spans=spans)
def test_overlaps_against_one_byte_at_a_time(spans: list[tuple[int, int, int]]) -> None:
    """Any segments, in any order, on a few bytes."""
    taken: dict[int, int] = {}
    differ = False
    table = b""
    for gpa, size, at in spans:
        table += PHDR.pack(1, 7, at * 100 + gpa, 0, gpa, size, size, 0)
        differ = differ or any(taken.get(byte, at) != at for byte in range(gpa, gpa + size))
        taken |= dict.fromkeys(range(gpa, gpa + size), at)
    segments = Segments(SMALL.make())
    segments.take(table, 1000)
    if differ:
        with pytest.raises(ValueError, match="overlap and have different bytes"):
            segments.refuse_overlaps()
    else:
        segments.refuse_overlaps()


# Any bytes

SMALL = Layout([3], [Place(0, 0, 2, 0, 0), Place(0, 4, 1, 0, 2), Place(1, 0, 1, 0, 1)])


def try_to_restore(data: bytes, path: Path) -> None:
    """Restores, or fails with the right error and has changed nothing."""
    path.write_bytes(data)
    mem = SMALL.make()
    scribble(mem, 1)
    before = contents(mem)
    try:
        mem.restore(path)
    except (SnapshotError, NotMappedError, OSError):
        assert contents(mem) == before
        assert mem.vm.take_dirty_runs() == []
    mem.vm.check()


@given(data=st.binary(max_size=400))
def test_any_bytes(data: bytes, scratch: Path) -> None:
    try_to_restore(data, scratch)
    try_to_restore(b"\x7fELF\2\1\1" + bytes(9) + b"\4\0" + data, scratch)


NUMBERS = st.one_of(
    st.integers(0, 6 * PAGE),
    st.sampled_from([0, PAGE, 2 * PAGE, 4 * PAGE]),
    st.integers(0, 64).map(lambda bits: (1 << bits) - 1),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=600)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *[(at, "B") for at in range(EHDR.size)],
                    *[(at, "Q") for at in (24, 32, 40)],
                    *[(at, "H") for at in (54, 56, 58, 60)],
                    *[
                        (EHDR.size + n * PHDR.size + at, form)
                        for n in range(3)
                        for at, form in [*((at, "Q") for at in range(8, 56, 8)), (0, "I"), (4, "I")]
                    ],
                ]
            ),
            NUMBERS,
        ),
        max_size=4,
    ),
    cut=st.one_of(st.none(), st.integers(0, 5 * PAGE)),
)
@example(changes=[((56, "H"), 0xFFFF), ((40, "Q"), 0)], cut=None)
@example(changes=[((32, "Q"), 0), ((56, "H"), 3)], cut=None)
def test_any_change_of_a_snapshot(
    changes: list[tuple[tuple[int, str], int]], cut: int | None, scratch: Path
) -> None:
    source = SMALL.make()
    scribble(source)
    source.dump(scratch)
    data = scratch.read_bytes()
    for (at, form), number in changes:
        data = patched(data, at, form, number % (1 << 8 * struct.calcsize("<" + form)))
    try_to_restore(data[:cut], scratch)
