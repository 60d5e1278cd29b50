"""A VM of this machine's kernel beside the map of a replay: asked the same, and kept the same.

The VM is whatever has the face of memslots.kvm.KvmVM: nothing here needs Linux.
"""

from __future__ import annotations

import errno as errno_module
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from memslots import PAGE_SHIFT, Change, Flags, MemslotError, Memslots, Slot
from memslots.mirror.planner import same_memory
from memslots.traces import RegionCall
from memslots.values.integers import slot_number, split_number
from memslots.values.records import region_arguments


class LiveVM(Protocol):
    """What is asked of the VM; a KvmVM has it, and so has a VM made up for a test."""

    @property
    def limits(self) -> dict[str, int]:
        """What it allows, as the arguments of Memslots."""

    @property
    def slots(self) -> Sequence[Slot]:
        """The slots that it has."""

    def set_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, /
    ) -> Change:
        """As `Memslots.set_region`."""

    def close(self) -> None:
        """Give it up."""


class _Limit(NamedTuple):
    """A limit of Memslots: which calls are beyond it, and how its values are written."""

    beyond: Callable[[RegionCall, int], bool]
    text: Callable[[int], str]


_LIMITS = {
    "max_slots": _Limit(lambda call, limit: call.id >= limit, str),
    "address_spaces": _Limit(lambda call, limit: call.as_id >= limit, str),
    "max_gfn": _Limit(
        # A delete is not refused for it.
        lambda call, limit: (
            call.memory_size > 0
            and (call.guest_phys_addr + call.memory_size >> PAGE_SHIFT) - 1 > limit
        ),
        hex,
    ),
    "max_hva": _Limit(lambda call, limit: call.userspace_addr + call.memory_size > limit, hex),
}


class Live:
    """One VM of the kernel beside one map.

    Between calls it has the map's slots and no others. A slot that it refuses as the map has it, it
    has not at all; since which line is remembered, for what it answers later.

    Attributes
    ----------
    limits : dict
        What the kernel allows: max_slots, address_spaces, max_gfn, max_hva.
    slots : list of Slot
        What it has at the end of the trace; as `missing` and `others`, from `finish` on.
    missing : list of Slot
        What the map has at the end and it has not.
    others : list of Slot
        What it has at the end and the map has not.
    """

    def __init__(self, vm: LiveVM, memslots: Memslots) -> None:
        limits = vm.limits
        self.limits = {name: limits[name] for name in _LIMITS}
        self.slots: list[Slot] = []
        self.missing: list[Slot] = []
        self.others: list[Slot] = []
        self._vm = vm
        self._map = memslots
        self._lacks: dict[int, int] = {}  # slots of the map that it has not, and since which line

    @property
    def same(self) -> bool:
        """Whether it has the map's slots at the end, and no others."""
        return not self.missing and not self.others

    def ask(self, call: RegionCall, flags: int, ours: int) -> tuple[int, str]:
        """Make the call, with `flags`: its errno and why it is so.

        `ours` is the errno that the map gave: where they differ, the limits and the slots that tell
        the two apart are named.
        """
        try:
            change = self._vm.set_region(
                call.slot, flags, call.guest_phys_addr, call.memory_size, call.userspace_addr
            )
        except MemslotError as error:
            answer, why = error.errno or errno_module.EINVAL, error.strerror or str(error)
        else:
            answer, why = 0, f"no rule refuses it here: {change.name}"
            self._lacks.pop(call.slot, None)
        if answer != ours:
            why = "; ".join((why, *self._what_differs(call)))
        return answer, why

    def follow(self, touched: Iterable[int], line: int) -> str:
        """Make these slots what the map has, after the call at `line`; tells what was done."""
        held = {number_of(slot): slot for slot in self._vm.slots}
        wanted = {number: _slot_of(self._map, number) for number in touched}
        done = []
        # First what is to go, which may be in the way of what is to come.
        for number, slot in wanted.items():
            old = held.get(number)
            if old is not None and (slot is None or not same_memory(old, slot)):
                done.append(self._delete(number))
                del held[number]
        for number, slot in wanted.items():
            if slot is None or held.get(number) == slot:
                self._lacks.pop(number, None)
                continue
            done.append(self._make(number, slot, held.get(number), line))
        return ", ".join(done) or "the same"

    def finish(self, final_map: Sequence[Slot]) -> None:
        """Compare its slots with the map's at the end of the trace."""
        self.slots = list(self._vm.slots)
        here, there = set(self.slots), set(map(_plain, final_map))
        self.missing = [slot for slot in final_map if _plain(slot) not in here]
        self.others = [slot for slot in self.slots if slot not in there]

    def _delete(self, number: int) -> str:
        try:
            self._vm.set_region(number, 0, 0, 0, 0)
        except MemslotError as error:
            return f"{slot_name(number)} cannot be deleted: {error.strerror}"
        return f"{slot_name(number)} deleted"

    def _make(self, number: int, slot: Slot, old: Slot | None, line: int) -> str:
        try:
            change = self._vm.set_region(*region_arguments(slot))
        except MemslotError as error:
            self._lacks.setdefault(number, line)
            refused = f"{slot_name(number)} cannot be as in the map: {error.strerror}"
            # A slot that is nowhere is told from one that is in another place.
            return refused if old is None else f"{refused}, {self._delete(number)}"
        self._lacks.pop(number, None)
        return f"{change.name} of {slot_name(number)}"

    def _what_differs(self, call: RegionCall) -> Iterator[str]:
        for name, limit in _LIMITS.items():
            here, there = self.limits[name], getattr(self._map, name)
            if limit.beyond(call, here) != limit.beyond(call, there):
                yield f"{name} is {limit.text(here)} here, {limit.text(there)} in the replay"
        for number in self._concerned(call):
            if line := self._lacks.get(number):
                yield f"{slot_name(number)} is not there since line {line}"

    def _concerned(self, call: RegionCall) -> Iterator[int]:
        """The slots that the call's answer depends on: its own, and those that it overlaps."""
        yield call.slot
        base = call.guest_phys_addr >> PAGE_SHIFT
        end = base + (call.memory_size >> PAGE_SHIFT)
        if call.as_id < self._map.address_spaces and base < end < 1 << 52:
            for slot in self._map.address_space(call.as_id).in_gfn_range(base, end):
                if slot.id != call.id:
                    yield number_of(slot)


def _plain(slot: Slot) -> Slot:
    """The slot as this kernel has it: the files of the trace are not here."""
    flags = slot.flags & ~Flags.GUEST_MEMFD
    return Slot(slot.id, slot.as_id, slot.base_gfn, slot.npages, slot.userspace_addr, flags)


def number_of(slot: Slot) -> int:
    """The slot's id and address space in one, as set_region takes it."""
    return slot_number(slot.id, slot.as_id)


def slot_name(number: int) -> str:
    """`slot 3`, or `slot 3 in space 1` where it is not space 0."""
    id, as_id = split_number(number)
    return f"slot {id}" + (f" in space {as_id}" if as_id else "")


def _slot_of(memslots: Memslots, number: int) -> Slot | None:
    id, as_id = split_number(number)
    if as_id >= memslots.address_spaces:
        return None
    slot = memslots.address_space(as_id).get(id)
    return None if slot is None else _plain(slot)
