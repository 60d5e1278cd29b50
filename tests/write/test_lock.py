"""Tests the lock of a writer: every waiting thread gets it, and a signal ends the wait."""

from __future__ import annotations

import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from memslots import Memslots


@pytest.fixture
def vm() -> Iterator[Memslots]:
    vm = Memslots()
    for id in range(8):
        vm.create(id, id * 16, 8, id << 20)
    yield vm
    vm.check()


@contextmanager
def greedy(vm: Memslots, pause: float) -> Iterator[list[int]]:
    """A thread that holds the lock nearly all the time, and takes it again at once."""
    rounds: list[int] = []
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            with vm.transaction() as tx:
                tx.set_flags(0, len(rounds) & 1)
                time.sleep(pause)
            rounds.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    while not rounds:
        time.sleep(0.001)
    try:
        yield rounds
    finally:
        done.set()
        thread.join()


def test_no_thread_waits_for_ever(vm: Memslots) -> None:
    made = []

    def change() -> None:
        for number in range(30):
            vm.set_flags(1, (number + 1) & 1)
            made.append(number)

    with greedy(vm, 0.0005):
        thread = threading.Thread(target=change, daemon=True)
        thread.start()
        thread.join(60)
        # A release hands the lock over. The thread that released it queues behind the waiting
        # threads.
        assert len(made) == 30


def test_many_take_turns(vm: Memslots) -> None:
    made = [0] * 6

    def run(id: int) -> None:
        for change in range(50):
            vm.set_flags(id, (change + 1) & 1)
            made[id] += 1

    with greedy(vm, 0.0001):
        threads = [threading.Thread(target=run, args=(id,)) for id in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert made == [0, *[50] * 5]


def test_a_signal_ends_the_wait(vm: Memslots) -> None:
    class Stop(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    stopped = 0
    try:
        with greedy(vm, 0.002):
            for _ in range(60):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0008)
                    vm.set_flags(1, 0)
                except Stop:
                    stopped += 1
                    vm.set_flags(1, 0)
                finally:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except Stop:
                        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stopped > 0
    # No thread has the lock, and only waiting threads are counted.
    vm.set_flags(1, 1)
    vm.check()


@pytest.mark.parametrize("held", [False, True])
def test_a_fork_between_a_release_and_the_next_holder(drivers: Any, held: bool) -> None:
    """The thread that the lock was handed over to is not in the child."""
    lock = drivers("lock").Lock()
    assert not lock.is_open()
    assert lock.take()
    lock.hand_over()
    gate = lock.gate
    lock.after_fork(held)
    assert lock.gate != gate
    assert not lock.is_open()
    assert lock.held is held
    if held:
        assert not lock.take()
        lock.release()
    assert lock.take()
    assert not lock.is_open()
    lock.release()


@contextmanager
def signals(handler: Callable[[], None]) -> Iterator[None]:
    """Calls the handler every few milliseconds, in the main thread."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_whose_handler_returns_does_not_end_the_wait(drivers: Any) -> None:
    lock = drivers("lock").Lock()
    calls = 0

    def handler() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            lock.release()

    assert lock.take()
    with signals(handler):
        lock.wait()
        assert calls >= 3
    assert not lock.take()
    lock.release()
    assert not lock.held
    assert not lock.is_open()


def test_a_handler_that_hands_the_lock_over_and_raises(drivers: Any) -> None:
    """The waiting thread has the lock then, and must release it."""
    lock = drivers("lock").Lock()

    class Stop(Exception):
        pass

    def handler() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lock.release()
        raise Stop

    assert lock.take()
    with pytest.raises(Stop), signals(handler):
        lock.wait()
    assert not lock.held
    assert not lock.is_open()


def test_a_lock_gives_its_memory_back(drivers: Any) -> None:
    driver = drivers("lock")
    tracemalloc.start()
    try:
        driver.Lock()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            driver.Lock()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000
