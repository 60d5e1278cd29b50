"""Places in raw memory, by the map and the size of the file."""

from __future__ import annotations

import io
import random

import pytest

from memslots.maps import LAYOUTS, Entry, Map, in_raw, raw_layout, read

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PC = Map(
    (
        Entry(0, 639 * KIB),
        Entry(639 * KIB, KIB, "reserved"),
        Entry(0xF0000, 64 * KIB, "reserved"),
        Entry(MIB, 3 * GIB - MIB - 128 * KIB),
        Entry(3 * GIB - 128 * KIB, 64 * KIB, "acpi"),
        Entry(3 * GIB - 64 * KIB, 64 * KIB, "reserved"),
        Entry(0xFEFFC000, 16 * KIB, "reserved"),
        Entry(4 * GIB, 2 * GIB),
    ),
    format="e820",
)
SMALL = Map(tuple(entry for entry in PC if entry.start < 4 * GIB), format="e820")
ARM = Map((Entry(GIB, 256 * MIB), Entry(GIB + 257 * MIB, 254 * MIB), Entry(GIB + 511 * MIB, MIB)))
ARM_IOMEM = Map((*ARM.entries, Entry(0x9000000, 0x1000, "mmio")))
ARM_KEPT = Map((*ARM.entries[:2], Entry(GIB + 511 * MIB, MIB, "reserved")))
TOTAL = sum(entry.size for entry in PC.of_kind("ram"))


@pytest.mark.parametrize(
    ("map", "size", "layout"),
    [
        (PC, 5 * GIB, "pc"),
        (PC, 6 * GIB, "padded"),
        (PC, 7 * GIB, "padded"),
        (PC, TOTAL, "joined"),
        (SMALL, 3 * GIB, "padded"),
        (SMALL, 3 * GIB - 128 * KIB, "padded"),
        (ARM, 512 * MIB, "based"),
        (ARM, 511 * MIB, "joined"),
        (ARM_IOMEM, 512 * MIB, "based"),
        (ARM_KEPT, 512 * MIB, "based"),
        (Map((Entry(0, GIB),)), GIB, "joined"),  # of no holes: all layouts are the same
    ],
)
def test_the_layout_by_the_size(map: Map, size: int, layout: str) -> None:
    assert raw_layout(map, size) == layout
    assert in_raw(map, size) == in_raw(map, size, layout)


@pytest.mark.parametrize(
    ("map", "size"),
    [
        (PC, 0),
        (PC, 4 * GIB),  # the memory above 4 GiB would end within the hole
        (PC, 5 * GIB - 1),
        (PC, 5 * GIB - 4 * KIB),  # cut off by a page
        (PC, 5 * GIB + 4 * KIB),  # what is after the memory below is no memory by the map
        (PC, 6 * GIB - 1),
        (PC, TOTAL + 1),
        (SMALL, 2 * GIB),
        (ARM, 512 * MIB + 1),
        (ARM_KEPT, 512 * MIB - 1),
    ],
)
def test_sizes_of_no_layout(map: Map, size: int) -> None:
    with pytest.raises(ValueError, match=f"its {size:#x} bytes are no raw memory of this map"):
        raw_layout(map, size)
    with pytest.raises(ValueError, match="no raw memory"):
        in_raw(map, size)
    for layout in set(LAYOUTS) - {"padded"}:
        with pytest.raises(ValueError, match=f"do not fit the map in layout {layout}"):
            in_raw(map, size, layout)


def test_around_the_hole() -> None:
    found = in_raw(PC, 5 * GIB)
    assert found.offset_of(4 * GIB) == 3 * GIB
    assert found.offset_of(6 * GIB - 1) == 5 * GIB - 1
    assert found.gpa_of(3 * GIB) == 4 * GIB
    assert found.gpa_of(3 * GIB - 1) == 3 * GIB - 1  # reserved by the firmware: RAM all the same
    assert [entry.offset is None for entry in found] == [
        entry.start in (0xF0000, 0xFEFFC000) for entry in found
    ]


