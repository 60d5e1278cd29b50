"""Guest memory beside what people make by hand: one mmap, Firecracker's way, and Unicorn.

*By hand* is one mmap of all memory, and a bitmap of the pages that were written. A snapshot writes
the pages of the bitmap to their places in a file, and a restore maps the file MAP_PRIVATE: so
Firecracker does it. Unicorn saves and restores the processor; its memory is copied by mem_read and
mem_write. `python benchmarks/guestmemory.py --beside` prints the table.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import PAGE_SIZE, SEED, medians, seconds_of
from guestmemory import FOLDER, MIB, Row
from numpy.typing import NDArray
from rivals import build_floor

from memslots import Backing, Flags, GuestMemory, Memslots

try:
    import unicorn
except ImportError:
    unicorn = None

Step = Callable[[], object]
Way = Callable[[Sequence[int]], None]  # it gets the addresses that are written
Pages = NDArray[np.int64]

MEMCPY = "memcpy of the pages"
MMAP = "by hand: mmap"
SLOTS = 4
ADDRESSES = 1000
COPY_GOAL = 1.5, 20.0  # a restore takes at most so many times the memcpy, and µs above that
OPEN_GOAL = 1.0  # ms


class Sizes(NamedTuple):
    """How much is measured, and for how long."""

    mib: int = 256  # of memory
    pages: tuple[int, ...] = (10, 100, 10_000)  # written before a restore
    open_mib: int = 1024
    seconds: float = 1.5  # for each row at least
    rounds: int = 7


SMALL = Sizes(mib=2, pages=(10, 100), open_mib=2, seconds=0.0, rounds=2)


class Goal(NamedTuple):
    """A figure with its goal, as a row of goals.py."""

    slots: int
    what: str
    figure: float
    unit: str
    goal: float
    at_least: bool


def memory_of(size: int) -> GuestMemory:
    """Returns memory in four adjacent slots that log, on anonymous memory."""
    memory = GuestMemory(Memslots())
    backing, part = Backing.anonymous(size), size // SLOTS
    for id in range(SLOTS):
        memory.place(id, id * part, backing, id * part, part, Flags.LOG_DIRTY_PAGES)
    return memory


def mapped(size: int) -> mmap.mmap:
    """Returns anonymous memory of this process."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def emulator(size: int) -> Any:
    """Returns a Unicorn with memory from address 0 on."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0, size)
    return uc


def random_pages(size: int, count: int) -> Pages:
    """Returns different pages in random order."""
    return np.random.default_rng(SEED).permutation(size // PAGE_SIZE)[:count]


class Rows:
    """Makes rows of measures, each taken alternately with the others of its call."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def of(
        self,
        call: str,
        size: str,
        unit: str,
        ours: Callable[[], float],
        others: Mapping[str, Callable[[], float]],
        count: int = 1,
    ) -> Iterator[Row]:
        """Yields a row for each of `others`. A measure returns the seconds of `count` steps."""
        scale = {"ns": 1e9, "µs": 1e6, "ms": 1e3}[unit] / count
        took, *rest = medians(
            ours, *others.values(), seconds=self.sizes.seconds, rounds=self.sizes.rounds
        )
        for beside, other in zip(others, rest, strict=True):
            yield Row(call, size, beside, took * scale, other * scale, unit, other / took)


# Dumps


