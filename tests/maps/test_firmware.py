"""Reads memory maps of firmware as people paste them from logs, shells and boot loaders."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from email import message_from_string
from email.mime.text import MIMEText

import pytest

from memslots import TraceError
from memslots.maps import Map, read

Shape = tuple[int, int, str]

#: A mail of 2006 has the same map of one machine as EFI's shell and as Linux printed it.
SHELL = """\
Type       Start            End               # Pages          Attributes
available  0000000000000000-000000000008EFFF  000000000000008F 000000000000000F
ACPI_NVS   000000000008F000-000000000008FFFF  0000000000000001 000000000000000F
BS_code    000000007ED31000-000000007EE3FFFF  000000000000010F 000000000000000F
RT_code    000000007EE49000-000000007EE6EFFF  0000000000000026 800000000000000F
RT_data    000000007EE7F000-000000007EEAAFFF  000000000000002C 800000000000000F
ACPI_recl  000000007EEBB000-000000007EEBFFFF  0000000000000005 000000000000000F
LoaderData 000000007EEC0000-000000007EEC1FFF  0000000000000002 000000000000000F
MemMapIO   00000000E00F8000-00000000E00F8FFF  0000000000000001 8000000000000000

  LoaderData:              2 Pages (8,192 Bytes)
Total Memory:              1 MB
"""
NUMBERS = """\
mem00: type=7, attr=0xf, range=[0x0000000000000000-0x000000000008f000) (0MB)
mem01: type=10, attr=0xf, range=[0x000000000008f000-0x0000000000090000) (0MB)
mem21: type=3, attr=0xf, range=[0x000000007ed31000-0x000000007ee40000) (1MB)
mem23: type=5, attr=0x800000000000000f, range=[0x000000007ee49000-0x000000007ee6f000) (0MB)
mem25: type=6, attr=0x800000000000000f, range=[0x000000007ee7f000-0x000000007eeab000) (0MB)
mem27: type=9, attr=0xf, range=[0x000000007eebb000-0x000000007eec0000) (0MB)
mem28: type=2, attr=0xf, range=[0x000000007eec0000-0x000000007eec2000) (0MB)
mem32: type=11, attr=0x8000000000000000, range=[0x00000000e00f8000-0x00000000e00f9000) (0MB)
"""
ONE: list[Shape] = [
    (0, 0x8F000, "ram"),
    (0x8F000, 0x1000, "acpi"),
    (0x7ED31000, 0x10F000, "ram"),
    (0x7EE49000, 0x26000, "reserved"),
    (0x7EE7F000, 0x2C000, "reserved"),
    (0x7EEBB000, 0x5000, "acpi"),
    (0x7EEC0000, 0x2000, "ram"),
    (0xE00F8000, 0x1000, "mmio"),
]
LINUX = (
    "Conventional Memory", "ACPI Memory NVS    ", "Boot Code          ", "Runtime Code       ",
    "Runtime Data       ", "ACPI Reclaim Memory", "Loader Data        ", "Memory Mapped I/O  ",
)  # fmt: skip
NEW_LINUX = (
    "Conventional", "ACPI Mem NVS", "Boot Code   ", "Runtime Code", "Runtime Data", "ACPI Reclaim",
    "Loader Data ", "MMIO        ",
)  # fmt: skip
GRUB_TYPES = (
    "conv-mem", "ACPI-nvs", "BS-code ", "RT-code ", "RT-data ", "ACPI-rec", "ldr-data", "MMIO    ",
)  # fmt: skip
U_BOOT = (
    "CONVENTIONAL", "ACPI NVS", "BOOT CODE", "RUNTIME CODE", "RUNTIME DATA", "ACPI RECLAIM MEM",
    "LOADER DATA", "IO",
)  # fmt: skip
SPECIFIED = (
    "ConventionalMemory", "ACPIMemoryNVS", "BootServicesCode", "RuntimeServicesCode",
    "RuntimeServicesData", "ACPIReclaimMemory", "LoaderData", "MemoryMappedIO",
)  # fmt: skip
BY_NUMBER = ("7", "10", "3", "5", "6", "9", "2", "11")
X86 = "[    0.000000] efi: mem{n:02}: [{type}|   |  |WB|UC] range=[0x{start:016x}-0x{end:016x}"
UNKNOWN = "efi: mem{n:02}: [{type}|attr=0x080000000000000f] range=[0x{start:016x}-0x{end:016x}"
TABLE = "{start:016x}-{end:016x}"
#: Each form of a line, what is taken off the end after the entry, and the names of the types.
FORMS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "Linux 4.2": (f"{X86}) (0MB)", 0, LINUX),
    "Linux 4.9": (f"{X86}] (0MB)", 1, LINUX),
    "Linux 5": (f"{X86}] (0MB)", 1, NEW_LINUX),
    "attributes that Linux does not know": (f"{UNKNOWN}) (0MB)", 0, LINUX),
    "Linux on Arm": ("efi:   0x{start:012x}-0x{end:012x} [{type}|RUN|  |WB|WT|WC|UC]*", 1, LINUX),
    "GRUB": (f"{{type}}  {TABLE} {{pages:08x}}    964KiB UC WC WT WB", 1, GRUB_TYPES),
    "U-Boot": (f"{{type:16}} {TABLE} WB|RT", 0, U_BOOT),
    "a newer U-Boot": (f"{{type}} {TABLE} WB", 0, SPECIFIED),
    "FreeBSD": ("{type:>23} {start:012x} {start:012x} {pages:08x} WB RUNTIME", 0, SPECIFIED),
    "an older FreeBSD": ("{type:>23} {start:012x}            0 {pages:08x} WB", 0, SPECIFIED),
    "Xen": ("(XEN)  {start:013x}-{end:013x} type={type} attr=800000000000000f", 1, BY_NUMBER),
    "ESXi": ("MMap[{n}]: 0x{start:x} - 0x{end:x} len={size}, type={type}, attr=0xf", 1, BY_NUMBER),
}


def printed(form: str) -> str:
    line, inclusive, types = FORMS[form]
    return "".join(
        line.format(n=n, type=type, start=start, end=start + size - inclusive, size=size,
                    pages=size >> 12) + "\n"
        for n, ((start, size, _), type) in enumerate(zip(ONE, types, strict=True))
    )  # fmt: skip


TEXTS = {"the shell": SHELL, "numbers": NUMBERS, **{form: printed(form) for form in FORMS}}


def maps(text: str) -> list[Map]:
    return read("pasted", stream=io.BytesIO(text.encode()))


def shapes(text: str) -> list[list[Shape]]:
    return [[(entry.start, entry.size, entry.kind) for entry in one] for one in maps(text)]


def in_a_mail(text: str) -> str:
    """Wraps the lines as a mail does, and quotes them."""
    lines = (part for line in text.splitlines() for part in textwrap.wrap(line, 72))
    return "".join(f"> {line}\n" for line in lines)


WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in the journal": lambda text: "".join(
        f"Apr 28 07:55:19 host kernel: {line}\n" for line in text.splitlines()
    ),
    "in a mail": in_a_mail,
    "in a mail, encoded": lambda text: MIMEText(in_a_mail(text), _charset="utf-8").as_string(),
    "among other lines": lambda text: text.replace("\n", "\nefi: SMBIOS=0x7e954000 \n\n"),
    "from a page": lambda text: f"<pre>{text.replace(' ', '&nbsp;')}</pre>\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", TEXTS)
def test_forms_of_efi(form: str, way: str) -> None:
    assert shapes(WAYS[way](TEXTS[form])) == [ONE]
    assert maps(TEXTS[form])[0].format == "efi"


def test_a_map_again() -> None:
    """Two boots in a log, or a table that is in order and one that is not, are two maps."""
    for text in TEXTS.values():
        assert shapes(text + text) == [ONE, ONE]
    lines = SHELL.splitlines()
    assert shapes("\n".join([*lines[1:], *reversed(lines)])) == [ONE, ONE]


def test_other_types() -> None:
    (found,) = maps(
        "conv-mem  0000000000000000-0000000000000fff 00000001      4KiB WB\n"
        "unusable  0000000000001000-0000000000001fff 00000001      4KiB WB\n"
        "IO-ports  0000000000002000-0000000000002fff 00000001      4KiB WB\n"
        "PAL-code  0000000000003000-0000000000003fff 00000001      4KiB WB\n"
        "Unk 0f    0000000000004000-0000000000004fff 00000001      4KiB WB\n"
    )
    assert [entry.kind for entry in found] == ["ram", "other", "mmio", "reserved", "other"]
    (found,) = maps("0000-0fff type=0 attr=0\n1000-1fff type=15 attr=0\n2000-2fff type=77 attr=0\n")
    assert [(entry.kind, entry.name) for entry in found] == [
        ("reserved", "type 0"),
        ("ram", "type 15"),
        ("other", "type 77"),
    ]


def test_e820_counts_before_efi() -> None:
    """Linux uses the e820 map, which the boot loader made of EFI's."""
    e820 = "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
    for text in TEXTS.values():
        assert shapes(text + e820) == [[(0, 0x9FC00, "ram")]]


