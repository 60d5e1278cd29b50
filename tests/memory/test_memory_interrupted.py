"""Interrupts calls of GuestMemory by signals whose handler raises, at any moment.

Whatever the moment: no written page is without its mark, a checkpoint can still be restored, and
no thread waits for ever.
"""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import unwrap
from itertools import count
from pathlib import Path

import pytest
from atline import AtLine
from needs import needs_madvise

from memslots import Backing, Flags, GuestMemory, Memslots, NotMappedError
from memslots.memory import transfer
from memslots.memory.written import Written, mark_memory

PAGE = 4096
LOG = Flags.LOG_DIRTY_PAGES
PAGES = 300
MODULES = ("checkpoint.py", "opening.py", "mappings.py", "transfer.py")


class Interrupt(BaseException):
    """Like KeyboardInterrupt, but pytest does not take it for one of the user."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raises Interrupt in the block after some time, unless the block ends earlier."""

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def interrupt_often(
    prepare: Callable[[], object], call: Callable[[], object], check: Callable[[bool], None]
) -> None:
    """Interrupts the call at random moments, 20 times, and checks after each.

    `check` is told whether the error came from one of MODULES. If not, the call had returned, or
    had not begun.
    """
    choose = random.Random(1)
    prepare()
    began = time.perf_counter()
    call()
    took = time.perf_counter() - began
    check(False)
    interrupted = 0
    end = time.monotonic() + 60
    while interrupted < 20:
        prepare()
        inside = False
        began = time.perf_counter()
        try:
            with interrupted_after(choose.uniform(1e-6, 1.2 * took)):
                call()
                # The first call was slower, if the machine was busy: then few moments hit one.
                took = min(took, time.perf_counter() - began)
        except Interrupt as error:
            frames = traceback.extract_tb(error.__traceback__)
            inside = any(Path(frame.filename).name in MODULES for frame in frames)
            interrupted += inside
        check(inside)
        assert time.monotonic() < end, f"interrupted {interrupted} times only"


def machine() -> GuestMemory:
    memory = GuestMemory(Memslots(8))
    memory.place(0, 0, Backing.memfd(PAGES * PAGE), flags=LOG)
    memory.place(1, 0x1000 * PAGE, Backing.anonymous(PAGES * PAGE), flags=LOG)
    memory.fill(0, PAGES * PAGE, 1)
    memory.fill(0x1000 * PAGE, PAGES * PAGE, 2)
    memory.vm.take_dirty_runs()
    return memory


def dirty(memory: GuestMemory) -> set[int]:
    runs = memory.vm.take_dirty_runs()
    return {gfn for _, start, end in runs for gfn in range(start, end)}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def changes_wait_for_nobody(memory: GuestMemory) -> None:
    """Another thread can change the slots: the writer's lock is free."""

    def change() -> None:
        memory.vm.create(7, 0x9000, 1, 0x7000)
        memory.vm.delete(7)

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("by_log", [True, False])
def test_checkpoint(by_log: bool) -> None:
    """The marks from before it are not lost."""
    memory = machine()

    def prepare() -> None:
        memory.vm.take_dirty_runs()
        memory.write(5 * PAGE, b"x")

    def check(inside: bool) -> None:
        assert 5 in dirty(memory) or not inside
        changes_wait_for_nobody(memory)

    interrupt_often(prepare, lambda: memory.checkpoint(by_log=by_log), check)


