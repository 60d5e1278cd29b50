"""Memory maps that firmware gives to an operating system, as different programs print them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect
from typing import ClassVar

from memslots.maps.entries import Entry, Map, joined
from memslots.values.integers import PAGE_SHIFT

#: Types of EFI's memory, by number.
_TYPES = (
    "Reserved", "Loader Code", "Loader Data", "Boot Code", "Boot Data", "Runtime Code",
    "Runtime Data", "Conventional Memory", "Unusable Memory", "ACPI Reclaim Memory",
    "ACPI Memory NVS", "Memory Mapped I/O", "MMIO Port Space", "PAL Code", "Persistent Memory",
    "Unaccepted Memory",
)  # fmt: skip
#: How the names of types begin, by kind. An operating system may use what EFI's boot used.
_KINDS = (
    ("ram", ("conv", "avail", "loader", "ldr", "boot", "bs", "unaccepted")),
    ("reserved", ("reserved", "runtime", "rt", "pal")),
    ("acpi", ("acpi",)),
    ("mmio", ("mmio", "memmap", "memory", "io")),
    ("other", ("unusable", "persist", "unk")),
)
_BEGINS = rf"\b(?:{'|'.join('|'.join(names) for _, names in _KINDS)})"
_TYPE = rf"(?P<type>{_BEGINS}[\w -]{{0,24}}?)"
_WITH_FLAGS = rf"\[(?P<type>{_BEGINS}[^|\]]{{0,24}})\|"  # a mail may break it
_RANGE = r"\b(?:0x)?(?P<start>[0-9a-f]{1,16})\s?-\s?(?:0x)?(?P<end>[0-9a-f]{1,16})"
_NUMBER = r"type=(?P<number>\d+),?\s+attr="
#: Types by number, of the address map of a PC's BIOS.
_USES = {1: ("ram", "usable"), 2: ("reserved",) * 2, 3: ("acpi", "ACPI data"), 4: ("acpi", "NVS")}
#: The same by the first words of their names.
_NAMED = {"available": "ram", "usable": "ram", "ram": "ram", "reserved": "reserved", "acpi": "acpi"}


def _lines(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in patterns)


class _Firmware(ABC):
    """Lines that each have one entry. The first pattern that matches any line reads all."""

    name: str
    patterns: ClassVar[tuple[re.Pattern[str], ...]]

    @classmethod
    def recognises(cls, text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return any(pattern.search(text) for pattern in cls.patterns)

    @classmethod
    def read(cls, text: str) -> list[Map]:
        """Returns the maps in the text. An entry that overlaps another one begins a map."""
        pattern = next((one for one in cls.patterns if one.search(text)), cls.patterns[0])
        maps: list[list[Entry]] = [[]]
        for entry in map(cls.entry, pattern.finditer(text)):
            at = bisect(maps[-1], entry)  # the lines need not be in order
            near = maps[-1][max(at - 1, 0) : at + 1]
            if any(one.start < entry.end and entry.start < one.end for one in near):
                maps.append([])
                at = 0
            maps[-1].insert(at, entry)
        return [Map(joined(entries), format=cls.name) for entries in maps]

    @classmethod
    @abstractmethod
    def entry(cls, match: re.Match[str]) -> Entry:
        """Returns the entry of one line."""


class Efi(_Firmware):
    """EFI's memory map: Linux's and Xen's log, the commands of EFI's shell, GRUB and U-Boot."""

    name = "efi"
    patterns = _lines(
        # Linux on x86.
        rf"mem\d+:\s+(?:{_WITH_FLAGS}[^\]]*\]|{_NUMBER}\w+,)\s+range=\[{_RANGE}",
        # Linux on other processors; Xen and ESXi.
        rf"{_RANGE}\s+(?:{_WITH_FLAGS}|(?:len=\d+,\s+)?{_NUMBER})",
        # A table, whose ends are inclusive or not. FreeBSD's has the virtual address, and pages.
        rf"{_TYPE}\s+(?P<start>[0-9a-f]{{12,16}})(?:-(?P<end>[0-9a-f]{{16}})"
        r"|\s+(?:[0-9a-f]{12}|0)\s+(?P<pages>[0-9a-f]{8}))\b",
    )

    @classmethod
    def entry(cls, match: re.Match[str]) -> Entry:
        """Returns the entry of one line."""
        found = match.groupdict()
        number = int(found.get("number") or 0)
        type = found["type"] or (_TYPES[number] if number < len(_TYPES) else f"type {number}")
        letters = re.sub("[^a-z]", "", type.lower())
        kind = next((kind for kind, names in _KINDS if letters.startswith(names)), "other")
        start = int(found["start"], 16)
        if found.get("pages"):
            size = int(found["pages"], 16) << PAGE_SHIFT
        else:
            end = int(found["end"], 16)
            size = end + (end & 1) - start
        return Entry(start, size, kind, " ".join(type.split()))


class Smap(_Firmware):
    """A BIOS's address map as others than Linux, Xen and SeaBIOS print it."""

    name = "smap"
    patterns = _lines(
        # FreeBSD.
        r"SMAP type=(?P<number>[0-9a-f]{2}),?\s+(?:xattr=\w+,\s+)?"
        r"base=(?P<start>[0-9a-f]{16}),?\s+len=(?P<size>[0-9a-f]{16})",
        # GRUB's lsmmap, and displaymem of GRUB's first version.
        r"base_addr = 0x(?P<start>[0-9a-f]{1,16}),\s+length = 0x(?P<size>[0-9a-f]{1,16}),\s+"
        r"(?:type = 0x(?P<number>[0-9a-f]+)|(?P<name>[a-z][\w ()-]*))",
        r"(?P<name>Usable RAM|Reserved)\s*:\s+Base:\s+0x\s*(?P<start>[0-9a-f]+),"
        r"\s+Length:\s+0x\s*(?P<size>[0-9a-f]+),",
        # Coreboot.
        r"\b\d+\. (?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}): (?P<name>[A-Z][A-Z ]+)",
        # Linux on MIPS.
        r"memory: (?P<size>[0-9a-f]{8,16}) @ (?P<start>[0-9a-f]{8,16}) \((?P<name>[\w ]+)\)",
    )

    @classmethod
    def entry(cls, match: re.Match[str]) -> Entry:
        """Returns the entry of one line."""
        found = match.groupdict()
        start = int(found["start"], 16)
        end = found.get("end")
        size = int(end, 16) + 1 - start if end else int(found["size"], 16)
        if found.get("number"):
            number = int(found["number"], 16)
            return Entry(start, size, *_USES.get(number, ("other", f"type {number}")))
        first = found["name"].split()[0].lower()
        return Entry(start, size, _NAMED.get(first, "other"), found["name"].strip())


class Ram(_Firmware):
    """RAM without anything else, as kernels and U-Boot log it."""

    name = "ram"
    patterns = _lines(
        # FreeBSD: all RAM, or the RAM that it has left.
        *(
            rf"0x(?P<start>[0-9a-f]+) - 0x(?P<end>[0-9a-f]+),\s+\d+ {unit} \(\s*\d+ pages\)\s*$"
            for unit in ("MB", "bytes")
        ),
        # Linux: of each node, or with memblock=debug. U-Boot's bdinfo has the form of the latter.
        r"\bnode\s+\d+: \[mem 0x(?P<start>[0-9a-f]+)-0x(?P<end>[0-9a-f]+)\]",
        r"\bmemory\[\w+\]\s+\[0x(?P<start>[0-9a-f]+)-0x(?P<end>[0-9a-f]+)\],\s+0x\w+ bytes",
    )

    @classmethod
    def entry(cls, match: re.Match[str]) -> Entry:
        """Returns the entry of one line."""
        start = int(match["start"], 16)
        return Entry(start, int(match["end"], 16) + 1 - start)
