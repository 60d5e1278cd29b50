"""Formats with one entry on each line: e820, /proc/iomem, LeechCore's memory map, CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from memslots.maps.entries import KINDS, Entry, Map, cut_off, joined

#: A line of an e820 map in the log of Linux since 3.5 (`[mem A-B] usable`) or before
#: (`A - B (usable)`), of Xen (`[A, B] (usable)`), or of SeaBIOS (`A - B = 1 RAM`).
_E820 = re.compile(
    r"(?:\b(?P<source>BIOS-\w+|e820|Xen|user|modified|setup_data):\s*)?"
    r"(?<![\w.:-])(?:\[(?:mem\s+)?)?(?:0x)?(?P<start>[0-9a-f]{4,16})(?:\s*-\s*|,\s+)"
    r"(?:0x)?(?P<end>[0-9a-f]{4,16})(?P<closed>\])?\s+(?:\d+(?:\.\d+)?\s+[KMGTPE]?B\s+)?"
    r"(?P<mark>\(|= \d+ )?(?!available)(?P<type>[A-Za-z][\w .-]*)",
    re.IGNORECASE,
)
#: The maps that Linux makes of the one that it got.
_E820_MADE = ("user", "modified", "setup_data")
#: The beginning of a line of the machine's map.
_E820_BEGINS = re.compile(r"\bBIOS-e820:\s*(?:\[mem\b|[0-9a-f]{16}\b)[^\n]*", re.IGNORECASE)
_IOMEM = re.compile(
    r"(?<![ \t])(?P<indent>[ \t]*)(?<![0-9a-fx-])"
    r"(?P<start>[0-9a-f]{8,16})-(?P<end>[0-9a-f]{8,16}) : (?P<name>[^\r\n]*)"
)
#: A last line without its name.
_IOMEM_CUT = re.compile(r"^[ \t]*[0-9a-f]{8,16}-[0-9a-f]{0,16}(?: :?)?\Z", re.MULTILINE)
_LEECH_HEAD = re.compile(r"#\s+Base\s+Top\s*$", re.MULTILINE)
_LEECH = re.compile(
    r"^\W*[0-9a-f]{4,}\s+([0-9a-f]{1,16})\s+-\s+([0-9a-f]{1,16})(?:\s+->\s+([0-9a-f]{1,16}))?\s*$",
    re.MULTILINE,
)
_LONGEST_HEAD = 1 << 12  # longest line of column names
CSV_FIELDS = ("start", "size", "kind", "name", "offset", "userspace_addr", "id", "flags", "backing")


class E820:
    """The e820 map in a log of Linux, Xen or SeaBIOS."""

    name = "e820"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return next(_e820_lines(text), None) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns a map for each boot in the log. An address that is not higher begins a boot.

        The machine's map counts. If the log has only maps that Linux made of it, these count.
        """
        lines = list(_e820_lines(text))
        _check_whole(text)
        given = [entry for source, entry in lines if source not in _E820_MADE]
        maps: list[list[Entry]] = []
        last = 1 << 64
        for entry in given or [entry for _, entry in lines]:
            if entry.start <= last:
                maps.append([])
            last = entry.start
            maps[-1].append(entry)
        return [Map(joined(entries), format="e820") for entries in maps]


def _e820_lines(text: str) -> Iterator[tuple[str, Entry]]:
    """Yields the source and the entry of each line."""
    for match in _E820.finditer(text):
        source, type = (match["source"] or "").lower(), match["type"].strip()
        kind = _e820_kind(type)
        known = kind != "other" or type == "unusable"
        if not source and (match["mark"] is None or not known):
            continue  # two numbers of something else
        start, end = int(match["start"], 16), int(match["end"], 16)
        if match["closed"] or end & 1:
            end += 1  # the last address of the range, not the first after it
        yield source, Entry(start, end - start, kind, type)


