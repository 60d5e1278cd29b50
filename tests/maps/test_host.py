"""Completes maps with what QEMU and the kernel say of the host memory behind them."""

from __future__ import annotations

import io
import textwrap

import pytest

from memslots import TraceError
from memslots.maps import MEMORY, Map, beside, read, write

MTREE = b"""FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
  00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000020000 KVM
  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM
  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM
"""
# Slots of the same machine, by QEMU's own trace.
TRACE = b"""\
kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0xa0000 ua=0x7fc493e00000 ret=0
kvm_set_user_memory Slot#3 flags=0x2 gpa=0xc0000 size=0x20000 ua=0x7fc5db000000 ret=0
kvm_set_user_memory Slot#4 flags=0x2 gpa=0xe0000 size=0x20000 ua=0x7fc5db220000 ret=0
kvm_set_user_memory Slot#5 flags=0x0 gpa=0x100000 size=0xbff00000 ua=0x7fc493f00000 ret=0
kvm_set_user_memory Slot#6 flags=0x0 gpa=0xfd000000 size=0x1000000 ua=0x7fc492c00000 ret=0
kvm_set_user_memory Slot#2 flags=0x2 gpa=0xfffc0000 size=0x40000 ua=0x7fc5db200000 ret=0
kvm_set_user_memory Slot#1 flags=0x0 gpa=0x100000000 size=0x80000000 ua=0x7fc553e00000 ret=0
"""
BLOCKS = """(qemu) info ramblock
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000140000000 0x0000000140000000 0x00007fc493e00000  rw
   0000:00:02.0/vga.vram    4 KiB  0x0000000140080000 0x0000000001000000 0x0000000001000000 0x00007fc492c00000  rw
    /rom@etc/acpi/tables    4 KiB  0x00000001410c0000 0x0000000000020000 0x0000000000200000 0x00007fc492800000  ro
                 pc.bios    4 KiB  0x0000000140000000 0x0000000000040000 0x0000000000040000 0x00007fc5db200000  ro
                  pc.rom    4 KiB  0x0000000140040000 0x0000000000020000 0x0000000000020000 0x00007fc5db000000  ro
"""  # noqa: E501 (as QEMU prints it)
OLD_BLOCKS = """(qemu) info ramblock
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000140000000 0x0000000140000000
"""


def memory(text: bytes) -> Map:
    return read("it", stream=io.BytesIO(text))[0].of_kind(*MEMORY)


def with_host(text: bytes, host: str) -> Map:
    given = read("it", stream=io.BytesIO(text))
    (found,) = beside(given, "host", io.BytesIO(host.encode()))
    return found.of_kind(*MEMORY)


@pytest.mark.parametrize("width", [72, 80, 100, 110])
def test_blocks_that_a_mail_wrapped(width: int) -> None:
    broken = "\n".join(part for line in BLOCKS.splitlines() for part in textwrap.wrap(line, width))
    assert with_host(MTREE, broken) == with_host(MTREE, BLOCKS)


def test_the_host_addresses_of_named_blocks() -> None:
    """They are those that QEMU gave KVM."""
    found = with_host(MTREE, BLOCKS)
    assert [entry.userspace_addr for entry in found] == [
        entry.userspace_addr for entry in memory(TRACE)
    ]
    bare = [entry._replace(userspace_addr=None) for entry in found]
    assert tuple(bare) == memory(MTREE).entries


def test_the_names_of_slots() -> None:
    found = with_host(TRACE, BLOCKS)
    wanted = [entry.name for entry in memory(MTREE)]
    wanted[4] = "0000:00:02.0/vga.vram"
    assert [entry.name for entry in found] == wanted
    assert [entry.offset for entry in found] == [entry.offset for entry in memory(MTREE)]
    assert [entry.id for entry in found] == [0, 3, 4, 5, 6, 2, 1]


