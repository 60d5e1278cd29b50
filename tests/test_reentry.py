"""Python code that runs in the middle of a call, and calls back."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from memslots import BusyError, Memslots, NoSuchSlotError

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
    """Wherever the collector runs it. In the middle of a change it is refused; it never hangs."""
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
