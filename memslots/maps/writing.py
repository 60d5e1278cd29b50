"""Writing maps in the formats that other programs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from memslots.maps.documents import document
from memslots.maps.entries import Entry, Map, machines
from memslots.maps.text import CSV_FIELDS
from memslots.read.table import flag_names
from memslots.values.records import size_text

_E820 = {"ram": "usable", "acpi": "ACPI data"}
#: The columns of a table of entries.
HEADS = (
    *("as", "start", "end", "size", "kind", "hva", "offset", "id", "flags", "name", "backing"),
)
_MTREE = {"ram": "ram", "rom": "rom", "romd": "romd", "mmio": "i/o"}


def _text(maps: Sequence[Map]) -> str:
    tables = [_table(each) for each in machines(maps)]
    if len(tables) == 1:
        return tables[0]
    return "\n".join(f"map {number}\n{table}" for number, table in enumerate(tables, 1))


def _table(maps: Sequence[Map]) -> str:
    rows: list[tuple[str, ...]] = [HEADS]
    rows += [cells(found.as_id, entry) for found in maps for entry in found]
    if not any(entry.backing for found in maps for entry in found):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )


def cells(as_id: int, entry: Entry) -> tuple[str, ...]:
    """Returns the text of an entry for each column."""

    def or_dash(value: int | None) -> str:
        return "-" if value is None else hex(value)

    return (
        str(as_id),
        hex(entry.start),
        hex(entry.end),
        size_text(entry.size),
        entry.kind,
        or_dash(entry.userspace_addr),
        or_dash(entry.offset),
        "-" if entry.id is None else str(entry.id),
        flag_names(entry.flags),
        entry.name or "-",
        entry.backing or "-",
    )


def _json(maps: Sequence[Map]) -> str:
    vms = [
        {"final_map": [document(entry, found.as_id) for found in each for entry in found]}
        for each in machines(maps)
    ]
    return json.dumps({"files": [{"vms": vms}]}, indent=1) + "\n"


def _e820(maps: Sequence[Map]) -> str:
    return "".join(
        f"BIOS-e820: [mem {entry.start:#018x}-{entry.end - 1:#018x}]"
        f" {_E820.get(entry.kind, 'reserved')}\n"
        for entry in maps[0]
    )


def _iomem(maps: Sequence[Map]) -> str:
    width = 16 if any(entry.end > 1 << 32 for entry in maps[0]) else 8
    return "".join(
        f"{entry.start:0{width}x}-{entry.end - 1:0{width}x} :"
        f" {'System RAM' if entry.kind == 'ram' else entry.name or entry.kind}\n"
        for entry in maps[0]
    )


def _memmap(maps: Sequence[Map]) -> str:
    lines = ["   #         Base            Top\n", "-" * 32 + "\n"]
    for number, entry in enumerate(entry for entry in maps[0] if entry.kind == "ram"):
        place = entry.offset
        remapped = "" if place in (None, entry.start) else f" -> {place:x}"
        lines.append(f"{number:04d} {entry.start:12x} - {entry.end - 1:12x}{remapped}\n")
    return "".join(lines)


def _mtree(maps: Sequence[Map]) -> str:
    lines = []
    for number, found in enumerate(maps):
        space = "cpu-smm-0" if found.as_id else "memory"
        lines += [f"FlatView #{number}\n", f' AS "{space}", root: system\n']
        lines.append(" Root memory region: system\n")
        for entry in found:
            kind = _MTREE.get(entry.kind, "i/o")
            place = f" @{entry.offset:016x}" if entry.offset else ""
            kvm = "" if kind == "i/o" else " KVM"
            lines.append(
                f"  {entry.start:016x}-{entry.end - 1:016x} (prio 0, {kind}):"
                f" {entry.name or entry.kind}{place}{kvm}\n"
            )
    return "".join(lines)


def _csv(maps: Sequence[Map]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for entry in maps[0]:
        row = []
        for name in CSV_FIELDS:
            value = getattr(entry, name)
            is_address = name in ("start", "size", "offset", "userspace_addr")
            row.append("" if value is None else hex(value) if is_address else value)
        writer.writerow(row)
    return out.getvalue()


#: The writer of each format. A format that holds only one map gets the first.
WRITERS: dict[str, Callable[[Sequence[Map]], str]] = {
    "text": _text,
    "json": _json,
    "e820": _e820,
    "iomem": _iomem,
    "memmap": _memmap,
    "mtree": _mtree,
    "csv": _csv,
}


def write(maps: Sequence[Map] | Map, format: str) -> str:
    """Returns the text of maps in a format.

    Parameters
    ----------
    maps : Map, or a sequence of Map
        Formats other than text, json and mtree get only the first map.
    format : str
        A name of memslots.maps.WRITERS.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        There is no such format, or `maps` is empty.
    """
    if format not in WRITERS:
        raise ValueError(f"format must be one of {', '.join(WRITERS)}, not {format!r}")
    given = [maps] if isinstance(maps, Map) else list(maps)
    if not given:
        raise ValueError("there is no map to write")
    return WRITERS[format](given)