def test_what_is_not_efis() -> None:
    """Devices, sizes and sums of a table are no entries."""
    text = "soc0: <SoC> mem 0x1300000-0x139ffff on simplebus0\n  BS_Data   :  7,819 Pages\n"
    with pytest.raises(TraceError, match="in no known format"):
        maps(text)
    assert shapes(text + SHELL) == [ONE]


def colon(address: int) -> str:
    return f"{address >> 32:08x}:{address & 0xFFFFFFFF:08x}"


PC: list[Shape] = [
    (0, 0x9FC00, "ram"),
    (0x9FC00, 0x400, "reserved"),
    (0xF0000, 0x10000, "reserved"),
    (0x100000, 0x7EE0000, "ram"),
    (0x7FE0000, 0x20000, "reserved"),
    (0xFFFC0000, 0x40000, "reserved"),
]
GRUB = """\
base_addr = 0x0, length = 0x9fc00, available RAM
base_addr = 0x9fc00, length = 0x400, reserved RAM
base_addr = 0xf0000, length = 0x10000, reserved RAM
base_addr = 0x100000, length = 0x7ee0000, available RAM
base_addr = 0x7fe0000, length = 0x20000, reserved RAM
base_addr = 0xfffc0000, length = 0x40000, reserved RAM
"""
OLD_GRUB = GRUB.replace("available RAM", "type = 0x1").replace("reserved RAM", "type = 0x2")
FREEBSD = "".join(
    f"SMAP type={1 + (kind != 'ram'):02} base={start:016x} len={size:016x}\n"
    for start, size, kind in PC
)
DISPLAYMEM = "".join(
    f"  {'Usable RAM' if kind == 'ram' else 'Reserved  '}: "
    f"Base: 0x{start:8X}, Length: 0x{size:8X}, End: 0x{start + size:8X}\n"
    for start, size, kind in PC
)
COREBOOT = "".join(
    f"  {n:2}. {start:016x}-{start + size - 1:016x}: {'RAM' if kind == 'ram' else 'RESERVED'}\n"
    for n, (start, size, kind) in enumerate(PC)
)
MIPS = "Determined physical RAM map:\n" + "".join(
    f" memory: {size:016x} @ {start:016x} ({'usable' if kind == 'ram' else 'reserved'})\n"
    for start, size, kind in PC
)
SYSCTL = "machdep.smap: \n" + FREEBSD.replace(" base", ", xattr=01, base").replace(" len", ", len")
HVMLOADER = "(d7) E820 table:\n" + "".join(
    f"(d7)  [{n:02}]: {colon(start)} - {colon(start + size)}: "
    f"{'RAM' if kind == 'ram' else 'RESERVED'}\n(d7)  HOLE: 00000000:00000000 - {colon(start)}\n"
    for n, (start, size, kind) in enumerate(PC)
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "text", [GRUB, OLD_GRUB, FREEBSD, SYSCTL, DISPLAYMEM, COREBOOT, MIPS, HVMLOADER]
)
def test_maps_of_a_bios(text: str, way: str) -> None:
    assert shapes(WAYS[way](text)) == [PC]
    assert maps(text)[0].format == "smap"


