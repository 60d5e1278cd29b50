"""Tests descriptors, pages of the host, structures and arrays."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import needs_madvise

from memslots import (
    Backing,
    Flags,
    GuestMemory,
    InvalidRegionError,
    Memslots,
    NotMappedError,
    ReadOnlyError,
)
from memslots.memory import transfer
from memslots.memory.absent import pages_there

PAGE = 4096


@pytest.fixture
def memory() -> GuestMemory:
    """Returns two adjacent slots, on a memfd and on anonymous memory, and one for reading only."""
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.memfd(4 * PAGE), flags=1)
    memory.place(1, 4 * PAGE, Backing.anonymous(4 * PAGE), flags=1)
    memory.place(2, 0x100000, Backing.anonymous(PAGE), flags=Flags.READONLY)
    return memory


def dirty(memory: GuestMemory) -> list[tuple[int, int]]:
    return [(run.start_gfn, run.end_gfn) for run in memory.vm.take_dirty_runs()]


@pytest.mark.parametrize("offset", [None, 3])
def test_from_and_to_a_file(memory: GuestMemory, tmp_path: Path, offset: int | None) -> None:
    content = os.urandom(3 * PAGE)
    path = tmp_path / "file"
    path.write_bytes(content)
    skipped = offset or 0
    with path.open("rb") as file:
        count = memory.write_from(file.fileno(), 3 * PAGE + 5, 4 * PAGE, offset=offset)
    assert count == len(content) - skipped  # the file ends earlier
    assert memory.read(3 * PAGE + 5, count) == content[skipped:]
    assert dirty(memory) == [(3, 7)]
    out = tmp_path / "out"
    with out.open("w+b") as file:
        assert memory.read_into(file.fileno(), 3 * PAGE + 5, count, offset=offset) == count
    assert out.read_bytes()[skipped:] == content[skipped:]
    assert dirty(memory) == []


@pytest.mark.parametrize(
    ("offset", "error", "text"),
    [
        ("3", TypeError, "offset must be an integer, not 'str'"),
        (2.0, TypeError, "offset must be an integer, not 'float'"),
        (-1, OverflowError, "offset must not be negative"),
        (1 << 63, OverflowError, "offset does not fit its 63 bits"),
    ],
)
def test_offsets_that_cannot_be(
    memory: GuestMemory, tmp_path: Path, offset: Any, error: type[Exception], text: str
) -> None:
    """Nothing is marked: no byte was read."""
    with (tmp_path / "file").open("w+b") as file:
        for call in (memory.write_from, memory.read_into):
            with pytest.raises(error, match=text):
                call(file.fileno(), 0, 1, offset=offset)
    assert dirty(memory) == []


@pytest.mark.parametrize("fd", ["3", 2.0, None])
def test_a_descriptor_is_an_integer(memory: GuestMemory, fd: Any) -> None:
    """Nothing is marked: no byte was read."""
    for call in (memory.write_from, memory.read_into):
        with pytest.raises(TypeError, match=f"fd must be an integer, not {type(fd).__name__!r}"):
            call(fd, 0, 1)
    assert dirty(memory) == []


class Three:
    def __index__(self) -> int:
        return 3


def test_anything_with_index_is_an_offset(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"012345")
    with (tmp_path / "file").open("r+b") as file:
        assert memory.write_from(file.fileno(), 0, 2, offset=Three()) == 2
        assert memory.read(0, 2) == b"34"
        assert memory.read_into(file.fileno(), 0, 1, offset=Three()) == 1


def test_from_a_pipe(memory: GuestMemory) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"hello")
    os.close(writing)
    assert memory.write_from(reading, PAGE, 100) == 5
    os.close(reading)
    assert memory.read(PAGE, 6) == b"hello\0"


def test_descriptors_that_do_not_block(memory: GuestMemory) -> None:
    """What was read or written is told, so that nothing of it is lost."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as end, os.fdopen(writing, "wb") as other:
        for fd in (reading, writing):
            os.set_blocking(fd, False)
        with pytest.raises(BlockingIOError):
            memory.write_from(reading, 0, 8)
        os.write(writing, b"abc")
        memory.vm.take_dirty_runs()
        assert memory.write_from(reading, 5 * PAGE - 1, 8) == 3
        assert memory.read(5 * PAGE - 1, 4) == b"abc\0"
        assert dirty(memory) == [(4, 6)]
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PAGE)
        size = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
        memory.fill(0, 8 * PAGE, 7)
        assert memory.read_into(writing, 0, 8 * PAGE) == min(size, 8 * PAGE) == PAGE
        with pytest.raises(BlockingIOError):
            memory.read_into(writing, 0, PAGE)
        assert end.read(8 * PAGE) == b"\7" * PAGE
        assert not other.closed


