"""Tests checkpoint and restore of memory."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from memslots import (
    Backing,
    Flags,
    GuestMemfd,
    GuestMemory,
    InvalidRegionError,
    MemoryMap,
    Memslots,
    NotMappedError,
)

PAGE = 4096
LOG = Flags.LOG_DIRTY_PAGES


def machine(flags: int) -> GuestMemory:
    """Returns a machine with some bytes in each slot.

    It has two slots, a third one on part of their memory, and one in another space.
    """
    memory = GuestMemory(Memslots(8, address_spaces=2))
    shared = Backing.memfd(32 * PAGE)
    memory.place(0, 0, shared, 0, 24 * PAGE, flags=flags)
    memory.place(1, 0x100000, shared, 16 * PAGE, 16 * PAGE, flags=flags)
    memory.place(2, 0x200000, Backing.anonymous(64 * PAGE), flags=flags)
    memory.place(3, 0x300000, Backing.anonymous(PAGE), flags=Flags.READONLY)
    memory.address_space(1).place(0, 0, Backing.anonymous(4 * PAGE), flags=flags)
    memory.write(PAGE, b"one")
    memory.write(0x100000, b"shared")
    memory.write(0x23F000, b"end")
    return memory


def content(memory: GuestMemory) -> list[bytes]:
    parts = ((0, 24), (0x100000, 16), (0x200000, 64))
    found = [memory.read(gpa, pages * PAGE) for gpa, pages in parts]
    return [*found, memory.address_space(1).read(0, 4 * PAGE)]


@pytest.mark.parametrize("by_log", [True, False, None])
def test_what_was_written_is_put_back(by_log: bool | None) -> None:
    memory = machine(LOG)
    was = content(memory)
    checkpoint = memory.checkpoint(by_log=by_log)
    assert checkpoint.by_log == (by_log is not False)
    assert checkpoint.size == (32 + 64 + 4) * PAGE
    how = "comparing" if by_log is False else "dirty logs"
    assert repr(checkpoint) == f"<Checkpoint: 5 slots, 400 KiB, restored by {how}>"
    choose = random.Random(1)
    for _ in range(3):
        pages = set()
        for _ in range(20):
            gfn = choose.randrange(64)
            memory.write((0x200 + gfn) * PAGE + choose.randrange(PAGE - 8), choose.randbytes(8))
            pages.add(gfn)
        memory.address_space(1).fill(PAGE, PAGE, 7)
        memory.write(0x100000 + 5, b"by the second slot")
        assert content(memory) != was
        assert checkpoint.restore() == (len(pages) + 2) * PAGE
        assert content(memory) == was
        assert checkpoint.restore() == 0


def test_many_pages_of_many_slots() -> None:
    """More than 64 marked pages in a slot, in runs and apart; the last word of a log is a part."""
    memory = GuestMemory(Memslots(8))
    backing = Backing.anonymous(1000 * PAGE)
    memory.place(0, 0, backing, 0, 700 * PAGE, flags=LOG)
    memory.place(1, 0x1000 * PAGE, backing, 333 * PAGE, 667 * PAGE, flags=LOG)
    content = random.Random(2).randbytes(1000 * PAGE)
    memoryview(backing)[:] = content
    checkpoint = memory.checkpoint()
    for first, end, step in ((0, 700, 1), (3, 700, 7), (63, 66, 1), (699, 700, 1)):
        for page in range(first, end, step):
            memory.write(page * PAGE, b"changed")
        memory.write((0x1000 + 666) * PAGE, b"the last page of the backing")
        assert checkpoint.restore() == (len(range(first, end, step)) + 1) * PAGE
        assert bytes(memoryview(backing)) == content
        assert memory.vm.take_dirty_runs() == []


@pytest.mark.parametrize("by_log", [True, False])
def test_pages_side_by_side_of_a_file(by_log: bool, tmp_path: Path) -> None:
    """Memory that may go away is copied page by page."""
    path = tmp_path / "file"
    was = random.Random(3).randbytes(130 * PAGE)
    path.write_bytes(was)
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.file(path, shared=True), flags=LOG)
    checkpoint = memory.checkpoint(by_log=by_log)
    for pages in (range(130), range(62, 66), (0, 1, 128, 129)):
        for page in pages:
            memory.write(page * PAGE, b"changed")
        assert checkpoint.restore() == len(pages) * PAGE
        assert memory.read(0, 130 * PAGE) == was


def test_a_slot_whose_copy_is_in_two_pieces() -> None:
    """Slot 1's first 8 pages are copied with slot 0's memory, its last 8 on their own.

    The marks of both parts are in one word of its log.
    """
    memory = machine(LOG)
    for page in range(16):
        memory.write(0x100000 + page * PAGE, bytes([page + 1]) * PAGE)
    was = content(memory)
    checkpoint = memory.checkpoint()
    for pages in ((9,), (7, 8)):
        for page in pages:
            memory.fill(0x100000 + page * PAGE, PAGE, 0)
        assert checkpoint.restore() == len(pages) * PAGE
        assert content(memory) == was


def test_marks_of_memory_that_cannot_be_written() -> None:
    """A checkpoint has no copy of it."""
    memory = machine(LOG)
    memory.vm.delete(3)
    rom = Backing.anonymous(PAGE)
    memory.place(3, 0x300000, rom, flags=LOG | Flags.READONLY)
    checkpoint = memory.checkpoint()
    memoryview(rom)[0] = 7
    memory.vm.mark_dirty(0x300)
    memory.write(0x200000, b"x")
    assert checkpoint.restore() == PAGE
    assert memory.read_u8(0x300000) == 7


def test_without_logs_views_are_found_too() -> None:
    memory = machine(0)
    was = content(memory)
    checkpoint = memory.checkpoint()
    assert not checkpoint.by_log
    memory.view(0x210000, 5)[:] = b"hello"
    assert checkpoint.restore() == PAGE
    assert content(memory) == was


def test_by_comparing_it_is_marked() -> None:
    memory = machine(LOG)
    checkpoint = memory.checkpoint(by_log=False)
    memory.write(0x201000, b"x")
    memory.vm.take_dirty_runs()
    assert checkpoint.restore() == PAGE
    assert [(run.as_id, run.start_gfn, run.end_gfn) for run in memory.vm.take_dirty_runs()] == [
        (0, 0x201, 0x202)
    ]


def test_by_logs_all_slots_must_have_one() -> None:
    memory = machine(LOG)
    memory.vm.set_flags(2, 0)
    assert not memory.checkpoint().by_log
    with pytest.raises(InvalidRegionError, match="by_log needs a dirty log on every slot"):
        memory.checkpoint(by_log=True)


@pytest.mark.parametrize("by_log", [True, False])
def test_other_slots(by_log: bool) -> None:
    """Slots moved away and back count as the same. With others, nothing is restored or unmarked."""
    memory = machine(LOG)
    checkpoint = memory.checkpoint(by_log=by_log)
    memory.write(0x201000, b"x")
    memory.vm.move(2, 0x400)
    for _ in range(2):
        with pytest.raises(InvalidRegionError) as caught:
            checkpoint.restore()
        assert caught.value.errno == errno.ESTALE
    assert memory.read(0x401000, 1) == b"x"
    memory.vm.move(2, 0x200)
    assert checkpoint.restore() == PAGE
    assert memory.read(0x201000, 1) == b"\0"


@pytest.mark.parametrize("by_log", [True, False])
def test_no_memory_for_the_copy(by_log: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mark is lost."""
    memory = machine(LOG)
    memory.vm.take_dirty_runs()
    memory.write(0x201000, b"x")

    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(mmap, "mmap", none)
    with pytest.raises(MemoryError):
        memory.checkpoint(by_log=by_log)
    assert [run.start_gfn for run in memory.vm.take_dirty_runs()] == [0x201]


