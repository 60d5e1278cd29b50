"""Memory maps that firmware gives to an operating system, as different programs print them."""

from __future__ import annotations

import re
from bisect import bisect
from typing import ClassVar

from memslots.maps.entries import Entry, Map, joined
from memslots.values.integers import PAGE_SHIFT

#: How the names of types begin, by kind. An operating system may use what EFI's boot used.
_KINDS = (
    ("reserved", ("reserved", "runtime", "rt", "pal", "ramstage")),
    ("ram", ("conv", "avail", "loader", "ldr", "boot", "bs", "unaccepted")),
    ("acpi", ("acpi",)),
    ("mmio", ("mmio", "memmap", "memory", "io")),
    ("other", ("unusable", "persist", "unk")),
    ("ram", ("usable", "ram")),  # a BIOS's words
)
_BEGINS = rf"\b(?:{'|'.join('|'.join(names) for _, names in _KINDS[:-1])})"
_TYPE = rf"(?P<type>{_BEGINS}[\w -]{{0,24}}?)"
_WITH_FLAGS = rf"\[(?P<type>{_BEGINS}[^|\]]{{0,24}})\|"  # a mail may break it
_NUMBER = r"type=(?P<number>\d+),?\s+attr="
_START = r"(?:0x)?(?P<start>[0-9a-f]+)"
_END = r"(?:0x)?(?P<end>[0-9a-f]+)"
_RANGE = rf"\b{_START}\s?-\s?{_END}"


def _lines(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in patterns)


class _Firmware:
    """Lines that each have one entry. The first pattern that matches any line reads all."""

    name: str
    patterns: ClassVar[tuple[re.Pattern[str], ...]]
    numbers = ""  # the kinds of types that are numbers
    base = 10  # of these numbers

    @classmethod
    def recognises(cls, text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return any(pattern.search(text) for pattern in cls.patterns)

    @classmethod
    def read(cls, text: str) -> list[Map]:
        """Returns the maps in the text. An entry that overlaps another one begins a map."""
        pattern = next((one for one in cls.patterns if one.search(text)), cls.patterns[0])
        maps: list[list[Entry]] = [[]]
        for entry in map(cls._entry, pattern.finditer(text)):
            at = bisect(maps[-1], entry)  # the lines need not be in order
            near = maps[-1][max(at - 1, 0) : at + 1]
            if any(one.start < entry.end and entry.start < one.end for one in near):
                maps.append([])
                at = 0
            maps[-1].insert(at, entry)
        return [Map(joined(entries), format=cls.name) for entries in maps]

    @classmethod
    def _entry(cls, match: re.Match[str]) -> Entry:
        found = match.groupdict()
        start = int(found["start"].replace(":", ""), 16)
        if found.get("end"):
            end = int(found["end"].replace(":", ""), 16)
            size = end + (end & 1) - start  # an odd end is the last address
        elif found.get("pages"):
            size = int(found["pages"], 16) << PAGE_SHIFT
        else:
            size = int(found["size"], 16)
        if found.get("number"):
            number = int(found["number"], cls.base)
            kind = dict(enumerate(cls.numbers.split())).get(number, "other")
            return Entry(start, size, kind, f"type {number}")
        name = " ".join((found.get("type") or "").split())
        first = re.sub("[^a-z]", "", name.lower() or "ram")
        kind = next((kind for kind, names in _KINDS if first.startswith(names)), "other")
        return Entry(start, size, kind, name)


class Efi(_Firmware):
    """EFI's memory map: Linux's and Xen's log, the commands of EFI's shell, GRUB and U-Boot."""

    name = "efi"
    numbers = (
        "reserved ram ram ram ram reserved reserved ram other acpi acpi mmio mmio reserved"
        " other ram"
    )
    patterns = _lines(
        # Linux on x86.
        rf"mem\d+:\s+(?:{_WITH_FLAGS}[^\]]*\]|{_NUMBER}\w+,)\s+range=\[{_RANGE}",
        # Linux on other processors; Xen and ESXi.
        rf"{_RANGE}\s+(?:{_WITH_FLAGS}|(?:len=\d+,\s+)?{_NUMBER})",
        # A table, whose ends are inclusive or not. FreeBSD's has the virtual address, and pages.
        rf"{_TYPE}[ \t]+(?P<start>[0-9a-f]{{12,16}})(?:-(?P<end>[0-9a-f]{{16}})"
        r"|\s+(?:[0-9a-f]{12}|0)\s+(?P<pages>[0-9a-f]{8}))\b",
    )


class Smap(_Firmware):
    """A BIOS's address map as others than Linux, Xen and SeaBIOS print it."""

    name = "smap"
    numbers = "other ram reserved acpi acpi"
    base = 16
    patterns = _lines(
        # FreeBSD.
        r"SMAP type=(?P<number>[0-9a-f]+),?\s+(?:xattr=\w+,\s+)?"
        rf"base={_START},?\s+len=(?P<size>[0-9a-f]+)",
        # GRUB's lsmmap, and displaymem of GRUB's first version.
        rf"base_addr = {_START},\s+length = 0x(?P<size>[0-9a-f]+),\s+"
        r"(?:type = 0x(?P<number>[0-9a-f]+)|(?P<type>[a-z][\w ()-]*))",
        r"(?P<type>Usable RAM|Reserved)\s*:\s+Base:\s+0x\s*(?P<start>[0-9a-f]+),"
        r"\s+Length:\s+0x\s*(?P<size>[0-9a-f]+)",
        # Coreboot.
        r"\b\d+\. (?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}): (?P<type>[A-Z][A-Z ]+)",
        # Xen's hvmloader.
        r"\[\d+\]: (?P<start>[0-9a-f]{8}:[0-9a-f]{8}) - (?P<end>[0-9a-f]{8}:[0-9a-f]{8}): "
        r"(?P<type>[A-Z]+)",
        # Linux on MIPS.
        rf"memory: (?P<size>[0-9a-f]{{8,16}}) @ {_START} \((?P<type>[\w ]+)\)",
    )


class Ram(_Firmware):
    """RAM without anything else, as kernels and U-Boot log it."""

    name = "ram"
    patterns = _lines(
        # FreeBSD: all RAM, or the RAM that it has left.
        rf"{_RANGE},\s+\d+ MB \(\s*\d+ pages\)\s*$",
        rf"{_RANGE},\s+\d+ bytes \(\d+ pages\)\s*$",
        # Linux: of each node, or with memblock=debug. U-Boot's bdinfo has the form of the latter.
        rf"\bnode\s+\d+: \[mem {_RANGE}\]",
        rf"\bmemory\[\w+\]\s+\[{_RANGE}\],\s+0x\w+ bytes",
    )
