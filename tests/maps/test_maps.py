"""Reads and writes maps of guest memory in each format, and looks up addresses in them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from collections.abc import Callable
from email.mime.text import MIMEText
from pathlib import Path

import pytest

from memslots import (
    Backing,
    GuestMemory,
    InvalidRegionError,
    Memslots,
    NotMappedError,
    SnapshotError,
    TraceError,
)
from memslots.maps import FORMATS, KINDS, MEMORY, WRITERS, Entry, Map, read, write

DATA = Path(__file__).parent.parent / "data" / "maps"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: By file: its format and its entries: start, size, kind, offset, host address.
WANTED: dict[str, tuple[str, list[tuple[object, ...]]]] = {
    "syz-program.syz": (
        "syzkaller",
        [
            (0, 8 * KIB, "ram", None, 0x7F0000001000),
            (0x10000, 16 * KIB, "ram", None, 0x7F0000004000),
        ],
    ),
    "cloud-hypervisor.log": (
        "cloud-hypervisor",
        [(0, 3 * GIB, "ram", None, 0x7F7709A4E000), (4 * GIB, GIB, "ram", None, 0x7F7809A4E000)],
    ),
    "dosemu2.log": (
        "dosemu2",
        [
            (0, 640 * KIB, "ram", None, 0x7F5808A00000),
            (0x110000, 0xA4E6000, "ram", None, 0x7F5809310000),
            (0x20200000, 0x417000, "ram", None, 0x7F5808C00000),
        ],
    ),
    "libkrun.log": (
        "libkrun",
        [
            (0x40000000, 0x3FF00000, "ram", None, 0x300000000),
            (0x80000000, 0x20000000, "ram", None, 0x130000000),
        ],
    ),
    "unidbg.log": (
        "unidbg",
        [
            (0x40000000, 0xB4000, "ram", None, 0x7F1201000000),
            (0xBFFF0000, 0x10000, "ram", None, 0x7F1200000000),
        ],
    ),
    "mtree-f.txt": (
        "mtree-f",
        [
            (0, 640 * KIB, "ram", 0, None),
            (0xC0000, 44 * KIB, "rom", 0xC0000, None),
            (MIB, 3071 * MIB, "ram", MIB, None),
            (0xFFFC0000, 256 * KIB, "rom", 0, None),
            (4 * GIB, GIB, "ram", 3 * GIB, None),
        ],
    ),
    "e820.txt": (
        "e820",
        [
            (0, 0x9FC00, "ram", None, None),
            (MIB, 0xBFEE0000, "ram", None, None),
            (4 * GIB, GIB, "ram", None, None),
        ],
    ),
    "efi.txt": (
        "efi",
        [
            (0, 4 * KIB, "ram", None, None),
            (4 * KIB, 4 * KIB, "ram", None, None),
            (8 * KIB, 184 * KIB, "ram", None, None),
            (320 * KIB, 220 * KIB, "ram", None, None),
            (MIB, 0x707000, "ram", None, None),
            (0x1710000, 0x8F0000, "ram", None, None),
        ],
    ),
    "smap.txt": (
        "smap",
        [
            (0, 0x9D800, "ram", None, None),
            (MIB, 0xBF3D6000, "ram", None, None),
            (4 * GIB, 0x23E000000, "ram", None, None),
        ],
    ),
    "ram.txt": (
        "ram",
        [
            (0x1D0000, 0x20000, "ram", None, None),
            (2 * MIB, 0x337C1000, "ram", None, None),
            (GIB, GIB, "ram", None, None),
        ],
    ),
    "iomem.txt": (
        "iomem",
        [
            (0x1000, 0x9EC00, "ram", None, None),
            (MIB, 0x7FEF0000, "ram", None, None),
            (4 * GIB, GIB, "ram", None, None),
        ],
    ),
    "lime.lime": (
        "lime",
        [(0x1000, 0x2000, "ram", 0x20, None), (MIB, 0x1000, "ram", 0x2040, None)],
    ),
    "memmap.txt": (
        "memmap",
        [
            (0x1000, 0x9F000, "ram", 0x1000, None),
            (MIB, 0x9D00000, "ram", MIB, None),
            (4 * GIB, 0x33F380000, "ram", 2 * GIB, None),
        ],
    ),
}


def shape(entry: Entry) -> tuple[object, ...]:
    return entry.start, entry.size, entry.kind, entry.offset, entry.userspace_addr


@pytest.mark.parametrize("name", WANTED)
def test_what_is_in_a_file(name: str) -> None:
    format, wanted = WANTED[name]
    (found,) = read(DATA / name)
    assert found.format == format
    assert [shape(entry) for entry in found.of_kind(*MEMORY)] == wanted
    assert read(DATA / name, format) == [found]


def test_every_format_has_a_file() -> None:
    of_files = {format for format, _ in WANTED.values()}
    assert {*FORMATS} - of_files == {"elf", "crashdump", "json", "mtree", "csv", "trace"}


QUOTED = [
    ("in a mail", lambda text: "".join(f"> {line}\n" for line in text.splitlines())),
    ("in colours", lambda text: "".join(f"\x1b[1m{line}\x1b[0m\n" for line in text.splitlines())),
    ("with CRLF", lambda text: text.replace("\n", "\r\n")),
    ("with CR", lambda text: text.replace("\n", "\r")),
    ("with CR CR LF", lambda text: text.replace("\n", "\r\r\n")),
    ("in a mail in base64", lambda text: MIMEText(text, _charset="utf-8").as_string()),
    ("by a CI", lambda text: "".join(f"2026-01-02T03:04:05Z {x}\n" for x in text.splitlines())),
    ("indented", lambda text: "".join(f"    {line}\n" for line in text.splitlines())),
]


@pytest.mark.parametrize(("how", "wrap"), QUOTED, ids=[how for how, _ in QUOTED])
@pytest.mark.parametrize("name", [name for name in WANTED if name != "lime.lime"])
def test_what_stands_around_lines(name: str, how: str, wrap: object, tmp_path: Path) -> None:
    assert callable(wrap)
    text = wrap((DATA / name).read_text())
    path = tmp_path / "pasted"
    path.write_bytes(gzip.compress(text.encode()))
    (found,) = read(path)
    assert [shape(entry) for entry in found.of_kind(*MEMORY)] == WANTED[name][1]


LOSSLESS = {"json", "csv"}


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("name", WANTED)
def test_written_and_read_again(name: str, format: str, tmp_path: Path) -> None:
    (found,) = read(DATA / name)
    if format == "text":
        text = write(found, "text")
        assert len(text.splitlines()) == len(found) + 1
        return
    path = tmp_path / "written"
    memory = found.of_kind(*MEMORY)
    path.write_text(write(memory, format))
    (again,) = read(path)
    if format in LOSSLESS:
        assert again.entries == memory.entries
    elif format == "mtree":
        assert [(e.start, e.size, e.kind) for e in again] == [x[:3] for x in WANTED[name][1]]
    else:
        ram = [entry for entry in memory if entry.kind == "ram"]
        assert [(e.start, e.size) for e in again.of_kind("ram")] == [(e.start, e.size) for e in ram]
    if format == "memmap":
        assert [e.offset for e in again] == [e.start if e.offset is None else e.offset for e in ram]


TREE = """(qemu) info mtree
address-space: I/O
  0000000000000000-000000000000ffff (prio 0, i/o): io