@pytest.mark.parametrize("by_log", [True, False])
def test_a_file_that_is_shorter_now(by_log: bool, tmp_path: Path) -> None:
    """Its pages are not touched: that would end the process. No mark is lost."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PAGE))
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.file(path), flags=LOG)
    checkpoint = memory.checkpoint(by_log=by_log)
    memory.write(2 * PAGE, b"x")
    os.truncate(path, PAGE)
    for call in (checkpoint.restore, lambda: memory.checkpoint(by_log=by_log)):
        with pytest.raises(NotMappedError, match="shorter"):
            call()
    os.truncate(path, 3 * PAGE)
    assert checkpoint.restore() == (PAGE if by_log else 0)  # the kernel dropped the page written


def test_nothing() -> None:
    memory = GuestMemory(Memslots())
    checkpoint = memory.checkpoint()
    assert (checkpoint.size, checkpoint.restore()) == (0, 0)


def test_memory_that_was_never_touched_is_not_copied() -> None:
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.anonymous(1 << 30), flags=LOG)
    memory.write(1 << 29, b"x")
    checkpoint = memory.checkpoint()
    memory.fill(1 << 29, PAGE, 9)
    memory.write(0, b"y")
    assert checkpoint.restore() == 2 * PAGE
    assert (memory.read(1 << 29, 2), memory.read(0, 1)) == (b"x\0", b"\0")


def test_changes_wait_until_the_memory_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = machine(LOG)
    moved = threading.Thread(target=lambda: memory.vm.move(2, 0x400))
    waited: list[bool] = []

    def meanwhile(*_: object) -> None:
        if not waited:
            moved.start()
            moved.join(0.1)
            waited.append(moved.is_alive())

    monkeypatch.setattr("memslots.memory.checkpoint.pages_there", meanwhile)
    memory.checkpoint()
    moved.join()
    assert waited == [True] and memory.vm[2].base_gfn == 0x400


def test_shared_memory_of_guest_memfds() -> None:
    """`write` reaches it. A slot without host memory has none that could be saved."""
    vm = Memslots()
    memory = GuestMemory(vm)
    ram, memfd = Backing.anonymous(4 * PAGE), GuestMemfd(8 * PAGE)
    memory.add(ram)
    vm.set_region2(0, 4, 0, 4 * PAGE, ram.hva, memfd, 0)
    vm.set_region2(1, 4, 0x100000, 4 * PAGE, 0, memfd, 4 * PAGE)
    memory.write(PAGE, b"before")
    checkpoint = memory.checkpoint()
    assert (checkpoint.by_log, checkpoint.size) == (False, 4 * PAGE)
    memory.write(PAGE, b"after!")
    assert checkpoint.restore() == PAGE
    assert memory.read(PAGE, 6) == b"before"


def cut_and_join(memory: GuestMemory) -> None:
    vm, slots = memory.vm, memory.vm.map()
    vm.become(slots | MemoryMap([(0, 2, 1 << 40)]))
    vm.become(slots)


def delete_and_create(memory: GuestMemory) -> None:
    ram = memory.backings[0]
    memory.vm.delete(0)
    memory.place(0, 0, ram, flags=LOG)


def log_again(memory: GuestMemory) -> None:
    memory.vm.set_flags(0, 0)
    memory.vm.set_flags(0, LOG)


@pytest.mark.parametrize("change", [cut_and_join, delete_and_create, log_again])
@pytest.mark.parametrize("shared", [False, True])
def test_a_log_that_ended(
    change: Callable[[GuestMemory], None], shared: bool, tmp_path: Path
) -> None:
    """The marks in it are lost, so the next restore compares."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(8 * PAGE))
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.file(path) if shared else Backing.anonymous(8 * PAGE), flags=LOG)
    checkpoint = memory.checkpoint(by_log=True)
    memory.write(PAGE, b"before")
    change(memory)
    memory.write(3 * PAGE, b"after")
    assert checkpoint.restore() == 2 * PAGE
    assert memory.read(0, 8 * PAGE) == bytes(8 * PAGE)
    if not shared:
        assert not memory.vm.take_dirty_runs()
    checkpoint.restore()
    memory.view(5 * PAGE, 1)[0] = 1  # no mark, so only a comparison would find it
    memory.write(PAGE, b"again")
    assert checkpoint.restore() == PAGE
    assert memory.read_u8(5 * PAGE) == 1


def test_a_log_that_moved_is_the_same() -> None:
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.anonymous(8 * PAGE), flags=LOG)
    checkpoint = memory.checkpoint(by_log=True)
    memory.view(5 * PAGE, 1)[0] = 1
    memory.write(PAGE, b"before")
    memory.vm.move(0, 0x1000)
    memory.vm.move(0, 0)
    assert checkpoint.restore() == PAGE
    assert memory.read_u8(5 * PAGE) == 1
