"""Restores a snapshot into other layouts, and large snapshots."""

from __future__ import annotations

import os
import random
import signal
import struct
from array import array
from pathlib import Path

import pytest
from snapshots import (
    EHDR,
    LOG,
    PAGE,
    PHDR,
    READONLY,
    SPACES,
    USUAL,
    Layout,
    Place,
    Run,
    Segment,
    contents,
    core,
    loads_of,
    runs,
    scribble,
    untouched,
)

from memslots import Flags, Memslots, NotMappedError, ReadOnlyError, SnapshotError
from memslots.memory import snapshot
from memslots.memory.backing import Backing
from memslots.memory.guestmemory import GuestMemory
from memslots.memory.segments import Segments

# Cores of other machines


@pytest.mark.parametrize("many", [False, True], ids=["count", "count in a section"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("wide", [False, True], ids=["32-bit", "64-bit"])
def test_cores_of_either_width_and_order(
    wide: bool, order: str, many: bool, tmp_path: Path
) -> None:
    header = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    program = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    section = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    ident = b"\x7fELF" + bytes([1 + wide, 1 + (order == ">"), 1]) + bytes(9)
    after = 16 + header.size
    pages = after + 2 * program.size + section.size

    def segment(offset: int, gpa: int, filesz: int, memsz: int) -> bytes:
        fields = (offset, 0, gpa, filesz, memsz)
        return program.pack(*((1, 7, *fields, 0) if wide else (1, *fields, 7, 0)))

    count = 0xFFFF if many else 2
    head = header.pack(
        4, 0, 1, 0, after, pages - section.size, 0, after, program.size, count, section.size, 1, 0
    )
    file = tmp_path / "core"
    file.write_bytes(
        ident
        + head
        + segment(pages, 0x1000, 5, 0x1000)
        + segment(pages + 5, 0x3000, 5, 5)
        + section.pack(0, 0, 0, 0, 0, 0, 0, 2, 0, 0)
        + b"firstother"
    )
    memory = GuestMemory(Memslots())
    memory.place(0, 0, Backing.anonymous(0x4000))
    memory.fill(0, 0x4000, 0xAA)
    assert memory.restore(file) == 0x1005
    assert memory.read(0x1000, 7) == b"first\0\0"
    assert memory.read(0x1FFF, 2) == b"\0\xaa"
    assert memory.read(0x3000, 6) == b"other\xaa"
    assert GuestMemory.open(file).read(0x3000, 5) == b"other"


# Restoring into other layouts


@pytest.mark.parametrize(
    "places",
    [
        [Place(0, 0, 220, 0, 0), Place(1, 0, 10, 1, 0)],
        [*(Place(0, n, 1, 0, n) for n in range(220)), Place(1, 5, 3, 1, 0)],
        [
            Place(0, 0, 33, 0, 0),
            Place(0, 33, 90, 1, 0, READONLY),
            Place(0, 123, 97, 0, 123),
            Place(1, 4, 2, 1, 100),
            Place(1, 6, 9, 1, 110),
        ],
    ],
    ids=["merged", "split", "neither"],
)
def test_other_slots_that_hold_all_of_it(
    usual: GuestMemory, path: Path, places: list[Place]
) -> None:
    size = usual.dump(path)
    target = Layout([220, 220], places).make()
    # The target now has the bytes of the other space's slot twice.
    assert target.restore(path) == size + 3 * PAGE
    for as_id, gpa, length in runs(usual):
        expected = usual.address_space(as_id).read(gpa, length)
        assert target.address_space(as_id).read(gpa, length) == expected


@pytest.mark.parametrize(
    ("places", "first"),
    [
        ([], 0),
        ([Place(0, 0, 75, 0, 0), Place(0, 90, 130, 0, 0)], 75),
        ([Place(0, 0, 80, 0, 0), Place(0, 90, 129, 0, 0)], 219),
        ([Place(0, 0, 80, 0, 0), Place(0, 91, 129, 0, 0)], 90),
        ([Place(0, 0, 220, 0, 0), Place(1, 6, 3, 0, 0)], 5),
        ([Place(0, 0, 220, 0, 0), Place(1, 5, 2, 0, 0)], 7),
    ],
)
def test_something_has_no_place(
    usual: GuestMemory, path: Path, places: list[Place], first: int
) -> None:
    usual.dump(path)
    target = Layout([220], places).make()
    with untouched(target), pytest.raises(NotMappedError, match=rf"\b{first * PAGE:#x}\b"):
        target.restore(path)


def test_a_place_on_memory_that_is_not_known(usual: GuestMemory, path: Path) -> None:
    usual.dump(path)
    target = USUAL.make()
    target.vm.delete(3, as_id=1)
    target.vm.create(3, 5, 3, 0x7000_0000_0000, as_id=1)
    before = target.read(0, 80 * PAGE)
    with pytest.raises(NotMappedError, match="host memory is not known"):
        target.restore(path)
    assert target.read(0, 80 * PAGE) == before
    assert target.vm.take_dirty_runs() == []


def test_memory_part_of_which_cannot_be_written(tmp_path: Path, path: Path) -> None:
    """That part has its bytes already, and the memory beside it gets them."""
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(2 * PAGE))
    mem.fill(PAGE, PAGE, 7)
    mem.dump(path)
    (tmp_path / "zeros").write_bytes(bytes(PAGE))
    other = GuestMemory(Memslots())
    zeros = Backing.file(tmp_path / "zeros", readonly=True)
    other.place(0, 0, zeros, flags=Flags.READONLY)
    other.place(1, PAGE, Backing.anonymous(PAGE))
    assert other.restore(path) == 2 * PAGE
    assert other.read(0, 2 * PAGE) == mem.read(0, 2 * PAGE)
    mem.fill(0, 1, 1)
    mem.fill(PAGE, PAGE, 8)
    mem.dump(path)
    with pytest.raises(ReadOnlyError, match="gpa 0x0 "):
        other.restore(path)
    assert other.read_u8(PAGE) == 7


def test_a_rom_between_what_can_be_written(tmp_path: Path, path: Path) -> None:
    """The ROM is in one segment, which is read by two calls."""
    source = Layout([9], [Place(0, 0, 9, 0, 0)]).make()
    scribble(source)
    source.dump(path)
    (tmp_path / "rom").write_bytes(source.read(3 * PAGE, 2 * PAGE))
    target = Layout([9], [Place(0, 0, 3, 0, 0), Place(0, 5, 4, 0, 5)]).make()
    rom = Backing.file(tmp_path / "rom", readonly=True)
    target.place(2, 3 * PAGE, rom, flags=READONLY)
    assert target.restore(path) == 9 * PAGE
    assert target.read(0, 9 * PAGE) == source.read(0, 9 * PAGE)
    assert target.vm.take_dirty_runs() == [(0, 0, 3), (0, 5, 9)]


def test_a_rom_whose_file_cannot_be_written(tmp_path: Path, path: Path) -> None:
    """The ROM need not be restored, as long as the file is the same."""
    rom = tmp_path / "rom"
    npages = 300  # more than restore compares at a time
    rom.write_bytes(random.Random(0).randbytes(npages * PAGE))

    def make() -> GuestMemory:
        mem = GuestMemory(Memslots(address_spaces=SPACES))
        mem.place(0, 0, Backing.anonymous(4 * PAGE), flags=LOG)
        firmware = Backing.file(rom, readonly=True)
        mem.place(1, 4 * PAGE, firmware, 0, 100 * PAGE, READONLY)
        mem.place(2, 104 * PAGE, firmware, 100 * PAGE, None, READONLY | LOG)
        return mem

    source, target = make(), make()
    source.write(0, random.Random(1).randbytes(4 * PAGE))
    source.dump(path)
    assert target.restore(path) == (4 + npages) * PAGE
    assert contents(target) == contents(source)
    assert target.vm.take_dirty_runs() == [(0, 0, 4)]
    for at in (0, 100 * PAGE, npages * PAGE - 1):
        was = rom.read_bytes()
        rom.write_bytes(was[:at] + bytes([was[at] ^ 1]) + was[at + 1 :])
        other = make()
        with untouched(other), pytest.raises(ReadOnlyError, match="cannot be written"):
            other.restore(path)
        rom.write_bytes(was)


def single_pages(count: int, path: Path) -> tuple[GuestMemory, list[int]]:
    """Returns a machine with every second page dirty, and a diff of it."""
    mem = Layout([2 * count], [Place(0, 0, count, 0, 0), Place(0, count, count, 0, count)]).make()
    scribble(mem)
    gfns = list(range(1, 2 * count, 2))
    mem.vm.mark_dirty_many(array("Q", gfns))
    assert mem.dump_dirty(path) == count * PAGE
    return mem, gfns


def test_thousands_of_segments(path: Path) -> None:
    """There are more than a call can read, and no two adjacent segments make a run."""
    mem, gfns = single_pages(3000, path)
    assert loads_of(path) == [(0, gfn * PAGE, PAGE) for gfn in gfns]
    target = Layout([7000], [Place(0, n * 500, 500, 0, n * 500) for n in range(14)]).make()
    assert target.restore(path) == 3000 * PAGE
    expected = bytearray(7000 * PAGE)
    for gfn in gfns:
        expected[gfn * PAGE : (gfn + 1) * PAGE] = mem.read(gfn * PAGE, PAGE)
    assert target.read(0, 7000 * PAGE) == expected
    assert target.vm.take_dirty_runs() == [(0, gfn, gfn + 1) for gfn in gfns]


def test_a_diff_is_laid_out_a_part_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In between, signals are handled and other threads run."""
    parts: list[int] = []

    class Counted:
        def __init__(self, mem: GuestMemory) -> None:
            self.segments = Segments(mem)

        def lay_out(self, runs: list[Run]) -> list[memoryview]:
            parts.append(len(runs))
            if len(parts) == 3:
                raise KeyboardInterrupt
            return self.segments.lay_out(runs)

    monkeypatch.setattr(snapshot, "Segments", Counted)
    mem = Layout([6000], [Place(0, 0, 6000, 0, 0)]).make()
    gfns = range(1, 6000, 2)
    mem.vm.mark_dirty_many(array("Q", gfns))
    with pytest.raises(KeyboardInterrupt):
        mem.dump_dirty(path)
    assert parts == [1024, 1024, 952]
    assert mem.vm.take_dirty_runs() == [(0, gfn, gfn + 1) for gfn in gfns]


def test_signals_are_seen_while_roms_are_compared(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand segments that all name the same ROM: some seconds of work."""
    size = 4 << 20
    (tmp_path / "rom").write_bytes(bytes(size))
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.file(tmp_path / "rom", readonly=True), flags=READONLY)
    count = 1024
    at = EHDR.size + count * PHDR.size
    path.write_bytes(core(*[Segment(1, 0, at, 0, 0, size, size, 0)] * count, tail=bytes(size)))

    def interrupt(*_: object) -> None:
        raise InterruptedError("seen")

    pread = os.pread

    def first_read(fd: int, size: int, offset: int) -> bytes:
        """Sets the timer when the first ROM is compared: how long it takes until then varies."""
        monkeypatch.setattr(os, "pread", pread)
        signal.setitimer(signal.ITIMER_PROF, 0.05)  # of processor time
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", first_read)
    before = signal.signal(signal.SIGPROF, interrupt)
    try:
        with pytest.raises(InterruptedError, match="seen") as caught:
            mem.restore(path)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert "compare" in {entry.name.rpartition(".")[2] for entry in caught.traceback}


