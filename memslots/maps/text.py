"""Formats with one entry on each line: e820, /proc/iomem, LeechCore's memory map, CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from memslots.maps.entries import Entry, Map, joined

_E820 = re.compile(
    r"(?:BIOS-e820|e820|BIOS-provided): ?(?:update )?\[?(?:mem )?(0x)?([0-9a-f]{1,16})"
    r"\s?-\s?(?:0x)?([0-9a-f]{1,16})\]?"
    r"\s+\(?([A-Za-z][\w .-]*)",
    re.IGNORECASE,
)
_E820_KINDS = {
    "usable": "ram",
    "ram": "ram",
    "reserved": "reserved",
    "acpi data": "acpi",
    "acpi nvs": "acpi",
    "acpi": "acpi",
}
_IOMEM = re.compile(r"(?<![0-9a-fx-])([0-9a-f]{8,16})-([0-9a-f]{8,16}) : ([^\r\n]*)")
_LEECH_HEAD = re.compile(r"#\s+Base\s+Top\s*$", re.MULTILINE)
_LEECH = re.compile(
    r"^\W*[0-9a-f]{4,}\s+([0-9a-f]{1,16})\s+-\s+([0-9a-f]{1,16})(?:\s+->\s+([0-9a-f]{1,16}))?\s*$",
    re.MULTILINE,
)
CSV_FIELDS = ("start", "size", "kind", "name", "offset", "userspace_addr", "id", "flags", "backing")


class E820:
    """The e820 map that a guest's kernel logs; ends are inclusive."""

    name = "e820"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _E820.search(text) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns a map for each boot in the log. A lower address than before begins a boot."""
        maps: list[list[Entry]] = []
        last = 1 << 64
        for match in _E820.finditer(text):
            start, end, kind = int(match[2], 16), int(match[3], 16) + 1, match[4].strip().lower()
            if start < last:
                maps.append([])
            last = start
            name = next((known for known in _E820_KINDS if kind.startswith(known)), "")
            entry = Entry(start, end - start, _E820_KINDS.get(name, "other"), match[4].strip())
            maps[-1].append(entry)
        return [Map(joined(entries), format="e820") for entries in maps]


class Iomem:
    """/proc/iomem. Only lines without indentation are entries; ends are inclusive."""

    name = "iomem"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _IOMEM.search(text) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        entries = []
        lines = [line for line in text.splitlines() if _IOMEM.search(line)]
        columns = [match.start() for line in lines if (match := _IOMEM.search(line))]
        left = min(columns)
        for line, column in zip(lines, columns, strict=True):
            match = _IOMEM.search(line)
            if match is None or column != left:
                continue
            start, end, name = int(match[1], 16), int(match[2], 16) + 1, match[3].strip()
            entries.append(Entry(start, end - start, _iomem_kind(name), name))
        if not any(entry.start for entry in entries):
            raise ValueError("its addresses are all 0: only root can read those of /proc/iomem")
        return [Map(joined(entries), format="iomem")]


def _iomem_kind(name: str) -> str:
    lower = name.lower()
    if lower.startswith("system ram"):
        return "ram"
    if "reserved" in lower:
        return "reserved"
    if lower.startswith("acpi"):
        return "acpi"
    return "mmio"


class Memmap:
    """LeechCore's (MemProcFS's) map: number, base, inclusive top, and offset in the file."""

    name = "memmap"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _LEECH_HEAD.search(text) is not None or (
            _LEECH.search(text) is not None and not text.lstrip().startswith("{")
        )

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        entries = []
        for match in _LEECH.finditer(text):
            start, end = int(match[1], 16), int(match[2], 16) + 1
            offset = int(match[3], 16) if match[3] else start
            entries.append(Entry(start, end - start, offset=offset))
        return [Map(joined(entries), format="memmap")]


class Csv:
    """A table as this package writes it. Columns may be in any order, and most are optional."""

    name = "csv"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        head = text.lstrip("\ufeff \r\n").split("\n", 1)[0]
        columns = [column.strip() for column in head.split(",")]
        return "start" in columns and ("size" in columns or "end" in columns)

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        lines = text.lstrip("\ufeff \r\n").splitlines()
        rows = csv.DictReader(lines, skipinitialspace=True)
        return [Map(joined(_rows(rows)), format="csv")]


def _rows(rows: csv.DictReader[str]) -> Iterator[Entry]:
    for row in rows:
        start = int(row["start"], 0)
        size = int(row["size"], 0) if row.get("size") else int(row["end"], 0) - start
        offset, host, id = (
            int(row[name], 0) if row.get(name) else None
            for name in ("offset", "userspace_addr", "id")
        )
        flags = int(row["flags"], 0) if row.get("flags") else 0
        kind = row.get("kind") or "ram"
        name, backing = row.get("name") or "", row.get("backing") or ""
        yield Entry(start, size, kind, name, offset, host, id, flags, backing)
