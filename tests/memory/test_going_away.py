"""Memory that goes away during an access, and memory that is mapped twice: the process survives."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fresh import run_fresh
from needs import needs_kernel_copies

from memslots import Backing, Flags, GuestMemory, Memslots, NotMappedError
from memslots.memory.checkpoint import Checkpoint
from memslots.memory.mappings import UNKNOWN, mapping_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE = 4096
SIZE = 64 * PAGE


def file_of(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def on_mmap(path: Path) -> Backing:
    with path.open("r+b") as file:
        return Backing(mmap.mmap(file.fileno(), SIZE))


KINDS: dict[str, Callable[[Path], Backing]] = {
    "an mmap": on_mmap,
    "a private file": Backing.file,
    "a shared file": lambda path: Backing.file(path, shared=True),
}

ACCESSES: dict[str, Callable[[GuestMemory, int, int], object]] = {
    "read": lambda mem, gpa, n: mem.read(gpa, n),
    "readinto": lambda mem, gpa, n: mem.readinto(gpa, bytearray(n)),
    "write": lambda mem, gpa, n: mem.write(gpa, bytes(n)),
    "fill": lambda mem, gpa, n: mem.fill(gpa, n, 7),
    "read_u64": lambda mem, gpa, n: mem.read_u64(gpa + n - 8),
    "read_u16, not aligned": lambda mem, gpa, n: mem.read_u16(gpa + n - 3),
    "write_u32": lambda mem, gpa, n: mem.write_u32(gpa + n - 8, 5),
    "write_u64, not aligned": lambda mem, gpa, n: mem.write_u64(gpa + n - 9, 5),
    "discard": lambda mem, gpa, n: mem.discard(gpa, n),
}


@needs_kernel_copies
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACCESSES)
def test_a_file_that_was_made_shorter(kind: str, name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path)
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(SIZE))
    mem.place(1, SIZE, KINDS[kind](path), flags=1)
    access = ACCESSES[name]
    access(mem, SIZE - 8, SIZE)  # all pages are there, in two slots
    vm.take_dirty_runs()
    before = mem.read(0, SIZE)
    os.truncate(path, SIZE // 2)
    with pytest.raises(NotMappedError, match="gpa 0x"):
        access(mem, SIZE - 8, SIZE)
    # Nothing has changed. The rest of an mmap can still be used; a Backing.file cannot.
    assert mem.read(0, SIZE) == before and vm.take_dirty_runs() == []
    if kind == "an mmap":
        access(mem, SIZE - 8, SIZE // 2)


@needs_kernel_copies
def test_which_address_is_in_the_way(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    mem = GuestMemory(Memslots())
    mem.place(0, 0x100000, on_mmap(path))
    os.truncate(path, 3 * PAGE + 5)  # the page of the new end stays
    assert len(mem.read(0x100000, 4 * PAGE)) == 4 * PAGE
    for name, access in ACCESSES.items():
        with pytest.raises(NotMappedError, match="gpa 0x10") as error:
            access(mem, 0x100000 + PAGE + 5, 6 * PAGE)
        where = 0x104000 if not name.endswith("aligned") and "_" not in name else 0
        assert f"gpa {where:#x} is in slot 0" in str(error.value) or not where
    buffer = bytearray(b"x" * 8 * PAGE)
    with pytest.raises(NotMappedError):
        mem.readinto(0x100000, buffer)
    assert buffer == b"x" * 8 * PAGE


@needs_kernel_copies
def test_large_fills_and_probes(tmp_path: Path) -> None:
    """More than the 64 pages of one call of the kernel."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(300 * PAGE)
    mem = GuestMemory(Memslots())
    with path.open("r+b") as file:
        mem.place(0, 0, Backing(mmap.mmap(file.fileno(), 300 * PAGE)))
    mem.fill(5, 299 * PAGE, 0xAB)
    data = path.read_bytes()
    assert data == bytes(5) + b"\xab" * (299 * PAGE) + bytes(PAGE - 5)
    os.truncate(path, 200 * PAGE)
    with pytest.raises(NotMappedError, match=f"gpa {200 * PAGE:#x} "):
        mem.fill(PAGE - 1, 250 * PAGE, 1)
    assert path.read_bytes() == data[: 200 * PAGE]


