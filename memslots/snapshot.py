"""Snapshots: guest memory, or what of it is dirty, in a file, and back.

The file is an ELF core, 64-bit and little-endian, as dumps of guest memory are: readelf, gdb and
others read it. Each PT_LOAD segment is a run of guest memory in one slot, at the guest address
`p_paddr`; bits 20 to 27 of its `p_flags` (the first eight that ELF leaves to operating systems)
are the number of its address space. Host memory that several slots are on is in the file once, if
one of the segments before holds all of it.
"""

from __future__ import annotations

import os
import platform
import secrets
import stat
import struct
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memslots.backing import address_of
from memslots.errors import ReadOnlyError

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
_COMPARED = 1 << 20  # bytes at a time


class SnapshotError(ValueError):
    """A file is no snapshot, or not all of one; the message says what is wrong."""


class _Segment(NamedTuple):
    """A run of guest memory, and where it is in the file."""

    as_id: int
    gpa: int
    size: int
    offset: int


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
        ranges = ((as_id, start * _PAGE, (end - start) * _PAGE) for as_id, start, end in runs)
        return _write(mem, path, ranges)
    except BaseException:
        mem.vm._return_dirty_logs(logs)
        raise


def _write(
    mem: GuestMemory, path: str | os.PathLike[str], ranges: Iterable[tuple[int, int, int]]
) -> int:
    segments = []
    data: list[memoryview] = []
    held = _Held()
    for flags, gpa, view, hva in _parts(mem, ranges):
        size = len(view)
        offset = held.find(hva, size)
        if offset is None:
            offset = held.add(hva, size)
            data.append(view)
        segments.append((flags, offset, gpa, size))
    with _replacing(path) as fd:
        _write_all(fd, [memoryview(_headers(segments)), *data])
    return held.size


