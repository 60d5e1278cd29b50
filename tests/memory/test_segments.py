"""Tests segments alone; test_snapshot.py tests them in files."""

from __future__ import annotations

import copy
import pickle
import struct
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memslots import Backing, Flags, GuestMemory, Memslots, NotMappedError, ReadOnlyError
from memslots.memory.backing import address_of
from memslots.memory.segments import Batch, Segments

PAGE = 4096
PHDR = struct.Struct("<IIQQQQQQ")
SIZES = [3, 5, 2]  # pages of three slots side by side


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
    """Returns program headers of (gfn, pages, first page in the file)."""
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
    assert segments.parts == 0


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
    # In the other order they do not share: neither holds all that comes after.
    segments = Segments(mem)
    assert len(segments.lay_out([(1, 0x100, 0x102), (0, 3, 8)])) == 2
    assert segments.size == 7 * PAGE


def test_slots_whose_memory_goes_down() -> None:
    """As Linux places mmaps: a later one is below an earlier one."""
    host = Backing.anonymous(100 * PAGE)
    mem = GuestMemory(Memslots())
    for id in range(50):
        mem.place(id, id * PAGE, host, (98 - 2 * id) * PAGE, PAGE)
    # These pages share the memory that is there; the others do not.
    mem.place(50, 60 * PAGE, host, 0, 100 * PAGE)
    segments = Segments(mem)
    views = segments.lay_out([(0, n, n + 1) for n in range(50)])
    assert [address_of(view) for view in views] == [
        host.hva + (98 - 2 * n) * PAGE for n in range(50)
    ]
    views = segments.lay_out([(0, 60 + n, 61 + n) for n in range(100)])
    assert [address_of(view) for view in views] == [host.hva + n * PAGE for n in range(1, 100, 2)]
    assert segments.size == 100 * PAGE
    table = segments.table(0)
    offsets = [PHDR.unpack_from(table, at)[2] // PAGE for at in range(0, len(table), PHDR.size)]
    assert offsets[:50] == list(range(50))
    assert offsets[50::2] == list(range(49, -1, -1))
    assert offsets[51::2] == list(range(50, 100))


def batches_of(segments: Segments) -> list[Batch]:
    return [batch for n in range(segments.parts) for batch in segments.places(-1, n)]


def batches(mem: GuestMemory, table: bytes) -> list[tuple[int, list[int]]]:
    segments = Segments(mem)
    segments.take(table, 1 << 40)
    return [
        (batch.offset // PAGE, [len(view) // PAGE for view in batch.views])
        for batch in batches_of(segments)
    ]


def test_a_batch_is_side_by_side_in_the_file(mem: GuestMemory) -> None:
    """Its place in guest memory does not matter."""
    assert batches(mem, headers((8, 1, 5), (1, 4, 6), (0, 1, 10))) == [(5, [1, 2, 2, 1])]
    assert batches(mem, headers((8, 1, 5), (1, 4, 7), (0, 1, 11))) == [(5, [1]), (7, [2, 2, 1])]
    assert batches(mem, headers((8, 1, 5), (1, 4, 5))) == [(5, [1]), (5, [2, 2])]


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2048, 2500])
def test_a_part_is_of_1024_segments(mem: GuestMemory, count: int) -> None:
    """If a larger batch failed, all of it would be marked, although one call reads less."""
    found = batches(mem, headers(*((n % 7, 2, 2 * n) for n in range(count))))
    assert [at for at, _ in found] == list(range(0, 2 * count, 2048))
    views = [sizes for _, sizes in found]
    assert sum(map(len, views)) == sum(2 if n % 7 == 2 else 1 for n in range(count))
    assert sum(map(sum, views)) == 2 * count


def test_marks_are_of_a_batch(mem: GuestMemory) -> None:
    segments = Segments(mem)
    segments.take(headers((8, 1, 5), (1, 4, 6), (0, 1, 20)), 1 << 40)
    first, second = batches_of(segments)
    mem.vm.take_dirty_runs()
    first.mark()
    assert mem.vm.take_dirty_runs() == [(0, 1, 5), (0, 8, 9)]
    del segments, first
    second.mark()
    assert mem.vm.take_dirty_runs() == [(0, 0, 1)]
    Batch().mark()  # an empty Batch marks nothing
    assert mem.vm.take_dirty_runs() == []


@pytest.mark.untraced
def test_marks_need_no_memory(mem: GuestMemory) -> None:
    """They allocate nothing, so a failure loses none."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("free-threaded CPython 3.13 breaks its heap when it cannot make a list")
    testcapi = pytest.importorskip("_testcapi", reason="this CPython has no _testcapi")
    segments = Segments(mem)
    segments.take(headers(*((n % 10, 1, n) for n in range(1000))), 1 << 40)
    (batch,) = batches_of(segments)
    mem.vm.take_dirty_runs()
    testcapi.set_nomemory(0, 0)
    try:
        batch.mark()
    finally:
        testcapi.remove_mem_hooks()
    assert mem.vm.take_dirty_runs() == [(0, 0, 10)]


def test_nothing_is_there(mem: GuestMemory) -> None:
    with pytest.raises(NotMappedError, match=f"{10 * PAGE:#x}"):
        Segments(mem).lay_out([(0, 8, 11)])
    segments = Segments(mem)
    segments.take(headers((8, 3, 0)), 1 << 40)
    with pytest.raises(NotMappedError, match=f"{10 * PAGE:#x}"):
        segments.places(-1, 0)


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
        (segments.lay_out, ([(0, 2, 1)],), ValueError),
        (segments.lay_out, ([(0, 1 << 52, (1 << 52) + 1)],), ValueError),
        (segments.places, (-1, 0), IndexError),
        (segments.places, (-1, -1), IndexError),
        (Segments, (mem.vm,), AttributeError),
        (Segments, (SimpleNamespace(vm=8),), TypeError),
        (Segments, (), TypeError),
    ]
    for call, arguments, error in wrong:
        with pytest.raises(error):
            call(*arguments)
    assert len(segments) == 0
    for take in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            take(segments)


def test_not_a_segment(mem: GuestMemory) -> None:
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
        # The file's page 0 is for page 9, and its page 1 for the rom, which does not have it.
        with pytest.raises(ReadOnlyError, match=f"{10 * PAGE:#x}"):
            segments.places(file.fileno(), 0)
        segments = Segments(mem)
        segments.take(headers((10, 1, 0)), PAGE)
        assert segments.places(file.fileno(), 0) == []


def test_a_slot_that_can_be_written_when_it_is_asked_again(
    mem: GuestMemory, tmp_path: Path
) -> None:
    """As if another thread had changed it: a place that is gone or differs is not skipped."""
    refusals = [ReadOnlyError(14, "cannot be written")]

    class Changed:
        views = mem.views
        read = mem.read

        def _restore_views(self, gpa: int, n: int) -> list[memoryview]:
            if refusals:
                raise refusals.pop()
            return mem._restore_views(gpa, n)

    path = tmp_path / "other"
    path.write_bytes(bytes(PAGE))
    asked: Any = SimpleNamespace(vm=mem.vm, address_space=lambda as_id: Changed())
    segments = Segments(asked)
    segments.take(headers((1, 1, 0)), PAGE)
    with path.open("rb") as file, pytest.raises(ReadOnlyError, match="cannot be written"):
        segments.places(file.fileno(), 0)
    assert refusals == []
