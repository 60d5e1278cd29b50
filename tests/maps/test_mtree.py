"""Reads QEMU's info mtree and info mtree -f as people paste them."""

from __future__ import annotations

import contextlib
import io
import json
import textwrap
import time

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


BY_SPACE = (
    FLAT.replace("FlatView #0\n", "")
    .replace(' AS "I/O", root: io\n', "address-space (flat view): I/O\n")
    .replace("FlatView #1\n", "")
    .replace(' AS "memory", root: system\n', "address-space (flat view): memory\n")
    .replace(' AS "cpu-memory-0", root: system\n', "")
    .replace(" Root memory region: io\n", "")
    .replace(" Root memory region: system\n", "")
    .replace("ramd", "ram")
    .replace(" KVM", "")
)


def test_a_view_for_each_address_space() -> None:
    """QEMU 2.9 and 2.10 repeat a view for each address space that has it."""
    again = BY_SPACE.split("memory\n")[1]
    assert shapes(f"{BY_SPACE}address-space (flat view): cpu-memory-0\n{again}") == SLOTS


def test_lines_of_several_views() -> None:
    """Equal views without headings are one map, and different ones are refused."""
    lines = "".join(line for line in EXCERPT.splitlines(True) if "(prio" in line)
    ports = "  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\n"
    assert shapes(f"{ports}{lines}{lines}") == SLOTS
    other = "  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM\n"
    with pytest.raises(ValueError, match="those of 2 different flat views without the names"):
        shapes(f"{other}{lines}")
    roots = "Root memory region: {}\n{}"
    container = roots.format("bus master container", other)
    assert shapes(container + roots.format("system", lines)) == SLOTS


def test_aliases_without_their_container() -> None:
    """Lines of info mtree with one indentation are no flat view: an alias has its own offset."""
    lines = [line.strip() for line in TREE.splitlines(True) if ": alias ram-" in line]
    want = [(0, 0xC0000000, "ram", "pc.ram", 0), DRAWN[-1]]
    assert shapes("\n".join(lines)) == want
    with pytest.raises(ValueError, match="it is of info mtree without -f"):
        read("pasted", "mtree-f", stream=io.BytesIO("\n".join(lines).encode()))


@pytest.mark.parametrize("text", [TREE, TREE.split("address-space: memory\n")[1]])
def test_a_tree_without_indentation_is_refused(text: str) -> None:
    """A web page may drop the blanks. Then nothing tells the region that contains a region."""
    with pytest.raises(ValueError, match="whether system contains pci: give the output"):
        shapes("\n".join(line.strip() for line in text.splitlines()))


GREETING = (
    '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 9}}, "capabilities": []}}'
)


@pytest.mark.parametrize("rows", [0, 20000], ids=["small", "of more than 1 MiB"])
def test_a_session_of_qmp(rows: int) -> None:
    line = "  {:016x}-{:016x} (prio 0, i/o): port\n"
    ports = "".join(line.format(port, port) for port in range(rows))
    text = FLAT.replace("dma-chan\n", f"dma-chan\n{ports}")
    answer = json.dumps({"return": text.replace("\n", "\r\n"), "id": "libvirt-13"})
    assert shapes(f'{GREETING}\n{{"return": {{}}}}\n{answer}\n') == SLOTS


@pytest.mark.parametrize(
    ("whole", "rest"),
    [(FLAT.replace(" KVM", "").rstrip(), "pc.ram @"), (TREE.rstrip(), "alias ram-")],
)
def test_a_map_that_is_cut_off(whole: str, rest: str) -> None:
    """Without its last digits, a line would be left out, or have another offset."""
    line = whole.rindex("\n")
    assert len(shapes(whole)) == 4
    begins = whole.index("-", line)
    name = whole.index(rest, line) + len(rest)
    for end in (begins + 1, begins + 9, whole.index("(", line) + 4, name, len(whole) - 1):
        with pytest.raises(ValueError, match="is cut off"):
            shapes(whole[:end])


def test_what_follows_is_no_part_of_a_name() -> None:
    text = FLAT.rstrip("\n") + "\n(qemu) info status\nVM status: running\n"
    assert shapes(text) == SLOTS


def seconds(text: str) -> float:
    start = time.process_time()
    with contextlib.suppress(ValueError):
        read("pasted", stream=io.BytesIO(text.encode()))
    return time.process_time() - start


@pytest.mark.parametrize(
    "text",
    [
        "00000000-00000fff : Reserved\n" + "\t" * 100_000,
        EXCERPT + " " * 100_000,
        "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n"
        + "".join(
            f"    {row:012x}0000-{row:012x}0fff (prio 0, ram): r{row}\n" for row in range(15_000)
        ),
    ],
    ids=["blanks after iomem", "blanks after mtree", "many regions"],
)
def test_the_time_grows_with_the_length(text: str) -> None:
    """Each of these took from 25 seconds to many minutes."""
    assert seconds(text) < 10


def test_deep_json_is_refused() -> None:
    with pytest.raises(ValueError, match="recursion depth"):
        read("deep", stream=io.BytesIO(b'{"QMP": ' + b"[" * 100_000))


def test_an_answer_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="Unterminated string"):
        read("answer", stream=io.BytesIO(b'{"return": "'))
