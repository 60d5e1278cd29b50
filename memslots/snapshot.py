"""Snapshots: guest memory, or what of it is dirty, in a file, and back.

The file is an ELF core, 64-bit and little-endian, as dumps of guest memory are: readelf, gdb and
crash read it. Each PT_LOAD segment is a run of guest memory in one slot, at the guest address
`p_paddr`; bits 20 to 27 of its `p_flags` (the first eight that ELF leaves to operating systems)
are the number of its address space. Segments of slots that are on the same host memory share their
bytes in the file.
"""

from __future__ import annotations

import os
import platform
import secrets
import stat
import struct
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memslots.backing import address_of

if TYPE_CHECKING:
    from memslots.guestmemory import GuestMemory

_PAGE = 4096
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64-bit, little-endian, version 1
_CORE = 4
_LOAD = 1
_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258}
# From so many segments on the header says this, and the first section's sh_info has the number.
_MANY = 0xFFFF
_SPACE_SHIFT = 20
_SPACE_MASK = 0xFF
_MOST_VIEWS = 1024  # to one call of readv or writev


class SnapshotError(ValueError):
    """A file is no snapshot, or not all of one; the message says what is wrong."""


class _Segment(NamedTuple):
    """A run of guest memory in one slot, and where it is in the file."""

    as_id: int
    gpa: int
    size: int
    offset: int
    flags: int

    def header(self) -> bytes:
        flags = self.flags | self.as_id << _SPACE_SHIFT
        place = self.gpa, self.gpa, self.size, self.size
        return _PHDR.pack(_LOAD, flags, self.offset, *place, _PAGE)


def dump(mem: GuestMemory, path: str | os.PathLike[str]) -> int:
    """All memory; what `GuestMemory.dump` does."""
    vm = mem.vm
    ranges = [
        (slot.as_id, slot.guest_phys_addr, slot.memory_size)
        for as_id in range(vm.address_spaces)
        for slot in vm.address_space(as_id)
    ]
    return _write(mem, path, ranges)


def dump_dirty(mem: GuestMemory, path: str | os.PathLike[str]) -> int:
    """What is dirty; what `GuestMemory.dump_dirty` does."""
    logs: list[object] = []
    try:
        runs = mem.vm._take_dirty_runs(logs)
        ranges = [(as_id, start * _PAGE, (end - start) * _PAGE) for as_id, start, end in runs]
        return _write(mem, path, ranges)
    except BaseException:
        mem.vm._return_dirty_logs(logs)
        raise


