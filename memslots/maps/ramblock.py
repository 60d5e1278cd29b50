"""QEMU's `info ramblock`: blocks of guest memory by name, with their host addresses.

A block has no guest address. Beside a map it fills in what the map lacks: host addresses for the
regions that the map names, or names for the slots whose host addresses the map has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from memslots.maps.entries import MEMORY, Entry, Map

_HEX = r"0x([0-9a-f]{1,16})"
_HEAD = re.compile(r"Block Name\s+PSize\s+Offset\s+Used\s+Total")
_HOST = re.compile(r"Total\s+HVA\b")
_BLOCK = re.compile(
    rf"^[>\s]*(?P<name>\S(?:.*\S)?)[ \t]+\d+ (?:[KMGTPE]i)?B\s+{_HEX}\s+{_HEX}\s+{_HEX}"
    r"(?:\s+0x(?P<host>[0-9a-f]{1,16})\s+r[ow]\b)?",
    re.MULTILINE,
)


class _Block(NamedTuple):
    name: str
    size: int
    host: int


class RamBlocks:
    """`info ramblock`: name, page size, ram_addr_t, used and total size; newer: host address."""

    name = "ramblock"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _HEAD.search(text) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Raises ValueError: the blocks alone are no map."""
        found = sum(1 for _ in _BLOCK.finditer(text))
        raise ValueError(
            f"its {found} RAM blocks of QEMU have no guest addresses: name it with --host beside a"
            " map (info mtree -f, info mtree, or a trace), whose entries it completes"
        )

    @staticmethod
    def beside(text: str, map: Map) -> Map:
        """Returns the map with the host addresses, or the names, of its entries' blocks.

        Raises ValueError if the blocks have no host addresses, or an entry exceeds its block.
        """
        blocks = list(_blocks(text))
        return replace(map, entries=tuple(_completed(entry, blocks) for entry in map))


def _blocks(text: str) -> Iterator[_Block]:
    if not _HOST.search(text):
        raise ValueError(
            "its blocks have no host addresses: it has no column HVA, which QEMU prints from"
            " version 8.0 on"
        )
    for match in _BLOCK.finditer(text):
        if match["host"] is not None:
            yield _Block(match["name"], int(match[3], 16), int(match["host"], 16))


def _completed(entry: Entry, blocks: list[_Block]) -> Entry:
    if entry.kind not in MEMORY:
        return entry
    if entry.userspace_addr is not None:
        for block in blocks:
            offset = entry.userspace_addr - block.host
            if offset >= 0 and offset + entry.size <= block.size:
                return entry._replace(name=entry.name or block.name, offset=offset)
        return entry
    named = _named(entry.name, blocks)
    if named is None or entry.offset is None:
        return entry
    if entry.offset + entry.size > named.size:
        raise ValueError(
            f"its block {named.name} has {named.size:#x} bytes, and the map has its bytes up to"
            f" {entry.offset + entry.size:#x}: they are of different machines or moments"
        )
    return entry._replace(userspace_addr=named.host + entry.offset)


def _named(name: str, blocks: list[_Block]) -> _Block | None:
    """Returns the block of a region, or None if no block or several may be its.

    QEMU puts a device's path before the region's name: 0000:00:02.0/vga.vram is of vga.vram.
    """
    found = [block for block in blocks if block.name == name] if name else []
    if name and not found:
        found = [block for block in blocks if block.name.endswith(f"/{name}")]
    return found[0] if len(found) == 1 else None