def test_the_other_layouts() -> None:
    assert [entry.offset for entry in in_raw(ARM, 512 * MIB)] == [0, 257 * MIB, 511 * MIB]
    assert [entry.offset for entry in in_raw(ARM_KEPT, 512 * MIB)] == [0, 257 * MIB, 511 * MIB]
    assert [entry.offset for entry in in_raw(ARM, 511 * MIB)] == [0, 256 * MIB, 510 * MIB]
    joined = [entry.offset for entry in in_raw(PC, TOTAL) if entry.offset is not None]
    assert joined == [0, 639 * KIB, 3 * GIB - 128 * KIB - 385 * KIB]
    # pmemsave of as many bytes as there is RAM: padded, without the memory above.
    cut = in_raw(PC, 5 * GIB, "padded")
    assert [entry.start for entry in cut if entry.offset is None] == [0xF0000, 4 * GIB]
    assert all(entry.offset in (None, entry.start) for entry in cut)


def test_memory_above_the_hole_that_does_not_begin_at_4_gib() -> None:
    """QEMU puts it at 1 TiB for the largest machines with an AMD processor."""
    map = Map((Entry(0, 3 * GIB), Entry(1 << 40, 2 << 40)))
    assert raw_layout(map, (2 << 40) + 3 * GIB) == "joined"
    map = Map((Entry(0, 639 * KIB), Entry(MIB, 3 * GIB - MIB), Entry(1 << 40, 2 << 40)))
    assert in_raw(map, (2 << 40) + 3 * GIB, "pc").offset_of(1 << 40) == 3 * GIB


def test_what_has_no_place() -> None:
    with pytest.raises(ValueError, match="the map has no RAM"):
        in_raw(Map((Entry(0, MIB, "reserved"),)), MIB)
    with pytest.raises(ValueError, match="have places in a file or a block already"):
        raw_layout(Map((Entry(0, MIB, offset=0),)), MIB)
    with pytest.raises(ValueError, match=r"no layout 'lime'; there are joined, padded, based, pc"):
        in_raw(PC, 5 * GIB, "lime")


def test_bytes_of_random_machines() -> None:
    """Files that are written by each layout: each byte of RAM is where the map says."""
    dice = random.Random(26)
    for _ in range(200):
        # Addresses in units of 64 MiB; the file has a byte for each.
        unit = 64 * MIB
        low, high = dice.randint(20, 63), dice.randint(1, 40)
        hole = dice.randint(2, 10)
        kept = dice.randint(0, 3)
        ranges = [(0, hole, "ram"), (hole + 1, low - kept, "ram"), (64, 64 + high, "ram")]
        ranges += [(low - kept, low, "reserved")] if kept else []
        map = Map(tuple(Entry(a * unit, (b - a) * unit, kind) for a, b, kind in ranges))
        memory = {gfn: dice.randbytes(4) for a, b, _ in ranges for gfn in range(a, b)}
        pc = [memory.get(gfn) for gfn in [*range(low), *range(64, 64 + high)]]
        padded = [memory.get(gfn) for gfn in range(64 + high)]
        usable = [(a, b) for a, b, kind in sorted(ranges) if kind == "ram"]
        joined = [memory[gfn] for a, b in usable for gfn in range(a, b)]
        for layout, file in (("pc", pc), ("padded", padded), ("joined", joined)):
            size = len(file) * unit
            assert raw_layout(map, size) == layout
            found = in_raw(map, size)
            for gfn, content in memory.items():
                entry = found[gfn * unit]
                if entry.kind == "ram" or layout != "joined":
                    assert file[found.offset_of(gfn * unit) // unit] == content


def test_boots_of_one_log() -> None:
    text = b"".join(
        b"BIOS-e820: [mem 0x%016x-0x%016x] usable\n" % (start, end - 1)
        for _ in range(2)
        for start, end in ((0, 0x9FC00), (MIB, 3 * GIB), (4 * GIB, 5 * GIB))
    )
    for one in read("log", stream=io.BytesIO(text)):
        assert in_raw(one, 4 * GIB).offset_of(4 * GIB) == 3 * GIB
