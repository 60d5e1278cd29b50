"""Files of memory: LiME's, ELF cores, crash dumps of Windows. Only what says where what is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from memslots.maps.entries import Entry, Map, joined

_LIME = struct.Struct("<IIQQ8x")
_LIME_MAGIC = 0x4C694D45
_MOST = 1 << 20  # ranges
_PT_LOAD = 1
_PN_XNUM = 0xFFFF
_PT_NOTE = 4


class Lime:
    """LiME: before each range a header with its first and last address."""

    name = "lime"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Whether an input that begins so is one."""
        return head[:4] == b"EMiL"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Its maps. ValueError, InvalidRegionError: it holds none."""
        size = file.seek(0, 2)
        entries: list[Entry] = []
        at = 0
        while at < size and len(entries) < _MOST:
            file.seek(at)
            head = file.read(_LIME.size)
            if len(head) < _LIME.size:
                raise ValueError(f"it ends within the header at offset {at:#x}")
            magic, version, start, last = _LIME.unpack(head)
            if magic != _LIME_MAGIC or version != 1 or last < start:
                raise ValueError(f"there is no header of LiME's at offset {at:#x}")
            at += _LIME.size
            if at + last - start + 1 > size:
                raise ValueError(f"it ends within the range [{start:#x}, {last:#x}]")
            entries.append(Entry(start, last - start + 1, offset=at))
            at += last - start + 1
        return [Map(joined(entries), format="lime")]


class Elf:
    """An ELF core: its PT_LOAD segments at their physical addresses. 32 and 64 bits, either end."""

    name = "elf"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Whether an input that begins so is one."""
        return head[:4] == b"\x7fELF"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Its maps. ValueError, InvalidRegionError: it holds none."""
        file.seek(0)
        ident = file.read(64)
        if len(ident) < 52 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ValueError("it ends within its header, or is of no class of ELF")
        wide, end = ident[4] == 2, "<" if ident[5] == 1 else ">"
        layout = struct.Struct(end + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
        head = layout.unpack_from(ident, 16)
        phoff, shoff, phentsize, phnum = head[4], head[5], head[8], head[9]
        if head[0] != 4:
            raise ValueError("it is no core but another kind of ELF file")
        if phnum == _PN_XNUM:
            file.seek(shoff + (44 if wide else 28))
            phnum = struct.unpack(end + "I", file.read(4))[0]
        program = struct.Struct(end + ("IIQQQQQQ" if wide else "IIIIIIII"))
        if phentsize < program.size or phnum > _MOST:
            raise ValueError(f"{phnum} program headers of {phentsize} bytes")
        file.seek(phoff)
        table = file.read(phnum * phentsize)
        if len(table) < phnum * phentsize:
            raise ValueError("it ends within its program headers")
        return [Map(joined(_segments(table, phentsize, program, wide)), format="elf")]


def _segments(table: bytes, step: int, program: struct.Struct, wide: bool) -> Iterator[Entry]:
    found = []
    for at in range(0, len(table), step):
        fields = program.unpack_from(table, at)
        if fields[0] != _PT_LOAD:
            continue
        offset, vaddr, paddr, memsz = (
            (fields[2], fields[3], fields[4], fields[6])
            if wide
            else (fields[1], fields[2], fields[3], fields[5])
        )
        if memsz:
            found.append((paddr, memsz, offset, vaddr))
    if len(found) > 1 and not any(paddr for paddr, *_ in found) and any(v for *_, v in found):
        raise ValueError("it is a process's core: its segments have no physical addresses")
    for paddr, memsz, offset, _ in found:
        yield Entry(paddr, memsz, offset=offset)


class CrashDump:
    """A full crash dump of 64-bit Windows: runs of pages, one after the other from 0x2000 on."""

    name = "crashdump"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Whether an input that begins so is one."""
        return head[:8] == b"PAGEDU64"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Its maps. ValueError, InvalidRegionError: it holds none."""
        file.seek(0)
        head = file.read(0x2000)
        if len(head) < 0x2000:
            raise ValueError("it ends within its header")
        (kind,) = struct.unpack_from("<I", head, 0xF98)
        if kind != 1:
            raise ValueError(f"it is a crash dump of type {kind}: only full ones (1) say it so")
        count, _ = struct.unpack_from("<I4xQ", head, 0x88)
        if count > (0x700 - 0x98) // 16:
            raise ValueError(f"{count} runs do not fit its header")
        entries = []
        at = 0x2000
        for i in range(count):
            base, pages = struct.unpack_from("<QQ", head, 0x98 + 16 * i)
            entries.append(Entry(base << 12, pages << 12, offset=at))
            at += pages << 12
        return [Map(joined(entries), format="crashdump")]