def _write(
    mem: GuestMemory, path: str | os.PathLike[str], ranges: Sequence[tuple[int, int, int]]
) -> int:
    spaces = [mem.address_space(as_id) for as_id in range(mem.vm.address_spaces)]
    views = [
        (as_id, at, view)
        for as_id, gpa, size in ranges
        for at, view in _placed(gpa, spaces[as_id].views(gpa, size))
    ]
    count = len(views)
    begin = _EHDR.size + _PHDR.size * count + (_SHDR.size if count >= _MANY else 0)
    end = begin = -(-begin // _PAGE) * _PAGE
    segments, data = [], []
    there: list[tuple[int, int, int]] = []  # host memory that is in the file: hva, end, offset
    for as_id, gpa, view in views:
        hva, size = address_of(view), len(view)
        offset = _find(there, hva, size)
        if offset is None:
            offset = end
            end += size
            data.append(view)
            insort(there, (hva, hva + size, offset))
        flags = 5 if view.readonly else 7  # PF_R, PF_W, PF_X
        segments.append(_Segment(as_id, gpa, size, offset, flags))
    with _replacing(path) as fd:
        _write_all(fd, [memoryview(_headers(segments).ljust(begin, b"\0")), *data])
    return sum(len(view) for view in data)


def _placed(gpa: int, views: Sequence[memoryview]) -> Iterator[tuple[int, memoryview]]:
    for view in views:
        yield gpa, view
        gpa += len(view)


def _find(there: list[tuple[int, int, int]], hva: int, size: int) -> int | None:
    """Where in the file host memory is, if all of it is in one piece there."""
    at = bisect_right(there, (hva, 1 << 64, 0)) - 1
    if at >= 0:
        begin, end, offset = there[at]
        if hva + size <= end:
            return offset + hva - begin
    return None


def _headers(segments: Sequence[_Segment]) -> bytes:
    count = len(segments)
    sections = 1 if count >= _MANY else 0
    after = _EHDR.size + _PHDR.size * count
    header = _EHDR.pack(
        _IDENT, _CORE, _MACHINES.get(platform.machine(), 0), 1, 0,
        _EHDR.size, after if sections else 0, 0,
        _EHDR.size, _PHDR.size, min(count, _MANY), _SHDR.size, sections, 0,
    )  # fmt: skip
    parts = [header, *(segment.header() for segment in segments)]
    if sections:
        parts.append(_SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    return b"".join(parts)


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor to write a file with that takes the place of `path` when all is written.

    What is no file (a pipe, a device) is written to as it is.
    """
    target = Path(path)
    try:
        regular = stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        regular = True
    if not regular:
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    # Through links, so that these stay.
    target = target.resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_all(fd: int, views: list[memoryview]) -> None:
    """All of them, one after the other, however much a call takes."""
    first = 0
    while first < len(views):
        written = os.writev(fd, views[first : first + _MOST_VIEWS])
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:
            views[first] = views[first][written:]


def restore(mem: GuestMemory, path: str | os.PathLike[str]) -> int:
    """Write it back; what `GuestMemory.restore` does."""
    with Path(path).open("rb") as file:
        segments = _read_segments(file.fileno(), os.fspath(path), mem.vm.address_spaces)
        spaces = [mem.address_space(as_id) for as_id in range(mem.vm.address_spaces)]
        # All of it has a place before any of it is written.
        views = [
            spaces[segment.as_id]._restore_views(segment.gpa, segment.size) for segment in segments
        ]
        for segment, parts in zip(segments, views, strict=True):
            _read_all(file.fileno(), parts, segment.offset, os.fspath(path))
            spaces[segment.as_id].mark_dirty(segment.gpa, segment.size)
    return sum(segment.size for segment in segments)


def _read_segments(fd: int, name: str, spaces: int) -> list[_Segment]:
    """The segments of a snapshot. SnapshotError if it is none, or not complete."""
    length = os.fstat(fd).st_size

    def part(offset: int, size: int, what: str) -> bytes:
        if offset + size > length:
            raise SnapshotError(
                f"{name}: cut off: {what} ends at {offset + size}, of {length} bytes"
            )
        return os.pread(fd, size, offset)

    header = part(0, _EHDR.size, "its header")
    ident, kind, _, _, _, phoff, shoff, _, _, phentsize, count, shentsize, _, _ = _EHDR.unpack(
        header
    )
    if ident[:6] != _IDENT[:6] or kind != _CORE or phentsize != _PHDR.size:
        raise SnapshotError(f"{name}: not a snapshot: a 64-bit little-endian ELF core is one")
    if count == _MANY:
        if shentsize != _SHDR.size:
            raise SnapshotError(f"{name}: sections of {shentsize} bytes, not {_SHDR.size}")
        count = _SHDR.unpack(part(shoff, _SHDR.size, "its first section"))[7]
    segments = []
    headers = part(phoff, count * _PHDR.size, "its list of segments")
    for kind, flags, offset, _, gpa, size, in_memory, _ in _PHDR.iter_unpack(headers):
        if kind != _LOAD or not in_memory:
            continue
        as_id = flags >> _SPACE_SHIFT & _SPACE_MASK
        if size != in_memory:
            raise SnapshotError(
                f"{name}: gpa {gpa:#x}: {size:#x} of {in_memory:#x} bytes are there"
            )
        if offset + size > length:
            raise SnapshotError(
                f"{name}: cut off: gpa {gpa:#x} ends at {offset + size}, of {length} bytes"
            )
        if as_id >= spaces:
            raise SnapshotError(
                f"{name}: gpa {gpa:#x} is of address space {as_id}; here are {spaces}"
            )
        segments.append(_Segment(as_id, gpa, size, offset, flags & 7))
    return segments


def _read_all(fd: int, views: list[memoryview], offset: int, name: str) -> None:
    """Fill all of them from the file."""
    first = 0
    while first < len(views):
        got = os.preadv(fd, views[first : first + _MOST_VIEWS], offset)
        if not got:
            raise SnapshotError(f"{name}: it was made shorter while it was read")
        offset += got
        while first < len(views) and got >= len(views[first]):
            got -= len(views[first])
            first += 1
        if got:
            views[first] = views[first][got:]
