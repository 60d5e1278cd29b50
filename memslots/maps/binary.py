"""Maps of memory dumps, from the ranges that memory/dumpfiles.py reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from memslots.maps.entries import Entry, Map, joined
from memslots.memory.dumpfiles import Reader


def _outermost(entries: list[Entry]) -> Iterator[Entry]:
    """Yields the entries that are in no other one.

    The core of a crashed Linux has its kernel's text twice: alone, and in the RAM around it.
    """
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, -entry.size)):
        if entry.end > end:
            yield entry
            end = entry.end


def maps_of(reader: Reader, file: BinaryIO) -> list[Map]:
    """Returns a map of the dump for each address space that has memory. Raises ValueError."""
    spaces: dict[int, list[Entry]] = {}
    for one in reader.ranges(file):
        entry = Entry(one.gpa, one.size, offset=one.offset if one.in_file else None)
        spaces.setdefault(one.as_id, []).append(entry)
    if reader.name == "elf":
        spaces = {as_id: list(_outermost(entries)) for as_id, entries in spaces.items()}
    return [
        Map(joined(entries), as_id=as_id, format=reader.name)
        for as_id, entries in sorted(spaces.items())
    ]
