"""Reads QEMU's info mtree and info mtree -f as people paste them."""

from __future__ import annotations

import io
import json
import textwrap

import pytest

from memslots.maps import MEMORY, read

FLAT = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM
  00000000c0000000-00000000c0087fff (prio 0, ramd): 0000:0c:00.0 BAR 0 mmaps[0] KVM
  00000000fec00000-00000000fec00fff (prio 0, i/o): kvm-ioapic
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM

"""
#: start, end, kind, name, offset
SLOTS = [
    (0x0, 0xA0000, "ram", "pc.ram", 0),
    (0xC0000, 0xE0000, "rom", "pc.rom", 0),
    (0x100000, 0xC0000000, "ram", "pc.ram", 0x100000),
    (0xC0000000, 0xC0088000, "ram", "0000:0c:00.0 BAR 0 mmaps[0]", 0),
    (0x100000000, 0x140000000, "ram", "pc.ram", 0xC0000000),
]
TREE = """\
address-space: cpu-memory-0
address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000000000000-00000000bfffffff (prio 0, ram): alias ram-below-4g @pc.ram \
0000000000000000-00000000bfffffff
    0000000000000000-ffffffffffffffff (prio -1, i/o): pci
      00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
      00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
    00000000000a0000-00000000000bffff (prio 1, i/o): alias smram-region @pci \
00000000000a0000-00000000000bffff
    00000000000c0000-00000000000c3fff (prio 1, rom): alias pam-rom @pc.ram \
00000000000c0000-00000000000c3fff [disabled]
    0000000100000000-000000013fffffff (prio 0, ram): alias ram-above-4g @pc.ram \
00000000c0000000-00000000ffffffff

"""
REGIONS = """\
memory-region: pc.ram
  0000000000000000-00000000ffffffff (prio 0, ram): pc.ram

memory-region: pci
  0000000000000000-ffffffffffffffff (prio -1, i/o): pci
    00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
    00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
"""
DRAWN = [
    (0x0, 0xA0000, "ram", "pc.ram", 0),
    (0xC0000, 0xC0000000, "ram", "pc.ram", 0xC0000),
    (0xFD000000, 0xFE000000, "ram", "vga.vram", 0),
    (0x100000000, 0x140000000, "ram", "pc.ram", 0xC0000000),
]


def shapes(text: str) -> list[tuple[int, int, str, str, int | None]]:
    found = read("pasted", stream=io.BytesIO(text.encode()))[0]
    return [(e.start, e.end, e.kind, e.name, e.offset) for e in found.of_kind(*MEMORY)]


def wrapped(text: str, width: int, quote: str = "") -> str:
    lines = (
        textwrap.wrap(line, width, break_on_hyphens=False, drop_whitespace=False) or [""]
        for line in text.splitlines()
    )
    return "".join(f"{quote}{part.rstrip()}\n" for parts in lines for part in parts)


def owned(text: str) -> str:
    """Returns what the option -o prints."""
    return text.replace("pc.ram", "pc.ram owner:{obj path=/objects/pc.ram}").replace(
        "vga.vram", "vga.vram owner:{dev path=/machine/peripheral-anon/device[0]}"
    )


EXCERPT = FLAT.split("Root memory region: system\n")[1]


@pytest.mark.parametrize(
    "text",
    [
        FLAT,
        FLAT.replace("KVM", "kvm"),
        owned(FLAT),
        *(wrapped(FLAT, width) for width in range(56, 90, 3)),
        *(wrapped(FLAT, width, ">>> ") for width in range(56, 90, 3)),
        f"Root memory region: system\n{EXCERPT}",
        EXCERPT,
        json.dumps({"return": FLAT.replace("\n", "\r\n"), "id": "libvirt-13"}),
    ],
)
def test_flat_views(text: str) -> None:
    assert shapes(text) == SLOTS


def owned_tree(text: str) -> str:
    return text.replace("vga.vram", "vga.vram owner:{dev path=/machine/device[0]}").replace(
        "[disabled]", "[disabled] owner:{dev path=/machine/q35}"
    )


@pytest.mark.parametrize(
    "text",
    [
        TREE + REGIONS,
        owned_tree(TREE + REGIONS),
        *(wrapped(TREE + REGIONS, width) for width in range(62, 110, 3)),
        *(wrapped(TREE + REGIONS, width, "> > ") for width in range(62, 110, 3)),
    ],
)
def test_trees(text: str) -> None:
    assert shapes(text) == DRAWN


@pytest.mark.parametrize(
    "text",
    [TREE, TREE.split("address-space: memory\n")[1], TREE.split("(prio 0, i/o): system\n")[1]],
    ids=["no regions", "no heading", "no root"],
)
def test_excerpts_of_a_tree(text: str) -> None:
    """The alias of memory tells the kind, the name and the offset of a region that is left out."""
    assert shapes(text) == DRAWN


def test_what_follows_is_no_part_of_a_name() -> None:
    text = FLAT.rstrip("\n") + "\n(qemu) info status\nVM status: running\n"
    assert shapes(text) == SLOTS


def test_an_answer_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="Unterminated string"):
        read("answer", stream=io.BytesIO(b'{"return": "'))
