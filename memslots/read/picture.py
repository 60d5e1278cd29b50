"""A MemoryMap as an SVG picture: its slots from address 0 up, holes folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from memslots.read.table import flag_names
from memslots.values.integers import PAGE_SHIFT
from memslots.values.records import Flags, Slot, size_text

#: At most this many slots are drawn: nobody could read more.
MOST_DRAWN = 256
_ROW = 22  # a slot's height
_FOLD = 18  # a hole's height
_TOP = 26
_LEFT, _BOX, _STEP, _HVA = 150, 220, 14, 130
_COLOURS = {
    Flags(0): "#b7d4ea",
    Flags.LOG_DIRTY_PAGES: "#f6c98a",
    Flags.READONLY: "#cfcfcf",
    Flags.LOG_DIRTY_PAGES | Flags.READONLY: "#d9b99b",
}
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.a{font-family:monospace}"
    ".h{fill:#666}.s{stroke:#445}.f{stroke:#999;stroke-dasharray:3 3}"
    ".j{stroke:#c33;fill:none;stroke-width:1.5}"
)


def svg(slots: Sequence[Slot], title: str) -> str:
    """Returns the picture of slots that are in gfn order.

    Each slot and each hole has a line; flags set a slot's colour. A line on the right joins slots
    that share host memory, if only in part.
    """
    drawn = slots[:MOST_DRAWN]
    body: list[str] = []
    middle: dict[int, int] = {}
    y = _TOP
    end = 0
    for slot in drawn:
        if slot.base_gfn > end:
            y += _hole(body, end, slot.base_gfn, y)
        middle[slot.base_gfn] = y + _ROW // 2
        body.append(_box(slot, y))
        y += _ROW
        end = slot.end_gfn
    if len(slots) > len(drawn):
        y += 16
        body.append(_text(_LEFT, y, f"and {len(slots) - len(drawn)} slots more", "h"))
    joined = list(_same_memory(drawn))
    for n, (one, two) in enumerate(joined):
        x = _LEFT + _BOX + _HVA
        far = x + 10 + _STEP * (n % 12)
        top, low = middle[one.base_gfn], middle[two.base_gfn]
        body.append(f'<path class="j" d="M{x} {top}H{far}V{low}H{x}"/>')
    width = _LEFT + _BOX + _HVA + 24 + _STEP * min(len(joined), 12)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 12}"'
            f' viewBox="0 0 {width} {y + 12}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            _text(8, 16, title, "t"),
            *body,
            "</svg>",
        ]
    )


def html(slots: Sequence[Slot], title: str) -> str:
    """Returns the picture for a notebook."""
    return f"<div>{svg(slots, title)}</div>"


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(slot: Slot, y: int) -> str:
    # The width grows with the logarithm of the size, so a page and a terabyte are both visible.
    width = min(_BOX, 40 + 6 * slot.npages.bit_length())
    colour = _COLOURS.get(slot.flags & 3, "#fff")
    names = flag_names(slot.flags)
    label = f"{slot.id}: {size_text(slot.memory_size)}"
    return (
        f"<g><title>{escape(str(slot))}</title>"
        f'<rect class="s" x="{_LEFT}" y="{y + 1}" width="{width}" height="{_ROW - 2}"'
        f' fill="{colour}"/>'
        + _text(_LEFT - 8, y + 15, hex(slot.base_gfn << PAGE_SHIFT), "a", "end")
        + _text(_LEFT + 6, y + 15, label if names == "-" else f"{label} {names}", "b")
        + _text(_LEFT + _BOX + 8, y + 15, hex(slot.userspace_addr), "a")
        + "</g>"
    )


def _hole(body: list[str], start: int, end: int, y: int) -> int:
    size = size_text((end - start) << PAGE_SHIFT)
    body.append(f'<path class="f" d="M{_LEFT} {y + _FOLD // 2}h30"/>')
    body.append(_text(_LEFT + 38, y + 13, f"hole, {size}", "h"))
    body.append(_text(_LEFT - 8, y + 13, hex(start << PAGE_SHIFT), "a", "end"))
    return _FOLD


def _same_memory(slots: Sequence[Slot]) -> Iterator[tuple[Slot, Slot]]:
    """Yields (earlier, slot) for each slot that overlaps an earlier one in host memory."""
    last: Slot | None = None
    for slot in sorted(slots, key=lambda slot: (slot.userspace_addr, slot.base_gfn)):
        if last is not None and slot.userspace_addr < last.userspace_addr + last.memory_size:
            yield last, slot
        if last is None or (
            slot.userspace_addr + slot.memory_size >= last.userspace_addr + last.memory_size
        ):
            last = slot