def _parts(
    mem: GuestMemory, ranges: Iterable[tuple[int, int, int]]
) -> Iterator[tuple[int, int, memoryview, int]]:
    """The ranges slot by slot: p_flags, guest address, the memory, its host address.

    A slot's memory is looked for once for all ranges that are in it: each may be a single page.
    """
    spaces = [mem.address_space(as_id) for as_id in range(mem.vm.address_spaces)]
    faces = [mem.vm.address_space(as_id) for as_id in range(mem.vm.address_spaces)]
    of_space, begin, end = 0, 0, 0  # where `whole` is
    whole, host, flags = memoryview(b""), 0, 0
    for as_id, gpa, size in ranges:
        last = gpa + size
        while gpa < last:
            if as_id != of_space or not begin <= gpa < end:
                slot = faces[as_id].lookup(gpa // _PAGE)
                if slot is None:
                    spaces[as_id].views(gpa, last - gpa)  # says so
                    continue  # one came there meanwhile
                whole = spaces[as_id].views(slot.guest_phys_addr, slot.memory_size)[0]
                of_space, begin = as_id, slot.guest_phys_addr
                end = begin + len(whole)
                host = address_of(whole)
                flags = (5 if whole.readonly else 7) | as_id << _SPACE_SHIFT  # PF_R, PF_W, PF_X
                continue  # others came there meanwhile, unless it holds gpa
            upto = min(last, end)
            yield flags, gpa, whole[gpa - begin : upto - begin], host + gpa - begin
            gpa = upto


class _Held:
    """The host memory that a file holds, and where, counted from its first byte of memory."""

    def __init__(self) -> None:
        self.size = 0
        self._end = 0  # of all of it, in host memory
        self._pieces: list[tuple[int, int, int]] = []  # hva, end, offset

    def find(self, hva: int, size: int) -> int | None:
        """Where it is, if all of it is in one piece."""
        if hva < self._end:
            at = bisect_right(self._pieces, (hva, 1 << 64, 0)) - 1
            if at >= 0:
                begin, end, offset = self._pieces[at]
                if hva + size <= end:
                    return offset + hva - begin
        return None

    def add(self, hva: int, size: int) -> int:
        """Where it is to be: after all others."""
        offset, end = self.size, hva + size
        if hva < self._end:
            insort(self._pieces, (hva, end, offset))
        else:
            self._pieces.append((hva, end, offset))
        if end > self._end:
            self._end = end
        self.size += size
        return offset


def _headers(segments: Sequence[tuple[int, int, int, int]]) -> bytes:
    """All that comes before the memory, which begins at a page.

    A segment: p_flags, where of all memory in the file it is, guest address, size.
    """
    count = len(segments)
    many = count >= _MANY
    after = _EHDR.size + _PHDR.size * count
    begin = -(-(after + _SHDR.size * many) // _PAGE) * _PAGE
    header = _EHDR.pack(
        _IDENT, _CORE, _MACHINES.get(platform.machine(), 0), 1, 0,
        _EHDR.size if count else 0, after if many else 0, 0,
        _EHDR.size, _PHDR.size, min(count, _MANY), _SHDR.size, int(many), 0,
    )  # fmt: skip
    pack = _PHDR.pack
    parts = [header]
    parts += [
        pack(_LOAD, flags, begin + offset, gpa, gpa, size, size, _PAGE)
        for flags, offset, gpa, size in segments
    ]
    if many:
        parts.append(_SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    return b"".join(parts).ljust(begin, b"\0")


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor to write a file with that takes the place of `path` when all is written.

    What is no file (a pipe, a device) is written to as it is.
    """
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    # Through links, so that these stay.
    target = target.resolve()
    # Some of its name: all of it may leave no room for more.
    partial = target.with_name(f".{target.name[:32]}.{secrets.token_hex(4)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(partial, flags, 0o666 if mode is None else 0o600)
    try:
        try:
            if mode is not None:
                # What nobody else could read stays so.
                os.fchmod(fd, stat.S_IMODE(mode))
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
        fd, name = file.fileno(), os.fspath(path)
        segments = _read_segments(fd, name, mem.vm.address_spaces)
        spaces = [mem.address_space(as_id) for as_id in range(mem.vm.address_spaces)]
        # All of it has a place before any of it is written.
        places = [list(_places(spaces[segment.as_id], segment, fd)) for segment in segments]
        for segment, parts in zip(segments, places, strict=True):
            try:
                for view, offset in parts:
                    _read_all(fd, [view], offset, name)
            finally:
                # Also what there is of it, should the rest fail.
                spaces[segment.as_id].mark_dirty(segment.gpa, segment.size)
    return sum(segment.size for segment in segments)


def _places(space: GuestMemory, segment: _Segment, fd: int) -> Iterator[tuple[memoryview, int]]:
    """Where the parts of a segment are to be written, slot by slot, and where they are in the file.

    What cannot be written has none. It must have these bytes: a firmware's file, say.
    """
    gpa, offset = segment.gpa, segment.offset
    for view in space.views(segment.gpa, segment.size):
        try:
            for writable in space._restore_views(gpa, len(view)):
                yield writable, offset
        except ReadOnlyError:
            for at in range(0, len(view), _COMPARED):
                piece = view[at : at + _COMPARED]
                if os.pread(fd, len(piece), offset + at) != piece:
                    raise
        gpa += len(view)
        offset += len(view)


def _read_segments(fd: int, name: str, spaces: int) -> list[_Segment]:
    """The segments of a snapshot. SnapshotError if it is none, or not complete."""
    length = os.fstat(fd).st_size

    def part(offset: int, size: int, what: str) -> bytes:
        if offset + size > length:
            raise SnapshotError(
                f"{name}: cut off: {what} ends at {offset + size}, of {length} bytes"
            )
        got = os.pread(fd, size, offset)
        if len(got) != size:
            raise SnapshotError(f"{name}: it was made shorter while it was read")
        return got

    header = part(0, _EHDR.size, "its header")
    ident, kind, _, _, _, phoff, shoff, _, _, phentsize, count, shentsize, _, _ = _EHDR.unpack(
        header
    )
    if ident[:6] != _IDENT[:6] or kind != _CORE or phentsize != _PHDR.size:
        raise SnapshotError(f"{name}: not a snapshot: a 64-bit little-endian ELF core is one")
    if count == _MANY:
        if not shoff:
            raise SnapshotError(f"{name}: no section says how many segments it has")
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
        if gpa + size > 1 << 64:
            raise SnapshotError(
                f"{name}: {size:#x} bytes from gpa {gpa:#x} go beyond the last guest address"
            )
        if as_id >= spaces:
            raise SnapshotError(
                f"{name}: gpa {gpa:#x} is of address space {as_id}; here are {spaces}"
            )
        segments.append(_Segment(as_id, gpa, size, offset))
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
