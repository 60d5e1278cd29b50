"""Writes all or only dirty guest memory to a file, and restores it."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from array import array
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import (
    DUMPS,
    LOG,
    PAGE,
    READONLY,
    SPACES,
    USUAL,
    Layout,
    Place,
    Segment,
    contents,
    loads_of,
    runs,
    scribble,
    segments_of,
    untouched,
)

from memslots import Memslots, NotMappedError, ReadOnlyError
from memslots.memory.guestmemory import GuestMemory

MODES = [0, 1, 3]


# All memory, in any layout


@st.composite
def layouts(draw: st.DrawFn, flags: st.SearchStrategy[int]) -> Layout:
    """Draws slots, adjacent and apart, of parts of backings that may overlap."""
    backings = draw(st.lists(st.integers(1, 140), min_size=1, max_size=3))
    places = []
    ends = [0] * SPACES
    for _ in range(draw(st.integers(0, 7))):
        as_id = draw(st.integers(0, SPACES - 1))
        backing = draw(st.integers(0, len(backings) - 1))
        npages = draw(st.integers(1, min(backings[backing], 130)))
        offset = draw(st.integers(0, backings[backing] - npages))
        base = ends[as_id] + draw(st.sampled_from([0, 0, 1, 7]))
        ends[as_id] = base + npages
        places.append(Place(as_id, base, npages, backing, offset, draw(flags)))
    return Layout(backings, places)


@settings(max_examples=100)
@given(
    layout=layouts(st.sampled_from([0, LOG, READONLY, LOG | READONLY])), mode=st.sampled_from(MODES)
)
def test_round_trip(layout: Layout, mode: int, scratch: Path) -> None:
    source, target = layout.make(mode), layout.make(mode)
    scribble(source)
    written = source.dump(scratch)
    assert loads_of(scratch) == runs(source)
    assert target.restore(scratch) == sum(size for _, _, size in runs(source)) >= written
    assert contents(target) == contents(source)
    # Restored pages are marked, if their slot logs.
    marked = {
        (as_id, gfn)
        for as_id, start, end in target.vm.take_dirty_runs()
        for gfn in range(start, end)
    }
    for as_id in range(SPACES):
        for slot in target.vm.address_space(as_id):
            gfns = {(as_id, gfn) for gfn in range(slot.base_gfn, slot.end_gfn)}
            if slot.flags == LOG or (slot.flags & LOG and mode == 3):
                assert gfns <= marked
            else:
                assert not gfns & marked


@settings(max_examples=100)
@given(
    layout=layouts(st.sampled_from([LOG, LOG, LOG, READONLY])),
    mode=st.sampled_from(MODES),
    rounds=st.lists(
        st.lists(
            st.tuples(
                st.integers(0, SPACES - 1),
                st.integers(0, 700 * PAGE),
                st.one_of(st.integers(1, 64), st.integers(1, 3 * PAGE)),
            ),
            max_size=8,
        ),
        max_size=4,
    ),
)
def test_a_chain_of_diffs(
    layout: Layout, mode: int, rounds: list[list[tuple[int, int, int]]], scratch: Path
) -> None:
    """A base and the dirty pages since, time after time, restore the memory of the end."""
    source, target = layout.make(mode), layout.make(mode)
    scribble(source)
    source.vm.take_dirty_runs()
    source.dump(scratch)
    target.restore(scratch)
    dice = random.Random(1)
    for writes in rounds:
        pages = set()
        for as_id, gpa, size in writes:
            with suppress(NotMappedError, ReadOnlyError):
                source.address_space(as_id).write(gpa, dice.randbytes(size))
                pages |= {(as_id, n) for n in range(gpa // PAGE, (gpa + size - 1) // PAGE + 1)}
        source.dump_dirty(scratch)
        # Only the pages that were written.
        assert pages == {
            (as_id, (gpa + at) // PAGE)
            for as_id, gpa, size in loads_of(scratch)
            for at in range(0, size, PAGE)
        }
        assert target.restore(scratch) == len(pages) * PAGE
        assert contents(target) == contents(source)


@pytest.mark.parametrize("mode", MODES)
def test_several_slots_whose_last_pages_are_clean(mode: int, path: Path) -> None:
    source, target = USUAL.make(mode), USUAL.make(mode)
    scribble(source)
    source.vm.take_dirty_runs()
    source.dump(path)
    target.restore(path)
    target.vm.take_dirty_runs()
    for gfn in (0, 63, 64, 68, 69, 70, 90, 153, 218):
        source.write(gfn * PAGE + 100, b"new")
    source.address_space(1).write(5 * PAGE, b"new")
    assert source.dump_dirty(path) == 10 * PAGE
    at = [(0, 1), (63, 65), (68, 70), (70, 71), (90, 91), (153, 154), (218, 219)]
    expected = [(0, first * PAGE, (end - first) * PAGE) for first, end in at]
    assert loads_of(path) == [*expected, (1, 5 * PAGE, PAGE)]
    assert target.restore(path) == 10 * PAGE
    assert contents(target) == contents(source)
    assert target.vm.take_dirty_runs() == [
        *[(0, 0, 1), (0, 63, 65), (0, 68, 71), (0, 90, 91), (0, 153, 154), (0, 218, 219)],
        (1, 5, 6),
    ]


def test_nothing_is_dirty(usual: GuestMemory, path: Path) -> None:
    assert usual.dump_dirty(path) == 0
    assert segments_of(path) == []
    with untouched(usual):
        assert usual.restore(path) == 0


def test_a_machine_without_slots(path: Path) -> None:
    mem = GuestMemory(Memslots())
    assert mem.dump(path) == 0
    assert mem.restore(path) == 0


def test_by_way_of_any_address_space(usual: GuestMemory, path: Path) -> None:
    """All address spaces are dumped and restored."""
    usual.address_space(1).dump(path)
    target = USUAL.make()
    target.address_space(1).restore(path)
    assert contents(target) == contents(usual)


@pytest.mark.parametrize("name", DUMPS)
def test_what_is_read_while_it_is_written_to(usual: GuestMemory, path: Path, name: str) -> None:
    """A write after the marks were taken is marked again."""
    usual.write(0, b"x")
    usual.vm.take_dirty_runs()
    usual.write(PAGE, b"y")
    DUMPS[name](usual, path)
    usual.write(PAGE, b"z")
    assert usual.vm.take_dirty_runs() == [(0, 1, 2)]


# The file


def test_memory_of_several_slots_is_there_once(path: Path) -> None:
    """Tests all of a slot, part of one, and memory that is only partly there."""
    layout = Layout(
        [100],
        [
            Place(0, 0, 60, 0, 20),
            Place(0, 100, 60, 0, 20, READONLY),
            Place(1, 0, 10, 0, 30),
            Place(1, 20, 40, 0, 60),
            Place(1, 100, 5, 0, 0),
        ],
    )
    source, target = layout.make(), layout.make()
    scribble(source)
    assert source.dump(path) == (60 + 40 + 5) * PAGE
    assert [segment.offset // PAGE for segment in segments_of(path)] == [1, 1, 11, 61, 101]
    assert path.stat().st_size == (1 + 60 + 40 + 5) * PAGE
    target.restore(path)
    assert contents(target) == contents(source)


def test_what_a_segment_says(path: Path) -> None:
    layout = Layout([4], [Place(0, 1, 2, 0, 0), Place(1, 3, 2, 0, 2, READONLY)])
    mem = layout.make()
    mem.dump(path)
    assert segments_of(path) == [
        Segment(1, 7, PAGE, PAGE, PAGE, 2 * PAGE, 2 * PAGE, PAGE),
        Segment(1, 5 | 1 << 20, 3 * PAGE, 3 * PAGE, 3 * PAGE, 2 * PAGE, 2 * PAGE, PAGE),
    ]
    assert path.stat().st_size == 5 * PAGE


LOAD = re.compile(r"^ +LOAD +(0x\w+) (0x\w+) (0x\w+) (0x\w+) (0x\w+) ([RWE ]{3}) (0x\w+)$", re.M)


def readelf(option: str, path: Path) -> str:
    command = shutil.which("readelf")
    if command is None:
        pytest.skip("there is no readelf")
    env = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(
        [command, "-W", option, path], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""  # its warnings
    return done.stdout


@pytest.mark.parametrize("name", DUMPS)
def test_readelf(name: str, path: Path) -> None:
    layout = Layout(
        [70, 10], [Place(0, 3, 70, 0, 0), Place(0, 100, 7, 1, 3, READONLY), Place(1, 3, 1, 1, 0)]
    )
    mem = layout.make()
    scribble(mem)
    mem.mark_dirty(3 * PAGE, 65 * PAGE)
    DUMPS[name](mem, path)
    text = readelf("-l", path)
    assert "Elf file type is CORE (Core file)" in text
    assert [(*(int(number, 16) for number in row[:5]), row[5]) for row in LOAD.findall(text)] == [
        (s.offset, s.vaddr, s.paddr, s.filesz, s.memsz, "RWE" if s.flags & 2 else "R E")
        for s in segments_of(path)
    ]
    assert len(LOAD.findall(text)) == (3 if name == "dump" else 1)


def test_readelf_of_nothing(usual: GuestMemory, path: Path) -> None:
    usual.dump_dirty(path)
    assert "There are no program headers in this file" in readelf("-l", path)


@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF, 0x10000, 0x10001])
def test_as_many_segments_as_the_header_cannot_say(count: int, path: Path) -> None:
    """Runs of one page, every second one, of slots that are all on the same memory."""
    size, slots = 128, 1025
    layout = Layout([size], [Place(0, size * n, size, 0, 0) for n in range(slots)])
    source, target = layout.make(max_gfn=1 << 20), layout.make(max_gfn=1 << 20)
    scribble(source)
    source.vm.mark_dirty_many(array("Q", range(0, 2 * count, 2)))
    assert source.dump_dirty(path) == size // 2 * PAGE
    found = segments_of(path)
    assert [segment.paddr for segment in found] == list(range(0, 2 * count * PAGE, 2 * PAGE))
    assert target.restore(path) == count * PAGE
    mine, theirs = bytes(source.backings[0]), bytes(target.backings[0])
    for at in range(0, size * PAGE, 2 * PAGE):
        assert theirs[at : at + 2 * PAGE] == mine[at : at + PAGE] + bytes(PAGE)
    assert target.vm.take_dirty_runs() == [(0, gfn, gfn + 1) for gfn in range(0, 2 * count, 2)]
    number = re.search(r"Number of program headers: +(\d+)(?: \((\d+)\))?", readelf("-h", path))
    assert number is not None
    assert int(number[2] or number[1]) == count
    assert bool(number[2]) == (count >= 0xFFFF)
