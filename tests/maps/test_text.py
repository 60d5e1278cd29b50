"""Reads e820, /proc/iomem and tables as different programs print them."""

from __future__ import annotations

import io
import json
import quopri

import pytest

from memslots import TraceError
from memslots.maps import MEMORY, read

MIB, GIB = 1 << 20, 1 << 30

#: start, size, kind
PC = [
    (0, 0x9FC00, "ram"),
    (0x9FC00, 0x400, "reserved"),
    (0xF0000, 0x10000, "reserved"),
    (MIB, 0xBFEE0000, "ram"),
    (0xBFFE0000, 0x10000, "acpi"),
    (4 * GIB, GIB, "ram"),
]
LINUX = """\
[    0.000000] BIOS-provided physical RAM map:
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
[    0.000000] BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff] reserved
[    0.000000] BIOS-e820: [mem 0x00000000000f0000-0x00000000000fffff] reserved
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x00000000bffdffff] usable
[    0.000000] BIOS-e820: [mem 0x00000000bffe0000-0x00000000bffeffff] ACPI data
[    0.000000] BIOS-e820: [mem 0x0000000100000000-0x000000013fffffff] usable
"""
#: What Linux says of its own changes to the map.
CHANGES = """\
[    0.000000] e820: update [mem 0x00000000-0x00000fff] usable ==> reserved
[    0.000000] e820: remove [mem 0x000a0000-0x000fffff] usable
[    0.000000] e820: remove [mem 0x000a0000-0x000fffff] System RAM
[    0.000000] e820: [mem 0xc0000000-0xfeffbfff] available for PCI devices
[    0.000000] e820: reserve RAM buffer [mem 0x0009fc00-0x0009ffff]
[    0.000000] ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x0009ffff] hotplug
"""


def made(source: str) -> str:
    return LINUX.replace("BIOS-e820", source)


def exclusive(line: str) -> str:
    """Returns the lines of PC with the first address after each range."""
    names = {"ram": "usable", "reserved": "reserved", "acpi": "ACPI data"}
    return "".join(
        line.format(start=f"{start:016x}", end=f"{start + size:016x}", name=names[kind])
        for start, size, kind in PC
    )


SEABIOS = "".join(
    f"  {n}: {start:016x} - {start + size:016x} = {number}\n"
    for n, ((start, size, kind), number) in enumerate(
        zip(PC, ("1 RAM", "2 RESERVED", "2 RESERVED", "1 RAM", "3 ACPI", "1 RAM"), strict=True)
    )
)
NEWER = LINUX.replace("usable", " System RAM").replace("reserved", " device reserved") + (
    "[    0.000000] BIOS-e820: [gap 0x0000000140000000-0x00000001ffffffff]\n"
)
WITH_SIZES = NEWER.replace("]  S", "]  639   KB S").replace("]  d", "]    1.9 GB d")

E820: dict[str, str] = {
    "since 3.5": LINUX,
    "before 3.5": exclusive(" BIOS-e820: {start} - {end} ({name})\n"),
    "since 7.0": NEWER,
    "with sizes": WITH_SIZES,
    "Xen": "(XEN) Xen-e820 RAM map:\n" + exclusive("(XEN)  {start} - {end} ({name})\n"),
    "Xen since 4.13": "".join(
        f"(XEN)  [{start:016x}, {start + size - 1:016x}] ({name})\n"
        for (start, size, _), name in zip(
            PC, ("usable", "reserved", "reserved", "usable", "ACPI NVS", "usable"), strict=True
        )
    ),
    "a guest of Xen": made("Xen"),
    "SeaBIOS": "e820 map has 6 items:\n" + SEABIOS,
    "changed by Linux": LINUX + CHANGES,
    "and what Linux made of it": LINUX + CHANGES + made("reserve setup_data") + made("user"),
    "only what Linux made of it": made("user"),
    "an old kernel's user map": exclusive(" user: {start} - {end} ({name})\n"),
    "wrapped before a number": LINUX.replace("[mem ", "[mem\n"),
    "wrapped before a kind": LINUX.replace("] u", "]\nu").replace("] r", "]\nr"),
    "quoted": "".join(f"> {line}\n" for line in LINUX.splitlines()),
    "quoted-printable": quopri.encodestring(LINUX.encode()).decode(),
}


def shapes(text: str) -> list[list[tuple[int, int, str]]]:
    found = read("pasted", stream=io.BytesIO(text.encode()))
    return [[(entry.start, entry.size, entry.kind) for entry in one] for one in found]


@pytest.mark.parametrize("how", E820)
def test_e820(how: str) -> None:
    assert shapes(E820[how]) == [PC]


def test_two_boots() -> None:
    assert shapes((LINUX + CHANGES) * 2) == [PC, PC]


