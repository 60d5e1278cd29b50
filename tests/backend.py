"""Backends that a Memslots can be mirrored in."""

from __future__ import annotations

import errno

from model import Model, plain
from smallmachine import MAX_GFN, MAX_HVA, MAX_SLOTS, SPACES

from memslots import KvmError, Memslots

LIMITS = {"address_spaces": SPACES, "max_gfn": MAX_GFN, "max_hva": MAX_HVA}


class KernelSaysNo(KvmError):
    pass


class Interrupt(BaseException):
    pass


class Logless:
    """A kernel that answers as the dull model does and keeps no dirty logs of its own.

    Refuses the calls whose numbers are in `refused`. With `how` "late" it makes the call and then
    raises an error that is no refusal, as if a signal had come in between. With "early" it raises
    before the call.
    """

    def __init__(self, *limits: int, **named: int) -> None:
        self.model = Model(*limits, **named)
        self.calls: list[tuple[int, ...]] = []
        self.refused: set[int] = set()
        self.how = ""

    @property
    def slots(self) -> list[object]:
        return [slot for space in self.model.slots for slot in space.values()]

    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        call = (slot, flags, gpa, size, hva)
        self.calls.append(call)
        fails = len(self.calls) in self.refused
        if fails and self.how == "early":
            raise Interrupt
        if fails and not self.how:
            raise KernelSaysNo(errno.ENOMEM, "no")
        answer = self.model.set_region(*call)
        if answer.errno:
            raise KernelSaysNo(answer.errno, str(answer))
        if fails:
            raise Interrupt

    def agrees(self, vm: Memslots) -> None:
        """Asserts that the backend has the slots of the Memslots."""
        for as_id in range(vm.address_spaces):
            assert [plain(slot) for slot in vm.address_space(as_id)] == self.model.in_order(as_id)


class Backend(Logless):
    """A Logless that also keeps dirty logs."""

    def write(self, gfn: int, as_id: int = 0) -> None:
        """Does what a write of the guest does."""
        self.model.mark_dirty(gfn, as_id)

    def get_dirty_log(self, slot: int, as_id: int) -> bytes:
        return bytes(self.model.get_dirty_log(slot, as_id))

    def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: bytes, as_id: int
    ) -> None:
        self.model.clear_dirty_log(slot, first_page, num_pages, bitmap, as_id)


def mirrored(manual_dirty_log: int = 0) -> tuple[Memslots, Backend]:
    limits = LIMITS | {"manual_dirty_log": manual_dirty_log}
    backend = Backend(MAX_SLOTS, **limits)
    vm = Memslots(MAX_SLOTS, backend=backend, **limits)
    return vm, backend


def agree(vm: Memslots, backend: Logless) -> None:
    vm.check()
    backend.agrees(vm)


class Limited:
    limits = {  # noqa: RUF012 (as a dictionary is the plainest of mappings)
        "max_slots": 7,
        "address_spaces": 2,
        "max_gfn": 0xFF,
        "max_hva": 1 << 30,
        "manual_dirty_log": 1,
    }

    def set_region(self, *call: int) -> None:
        pass
