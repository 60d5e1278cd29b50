"""Takes runs while threads, changes and a backend are at work; returns marks."""

from __future__ import annotations

import errno
import threading
from array import array
from collections.abc import Callable

import pytest
from dirtyruns import HVA, LIMITS, LOG, MODES, READONLY, check, fresh, machine
from model import Model, unchanged
from smallmachine import MAX_SLOTS

from memslots import KvmError, Memslots
from memslots.dirty.runs import DirtyRun, return_logs
from memslots.memory.marks import take_runs

# Threads


@pytest.mark.parametrize("mode", MODES)
def test_each_mark_is_taken_once(mode: int) -> None:
    """Every mark is taken once, however it is made while runs are taken."""
    sizes = 5000, 3001, 1999
    vm = fresh(mode, *sizes)
    total = sum(sizes)
    start = threading.Barrier(4)

    def one_by_one() -> None:
        start.wait()
        for gfn in range(0, total, 3):
            vm.mark_dirty(gfn)

    def many() -> None:
        start.wait()
        gfns = range(1, total, 3)
        for at in range(0, len(gfns), 10):
            vm.mark_dirty_many(array("Q", gfns[at : at + 10]))

    def ranges() -> None:
        start.wait()
        for gfn in range(2, total, 3):
            vm.mark_dirty_range(gfn, gfn + 1)

    threads = [threading.Thread(target=body) for body in (one_by_one, many, ranges)]
    for thread in threads:
        thread.start()
    start.wait()
    taken: list[int] = []
    going = True
    while going:
        going = any(thread.is_alive() for thread in threads)  # looked at before the last take
        for _, first, end in vm.take_dirty_runs():
            taken.extend(range(first, end))
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(total))
    check(vm)


def test_another_thread_waits_for_a_transaction() -> None:
    vm = fresh(0, 10)
    vm.mark_dirty(3)
    taken: list[list[DirtyRun]] = []
    begun = threading.Event()

    def take() -> None:
        begun.set()
        taken.append(vm.take_dirty_runs())

    thread = threading.Thread(target=take)
    with vm.transaction() as tx:
        thread.start()
        begun.wait()
        tx.move(0, 100)
        thread.join(0.05)
        assert not taken
    thread.join()
    assert taken == [[(0, 103, 104)]]


# From inside a change


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["prepare", "invalidate", "commit"])
def test_from_inside_a_listener(method: str, mode: int) -> None:
    """A slot that is about to move is at its old place. Its marks are taken and go nowhere else."""
    vm = fresh(mode, 70, 10)
    heard: list[list[DirtyRun]] = []

    class Listener:
        def take(self, *_: object) -> None:
            heard.append(vm.take_dirty_runs())

    setattr(Listener, method, Listener.take)
    vm.mark_dirty_range(68, 72)
    with vm.subscribe(Listener()):
        vm.move(0, 0x1000)
    there = [(0, 70, 72), (0, 0x1000 + 68, 0x1000 + 70)]
    assert heard == [there if method == "commit" else [(0, 68, 72)]]
    check(vm)


def test_from_inside_a_transaction() -> None:
    """The runs are of the slots as they are: the transaction has changed nothing yet."""
    vm = fresh(0, 70)
    vm.mark_dirty(69)
    with vm.transaction() as tx:
        tx.delete(0)
        assert vm.take_dirty_runs() == [(0, 69, 70)]
        vm.mark_dirty(1)
    check(vm)


# A backend that keeps logs


class Kernel:
    """A backend as the dull model, which keeps dirty logs.

    `fails` is called before and after each dirty log call, and may raise.
    """

    def __init__(self, mode: int) -> None:
        self.limits = LIMITS | {"max_slots": MAX_SLOTS, "manual_dirty_log": mode}
        self.model = Model(**self.limits)
        self.fails: Callable[[str, int, bool], None] = lambda name, slot, done: None

    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        answer = self.model.set_region(slot, flags, gpa, size, hva)
        if answer.errno:
            raise KvmError(answer.errno, str(answer))

    def get_dirty_log(self, slot: int, as_id: int) -> bytes:
        self.fails("get", slot, False)
        log = bytes(self.model.get_dirty_log(slot, as_id))
        self.fails("get", slot, True)
        return log

    def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: bytes, as_id: int
    ) -> None:
        self.fails("clear", slot, False)
        self.model.clear_dirty_log(slot, first_page, num_pages, bitmap, as_id)
        self.fails("clear", slot, True)


