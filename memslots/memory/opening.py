"""Opens a dump file as guest memory, without reading what can be mapped: GuestMemory.open."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from memslots.errors import no_snapshot
from memslots.memory.backing import Backing, open_regular
from memslots.memory.dumpfiles import READERS, FileRange
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory
    from memslots.memslots import Memslots

_MOST_PAGES = (1 << 31) - 1  # pages of a slot: rule 4
_MOST_MEMORY = 1 << 56  # bytes of user space with five levels of page tables
_MAX_HVA = (1 << 64) - PAGE_SIZE
_LAST_PAGE = (1 << 64) - PAGE_SIZE  # the guest address of the one that no slot has: rule 2


def open_memory(
    path: str | os.PathLike[str],
    shared: bool,
    memory: type[GuestMemory],
    memslots: type[Memslots],
) -> GuestMemory:
    """Implements GuestMemory.open."""
    name = os.fspath(path)
    with open(Path(path), "rb", opener=open_regular) as file:
        ranges = _ranges(name, file)
        size = os.fstat(file.fileno()).st_size
        for one in ranges:
            _check(name, one, size)
        total = sum(one.size for one in ranges)
        if total > _MOST_MEMORY:
            raise no_snapshot(f"{name}: {total:#x} bytes of memory are more than any host has")
        parts = [part for one in ranges for part in _parts(one)]
        spaces = max(one.as_id for one in ranges) + 1
        try:
            vm = memslots(
                max(len(parts), 1),
                address_spaces=spaces,
                max_gfn=(1 << 52) - 1,
                max_hva=_MAX_HVA,
            )
        except ValueError as wrong:
            raise no_snapshot(f"{name}: {wrong}") from None
        made = memory(vm)
        whole = size & -PAGE_SIZE
        mapped = Backing.file(path, 0, whole, shared=shared) if whole else None
        if mapped is not None and not os.path.sameopenfile(mapped.fileno(), file.fileno()):
            raise no_snapshot(f"{name}: it was replaced while it was opened")
        ids = [0] * spaces
        for part in parts:
            there = made.address_space(part.as_id)
            id = ids[part.as_id]
            ids[part.as_id] += 1
            if part.in_file and not part.offset % PAGE_SIZE and part.in_file == part.size:
                assert mapped is not None
                there.place(id, part.gpa, mapped, part.offset, part.size)
                continue
            if shared and part.in_file:
                raise no_snapshot(
                    f"{name}: [{part.gpa:#x}, {part.gpa + part.size:#x}) is not at a whole page of"
                    " the file, so shared=True cannot map it"
                )
            there.place(id, part.gpa, Backing.anonymous(part.size))
            if part.in_file:
                _copy(name, file, there, part)
        return made


#: The first bytes of files that are compressed as a whole.
_COMPRESSED = {
    "gzip": b"\x1f\x8b\x08",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "zstd": b"\x28\xb5\x2f\xfd",
    "zip": b"PK\x03\x04",
}


def _ranges(name: str, file: BinaryIO) -> list[FileRange]:
    head = file.read(16)
    for program, magic in _COMPRESSED.items():
        if head.startswith(magic):
            raise no_snapshot(f"{name}: it is compressed with {program}: decompress it first")
    for reader in READERS:
        if head.startswith(reader.magic):
            try:
                found = reader.ranges(file)
            except (ValueError, OverflowError, struct.error) as error:
                raise no_snapshot(f"{name}: {error}") from None
            if not found:
                raise no_snapshot(f"{name}: it holds no memory")
            return found
    size = file.seek(0, 2)
    if size == 0:
        raise no_snapshot(f"{name}: it is empty")
    return [FileRange(0, size, 0, size)]  # raw: a file offset is a guest address


def _check(name: str, one: FileRange, size: int) -> None:
    """Raises SnapshotError if a range cannot be guest memory, or is not all in the file."""
    if one.gpa % PAGE_SIZE:
        raise no_snapshot(f"{name}: memory begins at {one.gpa:#x}, which is not a multiple of 4096")
    if one.gpa + one.size > _LAST_PAGE:
        raise no_snapshot(
            f"{name}: {one.size:#x} bytes from gpa {one.gpa:#x} go beyond the last page that a slot"
            " may have"
        )
    if one.offset + one.in_file > size:
        raise no_snapshot(f"{name}: cut off: it ends within the memory at {one.gpa:#x}")


def _parts(one: FileRange) -> list[FileRange]:
    """Splits a range into parts of whole pages, one slot each.

    First the part that can be mapped, then the part that must be copied or is zeros.
    """
    end = -(-one.size // PAGE_SIZE) * PAGE_SIZE
    mapped = 0 if one.offset % PAGE_SIZE else one.in_file // PAGE_SIZE * PAGE_SIZE
    parts = []
    most = _MOST_PAGES << PAGE_SHIFT
    for at in range(0, mapped, most):
        size = min(most, mapped - at)
        parts.append(FileRange(one.gpa + at, size, one.offset + at, size, one.as_id))
    for at in range(mapped, end, most):
        size = min(most, end - at)
        in_file = max(0, min(one.in_file - at, size))
        parts.append(FileRange(one.gpa + at, size, one.offset + at, in_file, one.as_id))
    return parts


def _copy(name: str, file: BinaryIO, memory: GuestMemory, part: FileRange) -> None:
    left = memory.view(part.gpa, part.in_file)
    file.seek(part.offset)
    while len(left):
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise no_snapshot(f"{name}: cut off: it ends within the memory at {part.gpa:#x}")
        left = left[count:]
