"""Segments by themselves; test_snapshot.py has them in files."""

from __future__ import annotations

import copy
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from memslots import Backing, Flags, GuestMemory, Memslots, NotMappedError, ReadOnlyError
from memslots.segments import Batch, Segments

PAGE = 4096
PHDR = struct.Struct("<IIQQQQQQ")
SIZES = [3, 5, 2]  # of three slots side by side


@pytest.fixture
def mem() -> GuestMemory:
    mem = GuestMemory(Memslots(address_spaces=2))
    gpa = 0
    for id, npages in enumerate(SIZES):
        mem.place(id, gpa, Backing.anonymous(npages * PAGE), flags=Flags.LOG_DIRTY_PAGES)
        gpa += npages * PAGE
    memory = b"".join(bytes([n]) * PAGE for n in range(1, 11))
    mem.write(0, memory)
    return mem


def headers(*runs: tuple[int, int, int], spaces: int = 0) -> bytes:
    """Program headers of (gfn, pages, first page in the file)."""
    return b"".join(
        PHDR.pack(
            1, 7 | spaces << 20, at * PAGE, gfn * PAGE, gfn * PAGE, size * PAGE, size * PAGE, PAGE
        )
        for gfn, size, at in runs
    )


def test_none(mem: GuestMemory) -> None:
    segments = Segments(mem)
    assert segments.lay_out([]) == []
    assert (len(segments), segments.size, segments.table(PAGE)) == (0, 0, b"")
    segments.take(b"", 0)
    assert segments.places(-1, 1) == []


