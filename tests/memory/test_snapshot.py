"""Snapshots: what was dumped is what is restored, and what fails has changed nothing."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from needs import need_kvm

from memslots import Flags, Memslots, NotMappedError, ReadOnlyError, SnapshotError
from memslots.kvm import KvmVM
from memslots.memory import snapshot
from memslots.memory.backing import Backing
from memslots.memory.guestmemory import GuestMemory
from memslots.memory.marks import take_runs
from memslots.memory.segments import Segments

PAGE = 4096
LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
MODES = [0, 1, 3]
SPACES = 2
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
DUMPS: dict[str, Callable[[GuestMemory, Any], int]] = {
    "dump": GuestMemory.dump,
    "dump_dirty": GuestMemory.dump_dirty,
}
Run = tuple[int, int, int]  # as_id, gpa, size


# Machines


class Place(NamedTuple):
    """A slot: where in guest memory, in pages, and what of which backing."""

    as_id: int
    base: int
    npages: int
    backing: int
    offset: int
    flags: int = LOG


class Layout(NamedTuple):
    backings: list[int]  # pages of each
    places: list[Place]

    def make(self, mode: int = 0, max_gfn: int = 0xFFFF) -> GuestMemory:
        vm = Memslots(
            len(self.places) + 1, address_spaces=SPACES, max_gfn=max_gfn, manual_dirty_log=mode
        )
        mem = GuestMemory(vm)
        made = [Backing.anonymous(npages * PAGE) for npages in self.backings]
        for id, place in enumerate(self.places):
            part = place.offset * PAGE, place.npages * PAGE
            mem.address_space(place.as_id).place(
                id, place.base * PAGE, made[place.backing], *part, place.flags
            )
        return mem


def scribble(mem: GuestMemory, seed: int = 0) -> None:
    """Bytes everywhere, in no dirty log."""
    dice = random.Random(seed)
    for backing in mem.backings:
        memoryview(backing)[:] = dice.randbytes(backing.size)


def runs(mem: GuestMemory) -> list[Run]:
    """Where the slots are."""
    return [
        (as_id, slot.guest_phys_addr, slot.memory_size)
        for as_id in range(SPACES)
        for slot in mem.vm.address_space(as_id)
    ]


def contents(mem: GuestMemory) -> dict[Run, bytes]:
    return {run: mem.address_space(run[0]).read(*run[1:]) for run in runs(mem)}


@contextmanager
def untouched(mem: GuestMemory) -> Iterator[None]:
    """Nothing is written, and nothing marked, whatever happens inside."""
    before = contents(mem)
    mem.vm.take_dirty_runs()
    yield
    assert contents(mem) == before
    assert mem.vm.take_dirty_runs() == []


# Two slots side by side and a third behind a hole, none of whole words; one in the other space.
USUAL = Layout(
    [70, 10, 130],
    [Place(0, 0, 70, 0, 0), Place(0, 70, 10, 1, 0), Place(0, 90, 130, 2, 0), Place(1, 5, 3, 1, 4)],
)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def usual() -> GuestMemory:
    mem = USUAL.make()
    scribble(mem)
    return mem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests of many examples."""
    return tmp_path_factory.mktemp("snapshots") / "snapshot"


class Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


def segments_of(path: Path) -> list[Segment]:
    """What the file says, by ELF's own description and by no line of the package."""
    data = path.read_bytes()
    header = EHDR.unpack_from(data)
    assert header[0] == b"\x7fELF\2\1\1" + bytes(9)
    assert header[1] == 4  # ET_CORE
    assert (header[8], header[9]) == (EHDR.size, PHDR.size)
    phoff, shoff, count, sections = header[5], header[6], header[10], header[12]
    assert (shoff != 0) == (count == 0xFFFF) == (sections == 1)
    if shoff:
        (count,) = struct.unpack_from("<I", data, shoff + 44)
    return [Segment(*PHDR.unpack_from(data, phoff + n * PHDR.size)) for n in range(count)]


def loads_of(path: Path) -> list[Run]:
    return [
        (segment.flags >> 20 & 0xFF, segment.paddr, segment.memsz) for segment in segments_of(path)
    ]


# All memory, in any layout