address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000000000000-000000007fffffff (prio 0, ram): alias ram-below-4g @pc.ram 0000000000000000-000000007fffffff
    0000000000000000-ffffffffffffffff (prio -1, i/o): pci
      00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
      00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
    00000000000a0000-00000000000bffff (prio 1, i/o): alias smram-region @pci 00000000000a0000-00000000000bffff
    00000000000c0000-00000000000c3fff (prio 1, ram): alias pam-rom @pc.ram 00000000000c0000-00000000000c3fff [disabled]
    00000000fec00000-00000000fec00fff (prio 0, i/o): kvm-ioapic
    0000000100000000-000000013fffffff (prio 0, ram): alias ram-above-4g @pc.ram 0000000080000000-00000000bfffffff

memory-region: pc.ram
  0000000000000000-00000000bfffffff (prio 0, ram): pc.ram

memory-region: pci
  0000000000000000-ffffffffffffffff (prio -1, i/o): pci
    00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
    00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
"""  # noqa: E501 (as QEMU prints it)


def test_a_tree_is_drawn_as_qemu_draws_it(tmp_path: Path) -> None:
    """Aliases, priorities, disabled regions: the map shows the topmost region."""
    path = tmp_path / "tree"
    path.write_text(TREE)
    (found,) = read(path)
    assert found.format == "mtree"
    assert [(e.start, e.size, e.kind, e.name, e.offset) for e in found.of_kind(*MEMORY)] == [
        (0, 0xA0000, "ram", "pc.ram", 0),
        (0xC0000, 0x80000000 - 0xC0000, "ram", "pc.ram", 0xC0000),
        (0xFFFC0000, 0x40000, "rom", "pc.bios", 0),
        (0x100000000, GIB, "ram", "pc.ram", 0x80000000),
    ]
    assert found[0xA0000].name == "vga-lowmem"
    assert found[0xFEC00010].name == "kvm-ioapic"


def test_offsets_around_the_pci_hole() -> None:
    (found,) = read(DATA / "memmap.txt")
    assert found.offset_of(0x100000000) == 0x80000000
    assert found.gpa_of(0x80000000) == 0x100000000
    for gpa in (0xFFFF_FFFF, 0, 0x9DFFFFF + 1, 0x43F380000):
        with pytest.raises(NotMappedError):
            found.offset_of(gpa)
    with pytest.raises(NotMappedError):
        found.gpa_of(0x9E00000)
    with pytest.raises(NotMappedError):
        read(DATA / "e820.txt")[0].offset_of(0)
    with pytest.raises(KeyError):
        found[0]
    assert found.get(0) is None


def elf(bits: int, order: str, segments: list[tuple[int, int, int]], type: int = 4) -> bytes:
    """Returns a core whose segments are (physical address, size, offset)."""
    wide = bits == 64
    size = 64 if wide else 52
    step = 56 if wide else 32
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    head = struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        *(type, 62, 1, 0, size, 0, 0, size, step, len(segments), 0, 0, 0),
    )
    table = b""
    for paddr, length, offset in segments:
        if wide:
            fields = (1, 6, offset, 0, paddr, length, length, 0)
        else:
            fields = (1, offset, 0, paddr, length, length, 6, 0)
        table += struct.pack(order + ("IIQQQQQQ" if wide else "IIIIIIII"), *fields)
    return ident + head + table


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
def test_elf_cores(bits: int, order: str) -> None:
    segments = [(0, 0x1000, 0x200), (0x100000, 0x3000, 0x1200)]
    (found,) = read("core", stream=io.BytesIO(elf(bits, order, segments)))
    assert [(e.start, e.size, e.offset) for e in found] == segments


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_core_of_a_crashed_linux(bits: int, order: str) -> None:
    """The kernel's text is in the RAM around it too; memory without one address is left out."""
    memory = [(0x1000, 0x1000, 0x1200), (0x100000, 0x3000, 0x2200)]
    segments = [(0x101000, 0x1000, 0x3200), *memory, ((1 << bits) - 1, 0x1000, 0x5200)]
    (found,) = read("vmcore", stream=io.BytesIO(elf(bits, order, segments)))
    assert [(e.start, e.size, e.offset) for e in found] == memory
    with pytest.raises(TraceError, match="overlaps the entry before it"):
        segments = [(0x1000, 0x2000, 0x200), (0x2000, 0x2000, 0x2200)]
        read("vmcore", stream=io.BytesIO(elf(bits, order, segments)))


