"""Raw memory beside a map of it, such as e820: the place of each entry in the raw file.

A raw file has no header. How it is laid out follows from its size and the map:

- joined: only the ranges of RAM, one after the other (LiME's format=raw);
- padded: an offset is a guest address, and the holes are in the file (pmemsave, dd);
- based: the file begins with the first RAM, which is not at 0 (QEMU's RAM of Arm's virt);
- pc: the memory above the PCI hole follows the memory below (QEMU's pc.ram, VMware's .vmem).
"""

from __future__ import annotations

from dataclasses import replace

from memslots.maps.entries import Entry, Map

#: The layouts, in the order in which they are tried.
LAYOUTS = ("joined", "padded", "based", "pc")
_FOUR_GIB = 1 << 32
_LEGACY_START, _LEGACY_END = 0xA0000, 0x100000  # where a PC has VGA and ROMs
_FIRMWARES = ("acpi", "reserved")  # RAM that firmware keeps, if the file has it

_Piece = tuple[int, int, int]  # guest addresses [start, end), and the offset of start


def raw_layout(map: Map, size: int) -> str:
    """Returns the layout of a file of raw memory of `size` bytes: a name of LAYOUTS.

    A file that QEMU's pmemsave wrote from address 0 on, as long as the RAM of a machine with
    memory above 4 GiB, has the size of layout "pc" but is "padded", and lacks the memory above.

    Raises
    ------
    ValueError
        The size fits no layout, or the map has no RAM or has offsets already.
    """
    ram = _ram(map)
    for layout in LAYOUTS:
        if _pieces(layout, map, ram, size):
            return layout
    raise ValueError(
        f"its {size:#x} bytes are no raw memory of this map: the map takes {ram[-1].end:#x} bytes"
        f" with its holes and {sum(entry.size for entry in ram):#x} without, and no size of the"
        " memory below 4 GiB explains what is between"
    )


def in_raw(map: Map, size: int, layout: str = "auto") -> Map:
    """Returns a map with the offsets of its entries in a file of raw memory.

    RAM gets its offset. So do ACPI tables and reserved ranges that lie in the file's RAM, except
    below 1 MiB, where they may be ROM.

    Parameters
    ----------
    map : Map
        A map whose entries have no offsets yet: e820, or /proc/iomem.
    size : int
        The size of the file in bytes.
    layout : str
        A name of LAYOUTS; "auto" is `raw_layout`. As "padded" a file may be shorter than the map:
        entries that are not in it get no offset.

    Returns
    -------
    Map

    Raises
    ------
    ValueError
        The size does not fit the layout, there is no such layout, or the map has no RAM or has
        offsets already.
    """
    ram = _ram(map)
    if layout == "auto":
        layout = raw_layout(map, size)
    elif layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    pieces = [(0, size, 0)] if layout == "padded" else _pieces(layout, map, ram, size)
    if not pieces:
        raise ValueError(f"its {size:#x} bytes do not fit the map in layout {layout}")
    return replace(map, entries=tuple(_placed(entry, pieces) for entry in map))


def _ram(map: Map) -> list[Entry]:
    ram = list(map.of_kind("ram"))
    if not ram:
        raise ValueError("the map has no RAM")
    if any(entry.offset is not None for entry in ram):
        raise ValueError("the map's entries have places in a file or a block already")
    return ram


def _pieces(layout: str, map: Map, ram: list[Entry], size: int) -> list[_Piece]:
    """Returns where guest memory is in the file, or [] if the size does not fit the layout."""
    start, end = ram[0].start, ram[-1].end
    if layout == "padded":
        return [(0, size, 0)] if size >= end else []
    if layout == "based":
        fits = start > _LEGACY_END and start + size in _ends(map, end)
        return [(start, start + size, 0)] if fits else []
    if layout == "joined":
        pieces = []
        at = 0
        for entry in ram:
            pieces.append((entry.start, entry.end, at))
            at += entry.size
        return pieces if at == size else []
    below = max((entry.end for entry in ram if entry.start < _FOUR_GIB), default=0)
    above = next((entry.start for entry in ram if entry.start >= _FOUR_GIB), end)
    low = size - (end - above)
    fits = above < end and 0 < low <= _FOUR_GIB and low in _ends(map, below)
    return [(0, low, 0), (above, end, low)] if fits else []


def _ends(map: Map, end: int) -> set[int]:
    """Returns where RAM may end whose last part for the guest ends at `end`.

    Firmware may keep what follows: these ends are `end`, and those of such ranges in a row.
    """
    found = {end}
    for entry in map:
        if entry.kind in _FIRMWARES and entry.start in found:
            found.add(entry.end)
    return found


def _placed(entry: Entry, pieces: list[_Piece]) -> Entry:
    if entry.kind != "ram" and (
        entry.kind not in _FIRMWARES or (entry.start < _LEGACY_END and entry.end > _LEGACY_START)
    ):
        return entry
    for start, end, offset in pieces:
        if start <= entry.start and entry.end <= end:
            return entry._replace(offset=offset + entry.start - start)
    return entry
