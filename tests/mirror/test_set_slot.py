"""Tests a backend that takes Slots instead of numbers."""

from __future__ import annotations

import gc
import weakref

import pytest
from backend import Backend, Interrupt, KernelSaysNo

from memslots import Flags, Memslots, Slot
from memslots.values.records import deletion_arguments, region_arguments

HVA = 0x7F00_0000_0000


class Slots(Backend):
    """Records the Slots, and makes the call in numbers."""

    def __init__(self) -> None:
        super().__init__(max_slots=64, address_spaces=2)
        self.asked: list[tuple[Slot | None, Slot | None]] = []

    def set_slot(self, before: Slot | None, after: Slot | None) -> None:
        self.asked.append((before, after))
        slot = after or before
        assert slot is not None
        self.set_region(*(region_arguments(slot) if after else deletion_arguments(slot)))


@pytest.fixture
def backend() -> Slots:
    return Slots()


@pytest.fixture
def vm(backend: Slots) -> Memslots:
    return Memslots(64, address_spaces=2, backend=backend)


def test_every_change_is_asked_with_its_slots(backend: Slots, vm: Memslots) -> None:
    made = vm.create(3, 0x10, 4, HVA, as_id=1)
    logs = vm.set_flags(3, Flags.LOG_DIRTY_PAGES, as_id=1)
    moved = vm.move(3, 0x20, as_id=1)
    gone = vm.delete(3, as_id=1)
    assert gone is moved
    assert backend.asked == [(None, made), (made, logs), (logs, moved), (moved, None)]
    number = 1 << 16 | 3
    assert backend.calls[0] == (number, 0, 0x10000, 0x4000, HVA)
    assert backend.calls[-1] == (number, 0, 0, 0, 0)
    backend.agrees(vm)


@pytest.mark.parametrize("how", ["", "late", "early"])
def test_what_is_undone_is_asked_the_other_way_round(
    backend: Slots, vm: Memslots, how: str
) -> None:
    made = vm.create(1, 0x10, 4, HVA)
    backend.how = how
    backend.refused = {3}
    with pytest.raises((KernelSaysNo, Interrupt)), vm.transaction() as tx:
        gone = tx.delete(1)
        other = tx.create(2, 0x10, 4, HVA + 0x4000)
    assert gone is made
    first, second, *undone = backend.asked[1:]
    assert (first, second) == ((made, None), (None, other))
    assert undone == [(None, made)] if not how else [(other, None), (None, made)]
    backend.agrees(vm)
    assert list(vm) == [made]
    vm.check()


def test_the_arguments_of_a_slot() -> None:
    slot = Slot(0xFFFF, 2, 5, 7, HVA, Flags.READONLY)
    assert region_arguments(slot) == (2 << 16 | 0xFFFF, 2, 5 << 12, 7 << 12, HVA)
    assert deletion_arguments(slot) == (2 << 16 | 0xFFFF, 0, 0, 0, 0)
    with pytest.raises(OverflowError, match="slot does not fit its 16 bits"):
        region_arguments(Slot(1 << 16, 0, 5, 7, HVA))
    for function in (region_arguments, deletion_arguments):
        with pytest.raises(TypeError):
            function(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Backend, Slots])
def test_a_backend_goes_with_its_memslots(kind: type[Backend]) -> None:
    """It goes at once: nothing is in a cycle with it."""
    vm = Memslots(backend=kind())
    vm.create(0, 0, 1, HVA)
    backend = weakref.ref(vm.backend)
    gc.disable()
    try:
        del vm
        assert backend() is None
    finally:
        gc.enable()
