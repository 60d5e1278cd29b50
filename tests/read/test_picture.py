"""Maps as pictures and as tables."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from maps import maps

from memslots import MemoryMap
from memslots.values.records import size_text

SVG = "{http://www.w3.org/2000/svg}"


def texts(m: MemoryMap) -> list[str]:
    return [each.text or "" for each in ET.fromstring(m.svg()).iter(f"{SVG}text")]


@given(maps())
def test_each_slot_and_each_hole_is_drawn(m: MemoryMap) -> None:
    root = ET.fromstring(m.svg())
    boxes = [each for each in root.iter(f"{SVG}rect") if each.get("class") == "s"]
    assert len(boxes) == len(m)
    holes = [text for text in texts(m) if text.startswith("hole")]
    assert holes == [
        f"hole, {size_text((end - start) << 12)}"
        for start, end in (m.holes(0, m.span[1]) if m.span else ())
    ]
    for slot in m:
        assert hex(slot.guest_phys_addr) in texts(m) and hex(slot.userspace_addr) in texts(m)
    assert m._repr_html_() == f"<div>{m.svg()}</div>"


def test_what_is_on_the_same_host_memory_is_joined() -> None:
    def joined(m: MemoryMap) -> int:
        return sum(path.get("class") == "j" for path in ET.fromstring(m.svg()).iter(f"{SVG}path"))

    assert joined(MemoryMap([(0, 10, 0), (20, 10, 10 << 12)])) == 0
    assert joined(MemoryMap([(0, 10, 0), (20, 10, 9 << 12)])) == 1
    assert joined(MemoryMap([(0, 100, 0), (200, 1, 5 << 12), (300, 1, 50 << 12)])) == 2


def test_many_slots_and_none() -> None:
    m = MemoryMap([(i * 2, 1, i << 12) for i in range(300)])
    assert "and 44 slots more" in texts(m)
    assert texts(MemoryMap()) == ["address space 0: 0 slots"]
    assert texts(MemoryMap([(0, 1, 0)]))[0] == "address space 0: 1 slot"


def test_a_table() -> None:
    assert str(MemoryMap()) == "no slots"
    assert str(MemoryMap([(0, 1, 0), (0x100, 261951, 1 << 40, 3, 12)], as_id=1)) == (
        "space  id       gpa         end         size            hva  flags\n"
        "    1   0       0x0      0x1000        4 KiB            0x0  -\n"
        "    1  12  0x100000  0x4003f000  1047804 KiB  0x10000000000  LOG_DIRTY_PAGES|READONLY"
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (5000, "5000 B"),
        (4096, "4 KiB"),
        (1028 << 10, "1028 KiB"),
        (1047808 << 10, "1023.25 MiB"),
        (1 << 20, "1 MiB"),
        (1536 << 20, "1.5 GiB"),
        (5 << 40, "5 TiB"),
        (1 << 64, "16777216 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text
