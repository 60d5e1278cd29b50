"""Slots as text: the table that a MemoryMap prints as, and the `memslots` command its maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memslots.values.records import Flags, Slot, size_text

COLUMNS = ("space", "id", "gpa", "end", "size", "hva", "flags")


def flag_names(flags: int) -> str:
    """`LOG_DIRTY_PAGES|READONLY`; `-` for none."""
    return "|".join(flag.name for flag in Flags if flag & flags and flag.name) or "-"


def cells(slot: Slot) -> tuple[str, ...]:
    """What stands in each column."""
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
    """Rows of cells as lines, in columns; all but the last stand on the right of theirs."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*(c.rjust(w) for c, w in zip(row, widths[:-1], strict=False)), row[-1]])
        for row in rows
    ]


def slot_lines(slots: Iterable[Slot]) -> list[str]:
    """The lines of a table of slots: the names of the columns, then a slot each."""
    return lines([COLUMNS, *map(cells, slots)])
