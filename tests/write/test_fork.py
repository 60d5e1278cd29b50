"""A Memslots works in the child of a fork, whatever the parent's other threads were doing."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fresh import run_fresh

from memslots import (
    BusyError,
    Flags,
    GuestMemfd,
    InvalidRegionError,
    Memslots,
    Slot,
    Transaction,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

HVA = 0x7000_0000_0000
# Functions that a child calls before memslots' own: see test_told_of_a_fork_before_memslots.
EARLY: list[Callable[[], None]] = []
PROGRAMS = Path(__file__).parent.parent / "programs"


def in_child(work: Callable[[], None]) -> None:
    """Forks, and does the work in the child, within a minute."""
    with warnings.catch_warnings():
        # From 3.12 on Python warns that a fork beside threads may deadlock. This test shows it does
        # not.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 (whatever it is, the parent is told)
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def use(vm: Memslots) -> None:
    """Changes and looks up, in every way that needs the lock or waits for readers."""
    vm.check()
    slots = list(vm)
    assert not any(slot.flags & Flags.INVALID for slot in slots)
    assert vm.generation < 1 << 63
    used = {slot.id for slot in slots}
    assert vm.free_id() == next(id for id in range(len(used) + 1) if id not in used)
    id, gfn = vm.max_slots - 1, vm.max_gfn - 7
    vm.create(id, gfn, 8, HVA)
    vm.set_flags(id, Flags.LOG_DIRTY_PAGES)
    vm.mark_dirty_many(array("Q", [gfn]))
    assert vm.get_dirty_log(id)[0] == 1
    assert vm.vcpu().lookup_many(array("Q", [gfn])) == array("i", [id])
    with vm.transaction() as tx:
        tx.delete(id)
        for slot in slots:
            tx.delete(slot.id)
    vm.check()
    assert len(vm) == 0


def fork_beside(work: Callable[[Memslots], object], times: int) -> None:
    """Forks many times while a thread works on a Memslots."""
    vm = Memslots(1000)
    for id in range(20):
        vm.create(id, 16 * id, 8, HVA)
    stop = False

    def run() -> None:
        while not stop:
            work(vm)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(times):
            time.sleep(random.uniform(0, 0.003))
            in_child(lambda: use(vm))
    finally:
        stop = True
        thread.join()
    use(vm)


def batches() -> None:
    gfns = array("Q", range(320)) * 1000
    fork_beside(lambda vm: vm.vcpu().translate(gfns), 20)


def changes() -> None:
    def work(vm: Memslots) -> None:
        vm.move(3, 0x1000)
        vm.set_flags(3, Flags.LOG_DIRTY_PAGES)
        vm.delete(3)
        vm.create(3, 48, 8, HVA)

    fork_beside(work, 50)


def transactions() -> None:
    def work(vm: Memslots) -> None:
        with vm.transaction() as tx:
            tx.move(3, 64)
            tx.move(4, 48)
            tx.create(100, 0x1000, 1, HVA)
        with vm.transaction() as tx:
            tx.move(3, 48)
            tx.move(4, 64)
            tx.delete(100)

    fork_beside(work, 50)


@pytest.mark.parametrize("work", [batches, changes, transactions])
def test_a_fork_beside_a_thread(work: Callable[[], None]) -> None:
    run_fresh(work)


class Stopped:
    """A thread that stops in the middle of a change: in a call of its listener, or in the body of a
    transaction.
    """

    def __init__(self, vm: Memslots, change: Callable[[Memslots], object]) -> None:
        self.there = threading.Event()
        self.go_on = threading.Event()
        self.thread = threading.Thread(target=change, args=(vm,))

    def __enter__(self) -> None:
        self.thread.start()
        assert self.there.wait(60)

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.thread.join()

    def stop(self) -> None:
        self.there.set()
        assert self.go_on.wait(60)


class Listener:
    """Stops when a method is called."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.stopped: Stopped | None = None

    def call(self, method: str) -> None:
        # Only once, in the parent's thread: the child's changes go through.
        if self.method == method and self.stopped is not None:
            stopped, self.stopped = self.stopped, None
            stopped.stop()

    def invalidate(self, slot: Slot) -> None:
        self.call("invalidate")

    def prepare(self, change: object, old: object, new: object) -> None:
        self.call("prepare")

    def commit(self, change: object, old: object, new: object) -> None:
        self.call("commit")