def mirrored(mode: int) -> tuple[Memslots, Kernel]:
    """Returns five slots, marked here, in the backend, or in both.

    Two of them join, and the last is READONLY.
    """
    kernel = Kernel(mode)
    vm = Memslots(backend=kernel)
    vm.create(0, 0, 70, HVA, LOG)
    vm.create(1, 70, 10, HVA, LOG)
    vm.create(2, 90, 10, HVA)
    vm.create(3, 0, 65, HVA, LOG, as_id=1)
    vm.create(4, 100, 3, HVA, LOG | READONLY, as_id=1)
    vm.take_dirty_runs()
    vm.mark_dirty_range(60, 65)
    vm.mark_dirty_range(78, 80)
    vm.mark_dirty_range(0, 1, 1)
    for gfn, as_id in [(64, 0), (65, 0), (69, 0), (70, 0), (95, 0), (64, 1)]:
        kernel.model.mark_dirty(gfn, as_id)
    return vm, kernel


MIRRORED = [(0, 60, 66), (0, 69, 71), (0, 78, 80), (1, 0, 1), (1, 64, 65)]


@pytest.mark.parametrize("mode", MODES)
def test_marks_of_a_backend(mode: int) -> None:
    vm, kernel = mirrored(mode)
    check(vm, *MIRRORED)
    assert kernel.model.take_dirty_runs() == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["get", "clear"])
@pytest.mark.parametrize("slot", [0, 1, 3, 4])
def test_a_backend_that_refuses(slot: int, call: str, mode: int) -> None:
    """If the backend refuses the log of a slot, the marks of the slots before it come back."""
    vm, kernel = mirrored(mode)
    refused: list[int] = []

    def fails(name: str, number: int, done: bool) -> None:
        if (name, number, done) == (call, slot, False):
            refused.append(number)
            raise KvmError(errno.ENOMEM, "no")

    kernel.fails = fails
    if call == "clear" and mode == 0:
        check(vm, *MIRRORED)  # the backend is not asked to clear
        assert not refused
        return
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            vm.take_dirty_runs()
    assert refused == [slot] * 2
    kernel.fails = lambda name, slot, done: None
    check(vm, *MIRRORED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", ["get", "clear"])
def test_a_signal_within_a_backend(
    call: str, done: bool, error: type[BaseException], mode: int
) -> None:
    """In mode 0 the backend may have cleared marks that nobody got: all pages are marked."""
    vm, kernel = mirrored(mode)
    calls: list[str] = []

    def fails(name: str, number: int, is_done: bool) -> None:
        calls.append(name)
        if (name, number, is_done) == (call, 1, done):
            raise error

    kernel.fails = fails
    if call == "clear" and mode == 0:
        check(vm, *MIRRORED)
        assert call not in calls
        return
    with pytest.raises(error):
        vm.take_dirty_runs()
    kernel.fails = lambda name, slot, done: None
    if mode == 0:
        check(vm, (0, 60, 66), (0, 69, 80), *MIRRORED[3:])
    else:
        check(vm, *MIRRORED)


# Returned marks: for a caller that fails after taking them


@pytest.mark.parametrize("mode", MODES)
def test_marks_are_returned(mode: int) -> None:
    vm = machine(mode)
    for id, flags in enumerate([LOG, 0, LOG, LOG | READONLY]):
        vm.create(id, 100 * id, 70, HVA + (id << 20), flags)
    vm.create(0, 0, 70, HVA, LOG, as_id=1)
    for gfn in (1, 69, 201, 202):
        vm.mark_dirty(gfn)
    logs: list[object] = []
    taken = take_runs(vm, logs)
    # Only mode 3 marks READONLY slots.
    assert [run for run in taken if run.start_gfn == 300] == [(0, 300, 370)] * (mode == 3)
    vm.mark_dirty(1)  # meanwhile
    return_logs(vm, logs)
    check(vm, *taken)
    return_logs(vm, [])
    check(vm)


def test_marks_go_with_their_slots() -> None:
    vm = machine()
    for id in range(5):
        vm.create(id, 100 * id, 70, HVA + (id << 20), LOG)
        vm.mark_dirty(100 * id + 69)
    logs: list[object] = []
    assert len(take_runs(vm, logs)) == 5
    vm.move(0, 0x1000)
    vm.set_flags(1, 0)  # this slot no longer has a log
    vm.delete(2)
    vm.delete(3)
    vm.create(3, 300, 70, HVA, LOG)  # other memory
    vm.delete(4)
    vm.create(4, 400, 69, HVA + (4 << 20), LOG)  # a shorter slot
    return_logs(vm, logs)
    check(vm, (0, 0x1000 + 69, 0x1000 + 70))


def test_only_logs_are_returned() -> None:
    vm = fresh(0, 70)
    with unchanged(vm):
        for wrong in (None, (), "log", [bytearray(8)], [(0, 0, 4)]):
            with pytest.raises(TypeError):
                return_logs(vm, wrong)  # type: ignore[arg-type]