def write_all(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a new file that replaces the old one."""
    part = path.with_suffix(".part")
    with part.open("wb", buffering=0) as file:
        for data in parts:
            done = 0
            while done < len(data):
                done += file.write(data[done:])
    part.replace(path)


def write_pages(path: Path, memory: memoryview, bitmap: NDArray[np.uint8]) -> None:
    """Writes the pages of a bitmap to their places in a new file; the rest is holes."""
    part = path.with_suffix(".part")
    with part.open("wb", buffering=0) as file:
        file.truncate(len(memory))
        for page in np.flatnonzero(np.unpackbits(bitmap, bitorder="little")).tolist():
            at = page * PAGE_SIZE
            os.pwrite(file.fileno(), memory[at : at + PAGE_SIZE], at)
    part.replace(path)


def dumps(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Measures dumps of memory of which 1 % was ever touched."""
    size = sizes.mib * MIB
    pages = random_pages(size, size // PAGE_SIZE // 100)
    content = np.random.default_rng(SEED).bytes(PAGE_SIZE)
    bits = np.zeros(size // PAGE_SIZE, np.uint8)
    bits[pages] = 1
    bitmap = np.packbits(bits, bitorder="little")
    path = folder / "dump"

    def touched() -> tuple[GuestMemory, memoryview]:
        # Whole dumps touch all memory, so each way of dumping has its own.
        memory, plain = memory_of(size), memoryview(mapped(size))
        for page in pages.tolist():
            at = page * PAGE_SIZE
            memory.write(at, content)
            plain[at : at + PAGE_SIZE] = content
        return memory, plain

    def read_back(memory: GuestMemory, plain: memoryview) -> None:
        opened = GuestMemory.open(path)
        for first in range(0, size, MIB):
            assert opened.read(first, MIB) == plain[first : first + MIB]

    def marked(memory: GuestMemory, step: Step) -> float:
        memory.vm.take_dirty_runs()
        memory.vm.mark_dirty_many(pages.astype(np.uint64))
        return seconds_of(step)

    make = Rows(sizes)
    share = f"{sizes.mib} MiB, 1 % touched"
    memory, plain = touched()
    ours: Step = partial(memory.dump, path)
    others: dict[str, Step] = {"by hand: os.write": partial(write_all, path, plain)}
    if unicorn is not None:
        uc = emulator(size)
        uc.mem_write(0, bytes(plain))
        others["Unicorn: mem_read, os.write"] = lambda: write_all(path, uc.mem_read(0, size))
    for step in (ours, *others.values()):
        path.unlink(missing_ok=True)
        step()
        read_back(memory, plain)
    timed = {name: partial(seconds_of, step) for name, step in others.items()}
    yield from make.of("dump", share, "ms", partial(seconds_of, ours), timed)

    memory, plain = touched()
    by_bitmap = partial(write_pages, path, plain, bitmap)
    beside = {"by hand: pages of the bitmap": partial(seconds_of, by_bitmap)}
    ours = partial(memory.dump, path, sparse=True)
    for step in (ours, by_bitmap):
        path.unlink(missing_ok=True)
        step()
        read_back(memory, plain)
    yield from make.of("dump, sparse", share, "ms", partial(seconds_of, ours), beside)

    memory, plain = touched()
    ours = partial(memory.dump_dirty, path)
    marked(memory, ours)
    other, dirty = memory_of(size), len(pages) * PAGE_SIZE
    assert other.restore(path) == dirty
    assert all(other.read(page * PAGE_SIZE, PAGE_SIZE) == content for page in pages.tolist())
    yield from make.of(
        "dump_dirty", f"{sizes.mib} MiB, 1 % dirty", "ms", partial(marked, memory, ours), beside
    )


# Checkpoints and restores


class Machine:
    """Memory of each way with the same bytes, and a copy of each."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        content = np.random.default_rng(SEED).bytes(MIB) * (size // MIB)
        self.content = memoryview(content)
        self.memory = memory_of(size)
        self.memory.write(0, content)
        self.checkpoint = self.memory.checkpoint()
        self.plain = memoryview(mapped(size))
        self.plain[:] = content
        self.copy = memoryview(mapped(size))
        self.copy[:] = content
        self.written = np.zeros(size // PAGE_SIZE, np.uint8)
        self.path = folder / "memory"
        write_all(self.path, self.content)
        self.file = self.path.open("rb")
        self.remap()
        self.uc: Any = None
        if unicorn is not None:
            self.uc = emulator(size)
            self.uc.mem_write(0, content)
            self.context = self.uc.context_save()

    # One byte is written to each page. Each way keeps account of it in its own manner.

    def write(self, addresses: Sequence[int]) -> None:
        write_u8 = self.memory.write_u8
        for at in addresses:
            write_u8(at, 1)

    def write_plain(self, addresses: Sequence[int]) -> None:
        plain, written = self.plain, self.written
        for at in addresses:
            plain[at] = 1
            written[at >> 12] = 1

    def write_mapped(self, addresses: Sequence[int]) -> None:
        private = self.private
        for at in addresses:
            private[at] = 1

    def write_unicorn(self, addresses: Sequence[int]) -> None:
        write = self.uc.mem_write
        for at in addresses:
            write(at, b"\1")

    # Back to what was

    def restore(self, addresses: Sequence[int]) -> None:
        assert self.checkpoint.restore() == len(addresses) * PAGE_SIZE

    def restore_plain(self, addresses: Sequence[int]) -> None:
        plain, copy = self.plain, self.copy
        for page in np.flatnonzero(self.written).tolist():
            at = page * PAGE_SIZE
            plain[at : at + PAGE_SIZE] = copy[at : at + PAGE_SIZE]
        self.written[:] = 0

    def remap(self, addresses: Sequence[int] = ()) -> None:
        self.private = mmap.mmap(
            self.file.fileno(),
            self.size,
            mmap.MAP_PRIVATE,
            mmap.PROT_READ | mmap.PROT_WRITE,
        )

    def restore_unicorn(self, addresses: Sequence[int]) -> None:
        uc, copy = self.uc, self.copy
        uc.context_restore(self.context)
        for at in addresses:
            first = at & -PAGE_SIZE
            uc.mem_write(first, bytes(copy[first : first + PAGE_SIZE]))


def resets(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Measures a checkpoint, and restores after writes to some pages."""
    at = Machine(sizes.mib * MIB, folder)
    copy_pages = build_floor().copy_pages
    make = Rows(sizes)
    size = f"{sizes.mib} MiB"

    def saved() -> object:
        return at.uc.context_save(), at.uc.mem_read(0, at.size)

    others = {"by hand: a copy": partial(seconds_of, lambda: bytes(at.plain))}
    if at.uc is not None:
        others["Unicorn: context_save, mem_read"] = partial(seconds_of, saved)
    yield from make.of("checkpoint", size, "ms", partial(seconds_of, at.memory.checkpoint), others)
    at.checkpoint = at.memory.checkpoint()
    ways: dict[str, tuple[Way, Way]] = {
        "by hand: a bitmap": (at.write_plain, at.restore_plain),
        "by hand: mmap the file again": (at.write_mapped, at.remap),
    }
    if at.uc is not None:
        ways["Unicorn: context_restore, mem_write"] = (at.write_unicorn, at.restore_unicorn)
    for count in sizes.pages:
        pages = random_pages(at.size, count)
        addresses = (pages * PAGE_SIZE + 123).tolist()
        in_order = np.sort(pages)
        name = f"{count:,} pages"

        def round_of(write: Way, back: Way, addresses: Sequence[int] = addresses) -> None:
            write(addresses)
            back(addresses)

        for written, back, content in (
            (at.write, at.restore, lambda: at.memory.read(0, at.size)),
            (at.write_plain, at.restore_plain, lambda: at.plain),
            (at.write_mapped, at.remap, lambda: memoryview(at.private)),
        ):
            written(addresses)
            assert content() != at.content
            back(addresses)
            assert content() == at.content
        if at.uc is not None:
            round_of(at.write_unicorn, at.restore_unicorn)
            assert at.uc.mem_read(0, at.size) == at.content

        def restored(addresses: Sequence[int] = addresses) -> float:
            at.write(addresses)
            return seconds_of(partial(at.restore, addresses))

        def copied(addresses: Sequence[int] = addresses, pages: Pages = in_order) -> float:
            at.write_plain(addresses)
            return seconds_of(partial(copy_pages, at.plain, at.copy, pages))

        yield from make.of("restore", name, "µs", restored, {MEMCPY: copied})
        at.restore_plain(addresses)
        yield from make.of(
            "write and restore",
            name,
            "µs",
            partial(seconds_of, partial(round_of, at.write, at.restore)),
            {way: partial(seconds_of, partial(round_of, *steps)) for way, steps in ways.items()},
        )


# Files


def opens(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Measures the opening of a file as memory."""
    size = sizes.open_mib * MIB
    raw, dump = folder / "raw", folder / "dump"
    with raw.open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"the last bytes", size - 14)
    memory = memory_of(size)
    memory.write(size - 14, b"the last bytes")
    memory.dump(dump)
    del memory

    def mapped_file() -> mmap.mmap:
        with raw.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)

    def read_file() -> Any:
        uc = emulator(size)
        uc.mem_write(0, raw.read_bytes())
        return uc

    def timed(step: Callable[[], Any]) -> Callable[[], float]:
        kept: list[Any] = []

        def measure() -> float:
            kept.clear()  # it takes time too
            return seconds_of(lambda: kept.append(step()))

        return measure

    others: dict[str, Step] = {MMAP: mapped_file}
    assert mapped_file()[-14:] == b"the last bytes"
    if unicorn is not None:
        others["Unicorn: mem_write"] = read_file
        assert read_file().mem_read(size - 14, 14) == b"the last bytes"
    for name, path in (("raw", raw), ("a dump", dump)):
        assert GuestMemory.open(path).read(size - 14, 14) == b"the last bytes"
        yield from Rows(sizes).of(
            f"open, {name}",
            f"{sizes.open_mib} MiB",
            "µs",
            timed(partial(GuestMemory.open, path)),
            {way: timed(step) for way, step in others.items()},
        )


# Accesses in a loop


def accesses(sizes: Sizes) -> Iterator[Row]:
    """Measures small reads at random addresses; the figures include the loop."""
    size = MIB
    memory, plain = memory_of(size), mapped(size)
    content = np.random.default_rng(SEED).bytes(size)
    memory.write(0, content)
    plain[:] = content
    uc: Any = None
    if unicorn is not None:
        uc = emulator(size)
        uc.mem_write(0, content)
    random = np.random.default_rng(SEED).integers(0, size // 64, ADDRESSES) * 64
    addresses: list[int] = random.tolist()
    steps: list[tuple[str, int, Step, dict[str, Step]]] = []

    # The loops are written out: a call in each turn would take as long as what is measured.

    def numbers(width: int, letter: str) -> None:
        call = f"read_u{8 * width}"
        read, unpack = getattr(memory, call), struct.Struct(f"<{letter}").unpack_from
        others: dict[str, Step] = {
            "by hand: struct": lambda: [unpack(plain, at)[0] for at in addresses]
        }
        if uc is not None:
            uc_read = uc.mem_read
            others["Unicorn: mem_read"] = lambda: [
                int.from_bytes(uc_read(at, width), "little") for at in addresses
            ]
        steps.append((call, width, lambda: [read(at) for at in addresses], others))

    for width, letter in ((1, "B"), (2, "H"), (4, "I"), (8, "Q")):
        numbers(width, letter)
    slices: dict[str, Step] = {
        "by hand: a slice": lambda: [plain[at : at + 64] for at in addresses]
    }
    if uc is not None:
        slices["Unicorn: mem_read"] = lambda: [uc.mem_read(at, 64) for at in addresses]
    steps.append(("read", 64, lambda: [memory.read(at, 64) for at in addresses], slices))
    for call, width, ours, others in steps:
        wanted = ours()
        assert all(step() == wanted for step in others.values())
        yield from Rows(sizes).of(
            call,
            f"{width} bytes" if width > 1 else "1 byte",
            "ns",
            partial(seconds_of, ours),
            {name: partial(seconds_of, step) for name, step in others.items()},
            ADDRESSES,
        )


def measured(sizes: Sizes) -> Iterator[Row]:
    """Measures everything. Each way's answers are checked before its figures are taken."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        yield from dumps(sizes, folder)
        yield from resets(sizes, folder)
        yield from opens(sizes, folder)
    yield from accesses(sizes)


def goals(rows: Iterable[Row]) -> Iterator[Goal]:
    """Yields the figures that have a goal."""
    for row in rows:
        if row.beside == MEMCPY:
            times, above = COPY_GOAL
            what = f"restore, {row.size}: above {times} times their memcpy"
            over = max(row.ours - times * row.plain, 0.0)
            yield Goal(0, what, over, row.unit, above, False)
        elif row.beside == MMAP:
            yield Goal(0, f"{row.call}, {row.size}", row.ours / 1000, "ms", OPEN_GOAL, False)