def three() -> Memslots:
    vm = Memslots(address_spaces=2)
    for id in range(3):
        vm.create(id, 16 * id, 8, HVA + (id << 20), Flags.LOG_DIRTY_PAGES)
    return vm


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (change, method)
        for change in ("create", "delete", "move", "set_flags")
        for method in ("invalidate", "prepare", "commit")
        if method != "invalidate" or change in ("delete", "move")
    ],
)
def test_a_fork_in_the_middle_of_a_change(change: str, method: str) -> None:
    vm = three()
    before = list(vm)
    listener = Listener(method)
    vm.subscribe(listener)
    calls: dict[str, Callable[[Memslots], object]] = {
        "create": lambda vm: vm.create(3, 0x100, 8, HVA),
        "delete": lambda vm: vm.delete(1),
        "move": lambda vm: vm.move(1, 0x100),
        "set_flags": lambda vm: vm.set_flags(1, 0),
    }
    vm.mark_dirty(17)
    vcpu = vm.vcpu()
    vcpu.lookup(17)

    def work() -> None:
        # In the child, an unfinished change has not happened.
        if method != "commit":
            assert list(vm) == before
            # A generation never stands for two sets of slots: the INVALID slots are gone.
            assert (vm.generation > at_fork) is (change in ("delete", "move"))
            assert vm.get_dirty_log(1)[0] == 2
            assert vcpu.lookup(17) == before[1]
            assert vm.gpa_to_hva(17 << 12) == HVA + (1 << 20) + 0x1000
        use(vm)

    stopped = Stopped(vm, calls[change])
    listener.stopped = stopped
    with stopped:
        at_fork = vm.generation
        vcpu.lookup(17)
        in_child(work)
    vm.check()
    assert list(vm) != before


@pytest.mark.parametrize("change", ["create", "delete"])
def test_a_fork_in_the_middle_of_a_change_of_a_guest_memfd(change: str) -> None:
    memfd = GuestMemfd(4 << 12)
    vm = Memslots()
    listener = Listener("prepare")
    vm.subscribe(listener)

    def bind(vm: Memslots, slot: int, offset: int) -> None:
        vm.set_region2(slot, Flags.GUEST_MEMFD, slot << 20, 1 << 12, 0, memfd, offset)

    for slot in range(2):
        bind(vm, slot, slot << 12)

    def work() -> None:
        # As before the change, slots 0 and 1 have the first two pages of the file, and no slot
        # has the others.
        for slot in range(2):
            with pytest.raises(InvalidRegionError, match=f"overlap those of slot {slot}"):
                bind(vm, 5, slot << 12)
        for page in (2, 3):
            bind(vm, 3 + page, page << 12)
        vm.check()

    calls: dict[str, Callable[[Memslots], object]] = {
        "create": lambda vm: bind(vm, 2, 2 << 12),
        "delete": lambda vm: vm.delete(1),
    }
    stopped = Stopped(vm, calls[change])
    listener.stopped = stopped
    with stopped:
        in_child(work)


@contextmanager
def waits_for_a_reader(driver: Any, vm: Memslots, change: Callable[[], object]) -> Iterator[None]:
    """Within it, a thread has published a change and waits for a reader."""
    entered, over = threading.Event(), threading.Event()

    def read() -> None:
        section = driver.Section(vm)
        entered.set()
        over.wait()
        section.leave()

    # In a thread of its own: the one that forks makes changes, and so must be in no section.
    reader = threading.Thread(target=read)
    reader.start()
    entered.wait()
    thread = threading.Thread(target=change)
    thread.start()
    while vm.generation < 1 << 63:
        time.sleep(0.001)
    try:
        yield
    finally:
        over.set()
        reader.join()
        thread.join()


