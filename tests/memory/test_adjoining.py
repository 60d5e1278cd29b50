"""Tests slots that run over the end of one Backing into another one that begins there."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from allocations import each_failure
from guest import LOG, PAGE, dirty, pattern

from memslots import Backing, GuestMemory, InvalidRegionError, Memslots, NotMappedError
from memslots.memory.backing import address_of

GPA = 0x10 * PAGE
SIZES = (2, 1, 3, 1, 1, 2)  # pages of each Backing: more than an access holds by itself
PAGES = sum(SIZES)
ENDS = [sum(SIZES[:n]) * PAGE for n in range(1, len(SIZES))]


class Adjoining:
    """One slot on several Backings, and the buffer behind them."""

    def __init__(self, sizes: tuple[int, ...] = SIZES) -> None:
        self.buffer = memoryview(mmap.mmap(-1, PAGES * PAGE))
        self.buffer[:] = pattern(PAGES * PAGE)
        self.vm = Memslots(address_spaces=2)
        self.mem = GuestMemory(self.vm)
        begin = 0
        for size in sizes:
            self.mem.add(Backing(self.buffer[begin * PAGE : (begin + size) * PAGE]))
            begin += size
        self.vm.create(0, GPA // PAGE, PAGES, address_of(self.buffer), LOG)


@pytest.fixture
def guest() -> Adjoining:
    return Adjoining()


def test_bytes(guest: Adjoining) -> None:
    mem, whole = guest.mem, bytearray(guest.buffer)
    for begin in (0, 1, ENDS[0] - 1, ENDS[1] - 5, ENDS[2]):
        for size in (1, 2, 9, PAGE, 4 * PAGE + 3, PAGES * PAGE - begin):
            if begin + size > PAGES * PAGE:
                continue
            assert mem.read(GPA + begin, size) == whole[begin : begin + size]
            mem.write(GPA + begin, pattern(size, begin + size))
            whole[begin : begin + size] = pattern(size, begin + size)
            assert guest.buffer == whole
            pages = set(range(begin // PAGE, (begin + size - 1) // PAGE + 1))
            assert dirty(guest.vm, 0) == pages
    mem.fill(GPA + 1, PAGES * PAGE - 2, 7)
    assert guest.buffer == whole[:1] + b"\7" * (PAGES * PAGE - 2) + whole[-1:]
    into = bytearray(PAGES * PAGE)
    assert mem.readinto(GPA, into) == len(into)
    assert into == guest.buffer


def test_over_itself(guest: Adjoining) -> None:
    before = bytes(guest.buffer)
    guest.mem.write(GPA + 5, guest.buffer[: 5 * PAGE])
    assert guest.buffer == before[:5] + before[: 5 * PAGE] + before[5 * PAGE + 5 :]


def test_numbers(guest: Adjoining) -> None:
    for end in ENDS:
        for shift in range(1, 8):
            guest.mem.write_u64(GPA + end - shift, 0x0123456789ABCDEF + shift)
            assert guest.mem.read_u64(GPA + end - shift) == 0x0123456789ABCDEF + shift


def test_views(guest: Adjoining) -> None:
    views = guest.mem.views(GPA + 3, PAGES * PAGE - 3)
    assert [len(view) for view in views] == [SIZES[0] * PAGE - 3, *(n * PAGE for n in SIZES[1:])]
    assert b"".join(views) == guest.buffer[3:]
    with pytest.raises(InvalidRegionError, match="are in 2 slots or backings"):
        guest.mem.view(GPA + ENDS[0] - 1, 2)
    assert guest.mem.view(GPA + ENDS[0], PAGE) == guest.buffer[ENDS[0] : ENDS[0] + PAGE]
    assert guest.mem.is_mapped(GPA, PAGES * PAGE)
    assert not guest.mem.is_mapped(GPA, PAGES * PAGE + 1)


def test_descriptors(guest: Adjoining, tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    before = bytes(guest.buffer)
    assert guest.mem.read_into(fd, GPA, PAGES * PAGE, offset=0) == PAGES * PAGE
    assert path.read_bytes() == before
    guest.buffer[:] = bytes(PAGES * PAGE)
    assert guest.mem.write_from(fd, GPA, PAGES * PAGE, offset=0) == PAGES * PAGE
    os.close(fd)
    assert guest.buffer == before
    assert dirty(guest.vm, 0) == set(range(PAGES))


def test_the_first_address_without_memory_is_told() -> None:
    guest = Adjoining(SIZES[:3])
    assert guest.mem.read(GPA, 6 * PAGE) == guest.buffer[: 6 * PAGE]
    before = bytes(guest.buffer)
    with pytest.raises(NotMappedError, match=rf"gpa {GPA + 6 * PAGE:#x} .*is beyond <Backing"):
        guest.mem.write(GPA, bytes(6 * PAGE + 1))
    assert guest.buffer == before
    readonly = Backing(guest.buffer[6 * PAGE : 7 * PAGE].toreadonly())
    guest.mem.add(readonly)
    assert guest.mem.read(GPA, 7 * PAGE) == before[: 7 * PAGE]
    with pytest.raises(OSError, match=rf"gpa {GPA + 6 * PAGE:#x} .*cannot be written"):
        guest.mem.write(GPA, bytes(6 * PAGE + 1))
    assert guest.buffer == before


@pytest.mark.parametrize("sparse", [False, True])
def test_snapshots(guest: Adjoining, tmp_path: Path, sparse: bool) -> None:
    guest.buffer[4 * PAGE : 5 * PAGE] = bytes(PAGE)
    before = bytes(guest.buffer)
    assert guest.mem.dump(tmp_path / "all", sparse=sparse) == PAGES * PAGE
    guest.vm.take_dirty_runs()
    guest.mem.write(GPA + ENDS[0] - 1, b"ab")
    after = bytes(guest.buffer)
    assert guest.mem.dump_dirty(tmp_path / "dirty") == 2 * PAGE
    guest.mem.fill(GPA, PAGES * PAGE, 1)
    assert guest.mem.restore(tmp_path / "all") == PAGES * PAGE
    assert guest.buffer == before
    assert guest.mem.restore(tmp_path / "dirty") == 2 * PAGE
    assert guest.buffer == after
    # A machine with one Backing reads the same.
    one = GuestMemory(Memslots())
    one.place(0, GPA, Backing.anonymous(PAGES * PAGE))
    one.restore(tmp_path / "all")
    assert one.read(GPA, PAGES * PAGE) == before


@pytest.mark.parametrize("by_log", [True, False])
def test_checkpoint(guest: Adjoining, by_log: bool) -> None:
    # Part of the memory is in another slot too, at its own addresses.
    guest.vm.create(1, 1, 4, address_of(guest.buffer) + PAGE, LOG, as_id=1)
    before = bytes(guest.buffer)
    checkpoint = guest.mem.checkpoint(by_log=by_log)
    assert checkpoint.size == PAGES * PAGE
    for pages in ([0], [1, 2], list(range(PAGES)), []):
        for page in pages:
            guest.mem.write(GPA + page * PAGE + 100, b"new")
        guest.mem.address_space(1).write(2 * PAGE, b"other")  # page 2 of the buffer
        # By the logs, page 2 is restored once for each slot that wrote it.
        restored = len(pages) + 1 if by_log else len({*pages, 2})
        assert checkpoint.restore() == restored * PAGE
        assert guest.buffer == before


def test_merged_slots() -> None:
    """Two anonymous Backings often are adjacent; here they are by design."""
    guest = Adjoining()
    guest.vm.delete(0)
    hva = address_of(guest.buffer)
    guest.mem.add(first := Backing(guest.buffer[: 4 * PAGE]))
    guest.mem.add(second := Backing(guest.buffer[4 * PAGE :]))
    guest.vm.create(0, GPA // PAGE, 4, hva)
    guest.vm.create(1, GPA // PAGE + 4, PAGES - 4, hva + 4 * PAGE)
    guest.vm.merge(0, 1)
    assert len(guest.vm) == 1
    assert guest.mem.read(GPA, PAGES * PAGE) == guest.buffer
    assert guest.mem.backings == (first, second)


@pytest.mark.parametrize("name", ["read", "write", "fill", "views"])
def test_an_access_without_memory_does_nothing(drivers: Any, guest: Adjoining, name: str) -> None:
    calls = {
        "read": lambda: guest.mem.read(GPA, PAGES * PAGE),
        "write": lambda: guest.mem.write(GPA, bytes(PAGES * PAGE)),
        "fill": lambda: guest.mem.fill(GPA, PAGES * PAGE, 1),
        "views": lambda: guest.mem.views(GPA, PAGES * PAGE),
    }
    before = bytes(guest.buffer)

    def unharmed() -> None:
        assert guest.buffer == before
        assert guest.vm.get_dirty_log(0).count(0) == len(guest.vm.get_dirty_log(0))

    # Each part more than four is kept in memory of its own.
    assert each_failure(drivers("alloc"), calls[name], unharmed) == len(SIZES) - 4
