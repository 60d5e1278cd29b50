"""A map of guest memory, read from a file: ranges of bytes, each with its kind."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, SupportsIndex

from memslots.errors import InvalidRegionError, NotMappedError
from memslots.read.memorymap import MemoryMap
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE
from memslots.values.integers import field as integer
from memslots.values.records import Flags

_LAST = (1 << 64) - 1

#: What can be at an address. The kinds in MEMORY are KVM slots, or can be.
KINDS = ("ram", "rom", "romd", "reserved", "acpi", "mmio", "other")
MEMORY = ("ram", "rom", "romd")


class Entry(NamedTuple):
    """A range of guest addresses: [start, start + size), in bytes."""

    start: int
    size: int
    kind: str = "ram"
    """One of memslots.maps.KINDS."""
    name: str = ""
    offset: int | None = None
    """Offset of the first byte in the map's file, in its block of RAM, or in the file of
    `backing`."""
    userspace_addr: int | None = None
    """The host address of the first byte, if known."""
    id: int | None = None
    """The slot's id, if the entry is a slot."""
    flags: int = 0
    backing: str = ""
    """The memory at the host address, if known. A file, a memfd, or anonymous memory."""

    @property
    def end(self) -> int:
        """Returns the first address after the entry."""
        return self.start + self.size


@dataclass(frozen=True)
class Map:
    """Entries in order of their addresses; entries of memory do not overlap.

    ``map[0x1000]`` returns the entry that contains an address, or raises KeyError.
    """

    entries: tuple[Entry, ...]
    name: str = ""
    """The map's name in the input, if the input has several maps."""
    as_id: int = 0
    format: str = ""
    """The format of the input, a name of memslots.maps.FORMATS."""
    _starts: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.entries, key=lambda entry: (entry.start, entry.size)))
        object.__setattr__(self, "entries", ordered)
        object.__setattr__(self, "_starts", [entry.start for entry in ordered])

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, gpa: SupportsIndex) -> Entry:
        found = self.get(gpa)
        if found is None:
            raise KeyError(gpa)
        return found

    def get(self, gpa: SupportsIndex) -> Entry | None:
        """Returns the entry that contains an address, or None.

        O(log n), plus one step for each non-memory entry below the address that is passed over.
        """
        address = integer(gpa, "gpa", 64)
        i = bisect_right(self._starts, address)
        while i:
            entry = self.entries[i - 1]
            if address < entry.end:
                return entry
            if entry.kind in MEMORY:
                return None
            i -= 1  # a non-memory entry may lie within another entry
        return None

    def of_kind(self, *kinds: str) -> Map:
        """Returns the map with only the entries of these kinds."""
        return replace(self, entries=tuple(entry for entry in self if entry.kind in kinds))

    def offset_of(self, gpa: SupportsIndex) -> int:
        """Returns the file offset of the byte at a guest address. Takes as long as `get`.

        Raises
        ------
        NotMappedError
            The map has no entry there, or the entry has no place in a file.
        """
        address = integer(gpa, "gpa", 64)
        entry = self.get(address)
        if entry is None or entry.offset is None:
            raise NotMappedError(errno.EFAULT, f"gpa {address:#x} is not in the file")
        return entry.offset + (address - entry.start)

    def gpa_of(self, offset: SupportsIndex) -> int:
        """Returns the guest address of the byte at an offset of the file. O(n).

        Raises
        ------
        NotMappedError
            No entry contains the offset.
        """
        place = integer(offset, "offset", 64)
        for entry in self:
            if entry.offset is not None and 0 <= place - entry.offset < entry.size:
                return entry.start + (place - entry.offset)
        raise NotMappedError(errno.EFAULT, f"no guest address is at offset {place:#x}")

    def memory_map(self) -> MemoryMap:
        """Returns the whole pages of each memory entry as a MemoryMap.

        An unknown host address becomes the offset in the file, if that is known and page aligned,
        else the guest address. ROMs are READONLY. Entries without an id get any id.
        """
        slots: list[Any] = []
        for entry in self:
            first = -(-entry.start // PAGE_SIZE)
            npages = entry.end // PAGE_SIZE - first
            if entry.kind not in MEMORY or npages <= 0:
                continue
            skipped = (first << PAGE_SHIFT) - entry.start
            host = entry.offset if entry.userspace_addr is None else entry.userspace_addr
            if host is None or (host + skipped) % PAGE_SIZE:
                host = entry.start
            host += skipped
            flags = entry.flags | (0 if entry.kind == "ram" else Flags.READONLY)
            fields = (first, npages, host, flags & ~Flags.GUEST_MEMFD)
            slots.append(fields if entry.id is None else (*fields, entry.id))
        return MemoryMap(slots, self.as_id)


def machines(maps: Iterable[Map]) -> list[list[Map]]:
    """Returns the maps of each machine. A machine's address spaces have different numbers."""
    found: list[list[Map]] = []
    for one in maps:
        if not found or any(one.as_id == other.as_id for other in found[-1]):
            found.append([])
        found[-1].append(one)
    return found


def cut_off(line: str) -> ValueError:
    """Returns the error for a map with a line that does not have all its parts."""
    return ValueError(f"its line {line.strip()!r} is cut off")


def joined(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Returns the entries in the order of their addresses.

    Raises InvalidRegionError if entries of memory overlap, or an entry is no range of addresses.
    """
    ordered = sorted(entries, key=lambda entry: entry.start)
    end = 0
    for entry in ordered:
        if entry.size <= 0 or entry.end - 1 > _LAST:
            raise InvalidRegionError(
                errno.EINVAL, f"[{entry.start:#x}, {entry.end:#x}) is not a range of addresses"
            )
        if entry.kind in MEMORY:
            if entry.start < end:
                raise InvalidRegionError(
                    errno.EINVAL, f"[{entry.start:#x}, {entry.end:#x}) overlaps the entry before it"
                )
            end = entry.end
    return tuple(ordered)