def test_our_own_core_file(tmp_path: Path) -> None:
    memory = GuestMemory(Memslots())
    memory.place(0, 0x10000, Backing.anonymous(0x4000))
    memory.write(0x12345, b"here")
    memory.dump(tmp_path / "core")
    (found,) = read(tmp_path / "core")
    assert [(e.start, e.size) for e in found] == [(0x10000, 0x4000)]
    content = (tmp_path / "core").read_bytes()
    place = found.offset_of(0x12345)
    assert content[place : place + 4] == b"here"


def crash_dump(kind: int, runs: list[tuple[int, int]]) -> bytes:
    head = bytearray(0x2000)
    head[:8] = b"PAGEDU64"
    struct.pack_into("<I4xQ", head, 0x88, len(runs), sum(pages for _, pages in runs))
    for i, run in enumerate(runs):
        struct.pack_into("<QQ", head, 0x98 + 16 * i, *run)
    struct.pack_into("<I", head, 0xF98, kind)
    return bytes(head)


def test_a_crash_dump_of_windows() -> None:
    (found,) = read("dump", stream=io.BytesIO(crash_dump(1, [(1, 0x9E), (0x100, 0x10)])))
    assert [(e.start, e.size, e.offset) for e in found] == [
        (0x1000, 0x9E000, 0x2000),
        (0x100000, 0x10000, 0xA0000),
    ]


def lime(*ranges: tuple[int, int]) -> bytes:
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + size - 1) + bytes(size)
        for start, size in ranges
    )


