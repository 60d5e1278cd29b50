"""Tests subscriptions: their end, and signals meanwhile."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fresh import run_fresh
from listening import FRESH, HVA, Recorder

from memslots import (
    Change,
    Memslots,
    Slot,
)
from memslots.write.listeners import Subscription

# Subscriptions


def test_close(used: Memslots, log: list[Any]) -> None:
    first = used.subscribe(Recorder(log, "a "))
    with used.subscribe(Recorder(log, "b ")):
        used.create(2, 0x30, 1, HVA)
        first.close()
        first.close()
        used.delete(2)
    used.create(2, 0x30, 1, HVA)
    names = [name for name, *_ in log]
    assert names[:4] == ["a prepare", "b prepare", "a commit", "b commit"]
    assert names[4:] == ["b invalidate", "b prepare", "b commit"]


def test_the_same_listener_twice(used: Memslots, log: list[Any]) -> None:
    listener = Recorder(log)
    first = used.subscribe(listener)
    used.subscribe(listener)
    used.create(2, 0x30, 1, HVA)
    assert len(log) == 4
    first.close()
    used.delete(2)
    assert len(log) == 4 + 3


@pytest.mark.parametrize("method", ["prepare", "invalidate", "commit"])
def test_close_and_subscribe_from_inside(used: Memslots, method: str, log: list[Any]) -> None:
    """The next change does not call a closed listener; a new one is called from that change on."""

    def act(*args: object) -> None:
        subscription.close()
        used.subscribe(Recorder(log, "new "))

    subscription = used.subscribe(Recorder(log, "a ", **{method: act}))
    used.delete(1)
    used.check()
    log.clear()
    used.create(2, 0x30, 1, HVA)
    assert log == [
        ("new prepare", Change.CREATE, None, FRESH),
        ("new commit", Change.CREATE, None, FRESH),
    ]


class CycleThatCloses:
    """Garbage whose finalizer closes a subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self.me = self
        self.subscription = subscription

    def __del__(self) -> None:
        self.subscription.close()


@pytest.mark.parametrize("threshold", range(1, 16))
@pytest.mark.parametrize("call", ["subscribe", "close"])
def test_a_finalizer_closes_another_meanwhile(
    used: Memslots, call: str, threshold: int, log: list[Any]
) -> None:
    stays = used.subscribe(Recorder(log, "a "))
    goes = used.subscribe(Recorder(log, "b "))
    goes_too = used.subscribe(Recorder(log, "c "))
    listener = Recorder(log, "d ")
    thresholds = gc.get_threshold()
    gc.collect()
    gc.disable()
    CycleThatCloses(goes)
    try:
        gc.set_threshold(threshold, 1, 1)
        gc.enable()
        if call == "subscribe":
            used.subscribe(listener)
        else:
            goes_too.close()
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    gc.collect()
    used.create(2, 0x30, 1, HVA)
    told = "acd" if call == "subscribe" else "a"
    assert [name for name, *_ in log if "commit" in name] == [f"{who} commit" for who in told]
    stays.close()


def test_a_subscription_holds_no_machine_for_ever() -> None:
    """vm -> listener -> vm is a cycle that the collector breaks."""

    class Owner:
        def __init__(self, vm: Memslots) -> None:
            self.vm = vm
            self.handle = vm.subscribe(self)

        def invalidate(self, slot: Slot) -> None:
            raise AssertionError("not called")

    owner = Owner(Memslots(4))
    owner.vm.create(0, 0, 1, HVA)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


# Signals


def hold_up(vm: Memslots) -> tuple[threading.Thread, threading.Event]:
    """Starts a thread that creates slot 1, and stays in a listener until the event."""
    inside, leave = threading.Event(), threading.Event()

    def prepare(*args: object) -> None:
        inside.set()
        assert leave.wait(60)

    vm.subscribe(Recorder([], prepare=prepare))
    thread = threading.Thread(target=vm.create, args=(1, 0x10, 1, HVA))
    thread.start()
    assert inside.wait(60)
    return thread, leave


def interrupted_while_waiting() -> None:
    """Interrupts a waiting call. SIGALRM stands for SIGINT: Ctrl-C after a set time."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    vm = Memslots()
    thread, leave = hold_up(vm)
    calls: list[Callable[[], object]] = [
        lambda: vm.create(2, 0x20, 1, HVA),
        lambda: vm.delete(1),
        vm.check,
        lambda: vm.transaction().__enter__(),
    ]
    for call in calls:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            call()
        except KeyboardInterrupt:
            print("interrupted", end=" ")
        assert thread.is_alive()  # in its listener, so the call did not wait for it
        assert (list(vm), vm.generation) == ([], 0)
    leave.set()
    thread.join()
    assert list(vm) == [Slot(1, 0, 0x10, 1, HVA)]
    vm.create(2, 0x20, 1, HVA)
    vm.check()
    print(vm.generation, end="")


def signalled_while_waiting() -> None:
    """A handler that raises nothing runs at once, and the change waits on."""
    vm = Memslots()
    thread, leave = hold_up(vm)
    signal.signal(signal.SIGALRM, lambda *args: leave.set())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    vm.create(2, 0x20, 1, HVA)
    thread.join()
    vm.check()
    print(*[slot.id for slot in vm], end="")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_signals_reach_a_thread_that_waits_for_anothers_change() -> None:
    assert run_fresh(interrupted_while_waiting) == "interrupted " * 4 + "2"
    assert run_fresh(signalled_while_waiting) == "1 2"
