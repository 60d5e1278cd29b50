"""Guest memory: copies, numbers and snapshots, beside plain slices of the same memory.

Four adjacent slots lie on one mmap of random bytes; the plain way slices that mmap.

    python benchmarks/guestmemory.py [MiB ...]  prints every figure beside its comparison
    python benchmarks/guestmemory.py --beside   prints those of byhand.py: dumps, restores, opening
    python benchmarks/guestmemory.py --check    runs all small; status 1 if an answer is wrong
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import PAGE_SIZE, SEED, medians, seconds_of

from memslots import Flags, Memslots
from memslots.dirty.runs import DirtyRun
from memslots.memory.backing import Backing
from memslots.memory.guestmemory import GuestMemory

Step = Callable[[], object]

MIB = 1 << 20
SIZES = (1, 16, 256)  # MiB
SLOTS = 4
ADDRESSES = 10_000
SMALL = 16  # bytes
BULK = ("read", "readinto", "write", "fill")
SNAPSHOTS = ("dump", "dump_dirty 1 %", "dump_dirty 50 %", "restore", "restore 1 %", "restore 50 %")
SHARES = (1, 50)  # percent of the pages
NUMBERS = ("read_u32", "write_u32", "read", "write")
# Files are in memory, so no disk is measured.
SHM = Path("/dev/shm")
FOLDER = SHM if SHM.is_dir() else Path(tempfile.gettempdir())


class Guest:
    """Guest memory with dirty logging in every slot, and the mmap under it."""

    def __init__(self, size: int, slots: int = SLOTS) -> None:
        self.size = size
        self.random = np.random.default_rng(SEED)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.mmap = mmap.mmap(-1, size, flags=flags)
        self.plain = memoryview(self.mmap)
        self.plain[:] = self.random.bytes(size)
        self.mem = GuestMemory(Memslots())
        backing, part = Backing(self.mmap), size // slots
        for id in range(slots):
            self.mem.place(id, id * part, backing, id * part, part, Flags.LOG_DIRTY_PAGES)

    def some_pages(self, percent: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Returns random pages in random order; at least one."""
        pages = self.size // PAGE_SIZE
        count = max(pages * percent // 100, 1)
        return self.random.permutation(pages)[:count].astype(np.uint64)


class _Pair:  # asv ignores a name with an underscore
    """Two ways to do the same: memslots, and plain slices or files."""

    steps: tuple[Step, Step]

    def timed(self, step: Step) -> float:
        """Returns the seconds of a step."""
        return seconds_of(step)

    def medians(self) -> list[float]:
        """Returns the median seconds of both, measured alternately."""
        return medians(*(partial(self.timed, step) for step in self.steps), seconds=0.4)


class _Speed(_Pair):
    """A pair measured in bytes per second."""

    size: int

    def measure(self) -> tuple[float, float]:
        """Returns the MB/s of both."""
        ours, plain = self.medians()
        return self.size / ours / 1e6, self.size / plain / 1e6

    def track_speed(self, mib: int, call: str) -> float:
        """Returns the MB/s of guest memory."""
        return self.measure()[0]

    def track_ratio(self, mib: int, call: str) -> float:
        """Returns the speed over that of the plain way."""
        ours, plain = self.measure()
        return ours / plain

    track_speed.unit = "MB/s"  # type: ignore[attr-defined]
    track_ratio.unit = "times"  # type: ignore[attr-defined]


class Bulk(_Speed):
    """Times calls on all of guest memory at once, beside a slice."""

    params = (SIZES, BULK)
    param_names = ("MiB", "call")
    timeout = 300

    def setup(self, mib: int, call: str) -> None:
        """Makes the memory, and checks that both ways do the same."""
        guest = Guest(mib * MIB)
        self.size = guest.size
        data = guest.random.bytes(guest.size)
        self.steps = self.calls(guest, data)[call]
        for step in self.steps:
            before = bytes(guest.plain)
            got = step()
            after = bytes(guest.plain)
            if call == "read":
                assert got == before == after
            elif call == "readinto":
                assert self.into == before == after
                self.into[:] = bytes(guest.size)
            elif call == "write":
                assert after == data
            else:
                assert call == "fill"
                assert after == b"\x07" * guest.size
            guest.plain[:] = before

    def calls(self, guest: Guest, data: bytes) -> dict[str, tuple[Step, Step]]:
        """Returns each call, with the step that does the same to the mmap."""
        mem, memory, size = guest.mem, guest.mmap, guest.size
        self.into = bytearray(size)
        sevens = b"\x07" * size

        into = memoryview(self.into)

        def slice_into() -> None:
            into[:] = guest.plain

        def slice_from(source: bytes) -> None:
            memory[:] = source

        return {
            "read": (lambda: mem.read(0, size), lambda: memory[:]),
            "readinto": (lambda: mem.readinto(0, self.into), slice_into),
            "write": (lambda: mem.write(0, data), lambda: slice_from(data)),
            # An mmap has no fill, so it gets a copy of as many bytes.
            "fill": (lambda: mem.fill(0, size, 7), lambda: slice_from(sevens)),
        }


class Snapshot(_Speed):
    """Times snapshots, beside a plain write or read of as many bytes with a new file."""

    params = (SIZES, SNAPSHOTS)
    param_names = ("MiB", "call")
    timeout = 300

    def setup(self, mib: int, call: str) -> None:
        """Makes the memory, and checks that restore brings back what was dumped."""
        self.guest = Guest(mib * MIB)
        self.folder = tempfile.TemporaryDirectory(dir=FOLDER)
        self.path = Path(self.folder.name) / "snapshot"
        self.part = self.path.with_suffix(".part")
        name, _, percent = call.partition(" ")
        self.pages = self.guest.some_pages(int(percent.removesuffix(" %")) if percent else 100)
        self.size = len(self.pages) * PAGE_SIZE
        dump = self.dump_dirty if percent else self.dump
        self.steps = {
            "dump": (dump, self.write),
            "dump_dirty": (dump, self.write),
            "restore": (self.restore, self.read),
        }[name]
        guest = self.guest
        before = np.frombuffer(guest.plain, np.uint8).reshape(-1, PAGE_SIZE)
        wanted = before.copy()
        self.mark()
        dump()
        self.begin = self.path.stat().st_size - self.size
        assert self.begin == -(-self.header() // PAGE_SIZE) * PAGE_SIZE
        before[self.pages] = 0
        assert guest.mem.restore(self.path) == self.size
        assert np.array_equal(before, wanted)
        self.steps[1]()
        # The plain read gets the dumped pages, in order.
        pages = np.sort(self.pages) if name == "restore" else np.arange(len(before))
        assert np.array_equal(before[: len(pages)], wanted[pages])
        before[:] = wanted
        self.mark()
        dump()  # a file for restore to read

    def teardown(self, mib: int, call: str) -> None:
        """Removes the files."""
        self.folder.cleanup()

    def header(self) -> int:
        """Returns the number of bytes before the memory, not rounded to pages."""
        return 64 + 56 * int.from_bytes(self.path.read_bytes()[56:58], "little")

    def mark(self) -> None:
        """Makes exactly these pages dirty."""
        self.guest.mem.vm.take_dirty_runs()
        self.guest.mem.vm.mark_dirty_many(self.pages)

    def dump(self) -> None:
        assert self.guest.mem.dump(self.path) == self.guest.size

    def dump_dirty(self) -> None:
        assert self.guest.mem.dump_dirty(self.path) == self.size

    def restore(self) -> None:
        self.guest.mem.restore(self.path)

    def write(self) -> None:
        """Writes as many bytes in one piece to a new file that replaces the old one."""
        fd = os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            done = 0
            while done < self.size:
                done += os.write(fd, self.guest.plain[done : self.size])
        finally:
            os.close(fd)
        self.part.replace(self.path)

    def read(self) -> None:
        """Reads the same bytes in one piece to the beginning of the memory."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            done = 0
            while done < self.size:
                done += os.preadv(fd, [self.guest.plain[done : self.size]], self.begin + done)
        finally:
            os.close(fd)

    def timed(self, step: Step) -> float:
        """Returns the seconds of a step with the pages dirty."""
        self.mark()
        return seconds_of(step)


class Runs(_Pair):
    """Times take_dirty_runs, beside numpy that finds the runs of all logs joined."""

    params = (SIZES, SHARES)
    param_names = ("MiB", "percent dirty")
    timeout = 300

    def setup(self, mib: int, percent: int) -> None:
        """Makes the memory, and checks that both find the same runs."""
        self.guest = Guest(mib * MIB)
        self.pages = self.guest.some_pages(percent)
        self.steps = self.take, self.search
        self.mark()
        runs = self.take()
        self.mark()
        assert [(run.start_gfn, run.end_gfn) for run in runs] == self.search()
        assert sum(run.end_gfn - run.start_gfn for run in runs) == len(self.pages)
        assert self.take() == []

    def mark(self) -> None:
        self.guest.mem.vm.mark_dirty_many(self.pages)

    def take(self) -> list[DirtyRun]:
        return self.guest.mem.vm.take_dirty_runs()

    def search(self) -> list[tuple[int, int]]:
        """Finds the runs with numpy. Each log fills whole words, so the logs can be joined."""
        logs = b"".join([self.guest.mem.vm.get_dirty_log(id) for id in range(SLOTS)])
        bits = np.zeros(8 * len(logs) + 2, np.int8)
        bits[1:-1] = np.unpackbits(np.frombuffer(logs, np.uint8), bitorder="little")
        edges = np.flatnonzero(np.diff(bits)).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    def timed(self, step: Step) -> float:
        """Returns the seconds of a step with the pages dirty."""
        self.mark()
        return seconds_of(step)

    def measure(self) -> tuple[float, float]:
        """Returns the microseconds of both."""
        ours, plain = self.medians()
        return ours * 1e6, plain * 1e6

    def track_time(self, mib: int, percent: int) -> float:
        """Returns the microseconds of a call."""
        return self.measure()[0]

    def track_ratio(self, mib: int, percent: int) -> float:
        """Returns the speed over that of numpy."""
        ours, plain = self.measure()
        return plain / ours


Runs.track_time.unit = "µs"  # type: ignore[attr-defined]
Runs.track_ratio.unit = "times"  # type: ignore[attr-defined]


class Numbers(_Pair):
    """Times accesses of 4 and of 16 bytes at random addresses. The figure includes the loop."""

    params = (NUMBERS,)
    param_names = ("call",)

    def setup(self, call: str) -> None:
        """Makes the memory, and checks that both ways do the same."""
        guest = Guest(MIB)
        words = guest.random.permutation(guest.size // SMALL)[:ADDRESSES]
        self.addresses: list[int] = (words * SMALL).tolist()
        self.memory, self.mem = guest.mmap, guest.mem
        self.data = bytes(range(SMALL))
        self.steps = {
            "read_u32": (self.read_u32, self.unpack),
            "write_u32": (self.write_u32, self.pack),
            "read": (self.read, self.slice),
            "write": (self.write, self.assign),
        }[call]
        before = bytes(guest.plain)
        found = []
        for step in self.steps:
            value = step()
            found.append((value, bytes(guest.plain)))
            guest.plain[:] = before
        assert found[0] == found[1]
        assert (found[0][1] != before) == call.startswith("write")
        assert (found[0][0] is None) == call.startswith("write")

    # Each reading step returns the last value that it read.

    def read_u32(self) -> int:
        read_u32 = self.mem.read_u32
        for at in self.addresses:
            value = read_u32(at)
        return value

    def unpack(self) -> int:
        unpack_from, memory = struct.Struct("<I").unpack_from, self.memory
        for at in self.addresses:
            (value,) = unpack_from(memory, at)
        return int(value)

    def write_u32(self) -> None:
        write_u32 = self.mem.write_u32
        for at in self.addresses:
            write_u32(at, 7)

    def pack(self) -> None:
        pack_into, memory = struct.Struct("<I").pack_into, self.memory
        for at in self.addresses:
            pack_into(memory, at, 7)

    def read(self) -> bytes:
        read = self.mem.read
        for at in self.addresses:
            value = read(at, SMALL)
        return value

    def slice(self) -> bytes:
        memory = self.memory
        for at in self.addresses:
            value = memory[at : at + SMALL]
        return value

    def write(self) -> None:
        write, data = self.mem.write, self.data
        for at in self.addresses:
            write(at, data)

    def assign(self) -> None:
        memory, data = self.memory, self.data
        for at in self.addresses:
            memory[at : at + SMALL] = data

    def measure(self) -> tuple[float, float]:
        """Returns the nanoseconds of both."""
        ours, plain = self.medians()
        return ours / ADDRESSES * 1e9, plain / ADDRESSES * 1e9

    def track_time(self, call: str) -> float:
        """Returns the nanoseconds of a call."""
        return self.measure()[0]

    def track_ratio(self, call: str) -> float:
        """Returns the speed over that of struct or a slice."""
        ours, plain = self.measure()
        return plain / ours


Numbers.track_time.unit = "ns"  # type: ignore[attr-defined]
Numbers.track_ratio.unit = "times"  # type: ignore[attr-defined]


def read_random_ns(slots: int) -> tuple[float, float]:
    """Returns the nanoseconds of read_u32 and of struct.unpack_from at random addresses.

    Each slot has one page.
    """
    guest = Guest(slots * PAGE_SIZE, slots)
    words = guest.random.integers(0, guest.size // 4, ADDRESSES * 20)
    addresses: list[int] = (words * 4).tolist()
    read_u32, unpack, plain = guest.mem.read_u32, struct.Struct("<I").unpack_from, guest.plain

    def ours() -> list[int]:
        return [read_u32(address) for address in addresses]

    def flat() -> list[int]:
        return [unpack(plain, address)[0] for address in addresses]

    assert ours() == flat()
    took = medians(partial(seconds_of, ours), partial(seconds_of, flat), rounds=7)
    return took[0] / len(addresses) * 1e9, took[1] / len(addresses) * 1e9


class Row(NamedTuple):
    """A call beside the plain way to do the same."""

    call: str
    size: str  # size of the access
    beside: str
    ours: float
    plain: float
    unit: str
    ratio: float  # the speed over that of the plain way


def numbers_rows() -> Iterator[Row]:
    """Measures small accesses."""
    for call in NUMBERS:
        numbers = Numbers()
        numbers.setup(call)
        ours, plain = numbers.measure()
        small, rival = call.endswith("u32"), {"read_u32": "struct.unpack_from"}
        size = "4 bytes" if small else f"{SMALL} bytes"
        beside = rival.get(call, "struct.pack_into") if small else "a slice"
        yield Row(call, size, beside, ours, plain, "ns", plain / ours)


def size_rows(mib: int) -> Iterator[Row]:
    """Measures the calls on `mib` MiB."""
    size = f"{mib} MiB"
    for call in BULK:
        bulk = Bulk()
        bulk.setup(mib, call)
        ours, plain = bulk.measure()
        yield Row(call, size, "a slice", ours, plain, "MB/s", ours / plain)
    for call in SNAPSHOTS:
        snapshot = Snapshot()
        snapshot.setup(mib, call)
        ours, plain = snapshot.measure()
        snapshot.teardown(mib, call)
        rival = "os.preadv" if call.startswith("restore") else "os.write"
        yield Row(call, size, rival, ours, plain, "MB/s", ours / plain)
    for percent in SHARES:
        runs = Runs()
        runs.setup(mib, percent)
        ours, plain = runs.measure()
        yield Row(f"take_dirty_runs {percent} %", size, "numpy", ours, plain, "µs", plain / ours)


def print_rows(rows: Iterable[Row]) -> list[Row]:
    """Prints a table as it is measured. Returns the rows."""
    print("| call | size | beside | memslots | beside | unit | times the speed |")
    print("|---|---|---|---|---|---|---|")
    printed = []
    for row in rows:
        figures = f"{row.ours:,.0f} | {row.plain:,.0f} | {row.unit} | {row.ratio:.2f}"
        print(f"| {row.call} | {row.size} | {row.beside} | {figures} |", flush=True)
        printed.append(row)
    return printed


def main() -> None:
    """Prints every figure, for the given sizes or for all."""
    import byhand  # it imports this module

    parser = argparse.ArgumentParser(description="Guest memory beside other ways.")
    parser.add_argument("sizes", nargs="*", type=int, metavar="MiB", default=SIZES)
    parser.add_argument("--beside", action="store_true", help="the figures of byhand.py")
    parser.add_argument("--check", action="store_true", help="run all small, check the answers")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()},"
        f" numpy {np.__version__}; files in {FOLDER}\n"
    )
    if not options.beside:
        sizes = (1,) if options.check else options.sizes
        print_rows(chain(numbers_rows(), *map(size_rows, sizes)))
    if options.beside or options.check:
        rows = print_rows(byhand.measured(byhand.SMALL if options.check else byhand.Sizes()))
        if options.beside:
            for goal in byhand.goals(rows):
                reached = "reached" if goal.figure <= goal.goal else "MISSED"
                print(f"{goal.what}: {goal.figure:.3g} {goal.unit}, <= {goal.goal:g}: {reached}")


if __name__ == "__main__":
    main()