@pytest.mark.parametrize("size", [4, 32, 5000])
def test_a_minidump_is_no_guest_memory(size: int, tmp_path: Path) -> None:
    """Neither as a map nor as memory to open, which would take it for raw memory."""
    path = tmp_path / "dump"
    path.write_bytes((b"MDMP\x93\xa7" + bytes(size))[:size])
    with pytest.raises(TraceError, match=rf"a process \({size} bytes\): its memory is"):
        read(path)
    with pytest.raises(SnapshotError, match="no guest physical addresses"):
        GuestMemory.open(path)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"KDUMP   ", "its pages are compressed \\(kdump\\): write an ELF core"),
        (b"makedumpfile\0\0\0\0", "its pages are compressed \\(kdump\\)"),
        (b"AVML\2\0\0\0", "use avml-convert first"),
        (b"QEVM\0\0\0\3", "it is a saved state of QEMU"),
        (b"LibvirtQemudSave", "it is a saved state of QEMU"),
        (b"PAGEDUMP", "a crash dump of 32-bit Windows"),
    ],
)
def test_a_dump_that_cannot_be_read_is_not_taken_for_raw_memory(
    head: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(head.ljust(8192, b"\0"))
    with pytest.raises(TraceError, match=reason):
        read(path)
    with pytest.raises(SnapshotError, match=reason):
        GuestMemory.open(path)


@pytest.mark.parametrize(
    ("program", "compress"),
    [
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("zstd", lambda data: b"\x28\xb5\x2f\xfd" + data),
        ("zip", lambda data: b"PK\x03\x04" + data),
    ],
)
def test_compressed_memory_is_not_taken_for_raw_memory(
    program: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(compress(lime((0, 4096))))
    with pytest.raises(SnapshotError, match=f"compressed with {program}: decompress it first"):
        GuestMemory.open(path)


WRONG = {
    "nothing": (b"", "it is empty"),
    "prose": (b"dear all,\nmy machine has memory\n", "it is in no known format"),
    "zeros": (bytes(5000), "it is in no known format"),
    "a cut LiME file": (lime((0, 4096))[:-1], "ends within the range"),
    "a cut header of LiME's": (lime((0, 4096)) + b"EMiL", "ends within the header"),
    "no header of LiME's": (lime((0, 4096)) + bytes(32), "no LiME header at offset 0x1020"),
    "LiME ranges that overlap": (lime((0, 8192), (4096, 4096)), "overlaps the entry before it"),
    "a program": (elf(64, "<", [(0, 1, 0)], type=2), "an ELF file, but not a core"),
    "a cut core": (elf(64, "<", [(0, 1, 0)])[:80], "ends within its program headers"),
    "a core of nothing": (elf(64, "<", []), "it has no entries, so no map"),
    "a small crash dump": (crash_dump(5, [(1, 1)]), "of type 5"),
    "many runs": (crash_dump(1, [(n, 1) for n in range(200)]), "200 runs"),
    "JSON of something else": (b'{"a": 1}', "a map is a JSON object"),
    "broken JSON": (b'{"slots": [', "Expecting"),
    "iomem of a plain user": (b"00000000-00000000 : System RAM\n", "only root can read"),
    "overlapping entries": (
        b"start,size,kind\n0,0x2000,ram\n0x1000,0x1000,ram\n",
        "overlaps the entry before it",
    ),
    "no size": (b"start,size,kind\n0,0,ram\n", "not a range of addresses"),
    "no number": (b"start,size,kind\n0,many,ram\n", "its size is no number: 'many'"),
    "no end": (b"start,end\n0\n", "line 2 has no start, or neither size nor end"),
    "no such kind": (b"start,size,kind\n0,0x1000,rams\n", "there is no kind 'rams'"),
    "regions of an old QEMU": (
        b"address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, RW): system\n",
        "does not tell memory from devices",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_not_a_map(name: str) -> None:
    content, text = WRONG[name]
    with pytest.raises(TraceError) as caught:
        read("it", stream=io.BytesIO(content))
    assert text in str(caught.value)
    assert caught.value.name == "it"


def test_formats_that_are_not() -> None:
    with pytest.raises(ValueError, match=r"format must be auto or one of .*, not 'bin'"):
        read("it", "bin")
    with pytest.raises(ValueError, match=r"format must be one of .*, not 'lime'"):
        write([], "lime")
    with pytest.raises(ValueError, match="no map to write"):
        write([], "csv")
    with pytest.raises(TraceError):
        read("/there/is/no/such/file")


def test_every_byte_cut_off_or_changed_is_told() -> None:
    """Any beginning of each file, and other bytes in it, raise nothing but TraceError."""
    contents = [(DATA / name).read_bytes() for name in WANTED]
    contents += [elf(64, "<", [(0, 1, 0), (5, 5, 5)]), crash_dump(1, [(1, 2)]), TREE.encode()]
    for content in contents:
        step = max(1, len(content) // 97)
        for cut in range(0, len(content), step):
            for changed in (content[:cut], content[:cut] + b"\xff" + content[cut + 1 :]):
                try:
                    found = read("it", stream=io.BytesIO(changed))
                except TraceError:
                    continue
                assert all(one.entries for one in found)


def test_two_boots_in_a_log() -> None:
    text = (DATA / "e820.txt").read_text()
    assert len(read("log", stream=io.BytesIO((text + text).encode()))) == 2


def test_mappings_that_libkrun_adds_and_removes() -> None:
    """An error after an addition is of this addition; what was there before is gone then."""
    lines = [
        "add_mapping: host_addr=103c30000, guest_addr=280000000, len=147456",
        "add_mapping: host_addr=108674000, guest_addr=280024000, len=1048576",
        "add_mapping: host_addr=109000000, guest_addr=290000000, len=135168",
        "another thread's line",
        "Error adding memory map: MemoryMap",
        "remove_mapping: guest_addr=280124000, len=16384",
        "add_mapping: host_addr=10a000000, guest_addr=280000000, len=16384",
        "remove_mapping: guest_addr=280030000, len=16384",
        "add_mapping: host_addr=1, guest_addr=1, len=1",
        "add_mapping: host_addr=0, guest_addr=ffffffffffff0000, len=99999999",
    ]
    text = (DATA / "libkrun.log").read_text() + "".join(f"{line}\n" for line in lines)
    (found,) = read("it", stream=io.BytesIO(text.encode()))
    assert [(e.start, e.end, e.userspace_addr, e.id) for e in found.entries[2:]] == [
        (0x280000000, 0x280004000, 0x10A000000, None),
        (0x280004000, 0x280024000, 0x103C34000, None),
        (0x280024000, 0x280030000, 0x108674000, None),
        (0x280034000, 0x280124000, 0x108684000, None),
    ]


def test_the_flat_views_of_a_machine_with_smm() -> None:
    smm = """FlatView #5
 AS "KVM-SMRAM", root: mem-container-smram
 Root memory region: mem-container-smram
  0000000000000000-00000000bfffffff (prio 0, ram): pc.ram KVM
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM
"""
    text = (DATA / "mtree-f.txt").read_text() + smm
    found = read("it", stream=io.BytesIO(text.encode()))
    assert [(one.as_id, len(one.of_kind(*MEMORY))) for one in found] == [(0, 5), (1, 2)]


def test_as_a_memory_map() -> None:
    (found,) = read(DATA / "e820.txt")
    map = found.memory_map()
    assert [(s.base_gfn, s.npages, s.userspace_addr) for s in map] == [
        (0, 0x9F, 0),
        (0x100, 0xBFEE0, MIB),
        (0x100000, 0x40000, 4 * GIB),
    ]
    (found,) = read(DATA / "mtree-f.txt")
    flags = [int(slot.flags) for slot in found.memory_map()]
    assert flags == [0, 2, 0, 2, 0]
    # Less than a page makes no slot. A file offset that is not page aligned makes no host address.
    small = Map((Entry(0x10, 0x20), Entry(0x2010, 0x2000, offset=5)))
    assert [(s.base_gfn, s.npages, s.userspace_addr) for s in small.memory_map()] == [
        (3, 1, 0x3000)
    ]


def test_a_trace_is_read_too() -> None:
    line = "kvm_set_user_memory Slot#0 flags=0x2 gpa=0x1000 size=0x2000 ua=0x7f0000000000 ret=0\n"
    (found,) = read("log", stream=io.BytesIO(line.encode()))
    assert found.format == "trace"
    assert found.entries == (Entry(0x1000, 0x2000, "rom", "", None, 0x7F0000000000, 0, 2),)
    assert {entry.kind for entry in found} <= {*KINDS}


def test_entries_that_cannot_be() -> None:
    from memslots.maps.entries import joined

    with pytest.raises(InvalidRegionError):
        joined([Entry((1 << 64) - 0x1000, 0x2000)])
