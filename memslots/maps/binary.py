"""Maps of memory dumps, from the ranges that memory/dumpfiles.py reads."""

from __future__ import annotations

from typing import BinaryIO

from memslots.maps.entries import Entry, Map, joined
from memslots.memory.dumpfiles import Reader


def maps_of(reader: Reader, file: BinaryIO) -> list[Map]:
    """Returns a map of the dump for each address space that has memory. Raises ValueError."""
    spaces: dict[int, list[Entry]] = {}
    for one in reader.ranges(file):
        entry = Entry(one.gpa, one.size, offset=one.offset if one.in_file else None)
        spaces.setdefault(one.as_id, []).append(entry)
    return [
        Map(joined(entries), as_id=as_id, format=reader.name)
        for as_id, entries in sorted(spaces.items())
    ]