def test_where_nothing_is(memory: GuestMemory, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        for call in (memory.write_from, memory.read_into):
            with pytest.raises(NotMappedError):
                call(file.fileno(), 7 * PAGE, 2 * PAGE)
            assert call(file.fileno(), 0x900000, 0) == 0
        with pytest.raises(ReadOnlyError):
            memory.write_from(file.fileno(), 0x100000, 1)
    assert dirty(memory) == []
    for other, marked in ((memory.read_into, []), (memory.write_from, [(0, 1)])):
        with pytest.raises(OSError, match="Bad file descriptor"):
            other(1 << 20, 0, 8)
        assert dirty(memory) == marked  # what was written may not be known


def test_a_signal_as_a_read_returns(
    memory: GuestMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PAGE)
    readv = os.readv

    def interrupted(fd: int, views: list[memoryview]) -> int:
        readv(fd, views)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "readv", interrupted)
    with path.open("rb") as file, pytest.raises(KeyboardInterrupt):
        memory.write_from(file.fileno(), PAGE, 3 * PAGE)
    assert memory.read(PAGE, 3 * PAGE) == path.read_bytes()
    assert dirty(memory) == [(1, 4)]


def test_the_file_of_memory(memory: GuestMemory) -> None:
    fd, offset = memory.file_of(PAGE, 2 * PAGE)
    memory.write(PAGE, b"by guest address")
    assert offset == PAGE
    assert os.pread(fd, 16, offset) == b"by guest address"
    with pytest.raises(ValueError, match="has no file"):
        memory.file_of(4 * PAGE)
    with pytest.raises(InvalidRegionError):
        memory.file_of(3 * PAGE, 2 * PAGE)
    with pytest.raises(NotMappedError):
        memory.file_of(0x900000)


@needs_madvise
def test_discard(memory: GuestMemory) -> None:
    memory.fill(0, 8 * PAGE, 7)
    memory.vm.take_dirty_runs()
    memory.discard(PAGE + 100, 5 * PAGE)
    assert memory.read(0, 8 * PAGE) == (
        b"\7" * (PAGE + 100) + bytes(5 * PAGE) + b"\7" * (2 * PAGE - 100)
    )
    assert dirty(memory) == [(1, 7)]
    with pytest.raises(ReadOnlyError):
        memory.discard(0x100000, PAGE)
    with pytest.raises(NotMappedError):
        memory.discard(7 * PAGE, 2 * PAGE)
    memory.discard(0, 0)
    assert dirty(memory) == []


@needs_madvise
def test_discarded_pages_are_the_hosts(memory: GuestMemory) -> None:
    fd, _ = memory.file_of(0)
    memory.fill(0, 4 * PAGE, 1)
    assert os.fstat(fd).st_blocks * 512 == 4 * PAGE
    memory.discard(0, 3 * PAGE)
    assert os.fstat(fd).st_blocks * 512 == PAGE


@pytest.mark.parametrize(
    ("gpa", "n"), [(0, 6 << 20), (PAGE, 5 << 20), (5, 100), (1 << 20, 3 << 20)]
)
def test_huge_pages_are_discarded_whole(monkeypatch: pytest.MonkeyPatch, gpa: int, n: int) -> None:
    """The kernel rounds a range that ends within a huge page, and does not say so."""
    huge = 2 << 20
    backing = Backing.anonymous(8 << 20, huge_pages=True)  # begins at a huge page
    memory = GuestMemory(Memslots())
    memory.place(0, 0, backing)
    memory.fill(0, 8 << 20, 7)
    asked: list[tuple[int, int]] = []
    madvise = transfer._madvise

    def noted(start: int, size: int, advice: int) -> int:
        asked.append((start - backing.hva, size))
        return int(madvise(start, size, advice))

    monkeypatch.setattr(transfer, "_madvise", noted)
    monkeypatch.setattr(transfer, "_page_size", lambda _: huge)
    memory.discard(gpa, n)
    first, last = -(-gpa // huge) * huge, (gpa + n) // huge * huge
    assert asked == ([(first, last - first)] if last > first else [])
    assert memory.read(0, 8 << 20) == b"\7" * gpa + bytes(n) + b"\7" * ((8 << 20) - gpa - n)


def test_the_size_of_pages() -> None:
    backing = Backing.anonymous(8 << 20, huge_pages=True)
    huge = backing.huge_pages == "hugetlb"
    assert transfer._page_size(backing) == (2 << 20 if huge else PAGE)


def test_discard_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2 * PAGE)
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.file(path))
    memory.discard(0, PAGE)
    assert memory.read(0, 2 * PAGE) == bytes(PAGE) + b"x" * PAGE


