"""Snapshots that leave zeros out, and other programs' cores that do."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from needs import needs_kernel_copies

from memslots import (
    Backing,
    Flags,
    GuestMemory,
    Memslots,
    NotMappedError,
    ReadOnlyError,
    SnapshotError,
)

PAGE = 4096
SIZE = 64 * PAGE


def on_mmap(path: Path) -> Backing:
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file:
        return Backing(mmap.mmap(file.fileno(), SIZE))


KINDS: dict[str, Callable[[Path], Backing]] = {
    "anonymous": lambda _: Backing.anonymous(SIZE),
    "huge": lambda _: Backing.anonymous(SIZE, huge_pages=True),
    "memfd": lambda _: Backing.memfd(SIZE),
    "buffer": lambda _: Backing(mmap.mmap(-1, SIZE)),
    "file": on_mmap,
}


def segments(path: Path) -> list[tuple[int, int, int, int]]:
    """Returns (gpa, offset, bytes in the file, bytes) of each segment, by the ELF format."""
    data = path.read_bytes()
    count = struct.unpack_from("<H", data, 56)[0]
    found = []
    for i in range(count):
        kind, _, offset, _, gpa, filesz, memsz, _ = struct.unpack_from(
            "<IIQQQQQQ", data, 64 + 56 * i
        )
        assert kind == 1
        found.append((gpa, offset, filesz, memsz))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_there_and_back(kind: str, seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    vm = Memslots()
    mem = GuestMemory(vm)
    backing = KINDS[kind](tmp_path / "memory")
    mem.place(0, 0, backing, 0, SIZE // 2)
    mem.place(1, 1 << 30, backing, SIZE // 2, flags=Flags.LOG_DIRTY_PAGES)
    for _ in range(dice.randrange(20)):
        mem.write_u8(dice.choice([0, 1 << 30]) + dice.randrange(SIZE // 2), dice.randrange(3))
    mem.place(2, 2 << 30, backing, PAGE, SIZE - 2 * PAGE)  # the same memory again
    path = tmp_path / "core"
    assert mem.dump(path, sparse=True) == mem.dump(tmp_path / "whole")
    zero, kept = 0, 0
    for gpa, offset, filesz, memsz in segments(path):
        assert filesz in (0, memsz)
        expected = mem.read(gpa, memsz)
        if filesz:
            kept += filesz
            assert path.read_bytes()[offset : offset + filesz] == expected
            assert all(any(expected[i : i + PAGE]) for i in range(0, memsz, PAGE))
        else:
            zero += memsz
            assert not any(expected)
    assert zero + kept == 2 * SIZE - 2 * PAGE
    other = GuestMemory(Memslots())
    other.place(0, 0, Backing.anonymous(SIZE // 2))
    other.place(1, 1 << 30, Backing.memfd(SIZE // 2))
    other.place(2, 2 << 30, Backing.anonymous(SIZE))
    for gpa, size in ((0, SIZE // 2), (1 << 30, SIZE // 2), (2 << 30, SIZE)):
        other.fill(gpa, size, 0xEE)
    other.restore(path)
    for gpa, size in ((0, SIZE // 2), (1 << 30, SIZE // 2), (2 << 30, SIZE - 2 * PAGE)):
        assert other.read(gpa, size) == mem.read(gpa, size)
    assert other.read((2 << 30) + SIZE - 2 * PAGE, 2 * PAGE) == b"\xee" * 2 * PAGE


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
def test_what_was_never_touched_is_not_read(kind: str, tmp_path: Path) -> None:
    mem = GuestMemory(Memslots())
    size = 64 << 20
    backing = Backing.anonymous(size) if kind == "anonymous" else Backing.memfd(size)
    mem.place(0, 0, backing)
    mem.write(5 * PAGE, b"something")
    before = resident()
    assert mem.dump(tmp_path / "core", sparse=True) == size
    assert (tmp_path / "core").stat().st_size == 2 * PAGE
    assert resident() - before < size // 4


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_marks_go_with_it(tmp_path: Path) -> None:
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(SIZE), flags=Flags.LOG_DIRTY_PAGES)
    mem.write_u8(PAGE, 1)
    mem.dump(tmp_path / "core", sparse=True, restart_log=True)
    assert vm.take_dirty_runs() == []
    mem.write_u8(9 * PAGE, 1)
    mem.restore(tmp_path / "core")
    # Zeros are written as well.
    assert [run[1:] for run in vm.take_dirty_runs()] == [(0, SIZE // PAGE)]
    assert mem.read_u8(9 * PAGE) == 0


@needs_kernel_copies
def test_memory_that_goes_away(tmp_path: Path) -> None:
    mem = GuestMemory(Memslots())
    mem.place(0, 0, on_mmap(tmp_path / "memory"))
    mem.write_u8(9 * PAGE, 1)
    os.truncate(tmp_path / "memory", 4 * PAGE)
    with pytest.raises(OSError, match="Bad address"):
        mem.dump(tmp_path / "core", sparse=True)
    assert not (tmp_path / "core").exists()


def core(*parts: tuple[int, bytes, int]) -> bytes:
    """Returns an ELF core of (gpa, bytes, bytes in memory)."""
    headers, body = b"", b""
    start = 64 + 56 * len(parts)
    for gpa, data, memsz in parts:
        place = start + len(body) if data else 0
        headers += struct.pack("<IIQQQQQQ", 1, 7, place, 0, gpa, len(data), memsz, 0)
        body += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    numbers = (4, 62, 1, 0, 64, 0, 0, 64, 56, len(parts), 0, 0, 0)
    return struct.pack("<16sHHIQQQIHHHHHH", ident, *numbers) + headers + body


def test_cores_of_others(tmp_path: Path) -> None:
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.anonymous(SIZE))
    mem.fill(0, SIZE, 0xEE)
    path = tmp_path / "core"
    path.write_bytes(core((PAGE, b"\x55" * PAGE, 3 * PAGE), (7 * PAGE + 5, b"", 10), (0, b"a", 1)))
    assert mem.restore(path) == 3 * PAGE + 11
    expected = bytearray(b"\xee" * SIZE)
    expected[PAGE : 4 * PAGE] = b"\x55" * PAGE + bytes(2 * PAGE)
    expected[7 * PAGE + 5 : 7 * PAGE + 15] = bytes(10)
    expected[:1] = b"a"
    assert mem.read(0, SIZE) == expected


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([(0, b"abcd", 2)], "0x4 bytes exceed the size 0x2"),
        ([(0, b"abcd", 8), (4, b"abcd", 4)], "overlap and have different bytes"),
        ([(0, b"", 8), (4, b"abcd", 4)], "overlap and have different bytes"),
    ],
)
def test_not_a_snapshot(parts: list[tuple[int, bytes, int]], text: str, tmp_path: Path) -> None:
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.anonymous(SIZE))
    mem.fill(0, SIZE, 0xEE)
    path = tmp_path / "core"
    path.write_bytes(core(*parts))
    with pytest.raises(SnapshotError, match=text):
        mem.restore(path)
    assert mem.read(0, SIZE) == b"\xee" * SIZE


def test_zeros_that_have_no_place(tmp_path: Path) -> None:
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(SIZE))
    path = tmp_path / "core"
    path.write_bytes(core((0, b"abcd", 4), (SIZE - 4, b"", 8)))
    with pytest.raises(NotMappedError):
        mem.restore(path)
    # Overlapping zeros agree.
    path.write_bytes(core((0, b"", 8), (4, b"", 8)))
    assert mem.restore(path) == 16
    # Memory that cannot be written must already be zeros.
    (tmp_path / "rom").write_bytes(bytes(PAGE) + b"x" * PAGE)
    rom = Backing.file(tmp_path / "rom", readonly=True)
    mem.place(1, 1 << 20, rom, flags=Flags.READONLY)
    path.write_bytes(core((1 << 20, b"", PAGE)))
    assert mem.restore(path) == PAGE
    path.write_bytes(core((1 << 20, b"", PAGE + 1)))
    with pytest.raises(ReadOnlyError):
        mem.restore(path)