def test_types_of_a_bios() -> None:
    (found,) = maps("".join(f"SMAP type={n:02x} base={n:015x}0 len={16:016x}\n" for n in range(9)))
    assert [entry.kind for entry in found] == [
        *("other", "ram", "reserved", "acpi", "acpi", "other", "other", "other", "other")
    ]
    (found,) = maps(
        "base_addr = 0x0, length = 0x10, ACPI reclaimable RAM\n"
        "base_addr = 0x10, length = 0x10, ACPI non-volatile storage RAM\n"
        "base_addr = 0x20, length = 0x10, faulty RAM (BadRAM)\n"
    )
    assert [entry.kind for entry in found] == ["acpi", "acpi", "other"]
    (found,) = maps(
        " 0. 0000000000000000-0000000000000fff: CONFIGURATION TABLES\n"
        " 1. 0000000000001000-0000000000001fff: RAMSTAGE\n"
    )
    assert [(entry.kind, entry.name) for entry in found] == [
        ("other", "CONFIGURATION TABLES"),
        ("reserved", "RAMSTAGE"),
    ]


CHUNKS = """\
Physical memory chunk(s):
  0x80000000 - 0xfbd2ffff,  1981 MB ( 507184 pages)
  0x2080000000 - 0x2f7ffe8fff, 61439 MB (15728617 pages)
Excluded memory regions:
  0x01e88000 - 0x01e89fff,     0 MB (      2 pages) NoAlloc
  0xf6b27000 - 0xf6b27fff,     0 MB (      1 pages) NoAlloc
"""
FREE = """\
Physical memory chunk(s):
0x00000080000000 - 0x000000f6b26fff, 1991405568 bytes (486183 pages)
0x000000f6b28000 - 0x000000fbd2ffff, 86016000 bytes (21000 pages)
0x00002080000000 - 0x00002f154f2fff, 62634536960 bytes (15291635 pages)
"""