@pytest.mark.parametrize("write", [pytest.param(True, marks=needs_madvise), False])
def test_prefault(memory: GuestMemory, write: bool) -> None:
    memory.write(PAGE, b"here")
    memory.prefault(5, 7 * PAGE, write=write)
    assert memory.read(PAGE, 4) == b"here"
    if write:
        fd, _ = memory.file_of(0)
        assert os.fstat(fd).st_blocks * 512 == 4 * PAGE
    with pytest.raises(NotMappedError):
        memory.prefault(7 * PAGE, 2 * PAGE, write=write)
    if write:
        with pytest.raises(ReadOnlyError):
            memory.prefault(0x100000, PAGE)
    else:
        memory.prefault(0x100000, PAGE, write=False)


def test_is_mapped(memory: GuestMemory) -> None:
    assert memory.is_mapped(0)
    assert memory.is_mapped(0, 8 * PAGE)
    assert not memory.is_mapped(0, 8 * PAGE + 1)
    assert memory.is_mapped(0x100000)
    assert not memory.is_mapped(0x900000)
    assert memory.is_mapped(0x900000, 0)


def test_structures(memory: GuestMemory) -> None:
    memory.pack(4 * PAGE - 3, ">hIq", -2, 0xDEADBEEF, -3)
    assert memory.unpack(4 * PAGE - 3, ">hIq") == (-2, 0xDEADBEEF, -3)
    assert memory.read(4 * PAGE - 3, 2) == b"\xff\xfe"
    assert dirty(memory) == [(3, 5)]
    with pytest.raises(struct.error):
        memory.unpack(0, "nonsense")
    with pytest.raises(struct.error):
        memory.pack(0, "<H", 1 << 16)
    with pytest.raises(NotMappedError):
        memory.unpack(0x900000, "<H")
    with pytest.raises(ReadOnlyError):
        memory.pack(0x100000, "B", 1)
    assert dirty(memory) == []
    for size in range(1, 150):
        assert memory.unpack(0, f"{size}x") == ()


def test_what_is_written_in_a_block_is_marked(memory: GuestMemory) -> None:
    with memory.writing(PAGE, 2 * PAGE) as view:
        view[5] = 7
    assert memory.read_u8(PAGE + 5) == 7
    assert dirty(memory) == [(1, 3)]
    with pytest.raises(ZeroDivisionError), memory.writing(5, 1) as view:
        view[0] = 1
        raise ZeroDivisionError
    assert dirty(memory) == [(0, 1)]
    for gpa, error in ((0x900000, NotMappedError), (0x100000, ReadOnlyError)):
        with pytest.raises(error), memory.writing(gpa, 1):
            raise AssertionError("nothing is to be written")
    with pytest.raises(InvalidRegionError), memory.writing(3 * PAGE, 2 * PAGE):
        raise AssertionError("it is in two slots")
    assert dirty(memory) == []


def test_no_bytes_can_be_written_anywhere(memory: GuestMemory) -> None:
    """An access of 0 bytes does nothing at any address: no view of them is read-only."""
    memory.view(0x900000, 0)[:] = b""
    with memory.writing(0x900000, 0) as view:
        view[:] = b""
    assert dirty(memory) == []


def test_arrays(memory: GuestMemory) -> None:
    np = pytest.importorskip("numpy")
    found = memory.array(PAGE, "<u4", 8)
    found[:] = range(8)
    assert memory.unpack(PAGE, "<8I") == tuple(range(8))
    assert len(memory.array(PAGE, [("a", "<u2"), ("b", ">i4")], 3)) == 3
    assert not memory.array(0x100000, np.uint8, 16).flags.writeable
    assert len(memory.array(0x900000, "u1", 0)) == 0
    with pytest.raises(InvalidRegionError, match="are in 2 slots"):
        memory.array(3 * PAGE, "u1", 2 * PAGE)
    with pytest.raises(InvalidRegionError, match="cannot hold Python objects"):
        memory.array(0, object, 1)
    with pytest.raises(NotMappedError):
        memory.array(0x900000, "u1", 1)
    with pytest.raises(NotMappedError):
        memory.array(0, "<u8", np.int32(1 << 29))  # which times 8 is 0 in 32 bits
    with pytest.raises(TypeError, match="n must be an integer, not 'bool"):
        memory.array(0, "u1", np.True_)