def test_what_no_call_was_made_for_is_not_marked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mem, gfns = single_pages(3000, path)
    scribble(mem, 1)
    calls = []
    preadv = os.preadv

    def twice(fd: int, views: list[memoryview], offset: int) -> int:
        calls.append(len(views))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return preadv(fd, views, offset)

    monkeypatch.setattr(os, "preadv", twice)
    with pytest.raises(KeyboardInterrupt):
        mem.restore(path)
    assert calls == [1024, 1024]
    assert mem.vm.take_dirty_runs() == [(0, gfn, gfn + 1) for gfn in gfns[:2048]]


def test_a_slot_part_of_whose_memory_is_known(path: Path) -> None:
    """That part can be dumped and restored, and no other."""
    mem = GuestMemory(Memslots())
    backing = Backing.anonymous(3 * PAGE)
    mem.add(backing)
    mem.vm.create(0, 5, 8, backing.hva, LOG)
    mem.write(5 * PAGE, b"abc")
    mem.write(7 * PAGE, b"def")
    assert mem.dump_dirty(path) == 2 * PAGE
    memoryview(backing)[:] = bytes(3 * PAGE)
    assert mem.restore(path) == 2 * PAGE
    assert (mem.read(5 * PAGE, 3), mem.read(7 * PAGE, 3)) == (b"abc", b"def")
    mem.vm.mark_dirty_range(7, 9)
    with pytest.raises(NotMappedError, match=r"gpa 0x8000 .*beyond"):
        mem.dump_dirty(path)
    whole = Layout([8], [Place(0, 5, 8, 0, 0)]).make()
    whole.dump(path)
    before = bytes(backing)
    with pytest.raises(NotMappedError, match=r"gpa 0x8000 .*beyond"):
        mem.restore(path)
    assert bytes(backing) == before


def test_made_shorter_while_its_header_is_read(
    usual: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual.dump(path)
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: bytes(size - 1))
    with untouched(usual), pytest.raises(SnapshotError, match="made shorter"):
        usual.restore(path)
