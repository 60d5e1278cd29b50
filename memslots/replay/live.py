"""Keeping a VM of this machine's kernel the same as the map of a replay, call by call.

The VM may be any object with the methods of memslots.kvm.KvmVM: nothing here needs Linux.
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
    """The methods that the VM must have. A KvmVM has them, and so has a VM made up for a test."""

    @property
    def limits(self) -> dict[str, int]:
        """Returns its limits, as the arguments of Memslots."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Returns the slots of the VM."""

    def set_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, /
    ) -> Change:
        """Does the same as `Memslots.set_region`."""

    def close(self) -> None:
        """Closes the VM."""


class _Limit(NamedTuple):
    """A limit of Memslots: which calls exceed it, and how to print its values."""

    beyond: Callable[[RegionCall, int], bool]
    text: Callable[[int], str]


_LIMITS = {
    "max_slots": _Limit(lambda call, limit: call.id >= limit, str),
    "address_spaces": _Limit(lambda call, limit: call.as_id >= limit, str),
    "max_gfn": _Limit(
        # This limit refuses no delete.
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

    Between calls the VM has the map's slots and no others. If the VM refuses a slot of the map, it
    does not have that slot at all. The line is remembered, to explain later answers.

    Attributes
    ----------
    limits : dict
        The kernel's limits: max_slots, address_spaces, max_gfn, max_hva.
    slots : list of Slot
        The VM's slots at the end of the trace. Like `missing` and `others`, set by `finish`.
    missing : list of Slot
        Slots that the map has at the end and the VM does not.
    others : list of Slot
        Slots that the VM has at the end and the map does not.
    """

    def __init__(self, vm: LiveVM, memslots: Memslots) -> None:
        limits = vm.limits
        self.limits = {name: limits[name] for name in _LIMITS}
        self.slots: list[Slot] = []
        self.missing: list[Slot] = []
        self.others: list[Slot] = []
        self._vm = vm
        self._map = memslots
        self._lacks: dict[int, int] = {}  # the map's slots that the VM lacks, and since which line

    @property
    def same(self) -> bool:
        """Returns whether the VM has the map's slots at the end, and no others."""
        return not self.missing and not self.others

    def ask(self, call: RegionCall, flags: int, ours: int) -> tuple[int, str]:
        """Makes the call with `flags`. Returns its errno and the reason.

        `ours` is the errno that the map gave. If the two differ, the reason names the limits and
        slots that differ between the VM and the map.
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
        """Makes these slots those of the map, after the call at `line`. Returns what was done."""
        held = {number_of(slot): slot for slot in self._vm.slots}
        wanted = {number: _slot_of(self._map, number) for number in touched}
        done = []
        # First delete the old slots, which may be in the way of new ones.
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
        """Compares the VM's slots with the map's at the end of the trace."""
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
            refused = f"{slot_name(number)} cannot be made as in the map: {error.strerror}"
            # If it is still in its old place, delete it: the VM then lacks it.
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
                yield f"{slot_name(number)} is missing since line {line}"

    def _concerned(self, call: RegionCall) -> Iterator[int]:
        """Yields the slots on which the answer depends: the call's own, and those it overlaps."""
        yield call.slot
        base = call.guest_phys_addr >> PAGE_SHIFT
        end = base + (call.memory_size >> PAGE_SHIFT)
        if call.as_id < self._map.address_spaces and base < end < 1 << 52:
            for slot in self._map.address_space(call.as_id).in_gfn_range(base, end):
                if slot.id != call.id:
                    yield number_of(slot)


def _plain(slot: Slot) -> Slot:
    """Returns the slot as this kernel has it: without the trace's guest_memfds."""
    flags = slot.flags & ~Flags.GUEST_MEMFD
    return Slot(slot.id, slot.as_id, slot.base_gfn, slot.npages, slot.userspace_addr, flags)


def number_of(slot: Slot) -> int:
    """Returns the slot's id and address space in one number, as set_region takes it."""
    return slot_number(slot.id, slot.as_id)


def slot_name(number: int) -> str:
    """Returns `slot 3`, or `slot 3 in space 1` if the space is not 0."""
    id, as_id = split_number(number)
    return f"slot {id}" + (f" in space {as_id}" if as_id else "")


def _slot_of(memslots: Memslots, number: int) -> Slot | None:
    id, as_id = split_number(number)
    if as_id >= memslots.address_spaces:
        return None
    slot = memslots.address_space(as_id).get(id)
    return None if slot is None else _plain(slot)
