"""Logs of the slots of VMMs and emulators, and syzkaller programs that make slots."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
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
        vm = Memslots(1 << 16, max_gfn=(1 << 52) - 1, max_hva=(1 << 64) - 4096)
        known: set[int] = set()  # ids of slots that have host addresses
        for match in cls.pattern.finditer(text):
            try:
                for slot, flags, gpa, size, hva in cls.calls(match, vm):
                    vm.set_region(slot, flags & 3, gpa, size, hva or 0)
                    if hva is not None:
                        known.add(slot)
            except MemslotError:
                continue  # the change was refused, so nothing changed
        no_ids = not cls.with_ids
        entries = [
            Entry(
                slot.guest_phys_addr,
                slot.memory_size,
                "rom" if slot.flags & 2 else "ram",
                userspace_addr=slot.userspace_addr if slot.id in known or no_ids else None,
                id=None if no_ids else slot.id,
                flags=int(slot.flags),
            )
            for slot in vm
        ]
        return [Map(joined(entries), format=cls.name)]

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
    """A syzkaller program: the struct's fields in order, pointers as `&(0xADDRESS/0xSIZE)=nil`."""

    name = "syzkaller"
    pattern = re.compile(
        r"ioctl\$KVM_SET_USER_MEMORY_REGION2?\([^{\n]*\{(0x[0-9a-f]+|\d+), (0x[0-9a-f]+|\d+), "
        r"(0x[0-9a-f]+|\d+), (0x[0-9a-f]+|\d+), (?:&\((0x[0-9a-f]+)[^)]*\)|(0x[0-9a-f]+|\d+))"
    )

    @classmethod
    def calls(cls, match: re.Match[str], vm: Memslots) -> Iterator[_Call]:
        """Yields the calls of one line."""
        slot, flags, gpa, size = (int(match[n], 0) for n in (1, 2, 3, 4))
        if slot < 1 << 16 and flags >> 32 == 0 and (gpa | size) >> 64 == 0:
            yield _Call(slot, flags, gpa, size, int(match[5] or match[6], 0))
