"""Looking up a guest address together with the rule that decided, for `memslots lookup`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memslots import PAGE_SHIFT, PAGE_SIZE, Flags, Memslots, Slot


@dataclass(frozen=True, slots=True)
class Answer:
    """What one address space has at one gpa; `slot` and `hva` are None if it has no slot there."""

    as_id: int
    gpa: int
    slot: Slot | None
    hva: int | None
    writable: bool
    rule: str


def look_up(memslots: Memslots, gpa: int) -> Iterator[Answer]:
    """Yields the answer of each address space for `gpa`.

    O(log n) for an address space with a slot there, else O(n).
    """
    for as_id in range(memslots.address_spaces):
        space = memslots.address_space(as_id)
        slot = space.lookup(gpa >> PAGE_SHIFT)
        if slot is None:
            yield Answer(as_id, gpa, None, None, False, _nothing(list(space), gpa))
            continue
        # Compute in pages first, as KVM does, then add the offset in the page.
        hva = slot.userspace_addr + (((gpa >> PAGE_SHIFT) - slot.base_gfn) << PAGE_SHIFT)
        hva += gpa & (PAGE_SIZE - 1)
        writable = not slot.flags & Flags.READONLY
        start, end = slot.guest_phys_addr, slot.guest_phys_addr + slot.memory_size
        rule = f"{start:#x} <= {gpa:#x} < {end:#x}: "
        rule += f"{slot.userspace_addr:#x} + ({gpa:#x} - {start:#x})"
        if not writable:
            rule += "; read-only: a guest's write exits to the VMM instead (KVM_EXIT_MMIO)"
        yield Answer(as_id, gpa, slot, hva, writable, rule)


def _nothing(slots: list[Slot], gpa: int) -> str:
    """Returns why `gpa` has no slot: names its neighbours."""
    below = [slot for slot in slots if slot.guest_phys_addr <= gpa]
    above = [slot for slot in slots if slot.guest_phys_addr > gpa]
    parts = []
    if below:
        end = below[-1].guest_phys_addr + below[-1].memory_size
        parts.append(f"slot {below[-1].id} below ends at {end:#x}")
    if above:
        parts.append(f"slot {above[0].id} above begins at {above[0].guest_phys_addr:#x}")
    return "no slot: " + (", ".join(parts) or "this address space is empty")