IOMEM = """\
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
00100000-7ffeffff : System RAM
  01000000-01a00eb0 : Kernel code
  70000000-77ffffff : Crash kernel
100000000-13fffffff : System RAM
140000000-23fffffff : virtio0
  140000000-147ffffff : System RAM (virtio_mem)
  150000000-157ffffff : System RAM (virtio_mem)
24080000000-2408fffffff : CXL Window 0
  24080000000-2408fffffff : region0
    24080000000-2408fffffff : dax0.0
      24080000000-2408fffffff : System RAM (kmem)
"""
RAM = [
    (0x1000, 0x9EC00, "ram"),
    (MIB, 0x7FEF0000, "ram"),
    (4 * GIB, GIB, "ram"),
    (5 * GIB, 128 * MIB, "ram"),
    (0x150000000, 128 * MIB, "ram"),
    (0x24080000000, 256 * MIB, "ram"),
]


def ram(text: str) -> list[list[tuple[int, int, str]]]:
    return [[shape for shape in one if shape[2] == "ram"] for one in shapes(text)]


@pytest.mark.parametrize(
    "text",
    [
        IOMEM,
        "".join(f"    {line}\n" for line in IOMEM.splitlines()),
        IOMEM.replace("  ", "\t"),
        "".join(f"{n}:{line}\n" for n, line in enumerate(IOMEM.splitlines(), 8)),
        "".join(f"{line}\n" for line in IOMEM.splitlines() if "System RAM" in line),
        IOMEM.replace(" : ", "&nbsp;:&nbsp;"),
    ],
    ids=["as it is", "indented", "tabs", "grep -n", "grep RAM", "a page"],
)
def test_memory_that_a_driver_added(text: str) -> None:
    """The kernel shows RAM of virtio-mem and of CXL below the device."""
    assert ram(text) == [RAM]


def test_a_device_around_memory() -> None:
    (found,) = read("iomem", stream=io.BytesIO(IOMEM.encode()))
    assert [found[gpa].name for gpa in (5 * GIB, 0x148000000, 0x160000000)] == [
        "System RAM (virtio_mem)",
        "virtio0",
        "virtio0",
    ]


def test_memory_that_begins_at_0() -> None:
    """s390x and ppc64 have one line of RAM; its address 0 is no sign of a missing right."""
    assert shapes("00000000-3fffffff : System RAM\n") == [[(0, GIB, "ram")]]


def test_an_excerpt_of_iomem() -> None:
    """The first line is below a line that is not in the text."""
    text = "  00002000-00002fff : System RAM\n00005000-00005fff : System RAM\n"
    assert shapes(text) == [[(0x2000, 0x1000, "ram"), (0x5000, 0x1000, "ram")]]


def test_iomem_twice() -> None:
    assert ram(f"before\n{IOMEM}after\n{IOMEM}") == [RAM, RAM]


@pytest.mark.parametrize(
    "text",
    [
        "start,size\n0x1000,0x2000\n",
        "start;end\n0x1000;0x3000\n",
        "size\tstart\n0x2000\t0x1000\n",
        '"Start","Size"\n"0x1000","0x2000"\n',
    ],
)
def test_tables(text: str) -> None:
    (found,) = read("table", stream=io.BytesIO(text.encode()))
    assert [(entry.start, entry.size) for entry in found.of_kind(*MEMORY)] == [(0x1000, 0x2000)]


def test_a_return_within_the_first_line() -> None:
    """A CR among lines that end in line feeds is no error of a table."""
    assert shapes("start,size\r0x1000,0x2000\n") == [[(0x1000, 0x2000, "ram")]]
    with pytest.raises(TraceError, match="in no known format"):
        shapes("100%\rstart,size\n")


def test_ranges_of_xen_that_are_unusable() -> None:
    text = "(XEN)  0000000000000000 - 0000000000001000 (usable)\n"
    text += "(XEN)  0000000000001000 - 0000000000002000 (unusable)\n"
    assert shapes(text) == [[(0, 0x1000, "ram"), (0x1000, 0x1000, "other")]]


@pytest.mark.parametrize("key", ["MESSAGE", "log"])
def test_a_log_with_a_json_object_in_each_line(key: str) -> None:
    """journalctl -o json, and containers, write such logs."""
    lines = (json.dumps({"PRIORITY": "6", key: f"{line}\n"}) for line in LINUX.splitlines())
    assert shapes("".join(f"{line}\n" for line in lines)) == [PC]


DEVICE = "00000000-00000fff : Reserved\n"


@pytest.mark.parametrize(
    "text",
    [
        *(LINUX[: LINUX.index("0x00000000bffe0000") + more] for more in (-1, 2, 18, 25, 37)),
        *(LINUX.rstrip()[:-less] for less in range(1, 7)),
        LINUX.replace("] usable", "] us", 1),
        *(
            "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM"[:at]
            for at in range(38, 57)
        ),
    ],
)
def test_a_map_that_is_cut_off_is_refused(text: str) -> None:
    """Otherwise RAM would be missing from the map, and nothing would tell it."""
    with pytest.raises(TraceError, match="is cut off"):
        read("log", stream=io.BytesIO(text.encode()))
