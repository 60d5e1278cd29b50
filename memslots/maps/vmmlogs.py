"""Logs of the slots of VMMs and emulators, and syzkaller programs that make slots."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from memslots.errors import MemslotError
from memslots.maps.entries import Entry, Map, joined
from memslots.memslots import Memslots
from memslots.values.integers import PAGE_SHIFT

_HEX = r"(?:0x)?([0-9a-fA-F]{1,16})"


class _Call(NamedTuple):
    slot: int
    flags: int
    gpa: int
    size: int  # 0 deletes the slot
    hva: int | None


class _Log(ABC):
    """Lines that each make, change or delete one slot."""

    name: str
    with_ids = True  # whether the ids are those of the log
    pattern: re.Pattern[str]

    @classmethod
    def recognises(cls, text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return cls.pattern.search(text) is not None

    @classmethod
    def read(cls, text: str) -> list[Map]:
        """Returns the map after the changes of all lines."""
        return cls.maps(cls.pattern.finditer(text))

    @classmethod
    def maps(cls, matches: Iterable[re.Match[str]]) -> list[Map]:
        """Returns the maps of one machine's address spaces after the changes of its lines."""
        vm = Memslots(1 << 16, address_spaces=2, max_gfn=(1 << 52) - 1, max_hva=(1 << 64) - 4096)
        known: set[int] = set()  # slots that have host addresses
        for match in matches:
            try:
                for slot, flags, gpa, size, hva in cls.calls(match, vm):
                    vm.set_region(slot, flags & 3, gpa, size, hva or 0)
                    if hva is not None:
                        known.add(slot)
            except MemslotError:
                continue  # the change was refused, so nothing changed
        no_ids = not cls.with_ids
        spaces = [
            [
                Entry(
                    slot.guest_phys_addr,
                    slot.memory_size,
                    "rom" if slot.flags & 2 else "ram",
                    userspace_addr=slot.userspace_addr
                    if no_ids or slot.as_id << 16 | slot.id in known
                    else None,
                    id=None if no_ids else slot.id,
                    flags=int(slot.flags),
                )
                for slot in vm.address_space(as_id)
            ]
            for as_id in range(vm.address_spaces)
        ]
        return [
            Map(joined(entries), as_id=as_id, format=cls.name)
            for as_id, entries in enumerate(spaces)
            if entries
        ]

    @classmethod
    @abstractmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""


class CloudHypervisor(_Log):
    """`Creating userspace mapping: GPA -> HVA SIZE, slot N`, and `Removed ...`.

    N is decimal; the other numbers are hexadecimal.
    """

    name = "cloud-hypervisor"
    pattern = re.compile(
        rf"(Creat|Remov)(?:ing|ed) userspace mapping: {_HEX} -> {_HEX} {_HEX}(?:, slot (\d+))?"
    )

    @classmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""
        gpa, hva, size = (int(match[n], 16) for n in (2, 3, 4))
        slot = vm.lookup(gpa >> PAGE_SHIFT)
        if match[1] == "Remov":
            if slot is not None and slot.guest_phys_addr == gpa:
                yield _Call(slot.id, 0, 0, 0, None)
        elif match[5]:
            yield _Call(int(match[5]), 0, gpa, size, hva)


class Dosemu(_Log):
    """dosemu2: `KVM: map slot=N flags=F dosaddr=GPA size=SIZE unixaddr=HVA`."""

    name = "dosemu2"
    pattern = re.compile(
        rf"slot=(\d+) flags={_HEX} dosaddr={_HEX} size={_HEX} unixaddr={_HEX}", re.IGNORECASE
    )

    @classmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""
        flags, gpa, size, hva = (int(match[n], 16) for n in (2, 3, 4, 5))
        yield _Call(int(match[1]), flags, gpa, size, hva)