def test_a_fork_while_a_change_waits_for_a_reader(drivers: Any) -> None:
    vm = three()

    def work() -> None:
        # Readers found the new flags before the fork.
        assert vm[1].flags == 0
        assert vm.generation == (at_fork & ~(1 << 63)) + 2
        use(vm)

    with waits_for_a_reader(drivers("srcu"), vm, lambda: vm.set_flags(1, 0)):
        at_fork = vm.generation
        in_child(work)
    vm.check()
    assert vm[1].flags == 0


def test_a_fork_while_a_new_guest_memfd_waits_for_a_reader(drivers: Any) -> None:
    memfd = GuestMemfd(2 << 12)
    vm = Memslots()

    def bind(slot: int, offset: int) -> None:
        vm.set_region2(slot, Flags.GUEST_MEMFD, slot << 20, 1 << 12, 0, memfd, offset)

    def work() -> None:
        # Readers found slot 1 before the fork, so its page of the file is bound.
        assert [slot.id for slot in vm] == [0, 1]
        for slot in range(2):
            with pytest.raises(InvalidRegionError, match=f"overlap those of slot {slot}"):
                bind(5, slot << 12)
        vm.check()

    bind(0, 0)
    with waits_for_a_reader(drivers("srcu"), vm, lambda: bind(1, 1 << 12)):
        in_child(work)
    vm.check()


def test_a_change_is_abandoned_once(drivers: Any) -> None:
    alloc = drivers("alloc")

    def cost(vm: Memslots) -> int:
        """The allocations of a change, after one of the same kind."""
        vm.set_flags(2, Flags.LOG_DIRTY_PAGES)
        before = alloc.asked()
        vm.set_flags(2, 0)
        return int(alloc.asked() - before)

    vm = three()
    cost_before = cost(vm)
    listener = Listener("prepare")
    vm.subscribe(listener)

    def work() -> None:
        assert cost(vm) == cost_before

    stopped = Stopped(vm, lambda vm: vm.delete(1))
    listener.stopped = stopped
    with stopped:
        in_child(work)
    vm.check()


def test_a_fork_in_the_middle_of_a_transaction() -> None:
    vm = three()
    before = list(vm)
    kept: list[Transaction] = []

    def change(vm: Memslots) -> None:
        kept[0].__enter__()
        # Takes ids, and takes them back, in a thread that the child does not have.
        kept[0].create(kept[0].free_id(), 0x400, 1, HVA)
        assert kept[0].free_id() == 4
        kept[0].delete(3)
        kept[0].delete(0)
        kept[0].move(1, 0)
        kept[0].create(7, 0x100, 8, HVA, Flags.LOG_DIRTY_PAGES)
        kept[0].set_flags(2, 0)
        stopped.stop()
        kept[0].__exit__(None, None, None)

    def work() -> None:
        assert list(vm) == before
        with pytest.raises(RuntimeError, match="the transaction belongs to another thread"):
            kept[0].delete(2)
        assert vm.free_id() == 3
        # The transaction's slots go, and other slots get their memory.
        for id in range(3):
            vm.delete(id)
        vm.create(8, 0x200, 64, HVA, Flags.LOG_DIRTY_PAGES)
        vm.create(9, 0x300, 64, HVA, Flags.LOG_DIRTY_PAGES)
        vm.mark_dirty(0x200)
        # Only the list refers to the transaction, not the other thread's frame. Dropping it frees
        # nothing that is not its own.
        assert sys.getrefcount(kept[0]) <= 3
        kept.clear()
        gc.collect()
        vm.check()
        assert [slot.id for slot in vm] == [8, 9]
        assert vm.get_dirty_log(8)[0] == 1
        use(vm)

    kept.append(vm.transaction())
    stopped = Stopped(vm, change)
    with stopped:
        in_child(work)
    vm.check()
    assert [slot.id for slot in vm] == [1, 2, 7]


