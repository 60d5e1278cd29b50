"""Helpers for the tests of snapshots: layouts of slots, and the segments of a file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from memslots import Flags, Memslots
from memslots.memory.backing import Backing
from memslots.memory.guestmemory import GuestMemory

PAGE = 4096
LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
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
    """A slot: its place in guest memory, in pages, and its part of a backing."""

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
    """Writes bytes everywhere, in no dirty log."""
    dice = random.Random(seed)
    for backing in mem.backings:
        memoryview(backing)[:] = dice.randbytes(backing.size)


def runs(mem: GuestMemory) -> list[Run]:
    """Returns the runs of pages of the slots."""
    return [
        (as_id, slot.guest_phys_addr, slot.memory_size)
        for as_id in range(SPACES)
        for slot in mem.vm.address_space(as_id)
    ]


def contents(mem: GuestMemory) -> dict[Run, bytes]:
    return {run: mem.address_space(run[0]).read(*run[1:]) for run in runs(mem)}


@contextmanager
def untouched(mem: GuestMemory) -> Iterator[None]:
    """Asserts that the calls inside write nothing and mark nothing."""
    before = contents(mem)
    mem.vm.take_dirty_runs()
    yield
    assert contents(mem) == before
    assert mem.vm.take_dirty_runs() == []


# Two slots side by side and a third after a hole, none of whole words; one in the other space.
USUAL = Layout(
    [70, 10, 130],
    [Place(0, 0, 70, 0, 0), Place(0, 70, 10, 1, 0), Place(0, 90, 130, 2, 0), Place(1, 5, 3, 1, 4)],
)


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
    """Returns the segments of a file by ELF's own description, without the package."""
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


def core(*segments: Segment, tail: bytes = b"") -> bytes:
    """Returns an ELF core of these segments, as QEMU's dump-guest-memory makes one."""
    header = EHDR.pack(
        b"\x7fELF\2\1\1" + bytes(9),
        *(4, 62, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, len(segments), 0, 0, 0),
    )
    return header + b"".join(PHDR.pack(*segment) for segment in segments) + tail