@st.composite
def layouts(draw: st.DrawFn, flags: st.SearchStrategy[int]) -> Layout:
    """Slots side by side and apart, of parts of backings that may overlap."""
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
    # What was restored is marked, where it can be.
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
    """A base and what was dirty since, time after time: the memory as it is at the end."""
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
        # Each page that was written, and no other.
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
    """All of them are dumped and restored."""
    usual.address_space(1).dump(path)
    target = USUAL.make()
    target.address_space(1).restore(path)
    assert contents(target) == contents(usual)


@pytest.mark.parametrize("name", DUMPS)
def test_what_is_read_while_it_is_written_to(usual: GuestMemory, path: Path, name: str) -> None:
    """What is written after the marks were taken is marked anew."""
    usual.write(0, b"x")
    usual.vm.take_dirty_runs()
    usual.write(PAGE, b"y")
    DUMPS[name](usual, path)
    usual.write(PAGE, b"z")
    assert usual.vm.take_dirty_runs() == [(0, 1, 2)]


# The file


def test_memory_of_several_slots_is_there_once(path: Path) -> None:
    """All of a slot, part of one, and not what is only partly there."""
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


# Where it is written


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_of_a_new_file(usual: GuestMemory, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        usual.dump(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o400])
def test_the_mode_of_a_file_that_is_replaced(usual: GuestMemory, path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)
    usual.dump(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert len(segments_of(path)) == 4


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(usual: GuestMemory, tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "target"
    if there:
        target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("folder/target")
    usual.dump(link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert len(segments_of(target)) == 4
    assert list(folder.iterdir()) == [target]


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_the_longest_names(usual: GuestMemory, tmp_path: Path, name: str) -> None:
    usual.dump(tmp_path / name)
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", DUMPS)
def test_a_pipe(usual: GuestMemory, tmp_path: Path, name: str) -> None:
    """And it stays one: nothing takes its place."""
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    usual.vm.mark_dirty_range(3, 150)
    size = DUMPS[name](usual, pipe)
    reader.join()
    usual.vm.take_dirty_runs()
    usual.vm.mark_dirty_range(3, 150)
    assert DUMPS[name](usual, file) == size
    assert got == [file.read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_over_the_file_that_a_slot_is_on(path: Path) -> None:
    """The memory stays that of the file that was replaced."""
    path.write_bytes(random.Random(0).randbytes(3 * PAGE))
    mem = GuestMemory(Memslots(address_spaces=SPACES))
    mem.place(0, 0, Backing.file(path, shared=True))
    before = contents(mem)
    mem.dump(path)
    assert contents(mem) == before
    mem.fill(0, 3 * PAGE)
    mem.restore(path)
    assert contents(mem) == before


# Failures of a dump


@contextmanager
def failing(mem: GuestMemory, name: str) -> Iterator[Callable[[Any], object]]:
    """A dump that fails; then the marks are there again."""
    mem.vm.take_dirty_runs()
    mem.vm.mark_dirty_range(60, 75)
    mem.vm.mark_dirty_range(6, 7, 1)
    yield lambda path: DUMPS[name](mem, path)
    assert mem.vm.take_dirty_runs() == [(0, 60, 75), (1, 6, 7)]


@pytest.mark.parametrize("name", DUMPS)
def test_a_full_device(usual: GuestMemory, name: str) -> None:
    with failing(usual, name) as dump, pytest.raises(OSError) as caught:
        dump("/dev/full")
    assert caught.value.errno == errno.ENOSPC
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize(
    ("where", "error"),
    [("nowhere/file", FileNotFoundError), ("", IsADirectoryError), ("file/in", NotADirectoryError)],
)
def test_no_such_place(
    usual: GuestMemory, tmp_path: Path, name: str, where: str, error: type[OSError]
) -> None:
    (tmp_path / "file").touch()
    with failing(usual, name) as dump, pytest.raises(error):
        dump(tmp_path / where)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("wrong", [None, 7, b"bytes"])
def test_no_path(usual: GuestMemory, name: str, wrong: Any) -> None:
    with failing(usual, name) as dump, pytest.raises(TypeError):
        dump(wrong)
    with untouched(usual), pytest.raises(TypeError):
        usual.restore(wrong)


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_may_not_be_so_large(
    usual: GuestMemory, path: Path, name: str, there: bool
) -> None:
    if there:
        path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with failing(usual, name) as dump:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * PAGE, limits[1]))
        try:
            with pytest.raises(OSError) as caught:
                dump(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert names_in(path.parent) == ["snapshot"] * there
    if there:
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "no")])
@pytest.mark.parametrize("there", [True, False])
def test_interrupted_while_it_writes(
    usual: GuestMemory,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Any,
    there: bool,
) -> None:
    """After some of it is written."""
    if there:
        path.write_bytes(b"old")
    writev = os.writev
    sizes: list[int] = []

    def some(fd: int, views: list[memoryview]) -> int:
        if sizes:
            raise error
        sizes.append(writev(fd, [views[0][: PAGE + 100]]))
        return sizes[-1]

    monkeypatch.setattr(os, "writev", some)
    with failing(usual, name) as dump, pytest.raises((KeyboardInterrupt, OSError)):
        dump(path)
    assert sizes
    assert names_in(path.parent) == ["snapshot"] * there
    if there:
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", DUMPS)
def test_written_a_little_at_a_time(
    usual: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As pipes and full disks take it."""
    writev, preadv = os.writev, os.preadv
    dice = random.Random(0)

    def little(views: list[memoryview]) -> list[memoryview]:
        assert 0 < len(views) <= 1024
        whole = views[: dice.randrange(len(views))]
        return [*whole, views[len(whole)][: dice.randrange(1, 9000)]]

    monkeypatch.setattr(os, "writev", lambda fd, views: writev(fd, little(views)))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, little(views), offset))
    usual.vm.mark_dirty_range(0, 1000)
    usual.vm.mark_dirty_range(0, 1000, 1)
    DUMPS[name](usual, path)
    target = USUAL.make()
    target.restore(path)
    assert contents(target) == contents(usual)


def test_a_signal_as_soon_as_the_marks_are_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(vm: Memslots, logs: list[object]) -> Any:
        assert take_runs(vm, logs)
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot, "take_runs", interrupted)
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(70 * PAGE), flags=LOG)
    mem.write(PAGE, bytes(100))
    with pytest.raises(KeyboardInterrupt):
        mem.dump_dirty(path)
    assert vm.get_dirty_log(0)[0] == 2
    assert not path.exists()


def test_marks_of_readonly_slots_after_a_failure() -> None:
    """Those they begin with in mode 3: no write can make them again."""
    mem = Layout([70], [Place(0, 0, 70, 0, 0, LOG | READONLY)]).make(3)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            mem.dump_dirty("/dev/full")
    assert mem.vm.take_dirty_runs() == [(0, 0, 70)]


@pytest.mark.parametrize("name", DUMPS)
def test_memory_that_is_not_known(usual: GuestMemory, path: Path, name: str) -> None:
    usual.vm.create(4, 0x1000, 3, 0x7000_0000_0000, LOG, as_id=1)
    usual.vm.mark_dirty(0x1001, 1)
    path.write_bytes(b"old")
    with pytest.raises(NotMappedError, match="host memory is not known"):
        DUMPS[name](usual, path)
    assert usual.vm.take_dirty_runs() == [(1, 0x1001, 0x1002)]
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == ["snapshot"]


@pytest.mark.parametrize("name", DUMPS)
def test_a_backing_whose_file_is_cut_off(tmp_path: Path, path: Path, name: str) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(3 * PAGE))
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.file(file, shared=True), flags=LOG)
    mem.fill(0, 3 * PAGE, 1)
    os.truncate(file, 2 * PAGE)
    with pytest.raises(NotMappedError, match="shorter"):
        DUMPS[name](mem, path)
    assert mem.vm.take_dirty_runs() == [(0, 0, 3)]
    assert not path.exists()


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
    # The bytes of the slot in the other space are there twice now.
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
    """It has its bytes already, and what is beside it gets them."""
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
    """In one segment, which is read by two calls."""
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
    """It has nothing to be restored, as long as the file is the same."""
    rom = tmp_path / "rom"
    npages = 300  # more than is compared at a time
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


# What is no snapshot


def patched(data: bytes, at: int, form: str, *values: Any) -> bytes:
    out = bytearray(data)
    struct.pack_into("<" + form, out, at, *values)
    return bytes(out)


FIRST = EHDR.size  # the first program header
WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "cut off: its header"),
    "text": (lambda data: b"hello, world\n" * 100, "not a snapshot"),
    "no magic": (lambda data: patched(data, 0, "B", 0), "not a snapshot"),
    "32-bit": (lambda data: patched(data, 4, "B", 1), "64-bit"),
    "big-endian": (lambda data: patched(data, 5, "B", 2), "little-endian"),
    "a program": (lambda data: patched(data, 16, "H", 2), "core"),
    "segments of another size": (lambda data: patched(data, 54, "H", 64), "not a snapshot"),
    "list beyond the end": (lambda data: patched(data, 32, "Q", len(data)), "list of segments"),
    "list far beyond": (lambda data: patched(data, 32, "Q", (1 << 64) - 1), "list of segments"),
    "too long a list": (lambda data: patched(data, 56, "H", 0xFFFE), "list of segments"),
    "no section": (lambda data: patched(data, 56, "H", 0xFFFF), "no section"),
    "sections of another size": (
        lambda data: patched(patched(patched(data, 56, "H", 0xFFFF), 40, "Q", PAGE), 58, "H", 40),
        "sections of 40 bytes",
    ),
    "a section beyond the end": (
        lambda data: patched(patched(data, 56, "H", 0xFFFF), 40, "Q", 1 << 63),
        "first section",
    ),
    "less in the file": (lambda data: patched(data, FIRST + 32, "Q", PAGE), "0x1000 of 0x46000"),
    "nothing in the file": (lambda data: patched(data, FIRST + 32, "Q", 0), "0x0 of 0x46000"),
    "more in the file": (lambda data: patched(data, FIRST + 40, "Q", PAGE), "0x46000 of 0x1000"),
    "memory beyond the end": (
        lambda data: patched(data, FIRST + 8, "Q", len(data) - PAGE),
        "gpa 0x0 ends at",
    ),
    "memory far beyond": (lambda data: patched(data, FIRST + 8, "Q", 1 << 63), "gpa 0x0 ends at"),
    "memory that wraps": (
        lambda data: patched(data, FIRST + 24, "Q", (1 << 64) - PAGE),
        "beyond the last guest address",
    ),
    "another address space": (
        lambda data: patched(data, FIRST + 4, "I", 7 | 2 << 20),
        "of address space 2; here are 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_snapshot(usual: GuestMemory, path: Path, name: str) -> None:
    usual.dump(path)
    make, message = WRONG[name]
    path.write_bytes(make(path.read_bytes()))
    with untouched(usual), pytest.raises(SnapshotError, match=message) as caught:
        usual.restore(path)
    assert (caught.value.strerror or "").startswith(f"{path}: ")


@pytest.mark.parametrize("where", ["nowhere", ""])
def test_what_cannot_be_opened(usual: GuestMemory, tmp_path: Path, where: str) -> None:
    with untouched(usual), pytest.raises((FileNotFoundError, IsADirectoryError)):
        usual.restore(tmp_path / where)


def test_cut_off_anywhere(usual: GuestMemory, path: Path) -> None:
    usual.dump(path)
    data = path.read_bytes()
    ends = range(EHDR.size + 4 * PHDR.size + 1)
    pages = range(PAGE, len(data), PAGE)
    lengths = {*ends, *pages, *(at - 1 for at in pages), *(at + 1 for at in pages), len(data) - 1}
    with untouched(usual):
        for length in sorted(lengths, reverse=True):
            os.truncate(path, length)
            with pytest.raises(SnapshotError, match="cut off"):
                usual.restore(path)


@pytest.mark.parametrize("how", ["shorter", "error", "signal"])
def test_a_restore_that_fails_half_way_marks_what_it_wrote(
    usual: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    usual.dump(path)
    target = USUAL.make()
    preadv = os.preadv
    calls: list[int] = []

    def some(fd: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) < 3:
            return preadv(fd, [views[0][: 5 * PAGE]], offset)
        if how == "error":
            raise OSError(errno.EIO, "no")
        if how == "signal":
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(os, "preadv", some)
    error = {"shorter": SnapshotError, "error": OSError, "signal": KeyboardInterrupt}[how]
    with pytest.raises(error):
        target.restore(path)
    assert target.read(0, 10 * PAGE) == usual.read(0, 10 * PAGE)
    # All that is side by side in the file: how much of it was read nobody knows.
    assert target.vm.take_dirty_runs() == [(0, 0, 80), (0, 90, 220)]


def single_pages(count: int, path: Path) -> tuple[GuestMemory, list[int]]:
    """A machine every second page of which is dirty, and a diff of it."""
    mem = Layout([2 * count], [Place(0, 0, count, 0, 0), Place(0, count, count, 0, count)]).make()
    scribble(mem)
    gfns = list(range(1, 2 * count, 2))
    mem.vm.mark_dirty_many(array("Q", gfns))
    assert mem.dump_dirty(path) == count * PAGE
    return mem, gfns


def test_thousands_of_segments(path: Path) -> None:
    """More than a call can read, and two of them side by side are no run."""
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
    """Signals are seen in between, and other threads run."""
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


def test_signals_are_seen_while_roms_are_compared(tmp_path: Path, path: Path) -> None:
    """A thousand segments that all name the same one: some seconds' work."""
    size = 4 << 20
    (tmp_path / "rom").write_bytes(bytes(size))
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.file(tmp_path / "rom", readonly=True), flags=READONLY)
    count = 1024
    at = EHDR.size + count * PHDR.size
    path.write_bytes(core(*[Segment(1, 0, at, 0, 0, size, size, 0)] * count, tail=bytes(size)))

    def interrupt(*_: object) -> None:
        raise InterruptedError("seen")

    before = signal.signal(signal.SIGPROF, interrupt)
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.05)  # of the processor's time
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
    """That part of it can be dumped and restored, and no other."""
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