@pytest.mark.parametrize("wrap", ["> {}", "\x1b[1m{}\x1b[0m", "{}\r", "    {}"])
def test_what_stands_around_the_blocks(wrap: str) -> None:
    text = "".join(wrap.format(line) + "\n" for line in BLOCKS.splitlines())
    assert with_host(MTREE, text) == with_host(MTREE, BLOCKS)


def test_regions_of_several_devices_have_no_block_of_their_own() -> None:
    twice = BLOCKS + BLOCKS.splitlines()[3].replace("00:02.0", "00:03.0") + "\n"
    assert [entry.userspace_addr is None for entry in with_host(MTREE, twice)] == [
        entry.name == "vga.vram" for entry in memory(MTREE)
    ]


REFUSED = {
    "prose": (MTREE, "dear all\n", "it is neither QEMU's info ramblock nor /proc/PID/maps"),
    "no host addresses": (MTREE, OLD_BLOCKS, "it has no column HVA"),
    "a smaller machine": (
        MTREE,
        BLOCKS.replace("0x0000000140000000 0x0000000140000000", "0x0000000080000000 0x80000000"),
        "its block pc.ram has 0x80000000 bytes, and the map has its bytes up to 0xc0000000",
    ),
    "another process": (TRACE.replace(b"=0x7f", b"=0x7a"), BLOCKS, "it says nothing of these maps"),
    "other names": (MTREE, BLOCKS.replace("pc.", "mach-virt.").replace("vga", "x"), "says nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_together(name: str) -> None:
    text, host, reason = REFUSED[name]
    with pytest.raises(TraceError) as caught:
        with_host(text, host)
    assert reason in str(caught.value)
    assert caught.value.name == "host"


def test_blocks_alone_are_no_map() -> None:
    for text in (BLOCKS, OLD_BLOCKS):
        with pytest.raises(TraceError, match=r"its \d RAM blocks of QEMU have no guest addresses"):
            read("it", stream=io.BytesIO(text.encode()))


def test_any_beginning_of_the_blocks_is_read_or_refused() -> None:
    """A cut line is no block. No other error than TraceError."""
    whole = with_host(MTREE, BLOCKS).entries
    for cut in range(len(BLOCKS)):
        try:
            found = with_host(MTREE, BLOCKS[:cut]).entries
        except TraceError:
            continue
        for one, entry in zip(found, whole, strict=True):
            assert one.userspace_addr in (None, entry.userspace_addr)


def process(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


# As the kernel prints the mappings of that machine with its memory in a file, in pieces.
PROCESS = process(
    "55d8e1ccb000-55d8e20d2000 r--p 00000000 fe:00 2173250                    /usr/bin/qemu",
    "7fc492c00000-7fc493c00000 rw-s 00000000 00:01 2076                       /dev/zero (deleted)",
    "7fc493e00000-7fc4d3e00000 rw-s 00000000 00:1b 5                          /dev/shm/vm 1",
    "7fc4d3e00000-7fc5d3e00000 rw-s 40000000 00:1b 5                          /dev/shm/vm 1",
    "7fc5db000000-7fc5db020000 rw-p 00000000 00:00 0 ",
    "7fc5db200000-7fc5db220000 r--p 00000000 fe:00 77                         /usr/bios.bin",
    "7fc5db220000-7fc5db240000 r--p 00020000 fe:00 77                         /usr/bios.bin",
    "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]",
)


def backings(found: Map) -> list[tuple[str, int | None]]:
    return [(entry.backing, entry.offset) for entry in found]


def test_what_is_mapped_behind_slots() -> None:
    assert backings(with_host(TRACE, PROCESS)) == [
        ("/dev/shm/vm 1", 0),
        ("anonymous", None),
        ("/usr/bios.bin, private", 0x20000),
        ("/dev/shm/vm 1", 0x100000),
        ("anonymous, shared", None),
        ("/usr/bios.bin, private", 0),
        ("/dev/shm/vm 1", 0xC0000000),
    ]


def test_names_of_blocks_and_their_backing() -> None:
    (found,) = beside([with_host(MTREE, BLOCKS)], "host", io.BytesIO(PROCESS.encode()))
    by_trace = with_host(TRACE, PROCESS)
    assert [entry.backing for entry in found] == [entry.backing for entry in by_trace]
    # In anonymous memory the offset stays that in the block.
    assert [entry.offset for entry in found] == [entry.offset or 0 for entry in by_trace]
    assert [entry.name for entry in found] == [entry.name for entry in memory(MTREE)]
    both = with_host(MTREE, BLOCKS + PROCESS)
    assert both == found


@pytest.mark.parametrize(
    ("lines", "backing", "offset"),
    [
        (["7f0000000000-7f0000004000 rw-s 00002000 00:01 9 /memfd:ram (deleted)"],
         "memfd:ram", 8192),
        (["7effffff0000-7f0000004000 rw-s 00000000 00:01 9 /memfd:a b (deleted)"],
         "memfd:a b", 65536),
        (["7f0000000000-7f0000004000 rw-s 00000000 00:0f 9 /dev/hugepages/x (deleted)"],
         "/dev/hugepages/x (deleted)", 0),
        (["7f0000000000-7f0000004000 rw-p 00000000 00:00 0 [anon:guest]"], "[anon:guest]", None),
        (["00400000-00401000 r--p 00000000 00:00 0 [heap]",
          "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 "], "not mapped; anonymous", None),
        (["7f0000000000-7f0000002000 rw-p 00000000 00:00 0 ",
          "7f0000003000-7f0000005000 rw-s 00000000 00:01 9 /memfd:x (deleted)"],
         "anonymous; not mapped; memfd:x", None),
        ([f"7f000000{n}000-7f000000{n + 1}000 rw-s 00000000 00:01 {n} /f{n}" for n in range(4)] +
         ["7f0000004000-7f0000005000 rw-p 00000000 00:00 0 "],
         "/f0; /f1; /f2; 1 more", None),
        # One file, and not in order.
        (["7f0000000000-7f0000001000 rw-s 00003000 00:01 9 /f",
          "7f0000001000-7f0000004000 rw-s 00000000 00:01 9 /f"], "/f", None),
        # Two lists, one after the other.
        (["7f0000000000-7f0000004000 rw-s 00000000 00:01 9 /f"] * 2, "/f", 0),
    ],
)  # fmt: skip
def test_kinds_of_mappings(lines: list[str], backing: str, offset: int | None) -> None:
    text = b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x4000 ua=0x7f0000000000 ret=0\n"
    assert backings(with_host(text, process(*lines))) == [(backing, offset)]
    smaps = "".join(f"{line}\nSize:  16 kB\nVmFlags: rd wr sh\n" for line in lines)
    assert backings(with_host(text, smaps)) == [(backing, offset)]


def test_mappings_are_written_and_read_again() -> None:
    found = with_host(TRACE, PROCESS)
    for format in ("json", "csv"):
        assert read("it", stream=io.BytesIO(write(found, format).encode()))[0].entries == (
            found.entries
        )
    lines = write(found, "text").splitlines()
    assert lines[0].endswith("name  backing")
    assert lines[1].endswith("-     /dev/shm/vm 1")


def test_mappings_that_are_of_no_use() -> None:
    with pytest.raises(TraceError, match="it says nothing of these maps"):
        with_host(TRACE, PROCESS.replace("7fc", "7ab"))
    with pytest.raises(TraceError, match="about host addresses, and the map's entries have none"):
        with_host(MTREE, PROCESS)
    with pytest.raises(TraceError, match="its 6 mappings of a process have no guest addresses"):
        read("it", stream=io.BytesIO(PROCESS.encode()))


def test_any_beginning_of_the_mappings_is_read_or_refused() -> None:
    for cut in range(len(PROCESS)):
        try:
            found = with_host(TRACE, PROCESS[:cut])
        except TraceError:
            continue
        assert any(entry.backing not in ("", "not mapped") for entry in found)
