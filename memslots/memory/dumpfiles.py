"""Finds the guest memory in a dump file: LiME files, ELF cores, Windows crash dumps.

A minidump has none, and is refused. So are dumps whose pages are compressed or in a stream: read as
raw memory they would give wrong bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

_LIME = struct.Struct("<IIQQ8x")
_LIME_MAGIC = 0x4C694D45
_MOST = 1 << 20  # ranges
_PT_LOAD = 1
#: Linux's p_paddr of memory without one physical address (/proc/kcore), in 32 and in 64 bits.
_NO_PADDR = ((1 << 32) - 1, (1 << 64) - 1)
_PN_XNUM = 0xFFFF
_CORE = 4
_SPACE_SHIFT, _SPACE_MASK = 20, 0xFF  # the address space in p_flags, in files of snapshot.py


class FileRange(NamedTuple):
    """Guest memory [gpa, gpa + size), which begins at `offset` in the file."""

    gpa: int
    size: int
    offset: int
    in_file: int
    """The number of bytes that are in the file; the rest is zeros."""
    as_id: int = 0


def lime_ranges(file: BinaryIO) -> list[FileRange]:
    """Returns the ranges of a LiME file. ValueError.

    A header with the first and the last address precedes each range.
    """
    size = file.seek(0, 2)
    found: list[FileRange] = []
    at = 0
    while at < size and len(found) < _MOST:
        file.seek(at)
        head = file.read(_LIME.size)
        if len(head) < _LIME.size:
            raise ValueError(f"it ends within the header at offset {at:#x}")
        magic, version, start, last = _LIME.unpack(head)
        if magic != _LIME_MAGIC or version != 1 or last < start:
            raise ValueError(f"there is no LiME header at offset {at:#x}")
        at += _LIME.size
        length = last - start + 1
        if at + length > size:
            raise ValueError(f"it ends within the range [{start:#x}, {last:#x}]")
        found.append(FileRange(start, length, at, length))
        at += length
    return found


def elf_ranges(file: BinaryIO) -> list[FileRange]:
    """Returns the PT_LOAD segments of an ELF core, by their physical addresses. ValueError.

    The core may be of 32 or 64 bits, in either byte order.
    """
    file.seek(0)
    ident = file.read(64)
    if len(ident) < 52 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise ValueError("it ends within its header, or is of no class of ELF")
    wide, end = ident[4] == 2, "<" if ident[5] == 1 else ">"
    layout = struct.Struct(end + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    if len(ident) < 16 + layout.size:
        raise ValueError("it ends within its header")
    head = layout.unpack_from(ident, 16)
    phoff, shoff, phentsize, phnum = head[4], head[5], head[8], head[9]
    if head[0] != _CORE:
        raise ValueError("it is an ELF file, but not a core")
    if phnum == _PN_XNUM:
        # The first section has the count.
        file.seek(shoff + (44 if wide else 28))
        (phnum,) = struct.unpack(end + "I", file.read(4))
    program = struct.Struct(end + ("IIQQQQQQ" if wide else "IIIIIIII"))
    if (phnum and phentsize < program.size) or phnum > _MOST:
        raise ValueError(f"it cannot have {phnum} program headers of {phentsize} bytes")
    # Looked at first: a read of so many bytes takes the memory for them.
    if phoff + phnum * phentsize > file.seek(0, 2):
        raise ValueError("it ends within its program headers")
    file.seek(phoff)
    table = file.read(phnum * phentsize)
    return list(_segments(table, phentsize, program, wide))


def _segments(table: bytes, step: int, program: struct.Struct, wide: bool) -> Iterator[FileRange]:
    found = []
    for at in range(0, len(table), step):
        fields = program.unpack_from(table, at)
        if fields[0] != _PT_LOAD:
            continue
        if wide:
            _, flags, offset, vaddr, paddr, filesz, memsz, _ = fields
        else:
            _, offset, vaddr, paddr, filesz, memsz, flags, _ = fields
        if memsz and paddr != _NO_PADDR[wide]:
            space = flags >> _SPACE_SHIFT & _SPACE_MASK
            found.append((vaddr, FileRange(paddr, memsz, offset, min(filesz, memsz), space)))
    if len(found) > 1 and not any(one.gpa for _, one in found) and any(v for v, _ in found):
        raise ValueError("it is a process's core: its segments have no physical addresses")
    for _, one in found:
        yield one


def crashdump_ranges(file: BinaryIO) -> list[FileRange]:
    """Returns the runs of pages of a full crash dump of 64-bit Windows. ValueError.

    In the file the runs follow each other from offset 0x2000 on.
    """
    file.seek(0)
    head = file.read(0x2000)
    if len(head) < 0x2000:
        raise ValueError("it ends within its header")
    (kind,) = struct.unpack_from("<I", head, 0xF98)
    if kind != 1:
        raise ValueError(f"it is a crash dump of type {kind}: only type 1, a full one, can be read")
    count, _ = struct.unpack_from("<I4xQ", head, 0x88)
    if count > (0x700 - 0x98) // 16:
        raise ValueError(f"{count} runs do not fit its header")
    found = []
    at = 0x2000
    for i in range(count):
        base, pages = struct.unpack_from("<QQ", head, 0x98 + 16 * i)
        found.append(FileRange(base << 12, pages << 12, at, pages << 12))
        at += pages << 12
    return found


def minidump_ranges(file: BinaryIO) -> list[FileRange]:
    """Raises ValueError with the reason why a minidump is no guest memory."""
    raise ValueError(
        f"it is a minidump of a process ({file.seek(0, 2)} bytes): its memory is at virtual"
        " addresses of the process, and no guest physical addresses are in it"
    )


def _refusal(reason: str) -> Callable[[BinaryIO], list[FileRange]]:
    """Returns a function that raises ValueError with the reason."""

    def ranges(file: BinaryIO) -> list[FileRange]:
        raise ValueError(reason)

    return ranges


class Reader(NamedTuple):
    """A format of dump files."""

    name: str
    magic: bytes
    """The first bytes of each file."""
    ranges: Callable[[BinaryIO], list[FileRange]]
    """Returns the ranges of a file, or raises ValueError."""


_COMPRESSED_PAGES = _refusal(
    "its pages are compressed (kdump): write an ELF core, by dump-guest-memory without -z, -l and"
    " -s, by virsh dump --memory-only --format elf, or by makedumpfile -E"
)
_STREAM = _refusal(
    "it is a saved state of QEMU, whose pages are in a stream: write an ELF core, by"
    " dump-guest-memory or by virsh dump --memory-only"
)
_REFUSING = (
    Reader("minidump", b"MDMP", minidump_ranges),
    Reader("kdump", b"KDUMP   ", _COMPRESSED_PAGES),
    Reader("kdump", b"makedumpfile", _COMPRESSED_PAGES),
    Reader("avml", b"AVML", _refusal("its pages are compressed by AVML: use avml-convert first")),
    Reader("stream", b"QEVM", _STREAM),
    Reader("stream", b"LibvirtQemudSave", _STREAM),
    Reader(
        "crashdump-32",
        b"PAGEDUMP",
        _refusal("it is a crash dump of 32-bit Windows: only those of 64-bit Windows can be read"),
    ),
)
READERS = (
    Reader("lime", b"EMiL", lime_ranges),
    Reader("elf", b"\x7fELF", elf_ranges),
    Reader("crashdump", b"PAGEDU64", crashdump_ranges),
    *_REFUSING,
)
#: The names of those whose files are recognised to be refused with a reason.
REFUSED = frozenset(one.name for one in _REFUSING)