def core(*segments: Segment, tail: bytes = b"") -> bytes:
    """An ELF core of these segments, as QEMU's dump-guest-memory makes one."""
    header = EHDR.pack(
        b"\x7fELF\2\1\1" + bytes(9),
        *(4, 62, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, len(segments), 0, 0, 0),
    )
    return header + b"".join(PHDR.pack(*segment) for segment in segments) + tail


def test_a_core_as_qemu_makes_it(path: Path) -> None:
    """A note comes first, flags and alignment are 0, and memory begins at no page."""
    note = b"CORE" + bytes(353)
    low, high = random.Random(0).randbytes(4 * PAGE), random.Random(1).randbytes(2 * PAGE)
    at = EHDR.size + 4 * PHDR.size
    first = at + len(note)
    path.write_bytes(
        core(
            Segment(4, 0, at, 0, 0, len(note), len(note), 0),
            Segment(1, 0, first, 0, 0, len(low), len(low), 0),
            Segment(
                1, 0, first + len(low), 0xFFFF_8000_0000_0000, 8 * PAGE, len(high), len(high), 0
            ),
            Segment(1, 0, 0, 0, 1 << 40, 0, 0, 0),  # of nothing
            tail=note + low + high,
        )
    )
    mem = Layout([10], [Place(0, 0, 10, 0, 0)]).make()
    assert mem.restore(path) == 6 * PAGE
    assert mem.read(0, 10 * PAGE) == low + bytes(4 * PAGE) + high
    assert mem.vm.take_dirty_runs() == [(0, 0, 4), (0, 8, 10)]


