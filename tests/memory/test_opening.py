"""Tests GuestMemory.open: memory of a file without reading it."""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from descriptors import descriptors

from memslots import Backing, Flags, GuestMemory, Memslots, SnapshotError
from memslots.memory import opening

PAGE = 4096


def dumped(path: Path, *, sparse: bool = False) -> GuestMemory:
    """Returns a file with three slots of two address spaces, each with some bytes."""
    memory = GuestMemory(Memslots(8, address_spaces=2))
    memory.place(0, 0, Backing.anonymous(16 * PAGE))
    memory.place(3, 0x100000, Backing.anonymous(2 * PAGE), flags=Flags.READONLY)
    other = memory.address_space(1)
    other.place(0, 0x10000, Backing.anonymous(PAGE))
    memory.write(0x1234, b"first")
    memory.write(15 * PAGE, b"last page")
    other.write(0x10000, b"of the other space")
    memory.dump(path, sparse=sparse)
    return memory


@pytest.mark.parametrize("sparse", [False, True])
def test_a_snapshot(tmp_path: Path, sparse: bool) -> None:
    path = tmp_path / "snapshot"
    was = dumped(path, sparse=sparse)
    memory = GuestMemory.open(path)
    memory.vm.check()
    for as_id, gpa, size in ((0, 0, 16 * PAGE), (0, 0x100000, 2 * PAGE), (1, 0x10000, PAGE)):
        there = memory.address_space(as_id)
        assert there.read(gpa, size) == was.address_space(as_id).read(gpa, size)
    content = path.read_bytes()
    memory.write(0x1234, b"other")
    assert memory.read(0x1234, 5) == b"other"
    assert path.read_bytes() == content