def test_a_run_through_slots_is_a_segment_of_each(mem: GuestMemory) -> None:
    segments = Segments(mem)
    views = segments.lay_out([(0, 1, 9), (0, 9, 10)])
    assert [len(view) // PAGE for view in views] == [2, 5, 1, 1]
    assert [view[0] for view in views] == [2, 4, 9, 10]
    assert (len(segments), segments.size) == (4, 9 * PAGE)
    assert segments.table(7 * PAGE) == headers((1, 2, 7), (3, 5, 9), (8, 1, 14), (9, 1, 15))


def test_memory_of_another_space_is_there_once(mem: GuestMemory) -> None:
    smm = mem.address_space(1)
    with_it = mem.vm.lookup(3)
    assert with_it is not None
    backing = next(each for each in mem.backings if each.hva == with_it.userspace_addr)
    smm.place(0, 0x100 * PAGE, backing, PAGE, 2 * PAGE)
    segments = Segments(mem)
    assert len(segments.lay_out([(0, 3, 8), (1, 0x100, 0x102)])) == 1
    assert segments.size == 5 * PAGE
    first, second = (PHDR.unpack_from(segments.table(0), at) for at in (0, PHDR.size))
    assert first[1] & second[1] & 7 == 7
    assert (first[1] >> 20, second[1] >> 20) == (0, 1)
    assert (first[2], second[2]) == (0, PAGE)
    # The other way round it is not: neither holds all that comes after.
    segments = Segments(mem)
    assert len(segments.lay_out([(1, 0x100, 0x102), (0, 3, 8)])) == 2
    assert segments.size == 7 * PAGE


def batches(mem: GuestMemory, table: bytes, most: int = 1024) -> list[tuple[int, list[int]]]:
    segments = Segments(mem)
    segments.take(table, 1 << 40)
    return [
        (batch.offset // PAGE, [len(view) // PAGE for view in batch.views])
        for batch in segments.places(-1, most)
    ]


def test_a_batch_is_side_by_side_in_the_file(mem: GuestMemory) -> None:
    """Whatever it is in the guest's memory."""
    assert batches(mem, headers((8, 1, 5), (1, 4, 6), (0, 1, 10))) == [(5, [1, 2, 2, 1])]
    assert batches(mem, headers((8, 1, 5), (1, 4, 7), (0, 1, 11))) == [(5, [1]), (7, [2, 2, 1])]
    assert batches(mem, headers((8, 1, 5), (1, 4, 5))) == [(5, [1]), (5, [2, 2])]


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_a_batch_is_of_whole_segments(mem: GuestMemory, most: int) -> None:
    table = headers((8, 1, 5), (1, 4, 6), (0, 1, 10), (9, 1, 11))
    assert (
        batches(mem, table, most)
        == {
            1: [(5, [1]), (6, [2, 2]), (10, [1]), (11, [1])],
            2: [(5, [1, 2, 2]), (10, [1, 1])],
            3: [(5, [1, 2, 2]), (10, [1, 1])],
            4: [(5, [1, 2, 2, 1]), (11, [1])],
        }[most]
    )


def test_marks_are_of_a_batch(mem: GuestMemory) -> None:
    segments = Segments(mem)
    segments.take(headers((8, 1, 5), (1, 4, 6), (0, 1, 20)), 1 << 40)
    first, second = segments.places(-1, 1024)
    mem.vm.take_dirty_runs()
    segments.mark(first)
    assert mem.vm.take_dirty_runs() == [(0, 1, 5), (0, 8, 9)]
    segments.mark(second)
    assert mem.vm.take_dirty_runs() == [(0, 0, 1)]
    # One of nothing, and one of more than there is.
    segments.mark(Batch())
    Segments(mem).mark(first)
    assert mem.vm.take_dirty_runs() == []


def test_nothing_is_there(mem: GuestMemory) -> None:
    with pytest.raises(NotMappedError, match=f"{10 * PAGE:#x}"):
        Segments(mem).lay_out([(0, 8, 11)])
    segments = Segments(mem)
    segments.take(headers((8, 3, 0)), 1 << 40)
    with pytest.raises(NotMappedError, match=f"{10 * PAGE:#x}"):
        segments.places(-1, 1024)


def test_wrong_arguments(mem: GuestMemory) -> None:
    segments = Segments(mem)
    wrong: list[tuple[Any, tuple[Any, ...], type[Exception]]] = [
        (segments.lay_out, (None,), TypeError),
        (segments.lay_out, ([(0, 1)],), ValueError),
        (segments.lay_out, ([(0, -1, 1)],), OverflowError),
        (segments.lay_out, ([(2, 0, 1)],), IndexError),
        (segments.take, (None, 0), TypeError),
        (segments.take, (bytearray(56), 0), TypeError),
        (segments.take, (headers((0, 1, 0), spaces=2), 1 << 40), ValueError),
        (segments.take, (headers((0, 2, 0)), 2 * PAGE - 1), ValueError),
        (segments.mark, (None,), TypeError),
        (Segments, (mem.vm,), AttributeError),
        (Segments, (), TypeError),
    ]
    for call, arguments, error in wrong:
        with pytest.raises(error):
            call(*arguments)
    assert len(segments) == 0
    for take in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            take(segments)


def test_what_is_no_segment(mem: GuestMemory) -> None:
    """A note, a segment of nothing, and less than a header at the end."""
    note = PHDR.pack(4, 0, 0, 0, 0, PAGE, PAGE, 0)
    segments = Segments(mem)
    segments.take(note + headers((0, 0, 0), (4, 1, 3)) + note[:-1], 4 * PAGE)
    assert (len(segments), segments.size) == (1, PAGE)


def test_a_rom_is_compared(mem: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.write_bytes(bytes(PAGE))
    rom = Backing.file(path, readonly=True)
    mem.place(3, 10 * PAGE, rom, flags=Flags.READONLY)
    with path.open("rb") as file:
        segments = Segments(mem)
        segments.take(headers((9, 2, 0)), 2 * PAGE)
        # The page before it would be from the file's only page; it is compared with what is beyond.
        with pytest.raises(ReadOnlyError, match=f"{10 * PAGE:#x}"):
            segments.places(file.fileno(), 1024)
        segments = Segments(mem)
        segments.take(headers((10, 1, 0)), PAGE)
        assert segments.places(file.fileno(), 1024) == []
