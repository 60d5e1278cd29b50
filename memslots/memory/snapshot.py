"""Snapshots: writes all guest memory, or its dirty pages, to a file, and restores it.

The file is an ELF core, 64-bit and little-endian, like other dumps of guest memory: readelf, gdb
and others read it. Each PT_LOAD segment is a run of guest memory in one slot, at the guest address
`p_paddr`. Bits 20 to 27 of its `p_flags` (the first eight that ELF leaves to operating systems) are
the number of its address space. Host memory that several slots are on is in the file once, if an
earlier segment holds all of it. If p_filesz is less than p_memsz, the rest of the segment is zeros,
as in any ELF file. So a sparse snapshot leaves zeros out.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from memslots.dirty.runs import return_logs
from memslots.errors import no_snapshot
from memslots.memory.backing import open_regular
from memslots.memory.marks import take_runs, without_changes
from memslots.memory.replacing import replacing
from memslots.memory.segments import Batch, Segments
from memslots.values.integers import PAGE_SIZE

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")  # a program header; segments.pyx writes and reads these
_SHDR = struct.Struct("<IIQQQQIIQQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64-bit, little-endian, version 1
_CORE = 4
_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258}
# With so many segments or more, e_phnum is this value, and the first section's sh_info the number.
_MANY = 0xFFFF
_MOST_VIEWS = 1024  # views for one call of readv or writev
_RUNS = 1024  # runs to lay out at a time

Run = tuple[int, int, int]  # as_id, start_gfn, end_gfn


def dump(mem: GuestMemory, path: str | os.PathLike[str], restart_log: bool, sparse: bool) -> int:
    """Implements `GuestMemory.dump`."""

    def all_memory(logs: list[object]) -> list[Run]:
        if restart_log:
            take_runs(mem.vm, logs)
        return [
            (as_id, slot.base_gfn, slot.end_gfn)
            for as_id in range(mem.vm.address_spaces)
            for slot in mem.vm.address_space(as_id)
        ]

    return _write(mem, path, all_memory, sparse)


def dump_dirty(mem: GuestMemory, path: str | os.PathLike[str]) -> int:
    """Implements `GuestMemory.dump_dirty`."""
    return _write(mem, path, lambda logs: take_runs(mem.vm, logs), False)


def _write(
    mem: GuestMemory,
    path: str | os.PathLike[str],
    runs_of: Callable[[list[object]], Sequence[Run]],
    sparse: bool,
) -> int:
    """Writes the runs that `runs_of` returns. `runs_of` puts the marks it takes in its argument.

    It is called, and the runs are laid out, while nobody changes the slots: all is of one map.
    """
    logs: list[object] = []
    segments = Segments(mem)
    memory: list[memoryview] = []

    def lay_out() -> None:
        runs = runs_of(logs)
        for first in range(0, len(runs), _RUNS):
            memory.extend(segments.lay_out(runs[first : first + _RUNS]))

    try:
        without_changes(mem.vm, lay_out)
        written = segments
        if sparse:
            # After the layout: this reads all memory, and changes need not wait for it.
            written, memory = segments.sparse(mem, memory)
        with replacing(path) as fd:
            _write_all(fd, [memoryview(_headers(written)), *memory])
    except BaseException:
        return_logs(mem.vm, logs)
        raise
    return segments.size


def _headers(segments: Segments) -> bytes:
    """Returns the bytes before the memory, padded so that the memory begins at a page."""
    count = len(segments)
    many = count >= _MANY
    after = _EHDR.size + _PHDR.size * count
    begin = -(-(after + _SHDR.size * many) // PAGE_SIZE) * PAGE_SIZE
    header = _EHDR.pack(
        _IDENT, _CORE, _MACHINES.get(platform.machine(), 0), 1, 0,
        _EHDR.size if count else 0, after if many else 0, 0,
        _EHDR.size, _PHDR.size, min(count, _MANY), _SHDR.size, int(many), 0,
    )  # fmt: skip
    section = _SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0) if many else b""
    return b"".join([header, segments.table(begin), section]).ljust(begin, b"\0")


def _write_all(fd: int, views: list[memoryview]) -> None:
    """Writes all views in order, in as many calls as it takes."""
    first = 0
    while first < len(views):
        written = os.writev(fd, views[first : first + _MOST_VIEWS])
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:
            views[first] = views[first][written:]


def restore(mem: GuestMemory, path: str | os.PathLike[str]) -> int:
    """Implements `GuestMemory.restore`."""
    with ExitStack() as opened:
        # With an opener, a file object has the descriptor before a signal handler can run.
        file = opened.enter_context(open(Path(path), "rb", opener=open_regular))
        fd, name = file.fileno(), os.fspath(path)
        segments = _read_segments(mem, fd, name)
        # Find the place of every segment before writing the first byte.
        batches: list[Batch] = []
        zeros = opened.enter_context(Path("/dev/zero").open("rb", buffering=0)).fileno()
        for number in range(segments.parts):
            batches += segments.places(fd, number, zeros)
        for batch in batches:
            try:
                _read_all(zeros if batch.zeros else fd, batch.views, batch.offset, name)
            finally:
                # Mark it even after an error: part of it may be written.
                batch.mark()
    return segments.size


def _read_segments(mem: GuestMemory, fd: int, name: str) -> Segments:
    """Reads the segments of a snapshot. SnapshotError: it is not a snapshot, or is incomplete."""
    length = os.fstat(fd).st_size

    def part(offset: int, size: int, what: str) -> bytes:
        if offset + size > length:
            raise no_snapshot(f"{name}: cut off: {what} ends at {offset + size}, of {length} bytes")
        got = os.pread(fd, size, offset)
        if len(got) != size:
            raise no_snapshot(f"{name}: it was made shorter while it was read")
        return got

    ident = part(0, len(_IDENT), "its header")
    if ident[:4] != _IDENT[:4] or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise no_snapshot(f"{name}: not a snapshot, which is an ELF core")
    wide, order = ident[4] == 2, "<>"[ident[5] - 1]
    layout = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    program = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    section = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    kind, _, _, _, phoff, shoff, _, _, phentsize, count, shentsize, _, _ = layout.unpack(
        part(len(_IDENT), layout.size, "its header")
    )
    if kind != _CORE or phentsize != program.size:
        raise no_snapshot(f"{name}: not a snapshot, which is an ELF core")
    if count == _MANY:
        if not shoff:
            raise no_snapshot(f"{name}: no section says how many segments it has")
        if shentsize != section.size:
            raise no_snapshot(f"{name}: sections of {shentsize} bytes, not {section.size}")
        count = section.unpack(part(shoff, section.size, "its first section"))[7]
    segments = Segments(mem)
    table = part(phoff, count * program.size, "its list of segments")
    if program.format != _PHDR.format:
        table = b"".join(_as_ours(fields, wide) for fields in program.iter_unpack(table))
    try:
        segments.take(table, length)
        segments.refuse_overlaps()
    except ValueError as wrong:
        raise no_snapshot(f"{name}: {wrong}") from None
    return segments


def _as_ours(fields: Sequence[int], wide: bool) -> bytes:
    """Returns a program header in the form that segments.pyx reads."""
    if wide:
        return _PHDR.pack(*fields)
    kind, offset, vaddr, paddr, filesz, memsz, flags, align = fields
    return _PHDR.pack(kind, flags, offset, vaddr, paddr, filesz, memsz, align)


def _read_all(fd: int, views: list[memoryview], offset: int, name: str) -> None:
    """Fills all views from the file."""
    first = 0
    while first < len(views):
        got = os.preadv(fd, views[first : first + _MOST_VIEWS], offset)
        if not got:
            raise no_snapshot(f"{name}: it was made shorter while it was read")
        offset += got
        while first < len(views) and got >= len(views[first]):
            got -= len(views[first])
            first += 1
        if got:
            views[first] = views[first][got:]