def shortened_meanwhile(kind: str) -> None:
    """Makes every access while a file grows and shrinks, in a separate process, which could die."""
    size = 4 << 20
    end = time.monotonic() + 2
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.truncate(fd, size)
        mem = GuestMemory(Memslots())
        backing = (
            Backing(mmap.mmap(fd, size)) if kind == "mmap" else Backing.file(path, shared=True)
        )
        mem.place(0, 0, backing)

        def shorten() -> None:
            while time.monotonic() < end or not refused:
                os.truncate(fd, PAGE)
                os.truncate(fd, size)

        def touch(name: str) -> None:
            while time.monotonic() < end or not refused:
                try:
                    ACCESSES[name](mem, 0, size)
                except NotMappedError:
                    refused.append(name)

        threads = [threading.Thread(target=shorten)]
        threads += [threading.Thread(target=touch, args=(name,)) for name in ACCESSES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(len(refused) > 0)


def mmap_shortened_meanwhile() -> None:
    shortened_meanwhile("mmap")


def file_shortened_meanwhile() -> None:
    shortened_meanwhile("file")


@needs_kernel_copies
@pytest.mark.parametrize("work", [mmap_shortened_meanwhile, file_shortened_meanwhile])
def test_a_file_made_shorter_meanwhile(work: Callable[[], None]) -> None:
    assert run_fresh(work) == "True\n"


class Shortened:
    """A machine on a file, for a call that is made while the file becomes shorter."""

    def __init__(self, backing: Callable[[Path], Backing], flags: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = file_of(Path(self.folder.name))
        self.mem = GuestMemory(Memslots())
        self.mem.place(0, 0, Backing.anonymous(PAGE), flags=flags)
        self.mem.place(1, 1 << 20, backing(self.path), flags=flags)
        self.mem.vm.take_dirty_runs()

    def shorten(self) -> None:
        os.truncate(self.path, SIZE // 2)

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that does the same, and then shortens the file."""

        def shortening(*arguments: object) -> Any:
            result = function(*arguments)
            self.shorten()
            return result

        return shortening

    def refused(self, call: Callable[[], object], gpa: int) -> None:
        """Calls, and prints whether the error names the guest address."""
        try:
            call()
        except NotMappedError as error:
            print(f"gpa {gpa:#x} is in slot 1 " in str(error))


def checkpoints_of_files_shortened_meanwhile() -> None:
    """At the worst moment: when all checks are made, and the memory is not touched yet."""
    for backing in KINDS.values():
        for by_log in (True, False):
            one = Shortened(backing, Flags.LOG_DIRTY_PAGES)
            with pytest.MonkeyPatch.context() as patch:
                checkpoint = one.mem.checkpoint(by_log=by_log)
                one.mem.write(0, b"anonymous")
                one.mem.write(1 << 20, b"stays")
                one.mem.write((1 << 20) + SIZE - PAGE, b"goes")
                patch.setattr(Checkpoint, "_check", one.after(Checkpoint._check))
                # A Backing.file is refused as a whole.
                compared = SIZE // 2 if backing is on_mmap else 0
                one.refused(checkpoint.restore, (1 << 20) + (SIZE - PAGE if by_log else compared))
            # Nothing has changed, and no mark is lost.
            assert one.mem.read(0, 9) == b"anonymous"
            assert [run.start_gfn for run in one.mem.vm.take_dirty_runs()] == [0, 0x100, 0x13F]
            os.truncate(one.path, SIZE)
            assert one.mem.read(1 << 20, 5) == b"stays"
            one.mem.vm.mark_dirty_many(array("Q", [0, 0x100, 0x13F]))
            checkpoint.restore()
            assert one.mem.read(0, 9) == bytes(9)
            for at, n in ((0, SIZE // 2), (SIZE - PAGE, PAGE)):
                assert one.mem.read((1 << 20) + at, n) == bytes(range(256)) * (n // 256)


@needs_kernel_copies
def test_checkpoints_of_files_shortened_meanwhile() -> None:
    assert run_fresh(checkpoints_of_files_shortened_meanwhile) == "True\n" * 6


def checkpoints_made_of_files_shortened_meanwhile() -> None:
    for backing in KINDS.values():
        for by_log in (True, False):
            one = Shortened(backing, Flags.LOG_DIRTY_PAGES)
            one.mem.write(0, b"marked")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mmap, "mmap", one.after(mmap.mmap))  # the memory for the copy
                one.refused(
                    lambda one=one, by_log=by_log: one.mem.checkpoint(by_log=by_log),  # type: ignore[misc]
                    (1 << 20) + SIZE // 2 if backing is on_mmap else 1 << 20,
                )
            assert [run.start_gfn for run in one.mem.vm.take_dirty_runs()] == [0]


@needs_kernel_copies
def test_checkpoints_made_of_files_shortened_meanwhile() -> None:
    assert run_fresh(checkpoints_made_of_files_shortened_meanwhile) == "True\n" * 6


def restored_beside_a_file_shortened_meanwhile() -> None:
    """Memory that cannot be written is compared with the file."""
    one = Shortened(lambda path: Backing.file(path, readonly=True), Flags.READONLY)
    dump = Path(one.folder.name) / "dump"
    one.mem.dump(dump)
    with pytest.MonkeyPatch.context() as patch:
        read = os.pread

        def shorten_then(fd: int, size: int, offset: int) -> bytes:
            if size == SIZE:  # not the header
                one.shorten()
            return read(fd, size, offset)

        patch.setattr(os, "pread", shorten_then)
        one.refused(lambda: one.mem.restore(dump), 1 << 20)


@needs_kernel_copies
def test_restored_beside_a_file_shortened_meanwhile() -> None:
    assert run_fresh(restored_beside_a_file_shortened_meanwhile) == "True\n"


# The same memory, mapped twice


PATTERN = bytes(i * 7 % 251 for i in range(SIZE - PAGE))


def twice(vm: Memslots, path: Path | None) -> tuple[GuestMemory, Backing]:
    """Returns slots at 0 and at 1 GiB, on two mappings of one memfd or file."""
    mem = GuestMemory(vm)
    one = Backing.memfd(SIZE) if path is None else Backing.file(path, shared=True)
    two = Backing(mmap.mmap(one.fileno(), SIZE))
    mem.place(0, 0, one)
    mem.place(1, 1 << 30, two)
    mem.write(0, PATTERN)
    return mem, two


@pytest.mark.parametrize("of_file", [False, True])
@pytest.mark.parametrize("shift", [-100, 100, 0, PAGE])
def test_written_as_it_was_before(of_file: bool, shift: int, tmp_path: Path) -> None:
    for known in (True, False):
        mem, two = twice(Memslots(), file_of(tmp_path) if of_file else None)
        source = (
            mem.view(PAGE, len(PATTERN) - 2 * PAGE) if known else memoryview(two)[PAGE : -2 * PAGE]
        )
        expected = bytes(source)
        to = (0 if not known else 1 << 30) + PAGE + shift
        mem.write(to, source)
        assert mem.read(PAGE + shift, len(expected)) == expected


def test_read_into_itself() -> None:
    mem, two = twice(Memslots(), None)
    expected = mem.read(0, SIZE - PAGE)
    mem.readinto(0, memoryview(two)[100 : 100 + len(expected)])
    assert mem.read(100, len(expected)) == expected


def test_a_source_of_other_pages_is_not_copied_first() -> None:
    """The memory in use shows it: nothing but the copy itself is allocated."""
    mem, _ = twice(Memslots(), None)
    half = mem.view(0, SIZE // 2)
    sources: list[Buffer] = [
        half,
        bytes(SIZE // 2),
        bytearray(SIZE // 2),
        memoryview(bytes(SIZE // 2)),
    ]
    for source in sources:
        tracemalloc.start()
        mem.write((1 << 30) + SIZE // 2, source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < SIZE // 4
    tracemalloc.start()
    mem.write((1 << 30) + PAGE, half)
    assert tracemalloc.get_traced_memory()[1] >= SIZE // 2
    tracemalloc.stop()


def test_what_is_behind_a_buffer() -> None:
    """Anonymous memory, private or shared, does not go away: no system call is needed."""
    for memory in (
        mmap.mmap(-1, SIZE),
        mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON),
    ):
        found = mapping_of(Backing(memory).hva, SIZE)
        assert not found.may_fault
    fd = os.memfd_create("memory")
    os.truncate(fd, SIZE)
    memory = mmap.mmap(fd, SIZE)
    found = mapping_of(Backing(memory).hva + PAGE, PAGE)
    assert found.may_fault and (found.inode, found.offset) == (os.fstat(fd).st_ino, PAGE)
    os.close(fd)
    assert mapping_of(0, PAGE) == UNKNOWN


def test_anonymous_memory_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may have thousands of Backings: each would read all mappings."""

    def fail(hva: int, size: int) -> None:
        raise AssertionError("it is known what it is")

    monkeypatch.setattr("memslots.memory.mappings.mapping_of", fail)
    for huge_pages in (False, True):
        Backing.anonymous(SIZE, huge_pages=huge_pages)
    with pytest.raises(AssertionError):
        Backing(mmap.mmap(-1, SIZE))