@pytest.mark.parametrize("by_log", [True, False])
def test_restore_of_a_checkpoint(by_log: bool) -> None:
    """The next restore puts all back. By comparing, each page that was put back has a mark."""
    memory = machine()
    checkpoint = memory.checkpoint(by_log=by_log)
    gpas = [gfn * PAGE for gfn in (*range(0, PAGES, 2), *range(0x1000, 0x1000 + PAGES, 3))]
    was = {gpa: memory.read(gpa, 8) for gpa in gpas}

    def prepare() -> None:
        for gpa in gpas:
            memory.write(gpa, b"changed!")
        if not by_log:
            memory.vm.take_dirty_runs()

    def check(inside: bool) -> None:
        if not by_log:
            back = {gpa // PAGE for gpa in gpas if memory.read(gpa, 8) == was[gpa]}
            assert back <= dirty(memory)
        checkpoint.restore()
        assert {gpa: memory.read(gpa, 8) for gpa in gpas} == was
        changes_wait_for_nobody(memory)

    interrupt_often(prepare, checkpoint.restore, check)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_open(tmp_path: Path) -> None:
    """No descriptor stays open, though Python may close one late and warn of it."""
    path = tmp_path / "snapshot"
    machine().dump(path)
    gc.collect()
    fds = open_files()

    def check(inside: bool) -> None:
        gc.collect()
        assert open_files() == fds

    interrupt_often(lambda: None, lambda: GuestMemory.open(path), check)


def test_discard_and_prefault() -> None:
    memory = machine()
    size = PAGES * PAGE

    def prepare() -> None:
        memory.fill(0, size, 1)
        memory.vm.take_dirty_runs()

    def call() -> None:
        memory.prefault(0, size)
        memory.discard(PAGE + 5, size - PAGE - 5)

    def check(inside: bool) -> None:
        zeros = {gfn for gfn in range(2, PAGES) if not any(memory.read(gfn * PAGE, PAGE))}
        assert zeros <= dirty(memory)

    interrupt_often(prepare, call, check)


def test_write_from_that_waits() -> None:
    """What was there until then is in memory and marked."""
    memory = machine()
    reading, writing = os.pipe()
    try:
        os.write(writing, b"x" * 5000)
        with pytest.raises(Interrupt), interrupted_after(0.05):
            memory.write_from(reading, PAGE - 10, 3 * PAGE)
        assert memory.read(PAGE - 10, 5000) == b"x" * 5000
        assert {0, 1} <= dirty(memory) <= {0, 1, 2, 3}
    finally:
        os.close(reading)
        os.close(writing)


def write_in_a_block(memory: GuestMemory, gpa: int, n: int) -> None:
    with memory.writing(gpa, n) as view:
        view[:] = bytes(n)


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize(
    "name", ["write_from", pytest.param("discard", marks=needs_madvise), "writing"]
)
def test_at_each_line(name: str, moves: bool) -> None:
    """No mark is lost, wherever the handler raises, not even if the slot moved meanwhile."""
    size = 3 * PAGE
    for number in count(1):
        memory = machine()
        memory.fill(0, PAGES * PAGE, 1)
        memory.vm.take_dirty_runs()

        def interrupt(memory: GuestMemory = memory) -> None:
            if moves:
                memory.vm.move(0, 0x2000)
            raise Interrupt

        functions = (transfer.write_from, transfer.discard, transfer._discard, transfer._rest)
        writing = unwrap(transfer.writing)
        with (
            suppress(Interrupt, NotMappedError),
            Path("/dev/zero").open("rb") as zeros,
            AtLine(number, interrupt, *functions, writing, Written.mark, mark_memory) as at,
        ):
            if name == "write_from":
                memory.write_from(zeros.fileno(), PAGE, size)
            elif name == "discard":
                memory.discard(PAGE, size)
            else:
                write_in_a_block(memory, PAGE, size)
        base = memory.vm[0].guest_phys_addr
        found = {gfn for gfn in range(1, 4) if not any(memory.read(base + gfn * PAGE, PAGE))}
        assert {(base >> 12) + gfn for gfn in found} <= dirty(memory)
        if at.lines < number:
            break
    assert found == {1, 2, 3}
    assert number > 5


def test_read_into_that_waits() -> None:
    memory = machine()
    reading, writing = os.pipe()
    main = threading.get_ident()

    def interrupt_later() -> None:
        """Sends the signal once the pipe has some bytes."""
        assert select.select([reading], [], [], 60)[0]
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGALRM)

    thread = threading.Thread(target=interrupt_later)
    try:
        with pytest.raises(Interrupt), interrupted_after(60):
            thread.start()
            memory.read_into(writing, 0, PAGES * PAGE)
        thread.join()
        assert os.read(reading, 8) == b"\1" * 8
        assert dirty(memory) == set()
    finally:
        os.close(reading)
        os.close(writing)


def test_a_device_that_is_interrupted() -> None:
    """The error comes out of the access, and the device stays."""
    memory = machine()

    def waits(gpa: int, size: int) -> int:
        time.sleep(20)
        return 1

    with memory.on_mmio(0x5000_0000, 0x5000_1000, read=waits):
        with pytest.raises(Interrupt), interrupted_after(0.02):
            memory.read_u8(0x5000_0000)
        with memory.on_mmio(0x5000_0000, 0x5000_0010, read=lambda gpa, size: 7):
            assert memory.read_u8(0x5000_0000) == 7
    changes_wait_for_nobody(memory)
