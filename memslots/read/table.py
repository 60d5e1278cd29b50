"""Slots as text: the table that a MemoryMap and the `memslots` command print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memslots.values.records import Flags, Slot, size_text

COLUMNS = ("space", "id", "gpa", "end", "size", "hva", "flags")


def flag_names(flags: int) -> str:
    """Returns the names of flags, as `LOG_DIRTY_PAGES|READONLY`; `-` for none."""
    return "|".join(flag.name for flag in Flags if flag & flags and flag.name) or "-"


def cells(slot: Slot) -> tuple[str, ...]:
    """Returns the text of a slot for each column."""
    return (
        str(slot.as_id),
        str(slot.id),
        hex(slot.guest_phys_addr),
        hex(slot.guest_phys_addr + slot.memory_size),
        size_text(slot.memory_size),
        hex(slot.userspace_addr),
        flag_names(slot.flags),
    )


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines in columns; all columns but the last are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*(c.rjust(w) for c, w in zip(row, widths[:-1], strict=False)), row[-1]])
        for row in rows
    ]


def slot_lines(slots: Iterable[Slot]) -> list[str]:
    """Returns the lines of a table of slots: the names of the columns, then a slot on each line."""
    return lines([COLUMNS, *map(cells, slots)])