def a_transaction_is_dropped_in_a_child() -> None:
    """Drops a transaction in a child, in a separate process, because the heap may break."""
    vm = three()
    kept = [vm.transaction()]

    def change(vm: Memslots) -> None:
        kept[0].__enter__()
        for id in range(3):
            kept[0].move(id, 0x1000 + 16 * id)
        stopped.stop()
        kept[0].__exit__(None, None, None)

    def work() -> None:
        for id in range(3):
            vm.delete(id)
        memory = [bytearray(b"x" * 192) for _ in range(1000)]
        kept.clear()
        gc.collect()
        for id in range(3):
            vm.create(id, 16 * id, 64 * 16 if id == 2 else 8, HVA, Flags.LOG_DIRTY_PAGES)
            vm.mark_dirty(16 * id)
        assert all(piece == b"x" * 192 for piece in memory)
        assert all(vm.get_dirty_log(id)[0] == 1 for id in range(3))
        use(vm)

    stopped = Stopped(vm, change)
    with stopped:
        in_child(work)
    vm.check()


def test_a_transaction_is_dropped_in_a_child() -> None:
    run_fresh(a_transaction_is_dropped_in_a_child)


def told_of_a_fork_before_memslots() -> None:
    """A function that registers first is called first, and may make a change at once."""
    vms = [three(), three()]
    changed = False

    def change_at_once() -> None:
        nonlocal changed
        vms[0].set_flags(0, 0)
        changed = True

    EARLY.append(change_at_once)

    def work() -> None:
        assert changed
        for vm in vms:
            use(vm)

    listeners = [Listener("prepare"), Listener("prepare")]
    stops = []
    for vm, listener in zip(vms, listeners, strict=True):
        vm.subscribe(listener)
        stopped = Stopped(vm, lambda vm: vm.delete(1))
        listener.stopped = stopped
        stops.append(stopped)
    with stops[0], stops[1]:
        in_child(work)
    for vm in vms:
        vm.check()


def test_told_of_a_fork_before_memslots() -> None:
    program = PROGRAMS / "told_before_memslots.py"
    command = [sys.executable, "-P", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"


def test_the_thread_that_makes_a_change_forks() -> None:
    """The thread goes on with its change in both processes."""
    vm = three()
    parent = os.getpid()

    def work() -> None:
        with pytest.raises(BusyError):
            vm.delete(2)

    with vm.transaction() as tx:
        tx.delete(0)
        in_child(work)
        pid = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        tx.create(5, 0, 4, HVA)
    ok = [slot.id for slot in vm] == [5, 1, 2]
    if os.getpid() != parent:
        try:
            vm.check()
            use(vm)
        except BaseException:  # noqa: BLE001
            ok = False
        os._exit(not ok)
    assert ok
    assert os.waitpid(pid, 0)[1] == 0
    vm.check()


def test_a_child_without_memory_says_so(drivers: Any) -> None:
    alloc = drivers("alloc")
    vm = three()
    listener = Listener("prepare")
    vm.subscribe(listener)

    def work() -> None:
        alloc.fail_nth(0)
        # The child could not abandon the change at once: each change tries until one can. It needs
        # a copy of the slot that was about to go, then an id table. Without the table it gives the
        # copy back: 40 copies would fill a chunk of the pool (32 slots).
        live = alloc.live()
        for nth in [1] + [2] * 40:
            alloc.fail_nth(nth)
            with pytest.raises(MemoryError, match="at a fork"):
                vm.delete(2)
            alloc.fail_nth(0)
            assert alloc.live() == live
        assert [slot.id for slot in vm] == [0, 1, 2]
        use(vm)

    stopped = Stopped(vm, lambda vm: vm.delete(1))
    listener.stopped = stopped
    with stopped:
        alloc.fail_nth(1)
        try:
            in_child(work)
        finally:
            alloc.fail_nth(0)
    vm.check()
