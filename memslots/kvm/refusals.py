"""The reasons for which the kernel refuses a call that no rule of docs/rules.md refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import NamedTuple, SupportsIndex

from memslots.errors import KvmError, OverlapError
from memslots.values.guestmemfd import number_of
from memslots.values.integers import PAGE_SHIFT, field, split_number
from memslots.values.records import Flags, Slot

# The address of x86's local APIC. KVM keeps a slot there if the processor lets guests use it
# directly.
_APIC_PAGE = 0xFEE0_0000
#: The address of KVM's identity map, unless a call sets another.
IDENTITY_MAP = 0xFFFB_C000
# The slots that KVM may keep for itself. Their ids begin at max_slots, in this order.
_APIC, TSS, IDENTITY = range(3)


class Call(NamedTuple):
    """The arguments of a set_region."""

    slot: int
    flags: int = 0
    guest_phys_addr: int = 0
    memory_size: int = 0
    userspace_addr: int = 0

    @classmethod
    def of(
        cls,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex,
    ) -> Call:
        """Makes a Call of a caller's arguments. OverflowError, TypeError."""
        return cls(
            field(slot, "slot", 32),
            field(flags, "flags", 32),
            field(guest_phys_addr, "guest_phys_addr", 64),
            field(memory_size, "memory_size", 64),
            field(userspace_addr, "userspace_addr", 64),
        )

    def overlaps(self, held: Slot) -> bool:
        """Returns whether the call asks for guest pages of the slot `held`."""
        end = self.guest_phys_addr + self.memory_size
        return (
            held.as_id == split_number(self.slot)[1]
            and held.guest_phys_addr < end
            and self.guest_phys_addr < held.guest_phys_addr + held.memory_size
        )

    def record(self, bound: Binding | None = None) -> Slot:
        """Returns the slot that the call makes."""
        memfd = None if bound is None else number_of(bound.memfd)[1]
        private = () if memfd is None or bound is None else (memfd, bound.offset)
        return Slot(
            *split_number(self.slot),
            self.guest_phys_addr >> PAGE_SHIFT,
            self.memory_size >> PAGE_SHIFT,
            self.userspace_addr,
            Flags.GUEST_MEMFD if private else self.flags & (Flags.LOG_DIRTY_PAGES | Flags.READONLY),
            *private,
        )


class Private(NamedTuple):
    """A slot that the kernel keeps for itself."""

    name: str
    gpa: int
    npages: int


class Binding(NamedTuple):
    """A range of a guest_memfd that a slot is, or is to be, bound to."""

    memfd: int
    #: The file by device and inode. None if the descriptor is not open.
    file: tuple[int, int] | None
    file_size: int
    offset: int
    size: int

    @classmethod
    def of(cls, memfd: int, offset: int, size: int) -> Binding:
        """Makes a Binding from the descriptor's present state."""
        try:
            status = os.fstat(memfd)
        except (OSError, OverflowError):
            return cls(memfd, None, 0, offset, size)
        return cls(memfd, (status.st_dev, status.st_ino), status.st_size, offset, size)

    @property
    def end(self) -> int:
        """The end of the range in the file."""
        return self.offset + self.size

    def overlaps(self, other: Binding) -> bool:
        """Returns whether both ranges have a page of the file in common."""
        return self.file == other.file and self.offset < other.end and other.offset < self.end

    def __str__(self) -> str:
        return f"[{self.offset:#x}, {self.end:#x}) of guest_memfd {self.memfd}"


def why_memfd(
    refused: KvmError, wanted: Binding | None, bound: Mapping[int, Binding]
) -> str | None:
    """Returns why the kernel refused a call with a guest_memfd that no rule forbids.

    `bound` has the bindings of the slots, by their ids. Returns None if the refusal has nothing to
    do with the guest_memfd.
    """
    if wanted is None or refused.errno not in (errno.EINVAL, errno.EEXIST):
        return None
    for number, other in bound.items():  # since Linux 7.2 this is EEXIST
        if wanted.overlaps(other):
            return f"{wanted} overlaps the range of {_name(number)}"
    if refused.errno == errno.EEXIST:
        return None
    return f"descriptor {wanted.memfd} is not a guest_memfd of this VM"


def why_log(refused: KvmError) -> str | None:
    """Returns why the kernel refused a call about a dirty log, or None if the reason is unknown."""
    return "a VM with a dirty ring has no dirty logs" if refused.errno == errno.ENXIO else None


def overlaps_private(call: Call, max_slots: int, private: Mapping[int, Private]) -> OverlapError:
    """Returns the error for an overlap with a slot that the kernel keeps for itself."""
    kept = {_APIC: Private("the APIC page", _APIC_PAGE, 1)} | dict(private)
    kept.setdefault(IDENTITY, Private("the identity map", IDENTITY_MAP, 1))
    new = call.record()
    what = "a slot that the kernel keeps for itself"
    existing = None
    for number, (name, gpa, npages) in kept.items():
        own = Slot(max_slots + number, 0, gpa >> PAGE_SHIFT, npages, 0)
        if own.base_gfn < new.end_gfn and new.base_gfn < own.end_gfn:
            existing = own
            what += f": {name}, gfn [{own.base_gfn:#x}, {own.end_gfn:#x})"
            break
    text = (
        f"slot {new.id} of address space {new.as_id}, rule 6: "
        f"gfn [{new.base_gfn:#x}, {new.end_gfn:#x}) overlaps {what}"
    )
    return OverlapError(errno.EEXIST, text, 6, existing=existing, requested=new)


def outside_of_rules(refused: KvmError, number: int, reason: str | None = None) -> KvmError:
    """Returns the error for a call that no rule refuses; `reason` is why, if that is known."""
    text = f"{refused.strerror}: {_name(number)}: {reason or 'no rule refuses it'}"
    return KvmError(refused.errno or 0, text)


def _name(number: int) -> str:
    id, as_id = split_number(number)
    return f"slot {id} of address space {as_id}"
