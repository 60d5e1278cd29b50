"""Tests which calls listeners get for a transaction."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from fourslots import HVA, LOG, four_slots
from listening import Recorder
from model import unchanged

from memslots import (
    BusyError,
    Change,
    Flags,
    Memslots,
    Slot,
    Transaction,
)


@pytest.fixture
def vm() -> Memslots:
    return four_slots()


# Listeners.


class Witness:
    """Records its calls, with what readers find at gfn 0 at that moment; may refuse."""

    def __init__(self, vm: Memslots, refuse: tuple[str, int] | None = None) -> None:
        self.vm = vm
        self.heard: list[tuple[Any, ...]] = []
        self.refuse = refuse

    def hear(self, what: str, *rest: object) -> None:
        found = self.vm.lookup(0)
        self.heard.append((what, *rest, None if found is None else found.id))
        count = sum(entry[0] == what for entry in self.heard)
        if self.refuse == (what, count):
            raise ZeroDivisionError
        with pytest.raises(BusyError):
            self.vm.delete(0)
        with pytest.raises(BusyError):
            self.vm.transaction().__enter__()

    def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        self.hear("prepare", change, old, new)

    def invalidate(self, slot: Slot) -> None:
        self.hear("invalidate", slot)

    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        self.hear("commit", change, old, new)


def test_listeners_hear_of_every_step_in_order(vm: Memslots) -> None:
    witness = Witness(vm)
    s0, s1 = vm[0], vm[1]
    with vm.subscribe(witness), vm.transaction() as tx:
        tx.delete(0)
        m1 = tx.move(1, 0x00)
        n0 = tx.create(0, 0x10, 8, HVA)
        f0 = tx.set_flags(0, LOG)
        m0 = tx.move(0, 0x18)  # readers never saw the slot at its place: no invalidate
        assert witness.heard == []
    steps = [
        (Change.DELETE, s0, None),
        (Change.MOVE, s1, m1),
        (Change.CREATE, None, n0),
        (Change.FLAGS_ONLY, n0, f0),
        (Change.MOVE, f0, m0),
    ]
    assert witness.heard == [
        ("invalidate", s0, 0),
        ("invalidate", s1, 0),
        *[("prepare", *step, 0) for step in steps],
        *[("commit", *step, 1) for step in steps],
    ]


@pytest.mark.parametrize("when", ["prepare", "invalidate", "commit"])
def test_the_transaction_itself_takes_nothing_while_listeners_are_told(
    vm: Memslots, when: str
) -> None:
    calls: list[Callable[[Transaction], object]] = [
        lambda tx: tx.create(9, 0x300, 1, HVA),
        lambda tx: tx.delete(2),
        lambda tx: tx.move(2, 0x300),
        lambda tx: tx.set_flags(2, LOG),
        lambda tx: tx.get(2),
        lambda tx: tx.lookup(0),
    ]
    refused = 0

    def meddle(*_: object) -> None:
        nonlocal refused
        for call in calls:
            with pytest.raises(BusyError):
                call(tx)
            refused += 1

    with vm.subscribe(Recorder([], "", **{when: meddle})), vm.transaction() as tx:
        tx.move(0, 0x200)
    assert refused == len(calls)
    assert [slot.id for slot in vm] == [1, 2, 3, 0]
    vm.check()


def test_invalidate_is_told_of_each_slot_that_readers_find(vm: Memslots) -> None:
    """Each gets one call, however many steps it takes; a slot that no reader found gets none."""
    witness = Witness(vm)
    s0, s1, s2 = vm[0], vm[1], vm[2]
    with vm.subscribe(witness), vm.transaction() as tx:
        tx.set_flags(0, LOG)
        tx.set_flags(1, LOG)
        tx.delete(1)
        tx.move(0, 0x80)
        tx.create(1, 0x10, 0x10, HVA)
        tx.delete(1)
        tx.move(2, 0x90)
        tx.move(2, 0x20)
    told = [entry for entry in witness.heard if entry[0] == "invalidate"]
    assert told == [("invalidate", s1, 0), ("invalidate", s0, 0), ("invalidate", s2, 0)]
    vm.check()


@pytest.mark.parametrize(
    "refuse", [("invalidate", 1), ("invalidate", 2), ("prepare", 1), ("prepare", 3)]
)
def test_a_refusal_changes_nothing(vm: Memslots, refuse: tuple[str, int]) -> None:
    with (
        vm.subscribe(Witness(vm, refuse)),
        unchanged(vm),
        pytest.raises(ZeroDivisionError),
        vm.transaction() as tx,
    ):
        tx.delete(0)
        tx.move(1, 0x00)
        tx.create(0, 0x10, 8, HVA)
    vm.delete(0)  # the lock is free again
    vm.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_in_commit_stops_no_listener(vm: Memslots) -> None:
    first, second = Witness(vm, ("commit", 1)), Witness(vm)
    with vm.subscribe(first), vm.subscribe(second), vm.transaction() as tx:
        tx.delete(0)
        tx.delete(1)
    assert [entry[0] for entry in first.heard] == [entry[0] for entry in second.heard]
    assert vm.get(0) is None
    gc.collect()


def test_an_interrupt_in_commit_comes_out_when_all_is_done(vm: Memslots) -> None:
    class Interrupted:
        count = 0

        def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            self.count += 1
            raise KeyboardInterrupt

    listener = Interrupted()
    with vm.subscribe(listener), pytest.raises(KeyboardInterrupt), vm.transaction() as tx:
        tx.delete(0)
        tx.delete(1)
    assert listener.count == 2
    assert [slot.id for slot in vm] == [2, 3]
    vm.check()


def test_who_comes_or_goes_in_the_body(vm: Memslots) -> None:
    """A closed listener is called no more; a new one is called from the next change on."""
    heard: list[str] = []

    class Hears:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, change: Change, old: object, new: object) -> None:
            heard.append(f"{self.name} {change.name}")

    goes = vm.subscribe(Hears("goes"))
    stays = vm.subscribe(Hears("stays"))
    with vm.transaction() as tx:
        tx.create(50, 0x800, 1, 0)
        goes.close()
        comes = vm.subscribe(Hears("comes"))
        tx.set_flags(50, Flags.LOG_DIRTY_PAGES)
    assert heard == ["stays CREATE", "stays FLAGS_ONLY"]
    heard.clear()
    stays.close()
    with vm.transaction() as tx:
        tx.delete(50)
    assert heard == ["comes DELETE"]
    comes.close()
    with vm.transaction() as tx:
        tx.create(50, 0x800, 1, 0)
        late = vm.subscribe(Hears("late"))
    assert heard == ["comes DELETE"]
    late.close()