def test_a_core_whose_memory_is_not_whole_pages(path: Path) -> None:
    data = random.Random(0).randbytes(PAGE + 10)
    at = EHDR.size + PHDR.size
    segment = Segment(1, 0, at, 0, PAGE - 5, len(data), len(data), 0)
    path.write_bytes(core(segment, tail=data))
    mem = Layout([10], [Place(0, 0, 10, 0, 0)]).make()
    assert mem.restore(path) == len(data)
    assert mem.read(0, 3 * PAGE) == bytes(PAGE - 5) + data + bytes(PAGE - 5)
    assert mem.vm.take_dirty_runs() == [(0, 0, 3)]


# Anything at all

SMALL = Layout([3], [Place(0, 0, 2, 0, 0), Place(0, 4, 1, 0, 2), Place(1, 0, 1, 0, 1)])


def try_to_restore(data: bytes, path: Path) -> None:
    """It succeeds, or fails as it says and has done nothing."""
    path.write_bytes(data)
    mem = SMALL.make()
    scribble(mem, 1)
    before = contents(mem)
    try:
        mem.restore(path)
    except (SnapshotError, NotMappedError, OSError):
        assert contents(mem) == before
        assert mem.vm.take_dirty_runs() == []
    mem.vm.check()


@given(data=st.binary(max_size=400))
def test_any_bytes(data: bytes, scratch: Path) -> None:
    try_to_restore(data, scratch)
    try_to_restore(b"\x7fELF\2\1\1" + bytes(9) + b"\4\0" + data, scratch)