class Unidbg(_Log):
    """unidbg: `mem_map slot=N, address=GPA, size=SIZE, userspace_addr=HVA`."""

    name = "unidbg"
    pattern = re.compile(
        rf"(mem_u?n?map) slot=(\d+), address={_HEX}, size={_HEX}(?:, userspace_addr={_HEX})?"
    )

    @classmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""
        gpa, size = int(match[3], 16), int(match[4], 16)
        gone = match[1] == "mem_unmap"
        hva = int(match[5], 16) if match[5] else None
        yield _Call(int(match[2]), 0, gpa, 0 if gone else size, hva)


class Libkrun(_Log):
    """libkrun on macOS and Windows: `Guest memory host_addr=HVA guest_addr=GPA len=SIZE`.

    Later `add_mapping: host_addr=HVA, guest_addr=GPA, len=SIZE` and `remove_mapping: ...` change
    the map; there SIZE is decimal. No line has a slot's id.
    """

    name = "libkrun"
    with_ids = False
    pattern = re.compile(
        rf"Guest memory host_addr={_HEX} guest_addr={_HEX} len={_HEX}"
        rf"|(?P<change>add|remove)_mapping: (?:host_addr={_HEX}, )?guest_addr={_HEX}, len=(\d+)"
        # An error before the next change is of this one.
        r"(?P<failed>(?=(?:(?!_mapping: )[\s\S])*?Error adding memory map))?"
    )

    @classmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""
        if match["change"] is None:
            hva, gpa, size = (int(match[n], 16) for n in (1, 2, 3))
        else:
            hva, gpa, size = int(match[5] or "0", 16), int(match[6], 16), int(match[7])
            vm.unmap(gpa >> PAGE_SHIFT, (gpa + size) >> PAGE_SHIFT)
        if match["change"] != "remove" and match["failed"] is None and size:
            yield _Call(vm.free_id(), 0, gpa, size, hva)


class Syzkaller(_Log):
    """A syzkaller program: the struct's fields in order, pointers as `&(0xADDRESS/0xSIZE)=nil`.

    A mail may have wrapped the lines. `AUTO` is a size that syzkaller takes from the pointer.
    """

    name = "syzkaller"
    pattern = re.compile(
        r"ioctl\$KVM_SET_USER_MEMORY_REGION(?P<second>2?)\((?P<fd>[^,]*),\s+\w+,\s+"
        r"&(?:\([^)]*\)|AUTO)=\{(?P<slot>NUMBER),\s+(?P<flags>NUMBER),\s+(?P<gpa>NUMBER),\s+"
        r"(?P<size>NUMBER|AUTO),\s+"
        r"(?:&\((?P<address>0x[0-9a-f]+)(?:/(?P<length>0x[0-9a-f]+))?\)|(?P<number>NUMBER))".replace(
            "NUMBER", r"(?:0x[0-9a-f]+|\d+)"
        )
    )
    _dup = re.compile(r"(?P<new>r\d+) = dup\((?P<fd>r\d+)\)")

    @classmethod
    def read(cls, text: str) -> list[Map]:
        """Returns the maps of each VM in the order of their first calls."""
        same: dict[str, str] = {}
        for found in cls._dup.finditer(text):
            same[found["new"]] = same.get(found["fd"], found["fd"])
        calls: dict[str, list[re.Match[str]]] = {}
        for match in cls.pattern.finditer(text):
            fd = same.get(match["fd"], match["fd"])
            if fd.startswith("r"):  # else it is no descriptor of a VM
                calls.setdefault(fd, []).append(match)
        return [one for matches in calls.values() for one in cls.maps(matches)]

    @classmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""
        slot, flags = (int(match[name], 0) & 0xFFFFFFFF for name in ("slot", "flags"))
        gpa = int(match["gpa"], 0)
        size = int((match["length"] or "0") if match["size"] == "AUTO" else match["size"], 0)
        known = 7 if match["second"] else 3
        if flags & ~known == 0 and (gpa | size) >> 64 == 0:
            yield _Call(slot, flags, gpa, size, int(match["address"] or match["number"], 0))
