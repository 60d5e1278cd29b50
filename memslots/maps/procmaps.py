"""/proc/PID/maps and /proc/PID/smaps of a VMM: what is mapped at each of its addresses.

Beside a map they tell what is behind the host address of each slot.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from memslots.maps.entries import MEMORY, Entry, Map

_LINE = re.compile(
    r"(?<![0-9a-fx])([0-9a-f]{8,16})-([0-9a-f]{8,16}) [r-][w-][x-]([sp]) ([0-9a-f]{8,16})"
    r" [0-9a-f]{2,}:[0-9a-f]{2,} \d+(?:[ \t]+([^\s][^\r\n]*))?[ \t\r]*$",
    re.MULTILINE,
)
_MEMFD = re.compile(r"/(memfd:.*) \(deleted\)")
_ZERO = "/dev/zero (deleted)"  # what the kernel calls shared anonymous memory
_NOT_MAPPED = "not mapped"
_MOST = 3  # mappings of one slot that are named


class _Mapping(NamedTuple):
    start: int
    end: int
    what: str
    offset: int | None  # None: it is of no file


class ProcMaps:
    """/proc/PID/maps: addresses (the end is exclusive), access, offset, device, inode, path."""

    name = "proc-maps"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _LINE.search(text) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Raises ValueError: a process's mappings are no map of guest memory."""
        raise ValueError(
            f"its {len(_mappings(text))} mappings of a process have no guest addresses: name it"
            " with --host beside a map that has host addresses (a trace, or a VMM's log)"
        )

    @staticmethod
    def beside(text: str, map: Map) -> Map:
        """Returns the map with what backs the host address of each entry.

        If none of its host addresses is mapped, the map is of another process and stays as it is.
        Raises ValueError if no entry has a host address.
        """
        mappings = _mappings(text)
        if not any(entry.userspace_addr is not None for entry in map if entry.kind in MEMORY):
            raise ValueError("it is about host addresses, and the map's entries have none")
        found = tuple(_backed(entry, mappings) for entry in map)
        there = any(entry.backing not in ("", _NOT_MAPPED) for entry in found)
        return replace(map, entries=found) if there else map


def _mappings(text: str) -> list[_Mapping]:
    """Returns the mappings in order. Neighbours that go on in the same file are one mapping."""
    found: list[_Mapping] = []
    for start, end, access, offset, path in sorted(
        (int(match[1], 16), int(match[2], 16), match[3], int(match[4], 16), match[5] or "")
        for match in _LINE.finditer(text)
    ):
        one = _Mapping(start, end, *_what(path.rstrip(), access == "s", offset))
        last = found[-1] if found else None
        if (
            last is not None
            and (last.end, last.what) == (one.start, one.what)
            and (last.offset is None or last.offset + last.end - last.start == one.offset)
        ):
            found[-1] = last._replace(end=one.end)
        elif last is None or last.end <= one.start:
            found.append(one)
    return found


def _what(path: str, shared: bool, offset: int) -> tuple[str, int | None]:
    """Returns what is mapped, and the offset in the file if it is one."""
    if path == _ZERO:
        return "anonymous, shared", None
    if not path:
        return "anonymous", None
    if path.startswith("["):
        return path, None
    memfd = _MEMFD.fullmatch(path)
    return (memfd[1] if memfd else path) + ("" if shared else ", private"), offset


def _backed(entry: Entry, mappings: list[_Mapping]) -> Entry:
    if entry.userspace_addr is None or entry.kind not in MEMORY:
        return entry
    host, end = entry.userspace_addr, entry.userspace_addr + entry.size
    parts = list(_parts(host, end, mappings))
    first = parts[0]
    if len(parts) > 1 or first is None or first.offset is None:
        names = list(dict.fromkeys(_NOT_MAPPED if one is None else one.what for one in parts))
        more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
        return entry._replace(backing="; ".join(names[:_MOST] + more))
    return entry._replace(backing=first.what, offset=first.offset + host - first.start)


def _parts(start: int, end: int, mappings: list[_Mapping]) -> Iterator[_Mapping | None]:
    """Yields the mappings that overlap [start, end), and None for each gap between them."""
    i = max(0, bisect_right(mappings, start, key=lambda one: one.start) - 1)
    at = start
    for one in mappings[i:]:
        if one.start >= end:
            break
        if one.end <= at:
            continue
        if one.start > at:
            yield None
        yield one
        at = one.end
    if at < end:
        yield None
