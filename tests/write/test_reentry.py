"""Python code that runs in the middle of a call, and calls back."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fresh import run_fresh

from memslots import (
    BusyError,
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    ReadOnlyError,
)

HVA = 0x7000_0000_0000


class IndexThatDeletes:
    """An integer whose conversion deletes slot 0."""

    def __init__(self, value: int, vm: Memslots) -> None:
        self.value = value
        self.vm = vm

    def __index__(self) -> int:
        self.vm.delete(0)
        return self.value


@pytest.mark.parametrize(
    "call",
    [
        lambda vm, three: vm.lookup(three),
        lambda vm, three: vm.get(three),
        lambda vm, three: vm.create(1, three, 1, HVA),
        lambda vm, three: vm.set_region(1, three, 0, 4096, HVA),
        lambda vm, three: vm.move(0, three),
        lambda vm, three: vm.set_flags(0, three),
        lambda vm, three: vm.clear_dirty_log(0, 0, three, bytes(8)),
        lambda vm, three: vm.in_gfn_range(0, three),
        lambda vm, three: vm.mark_dirty(three),
    ],
)
def test_arguments_are_converted_before_anything_is_looked_at(
    vm: Memslots, call: Callable[[Memslots, Any], object]
) -> None:
    vm.create(0, 0, 16, HVA, 1)
    with suppress(NoSuchSlotError):
        call(vm, IndexThatDeletes(3, vm))
    vm.check()
    assert vm.get(0) is None


CUTS: dict[str, Callable[[Memslots, Callable[[int], Any]], object]] = {
    "unmap": lambda vm, number: vm.unmap(number(8), number(12), as_id=number(0)),
    "protect": lambda vm, number: vm.protect(number(0), number(4), number(1), as_id=number(0)),
    "split": lambda vm, number: vm.split(number(0), number(4), number(7), as_id=number(0)),
    "merge": lambda vm, number: vm.merge(number(0), number(1), as_id=number(0)),
    "keep": lambda vm, number: vm.become([], keep=[(number(50), number(51))]),
    "keep, while it is made": lambda vm, number: vm.become(
        [], keep=((50, 51) for _ in range(number(2).__index__()))
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_no_thread_waits_for_the_arguments_of_a_cut(vm: Memslots, name: str) -> None:
    """Each number waits for another thread, which changes the slots meanwhile."""
    vm.create(0, 0, 8, HVA)
    vm.create(1, 8, 8, HVA + (8 << 12))

    def change() -> None:
        vm.create(60, 0x1000, 1, HVA)
        vm.delete(60)

    class Waiting:
        def __init__(self, value: int) -> None:
            self.value = value

        def __index__(self) -> int:
            other = threading.Thread(target=change, daemon=True)
            other.start()
            other.join(60)
            assert not other.is_alive(), "it waits for the arguments"
            change()
            return self.value

    CUTS[name](vm, Waiting)
    vm.check()
    assert vm.get(60) is None


class Cycle:
    """Garbage whose finalizer changes the machine."""

    def __init__(self, vm: Memslots, log: list[str]) -> None:
        self.me = self
        self.vm = vm
        self.log = log

    def __del__(self) -> None:
        try:
            self.vm.create(63, 0x1000, 1, HVA, 1)
            self.vm.delete(63)
            self.log.append("done")
        except BusyError:
            self.log.append("busy")


def test_a_finalizer_may_change_the_machine(vm: Memslots) -> None:
    """The collector may run it anywhere. In a change it is refused, and it never hangs."""
    log: list[str] = []
    calls: list[Callable[[], object]] = [
        lambda: vm.create(1, 0x10, 4, HVA, 1),
        lambda: list(vm),
        lambda: vm.in_gfn_range(0, 0x2000),
        lambda: vm.in_hva_range(HVA, HVA + 1),
        lambda: vm.move(1, 0x20),
        lambda: vm.set_flags(1, 0),
        lambda: copy.copy(vm),
        lambda: vm.delete(1),
    ]
    thresholds = gc.get_threshold()
    gc.collect()
    try:
        for threshold in (1, 2, 3, 4):
            for call in calls:
                gc.disable()
                Cycle(vm, log)
                gc.set_threshold(threshold, 1, 1)
                gc.enable()
                with suppress(BusyError):
                    call()
                gc.set_threshold(*thresholds)
            gc.collect()
            vm.check()
            assert len(vm) == 0
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    assert len(log) == 4 * len(calls)


# Python code makes the text of an error. Slots may change while it runs.

SLOT_1 = "slot 1 (gfn [0x10, 0x20), 64 KiB, hva 0x700000000000 LOG_DIRTY_PAGES)"
SLOT_2 = "slot 2 (gfn [0x100, 0x101), 4 KiB, hva 0x700000000000{})"
NO_SLOT_2 = "there is no slot 2 in address space 0"
HOLE = f"gpa 0x50000 (gfn 0x50) is in no slot; before it is {SLOT_1}"
GONE = f"gpa 0x100000 (gfn 0x100) is in no slot; before it is {SLOT_1}"
READ_ONLY = "gpa 0x100000 (gfn 0x100) is in "
LEAVING = "which is being deleted or moved"
RANGE = "clear_dirty_log, slot 2 of address space 0: pages [64, 65) are not all in "

# Slot 1 stays. Each row has a call, the flags of slot 2, and the messages: while slot 2 is there,
# while it is about to go (which another thread sees if there is no GIL), and when it is gone.
FAILURES: list[tuple[Callable[[Memslots], object], Flags, set[tuple[type[Exception], str]]]] = [
    (
        lambda vm: vm.gpa_to_hva(0x50000),
        Flags(0),
        {
            (NotMappedError, f"{HOLE}; after it is {SLOT_2.format('')}"),
            (NotMappedError, f"{HOLE}; after it is {SLOT_2.format(' INVALID')}"),
            (NotMappedError, HOLE),
        },
    ),
    (
        lambda vm: vm.gpa_to_hva(0x100000, write=True),
        Flags.READONLY,
        {
            (ReadOnlyError, f"{READ_ONLY}{SLOT_2.format(' READONLY')}, which cannot be written"),
            (NotMappedError, f"{READ_ONLY}{SLOT_2.format(' READONLY INVALID')}, {LEAVING}"),
            (NotMappedError, GONE),
        },
    ),
    (
        lambda vm: vm.get_dirty_log(2),
        Flags(0),
        {
            (NoSuchSlotError, f"{SLOT_2.format('')} has no dirty log"),
            (NoSuchSlotError, f"{SLOT_2.format(' INVALID')} has no dirty log"),
            (NoSuchSlotError, NO_SLOT_2),
        },
    ),
    (
        lambda vm: vm.clear_dirty_log(2, 64, 1, bytes(8)),
        Flags.LOG_DIRTY_PAGES,
        {
            (InvalidRegionError, f"{RANGE}{SLOT_2.format(' LOG_DIRTY_PAGES')}"),
            (InvalidRegionError, f"{RANGE}{SLOT_2.format(' LOG_DIRTY_PAGES INVALID')}"),
            (NoSuchSlotError, NO_SLOT_2),
        },
    ),
]


def errors_beside_changes() -> None:
    """Makes each call for a quarter of a second while a thread creates and deletes slot 2."""
    vm = Memslots()
    vm.create(1, 0x10, 16, HVA, Flags.LOG_DIRTY_PAGES)
    flags_now = Flags(0)
    stop = False

    def change() -> None:
        while not stop:
            vm.create(2, 0x100, 1, HVA, flags_now)
            vm.delete(2)

    sys.setswitchinterval(1e-6)
    for call, flags, expected in FAILURES:
        flags_now, stop = flags, False
        thread = threading.Thread(target=change)
        thread.start()
        said: set[tuple[type[Exception], str]] = set()
        end = time.monotonic() + 0.25
        while time.monotonic() < end:
            try:
                call(vm)
            except MemslotError as error:
                said.add((type(error), str(error.strerror)))
        stop = True
        thread.join()
        assert said <= expected, said
        print(len(said), end=" ")


def test_the_text_of_an_error_while_slots_come_and_go() -> None:
    assert len(run_fresh(errors_beside_changes).split()) == len(FAILURES)


class CycleThatDeletes:
    """Garbage whose finalizer deletes slot 2."""

    def __init__(self, vm: Memslots, log: list[str]) -> None:
        self.me = self
        self.vm = vm
        self.log = log

    def __del__(self) -> None:
        self.log.append("run")
        self.vm.delete(2)


def errors_beside_a_finalizer() -> None:
    """Makes each call with a finalizer that deletes slot 2 in the middle of it."""
    thresholds = gc.get_threshold()
    vm = Memslots()
    vm.create(1, 0x10, 16, HVA, Flags.LOG_DIRTY_PAGES)
    log: list[str] = []
    for call, flags, expected in FAILURES:
        for threshold in range(1, 30):
            vm.create(2, 0x100, 1, HVA, flags)
            log.clear()
            gc.collect()
            gc.disable()
            CycleThatDeletes(vm, log)
            gc.set_threshold(threshold, 1, 1)
            gc.enable()
            try:
                call(vm)
            except MemslotError as error:
                said = type(error), str(error.strerror)
            gc.set_threshold(*thresholds)
            gc.collect()
            assert said in expected, said
            assert log == ["run"]
            assert vm.get(2) is None
            vm.check()
    print("done", end="")


def test_the_text_of_an_error_when_a_finalizer_deletes_the_slot() -> None:
    assert run_fresh(errors_beside_a_finalizer) == "done"
