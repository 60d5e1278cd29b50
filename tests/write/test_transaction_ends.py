"""A transaction's beginning and end, and Python code that runs in the middle of one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
from fourslots import HVA, LOG, four_slots
from fresh import run_fresh
from model import unchanged

from memslots import (
    BusyError,
    Memslots,
    Transaction,
)


@pytest.fixture
def vm() -> Memslots:
    return four_slots()


# The beginning and the end of a transaction.


def test_it_is_used_once_and_when_open(vm: Memslots) -> None:
    tx = vm.transaction()
    with pytest.raises(RuntimeError, match="not open"):
        tx.delete(0)
    with tx:
        pass
    for call in (lambda: tx.delete(0), lambda: tx.lookup(0), lambda: tx.get(0), tx.__enter__):
        with pytest.raises(RuntimeError):
            call()
    with pytest.raises(RuntimeError):
        tx.__exit__(None, None, None)
    with pytest.raises(TypeError):
        Transaction.__new__(Transaction).__enter__()
    assert len(vm) == 4


def test_no_other_change_from_its_thread(vm: Memslots) -> None:
    with vm.transaction() as tx:
        calls: list[Callable[[], object]] = [
            lambda: vm.delete(0),
            vm.check,
            lambda: vm.transaction().__enter__(),
        ]
        for call in calls:
            with pytest.raises(BusyError):
                call()
        tx.delete(0)
    assert vm.get(0) is None


def test_other_threads_wait_and_cannot_meddle(vm: Memslots) -> None:
    done: list[object] = []

    def meddle(tx: Transaction) -> None:
        for call in (lambda: tx.delete(1), lambda: tx.__exit__(None, None, None)):
            try:
                call()
            except RuntimeError as error:
                done.append(type(error))
        done.append(vm.delete(2).id)  # waits for the end of the transaction

    with vm.transaction() as tx:
        thread = threading.Thread(target=meddle, args=(tx,))
        thread.start()
        while len(done) < 2:
            thread.join(0.001)
        tx.delete(0)
        thread.join(0.05)
        assert done == [RuntimeError, RuntimeError]
    thread.join()
    assert done[2:] == [2]
    assert [slot.id for slot in vm] == [1, 3]


def test_one_that_is_dropped_while_open_is_rolled_back(vm: Memslots) -> None:
    with unchanged(vm):
        tx = vm.transaction().__enter__()
        tx.delete(0)
        del tx
        gc.collect()
    vm.delete(0)
    vm.check()


def test_it_keeps_its_memslots_alive() -> None:
    with Memslots().transaction() as tx:
        tx.create(0, 0, 1, HVA)
        gc.collect()
        assert tx.lookup(0) is not None


@pytest.mark.parametrize("slots", [3, 60])
def test_many_ids(slots: int) -> None:
    """Id tables grow and shrink, in the set that is changed first and in the other."""
    vm = Memslots()
    for _ in range(3):
        with vm.transaction() as tx:
            for id in range(slots):
                tx.create(id, 2 * id, 2, HVA)
        vm.check()
        with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
            for id in range(slots):
                tx.delete(id)
            for id in range(slots, 3 * slots):
                tx.create(id, 2 * id, 1, HVA)
            raise ZeroDivisionError
        vm.check()
        assert len(vm) == slots
        with vm.transaction() as tx:
            for id in range(slots):
                tx.delete(id)
        vm.check()
        assert len(vm) == 0


# Python code in the middle of a transaction.


class Meddler:
    """Garbage whose finalizer deletes slot 3, in a transaction and outside it."""

    def __init__(self, vm: Memslots, tx: Transaction, log: list[object]) -> None:
        self.me = self
        self.vm = vm
        self.tx = tx
        self.log = log

    def __del__(self) -> None:
        for call in (self.tx.delete, self.vm.delete):
            try:
                call(3)
                self.log.append("done")
            except (BusyError, RuntimeError) as error:
                self.log.append(type(error))


MEDDLED: list[Callable[[Transaction], object]] = [
    lambda tx: tx.create(9, 0x90, 1, HVA, LOG),
    lambda tx: tx.set_region(9, 0, 0x90000, 0x1000, HVA),
    lambda tx: tx.move(0, 0x90),
    lambda tx: tx.set_flags(0, LOG),
    lambda tx: tx.delete(0),
    lambda tx: tx.lookup(0),
    lambda tx: tx.get(0),
]


class Collects:
    """A listener that runs the collector, for Pythons that do not run it during C code."""

    def prepare(self, *args: object) -> None:
        gc.collect()


def meddled_with(at_end: bool) -> None:
    thresholds = gc.get_threshold()
    logs: list[list[object]] = []
    try:
        for threshold in range(1, 10):
            for step in MEDDLED:
                vm = four_slots()
                vm.subscribe(Collects())
                logs.append([])
                gc.collect()
                with vm.transaction() as tx:
                    gc.disable()
                    Meddler(vm, tx, logs[-1])
                    gc.set_threshold(threshold, 1, 1)
                    if not at_end:
                        gc.enable()
                    step(tx)
                    gc.enable()
                gc.set_threshold(*thresholds)
                gc.collect()
                assert len(logs[-1]) == 2
                assert logs[-1].count("done") == (vm.get(3) is None)
                with pytest.raises(ZeroDivisionError), four_slots().transaction() as alone:
                    step(alone)
                    want = {id: alone.get(id) for id in (0, 1, 2, 9)}
                    raise ZeroDivisionError
                assert {id: vm.get(id) for id in want} == want
                vm.check()
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    assert [BusyError, BusyError] in logs


def in_the_middle_of_a_step() -> None:
    meddled_with(at_end=False)


def in_the_middle_of_the_end() -> None:
    meddled_with(at_end=True)


@pytest.mark.parametrize("work", [in_the_middle_of_a_step, in_the_middle_of_the_end])
def test_a_finalizer(work: Callable[[], None]) -> None:
    """The collector may run it anywhere: refused calls do no harm, and it never hangs.

    The collector runs thousands of times, and here it would look at all that pytest has collected.
    """
    run_fresh(work)


HOST = 0x7F00_0000_0000


def test_slots_at_one_host_address_after_a_rollback() -> None:
    """The sets may have them in another order; later slots find their place in both."""
    vm = Memslots()
    vm.create(0, 0x000, 16, HOST)
    vm.create(1, 0x100, 16, HOST)
    with pytest.raises(KeyError), vm.transaction() as tx:
        tx.delete(0)
        raise KeyError
    vm.check()
    vm.create(2, 0x200, 16, HOST + 0x10_0000)
    vm.check()
    for flags in (1, 0):
        assert {slot.id for slot, _, _ in vm.in_hva_range(HOST, HOST + 0x1000)} == {0, 1}
        (above,) = vm.in_hva_range(HOST + 0x10_0000, HOST + 0x10_1000)
        assert above == (vm[2], 0x200, 0x201)
        vm.set_flags(1, flags)
        vm.check()


def test_slots_at_one_host_address_after_a_commit() -> None:
    vm = Memslots()
    with vm.transaction() as tx:
        tx.create(5, 0x500, 16, HOST)
        tx.create(6, 0x600, 16, HOST)
        tx.delete(5)
        tx.create(5, 0x500, 16, HOST)
    vm.check()
    vm.create(7, 0x700, 16, HOST + 0x10_0000)
    vm.move(7, 0x400)
    vm.create(8, 0x800, 16, HOST)
    vm.check()