NUMBERS = st.one_of(
    st.integers(0, 6 * PAGE),
    st.sampled_from([0, PAGE, 2 * PAGE, 4 * PAGE]),
    st.integers(0, 64).map(lambda bits: (1 << bits) - 1),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=600)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *[(at, "B") for at in range(EHDR.size)],
                    *[(at, "Q") for at in (24, 32, 40)],
                    *[(at, "H") for at in (54, 56, 58, 60)],
                    *[
                        (EHDR.size + n * PHDR.size + at, form)
                        for n in range(3)
                        for at, form in [*((at, "Q") for at in range(8, 56, 8)), (0, "I"), (4, "I")]
                    ],
                ]
            ),
            NUMBERS,
        ),
        max_size=4,
    ),
    cut=st.one_of(st.none(), st.integers(0, 5 * PAGE)),
)
@example(changes=[((56, "H"), 0xFFFF), ((40, "Q"), 0)], cut=None)
@example(changes=[((32, "Q"), 0), ((56, "H"), 3)], cut=None)
def test_any_change_of_a_snapshot(
    changes: list[tuple[tuple[int, str], int]], cut: int | None, scratch: Path
) -> None:
    source = SMALL.make()
    scribble(source)
    source.dump(scratch)
    data = scratch.read_bytes()
    for (at, form), number in changes:
        data = patched(data, at, form, number % (1 << 8 * struct.calcsize("<" + form)))
    try_to_restore(data[:cut], scratch)


