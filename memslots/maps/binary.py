"""Maps of memory dumps, from the ranges that memory/dumpfiles.py reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from memslots.maps.entries import Entry, Map, joined
from memslots.memory.dumpfiles import (
    FileRange,
    crashdump_ranges,
    elf_ranges,
    lime_ranges,
    minidump_ranges,
)


def _maps(ranges: Iterable[FileRange], format: str) -> list[Map]:
    """Returns a map for each address space that has memory."""
    spaces: dict[int, list[Entry]] = {}
    for one in ranges:
        entry = Entry(one.gpa, one.size, offset=one.offset if one.in_file else None)
        spaces.setdefault(one.as_id, []).append(entry)
    return [
        Map(joined(entries), as_id=as_id, format=format)
        for as_id, entries in sorted(spaces.items())
    ]


class Lime:
    """LiME: each range follows a header with its first and last address."""

    name = "lime"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Returns whether an input that begins with `head` is in this format."""
        return head[:4] == b"EMiL"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        return _maps(lime_ranges(file), "lime")


class Elf:
    """An ELF core: its PT_LOAD segments at their physical addresses."""

    name = "elf"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Returns whether an input that begins with `head` is in this format."""
        return head[:4] == b"\x7fELF"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        return _maps(elf_ranges(file), "elf")


class CrashDump:
    """A full crash dump of 64-bit Windows."""

    name = "crashdump"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Returns whether an input that begins with `head` is in this format."""
        return head[:8] == b"PAGEDU64"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        return _maps(crashdump_ranges(file), "crashdump")


class Minidump:
    """A minidump: the memory of a process, at the process's virtual addresses. It is refused."""

    name = "minidump"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Returns whether an input that begins with `head` is in this format."""
        return head[:4] == b"MDMP"

    @staticmethod
    def read(file: BinaryIO) -> list[Map]:
        """Raises ValueError: a minidump has no map of guest memory."""
        return _maps(minidump_ranges(file), "minidump")