def test_where_memory_is_in_a_part_of_a_file(tmp_path: Path) -> None:
    """The offset counts from the file's first byte, wherever the Backing begins in the file."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.file(path, PAGE, shared=True))
    fd, offset = memory.file_of(PAGE + 5, 10)
    assert offset == 2 * PAGE + 5
    assert os.pread(fd, 10, offset) == memory.read(PAGE + 5, 10) == b"c" * 10


def test_no_bytes_are_in_no_file(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="0 bytes are in no file"):
        memory.file_of(0, 0)


def test_is_mapped_at_the_end(memory: GuestMemory) -> None:
    assert not memory.is_mapped((1 << 64) - 1, 2)


def test_marks_follow_a_slot_that_moves(memory: GuestMemory) -> None:
    """The marks go to the memory that was written, not to the place where it was."""
    vm = memory.vm
    with memory.writing(5 * PAGE, 1) as view:
        view[0] = 1
        vm.move(1, 0x200)
    assert dirty(memory) == [(0x201, 0x202)]
    with memory.writing(0x201 << 12, PAGE):
        vm.split(1, 0x202)
        vm.move(1, 0x300)
    assert dirty(memory) == [(0x301, 0x302)]


def test_marks_follow_a_slot_that_moves_before_the_bytes_come(memory: GuestMemory) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0) as pipe:
        caller = threading.Thread(target=memory.write_from, args=(reading, 5 * PAGE, 8))
        caller.start()
        pipe.write(b"four")
        while memory.read(5 * PAGE, 4) != b"four":
            assert caller.is_alive()
        memory.vm.move(1, 0x200)
        pipe.write(b"more")
        caller.join()
    assert memory.read(0x201 << 12, 8) == b"fourmore"
    assert dirty(memory) == [(0x201, 0x202)]


class Once:
    """A number that is another one when it is asked for again."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        value, self.value = self.value, 0x900000
        return value


def write_in_a_block(memory: GuestMemory, gpa: Once, n: Once) -> None:
    with memory.writing(gpa, n) as view:
        view[:] = b"abc"


@pytest.mark.parametrize(
    ("call", "marked"),
    [
        (lambda memory, fd: memory.write_from(fd, Once(PAGE), Once(3), offset=0), True),
        (lambda memory, fd: memory.discard(Once(PAGE), Once(3)), True),
        (lambda memory, fd: write_in_a_block(memory, Once(PAGE), Once(3)), True),
        (lambda memory, fd: memory.view(Once(PAGE), Once(3)), False),
        (lambda memory, fd: memory.read_u8(Once(PAGE)), False),
        (lambda memory, fd: memory.write_u8(Once(PAGE), Once(3)), True),
    ],
)
def test_each_argument_is_asked_once(
    memory: GuestMemory, tmp_path: Path, call: Callable[[GuestMemory, int], object], marked: bool
) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (tmp_path / "file").open("rb") as file:
        call(memory, file.fileno())
    assert dirty(memory) == [(1, 2)] * marked


def test_prefault_without_the_kernels_help(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range begins at the last byte of a page: the page after it is brought in too."""
    monkeypatch.setattr(transfer, "_madvise", lambda *_: ctypes.set_errno(errno.EINVAL) or -1)
    ram = Backing.anonymous(8 * PAGE)
    memory.place(3, 0x300000, ram)
    memory.prefault(0x301000 - 1, 2 * PAGE + 2)
    assert pages_there(ram, ram.hva, ram.size) == bytes([1, 1, 1, 1, 0, 0, 0, 0])


def test_discard_while_the_slot_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread deletes the slot, and its Backing is forgotten: the views keep the memory."""
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.anonymous(4 * PAGE))
    discard = transfer._discard

    def late(*arguments: Any) -> None:
        memory.vm.delete(0)
        discard(*arguments)

    monkeypatch.setattr(transfer, "_discard", late)
    view = memory.view(0, 4 * PAGE)
    view[:] = b"a" * len(view)
    memory.discard(0, 4 * PAGE)
    assert view.tobytes() == bytes(4 * PAGE)
    assert memory.backings == ()