@pytest.mark.parametrize("way", [way for way in WAYS if way != "in a mail, encoded"])
def test_chunks(way: str) -> None:
    """All memory counts if the log has it, not only what FreeBSD has left of it."""
    all = [(0x80000000, 0x7BD30000, "ram"), (0x2080000000, 0xEFFFE9000, "ram")]
    for text in (CHUNKS, FREE + CHUNKS, CHUNKS + FREE):
        assert shapes(WAYS[way](text)) == [all]
    assert [end - start for start, end in ((e.start, e.end) for e in maps(FREE)[0])] == [
        1991405568,
        86016000,
        62634536960,
    ]
    assert maps(FREE)[0].format == "ram"
    assert shapes(CHUNKS + SYSCTL) == [PC] and shapes(CHUNKS + printed("FreeBSD")) == [ONE]


NODES = """\
[    0.000000] Zone ranges:
[    0.000000]   DMA      [mem 0x0000000080000000-0x00000000ffffffff]
[    0.000000]   Normal   [mem 0x0000000100000000-0x00000009ffffffff]
[    0.000000] Movable zone start for each node
[    0.000000] Early memory node ranges
[    0.000000]   node   0: [mem 0x0000000080000000-0x0000000081ffffff]
[    0.000000]   node   0: [mem 0x0000000082000000-0x00000000ffffffff]
[    0.000000]   node   1: [mem 0x0000000880000000-0x00000009ffffffff]
[    0.000000] Initmem setup node 0 [mem 0x0000000080000000-0x00000009ffffffff]
"""
MEMBLOCK = """\
[    0.000000] MEMBLOCK configuration:
[    0.000000]  memory size = 0xfdfff000 reserved size = 0x7ce4d20d
[    0.000000]  memory.cnt  = 0x3
[    0.000000]  memory[0x0]     [0x00000080000000-0x00000081ffffff], 0x2000000 bytes flags: 0x0
[    0.000000]  memory[0x1]     [0x00000082000000-0x000000ffffffff], 0x7e000000 bytes flags: 0x0
[    0.000000]  memory[0x2]     [0x00000880000000-0x000009ffffffff], 0x180000000 bytes flags: 0x0
[    0.000000]  reserved.cnt  = 0x1
[    0.000000]  reserved[0x0]   [0x00000080003000-0x0000008000e494], 0xb495 bytes flags: 0x0
"""
LMB = """\
lmb_dump_all:
 memory.count = 0x3
 memory[0]\t[0x80000000-0x81ffffff], 0x2000000 bytes, flags: none
 memory[1]\t[0x82000000-0xffffffff], 0x7e000000 bytes, flags: none
 memory[2]\t[0x880000000-0x9ffffffff], 0x180000000 bytes, flags: none
 reserved[0]\t[0x84000000-0x841fffff], 0x200000 bytes, flags: none
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", [NODES, NODES + MEMBLOCK, MEMBLOCK, LMB])
def test_ram_of_other_processors(text: str, way: str) -> None:
    """A log of Linux without an e820 map and EFI's has the RAM of each node."""
    ram = [(0x80000000, 0x2000000), (0x82000000, 0x7E000000), (0x880000000, 0x180000000)]
    assert shapes(WAYS[way](text)) == [[(*each, "ram") for each in ram]]


def test_a_map_with_more_than_ram_counts_first() -> None:
    assert shapes("00000000-00000fff : System RAM\n" + NODES) == [[(0, 0x1000, "ram")]]
    assert shapes(NODES + GRUB) == [PC]


def test_a_mail_with_a_header() -> None:
    """A whole mail, quoted-printable as its header says, with a table of U-Boot."""
    mail = message_from_string(
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=x; bh=abc=\n\n"
    )
    mail["Content-Transfer-Encoding"] = "quoted-printable"
    table = printed("U-Boot").replace("WB|RT", "WB")
    lines = "Type             Start            End              Attributes\n" + "=3D" * 16 + " =\n"
    mail.set_payload(f"This is what U-Boot reports:\n\n{lines}{'=3D' * 16}\n{table}")
    assert shapes(mail.as_string()) == [ONE]