def test_shared(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    dumped(path)
    GuestMemory.open(path, shared=True).write(0x1234, b"kept!")
    assert GuestMemory.open(path).read(0x1234, 5) == b"kept!"


def test_raw_memory(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(3 * PAGE) + b"tail")
    memory = GuestMemory.open(path)
    assert memory.read(3 * PAGE, 8) == b"tail\0\0\0\0"
    assert [(slot.base_gfn, slot.npages) for slot in memory.vm] == [(0, 3), (3, 1)]
    with pytest.raises(SnapshotError, match="so shared=True cannot map it"):
        GuestMemory.open(path, shared=True)


def test_a_lime_file(tmp_path: Path) -> None:
    """Its memory is at no page of the file, so it is copied."""
    path = tmp_path / "lime"
    parts = ((PAGE, b"a" * PAGE), (0x100000, b"b" * 100))
    path.write_bytes(
        b"".join(
            struct.pack("<IIQQ8x", 0x4C694D45, 1, gpa, gpa + len(data) - 1) + data
            for gpa, data in parts
        )
    )
    memory = GuestMemory.open(path)
    for gpa, data in parts:
        assert memory.read(gpa, len(data)) == data
    assert memory.read(0x100064, 10) == bytes(10)
    with pytest.raises(SnapshotError):
        GuestMemory.open(path, shared=True)


def core(gpa: int, in_file: int, *, size: int | None = None, as_id: int = 0) -> bytes:
    """Returns an ELF core of one segment, which begins at the file's second page."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = in_file if size is None else size
    segment = struct.pack("<IIQQQQQQ", 1, 7 | as_id << 20, PAGE, gpa, gpa, in_file, size, PAGE)
    return (ident + header + segment).ljust(2 * PAGE, b"\0")


def crash_dump(first: int, pages: int) -> bytes:
    """Returns a crash dump of Windows of one run of pages, and the bytes of one page."""
    header = bytearray(2 * PAGE)
    header[:8] = b"PAGEDU64"
    struct.pack_into("<I", header, 0xF98, 1)
    struct.pack_into("<I4xQQQ", header, 0x88, 1, pages, first, pages)
    return bytes(header) + bytes(PAGE)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it is empty"),
        (b"EMiL", "ends within the header"),
        (b"\x7fELF" + bytes(60), "of no class"),
        (struct.pack("<IIQQ8x", 0x4C694D45, 1, 1, 1) + b"x", "which is not a multiple of 4096"),
        (core(0, PAGE, as_id=47), "address_spaces must be 1 to 16, not 48"),
        (core((1 << 64) - PAGE, PAGE), "beyond the last page that a slot may have"),
        (core((1 << 64) - PAGE, 0, size=1 << 63), "beyond the last page that a slot may have"),
        (core(0, 1 << 63), "cut off: it ends within the memory at 0x0"),
        (crash_dump(0, 1 << 40), "cut off: it ends within the memory at 0x0"),
        (crash_dump(1 << 52, 1), "beyond the last page that a slot may have"),
        (crash_dump(0, (1 << 64) - 1), "beyond the last page that a slot may have"),
        # A header is enough to state it. No slots are made for it, which would take hours.
        (core(0, PAGE, size=1 << 62), "0x4000000000000000 bytes of memory are more than any host"),
        (
            core(0, 0, size=(1 << 56) + 1),
            "0x100000000000001 bytes of memory are more than any host",
        ),
    ],
)
def test_what_holds_no_memory(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=text):
        GuestMemory.open(path)
    with pytest.raises(FileNotFoundError):
        GuestMemory.open(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["open", "open shared", "restore"])
def test_no_regular_file(tmp_path: Path, name: str) -> None:
    call: Callable[[Path], object] = {
        "open": GuestMemory.open,
        "open shared": lambda path: GuestMemory.open(path, shared=True),
        "restore": GuestMemory(Memslots()).restore,
    }[name]
    os.mkfifo(tmp_path / "fifo")
    before = descriptors()
    with pytest.raises(IsADirectoryError):
        call(tmp_path)
    # A pipe may never get a writer: it does not wait for one.
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="a regular file is needed.*" + path.name) as caught:
            call(path)
        assert caught.value.errno == errno.ENODEV
    assert descriptors() <= before


def test_a_file_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "snapshot"
    dumped(path)
    file_of = Backing.file

    class Replacing:
        @staticmethod
        def file(*args: Any, **kwargs: Any) -> Backing:
            dumped(path)
            return file_of(*args, **kwargs)

    monkeypatch.setattr(opening, "Backing", Replacing)
    before = descriptors()
    with pytest.raises(SnapshotError, match="it was replaced while it was opened"):
        GuestMemory.open(path)
    assert descriptors() <= before


def test_segments_that_overlap(tmp_path: Path) -> None:
    path = tmp_path / "lime"
    one = struct.pack("<IIQQ8x", 0x4C694D45, 1, 0, PAGE - 1) + bytes(PAGE)
    path.write_bytes(one * 2)
    with pytest.raises(OSError, match="overlaps"):
        GuestMemory.open(path)


def test_every_cut_is_told(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    dumped(path)
    content = path.read_bytes()
    for cut in (*range(0, 200, 7), PAGE, 3 * PAGE, len(content) - 1):
        path.write_bytes(content[:cut])
        try:
            GuestMemory.open(path)
        except (SnapshotError, ValueError):
            continue
        assert cut < 8  # raw memory


def test_a_list_of_segments_of_terabytes(tmp_path: Path) -> None:
    """Its size is compared with the file's before memory for it is taken."""
    content = bytearray(core(0, PAGE))
    struct.pack_into("<Q", content, 40, PAGE)  # the first section has the number of segments
    struct.pack_into("<HH", content, 54, 0xFFFF, 0xFFFF)
    struct.pack_into("<I", content, PAGE + 44, 1 << 20)
    path = tmp_path / "core"
    path.write_bytes(content)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, limits[1]))
    try:
        with pytest.raises(SnapshotError, match="it ends within its program headers"):
            GuestMemory.open(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
