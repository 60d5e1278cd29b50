"""Tests the lock of a writer: every waiting thread gets it, and a signal ends the wait."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        thread.join(30)
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


@pytest.mark.untraced
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
                signal.setitimer(signal.ITIMER_REAL, 0.0008)
                try:
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
