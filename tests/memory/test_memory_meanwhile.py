"""Calls of GuestMemory beside other threads, and in the child of a fork."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from memslots import Backing, Flags, GuestMemory, Memslots, NotMappedError

PAGE = 4096
PAGES = 200
SECONDS = 1.0


def machine() -> GuestMemory:
    memory = GuestMemory(Memslots(16))
    memory.place(0, 0, Backing.memfd(PAGES * PAGE), flags=Flags.LOG_DIRTY_PAGES)
    memory.place(1, PAGES * PAGE, Backing.anonymous(PAGES * PAGE), flags=Flags.LOG_DIRTY_PAGES)
    memory.fill(0, 2 * PAGES * PAGE, 1)
    return memory


def beside_each_other(*steps: Callable[[], object]) -> None:
    """Runs each step in a thread of its own, again and again for SECONDS and at least once."""
    start = threading.Barrier(len(steps))
    rounds = [0] * len(steps)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            start.wait()
            end = time.monotonic() + SECONDS
            while (time.monotonic() < end or not rounds[number]) and not errors:
                steps[number]()
                rounds[number] += 1
        except BaseException as error:  # noqa: BLE001 (a thread's failure is the test's)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert min(rounds) > 0


@pytest.mark.parametrize("by_log", [True, False])
def test_restores_beside_writers_and_changes(by_log: bool) -> None:
    """When all is quiet, one more restore brings all back."""
    memory = machine()
    was = memory.read(0, 2 * PAGES * PAGE)
    checkpoint = memory.checkpoint(by_log=by_log)
    choose = random.Random(1)

    def write() -> None:
        for _ in range(20):
            memory.write(choose.randrange(2 * PAGES) * PAGE, b"changed")

    def change() -> None:
        with memory.vm.transaction() as tx:  # there and back: a restore finds the same slots
            tx.move(1, 0x1000)
            tx.move(1, PAGES)

    beside_each_other(write, change, checkpoint.restore)
    checkpoint.restore()
    assert memory.read(0, 2 * PAGES * PAGE) == was
    assert checkpoint.restore() == 0
    memory.vm.check()


def test_discards_beside_readers() -> None:
    """A reader finds what was there, or zeros."""
    memory = machine()

    def discard() -> None:
        memory.discard(PAGE, 2 * PAGES * PAGE - 2 * PAGE)
        memory.prefault(0, 2 * PAGES * PAGE)
        memory.fill(0, 2 * PAGES * PAGE, 1)

    def read() -> None:
        assert memory.read_u8(0) == 1
        assert set(memory.read((PAGES - 2) * PAGE, 4 * PAGE)) <= {0, 1}

    beside_each_other(discard, read, read)


def test_devices_that_come_and_go() -> None:
    """An access finds the inner device, the outer one, or at most no device."""
    memory = machine()
    memory.on_mmio(0x10000000, 0x10002000, read=lambda gpa, size: 1)

    def inner() -> None:
        with memory.on_mmio(0x10000000, 0x10001000, read=lambda gpa, size: 2):
            assert memory.read_u8(0x10000000) == 2

    def other() -> None:
        with memory.on_mmio(0x20000000, 0x20001000, read=lambda gpa, size: 3):
            assert memory.read_u8(0x20000000) == 3

    def access() -> None:
        assert memory.read_u32(0x10000000) in (1, 2)
        assert memory.read_u32(0x10001000) == 1
        with suppress(NotMappedError):
            assert memory.read_u8(0x20000000) == 3

    beside_each_other(inner, other, access, access)
    with pytest.raises(NotMappedError):
        memory.read_u8(0x20000000)


def test_structs_of_many_formats() -> None:
    """More formats than GuestMemory keeps: while it reads one, another thread may drop it."""
    memory = machine()
    sizes = random.Random(1)

    def unpack() -> None:
        for _ in range(50):
            size = sizes.randrange(1, 200)
            assert memory.unpack(0, f"{size}B") == (1,) * size

    beside_each_other(unpack, unpack, unpack)


def test_open_in_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    memory = machine()
    memory.dump(path)

    def step() -> None:
        opened = GuestMemory.open(path)
        opened.write(PAGE, b"mine")
        assert opened.read((PAGES - 1) * PAGE, 2 * PAGE) == b"\1" * 2 * PAGE

    beside_each_other(step, step)
    assert GuestMemory.open(path).read(PAGE, 4) == b"\1" * 4


def test_the_child_of_a_fork() -> None:
    """It has anonymous memory and checkpoints of its own, and shares a memfd."""
    memory = machine()
    checkpoint = memory.checkpoint()
    memory.write(5 * PAGE, b"memfd")
    memory.write((PAGES + 5) * PAGE, b"anonymous")
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            memory.write(6 * PAGE, b"by the child")
            memory.write((PAGES + 6) * PAGE, b"by the child")
            restored = checkpoint.restore()  # by the child's own logs
            clean = memory.read((PAGES + 5) * PAGE, 2 * PAGE) == b"\1" * 2 * PAGE
            memory.write(7 * PAGE, b"by the child")
            code = 0 if restored == 4 * PAGE and clean else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert memory.read(5 * PAGE, 5) == b"\1" * 5  # the child put it back
    assert memory.read(7 * PAGE, 12) == b"by the child"
    assert memory.read((PAGES + 5) * PAGE, 9) == b"anonymous"
    assert memory.read((PAGES + 6) * PAGE, 1) == b"\1"
    assert checkpoint.restore() == 2 * PAGE  # by the parent's logs, which have its writes only
    assert memory.read((PAGES + 5) * PAGE, 9) == b"\1" * 9