# The kernel's own writes

WALL_CLOCK = 0x4B56_4D00  # MSR_KVM_WALL_CLOCK_NEW: KVM writes 12 bytes at once


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the MSR is one of x86")
def test_writes_of_the_kernel_are_in_the_diff(path: Path) -> None:
    need_kvm()
    layout = [(0, 0, 70), (1, 70, 10), (2, 100, 130)]
    with KvmVM() as kvm:
        vm = Memslots(backend=kvm)
        mem = GuestMemory(vm)
        for id, base, npages in layout:
            mem.place(id, base * PAGE, Backing.anonymous(npages * PAGE), flags=LOG)
        target = GuestMemory(Memslots())
        for id, base, npages in layout:
            target.place(id, base * PAGE, Backing.anonymous(npages * PAGE))
        vcpu = kvm.create_vcpu()
        vm.take_dirty_runs()
        mem.dump(path)
        target.restore(path)
        for pages in [(3,), (69, 70), (100, 229, 164)]:
            for page in pages:
                vcpu.set_msr(WALL_CLOCK, page * PAGE + 64)
                assert any(mem.read(page * PAGE + 64, 12))
            mem.write(79 * PAGE, b"here")
            with pytest.raises(OSError):
                mem.dump_dirty("/dev/full")
            assert mem.dump_dirty(path) == (len(pages) + 1) * PAGE
            starts = sorted({*pages, 79})
            found = {
                (gpa + at) // PAGE for _, gpa, size in loads_of(path) for at in range(0, size, PAGE)
            }
            assert sorted(found) == starts
            target.restore(path)
            for _, base, npages in layout:
                there = target.read(base * PAGE, npages * PAGE)
                assert there == mem.read(base * PAGE, npages * PAGE)
        assert vm.take_dirty_runs() == []