def _check_whole(text: str) -> None:
    """Raises ValueError if a line of the machine's map is cut off."""
    for begins in _E820_BEGINS.finditer(text):
        whole = _E820.match(text, begins.start())
        type = whole["type"].strip().lower() if whole else ""
        if type != "usable" and "usable".startswith(type):
            raise cut_off(begins[0])


def _e820_kind(type: str) -> str:
    words = type.lower().split()
    if "reserved" in words:
        return "reserved"
    if "acpi" in words or "nvs" in words:
        return "acpi"
    return "ram" if "usable" in words or "ram" in words else "other"


class Iomem:
    """/proc/iomem; ends are inclusive.

    Lines without indentation are entries. So is RAM below a line that is no RAM: the kernel shows
    memory that a driver added (virtio-mem, CXL) below the driver's device.
    """

    name = "iomem"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _IOMEM.search(text) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns a map for each file in the text. A lower address than before begins a file.

        Raises ValueError or InvalidRegionError if the text holds no map.
        """
        lines = list(_IOMEM.finditer(text))
        left = min(len(line["indent"]) for line in lines)
        if not any(int(line["end"], 16) for line in lines):
            raise ValueError("its addresses are all 0: only root can read those of /proc/iomem")
        cut = _IOMEM_CUT.search(text.rstrip())
        if cut is not None:
            raise cut_off(cut[0])
        maps: list[list[Entry]] = [[]]
        for line in lines:
            start, name = int(line["start"], 16), line["name"].strip()
            size = int(line["end"], 16) + 1 - start
            if name != "System RAM" and "System RAM".startswith(name):
                raise cut_off(line[0])
            entry = Entry(start, size, _iomem_kind(name), name)
            entries = maps[-1]
            if not entries or (start >= entries[-1].end and entry.kind == "ram"):
                entries.append(entry)  # perhaps without the line that it is below
            elif len(line["indent"]) > left:
                if entry.kind == "ram" and entries[-1].kind != "ram":
                    entries[-1:] = _around(entries[-1], entry)
            elif start < entries[-1].start:
                maps.append([entry])
            else:
                entries.append(entry)
        return [Map(joined(entries), format="iomem") for entries in maps]


def _around(outer: Entry, inner: Entry) -> list[Entry]:
    """Returns `inner` and the parts of `outer` around it; the part behind `inner` is last."""
    before = outer._replace(size=inner.start - outer.start)
    behind = outer._replace(start=inner.end, size=outer.end - inner.end)
    return [one for one in (before, inner, behind) if one.size > 0]


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
    """A table as this package writes it. Columns may be in any order, and most are optional.

    Commas, semicolons or tabs separate the columns.
    """

    name = "csv"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        head = text.lstrip("\ufeff \r\n")[:_LONGEST_HEAD].splitlines()[:1]
        columns = _csv_rows(head or [""]).fieldnames or ()
        return "start" in columns and ("size" in columns or "end" in columns)

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        rows = _csv_rows(text.lstrip("\ufeff \r\n").splitlines())
        try:
            return [Map(joined(_rows(rows)), format="csv")]
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from None


def _csv_rows(lines: list[str]) -> csv.DictReader[str]:
    head = lines[0].lower()
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    return csv.DictReader([head, *lines[1:]], skipinitialspace=True, delimiter=delimiter)


def _rows(rows: csv.DictReader[str]) -> Iterator[Entry]:
    for row in rows:
        start, size, end = (_number(row, column) for column in ("start", "size", "end"))
        if start is None or (size is None and end is None):
            raise ValueError(f"line {rows.line_num} has no start, or neither size nor end")
        kind = row.get("kind") or "ram"
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}")
        yield Entry(
            start,
            (end or 0) - start if size is None else size,
            kind,
            row.get("name") or "",
            _number(row, "offset"),
            _number(row, "userspace_addr"),
            _number(row, "id"),
            _number(row, "flags") or 0,
            row.get("backing") or "",
        )


def _number(row: dict[str, str], column: str) -> int | None:
    try:
        return int(row[column], 0) if row.get(column) else None
    except ValueError:
        raise ValueError(f"its {column} is no number: {row[column]!r}") from None
