"""Calls a KvmVM from a signal handler while its thread is inside one of its methods.

Handlers run between the lines of Python code. The test calls one at each line in turn.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from memslots import BusyError, Change, MemslotError, Slot
from memslots.kvm import KvmClosedError, KvmVM
from memslots.kvm import vm as module

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

PAGE = 4096
FIRST = Slot(0, 0, 0, 1, PAGE)
Call = Callable[[KvmVM], object]

CALLS: dict[str, Call] = {
    "set_region": lambda vm: vm.set_region(1, 1, 8 * PAGE, PAGE, 4 * PAGE),
    "set_region2": lambda vm: vm.set_region2(1, 1, 8 * PAGE, PAGE, 4 * PAGE),
    "set_slot": lambda vm: vm.set_slot(None, Slot(1, 0, 8, 1, 4 * PAGE)),
    "move": lambda vm: vm.set_region(0, 0, 4 * PAGE, PAGE, PAGE),
    "get_dirty_log": lambda vm: vm.get_dirty_log(0),
    "clear_dirty_log": lambda vm: vm.clear_dirty_log(0, 0, 1, bytes(8)),
    "create_vcpu": lambda vm: vm.create_vcpu().close(),
    "slots": lambda vm: vm.slots,
    "limits": lambda vm: vm.limits,
    "set_tss_addr": lambda vm: vm.set_tss_addr(0),
    "close": lambda vm: vm.close(),
    "repr": repr,
}


@pytest.fixture(autouse=True)
def tell_where_it_hangs() -> Iterator[None]:
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def at_line(number: int, call: Callable[[], object], handler: Callable[[], object]) -> bool:
    """Makes a call, and the other call at the `number`th line of vm.py.

    Returns whether there is such a line.
    """
    seen = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == number:
                sys.settrace(None)
                handler()
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename == module.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KvmClosedError:
        pass
    finally:
        sys.settrace(before)
    return seen >= number


@pytest.mark.parametrize("handler", CALLS)
@pytest.mark.parametrize("name", CALLS)
def test_a_handler_between_any_two_lines(name: str, handler: str, fake: Any) -> None:
    for line in range(1, 1000):
        with KvmVM(manual_dirty_log=1, device=fake.device) as vm:
            vm.set_slot(None, FIRST)
            refused: list[MemslotError] = []

            def asked(vm: KvmVM = vm, refused: list[MemslotError] = refused) -> None:
                try:
                    CALLS[handler](vm)
                except MemslotError as error:
                    refused.append(error)  # noqa: B023

            if not at_line(line, lambda vm=vm: CALLS[name](vm), asked):  # type: ignore[misc]
                return
            # The call is refused or made: it never waits for the interrupted method.
            assert all(isinstance(error, BusyError | KvmClosedError) for error in refused)
            if handler == "close" or name == "close":
                with pytest.raises(KvmClosedError):
                    vm.fileno()
                assert vm.slots == []
                continue
            # Afterwards the VM works as before.
            assert vm.set_region(2, 0, 32 * PAGE, PAGE, 0) is Change.CREATE
            assert vm.set_region(2, 0, 0, 0, 0) is Change.DELETE
    pytest.fail("it goes on for ever")


def test_changes_are_refused_in_the_middle_of_one(fake: Any) -> None:
    """No change is made from a state that another change has left half done."""
    found: set[type[MemslotError]] = set()
    for line in range(1, 1000):
        with KvmVM(device=fake.device) as vm:

            def other(vm: KvmVM = vm) -> None:
                try:
                    vm.set_slot(None, FIRST)
                except BusyError as error:
                    found.add(type(error))

            if not at_line(line, lambda vm=vm: vm.set_region(1, 0, 0, 0, 0), other):  # type: ignore[misc]
                break
    assert found == {BusyError}
