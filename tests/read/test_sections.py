"""Readers that end in unusual ways delay no writer.

Readers that wrongly share a Vcpu do no harm.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
import time
from array import array
from collections.abc import Callable

import pytest
from fresh import run_fresh

from memslots import Flags, Memslots, Vcpu

HVA = 0x7000_0000_0000
LOG = Flags.LOG_DIRTY_PAGES


def machine(flags: int = 0) -> Memslots:
    vm = Memslots()
    for id in range(16):
        vm.create(id, 8 * id, 8, HVA + (id << 15), flags)
    return vm


def change(vm: Memslots) -> None:
    """Makes a change of every kind: each waits for readers."""
    vm.create(100, 0x1000, 1, HVA)
    vm.move(100, 0x2000)
    vm.set_flags(100, LOG)
    vm.delete(100)
    with vm.transaction() as tx:
        tx.move(0, 8)
        tx.move(1, 0)
    with vm.transaction() as tx:
        tx.move(1, 8)
        tx.move(0, 0)


def vcpus_dropped_in_a_batch() -> None:
    vm = machine()
    gfns = array("Q", range(128)) * 2000
    end = time.monotonic() + 1

    def read() -> None:
        while time.monotonic() < end:
            # Only this call has a reference to the Vcpu.
            vm.vcpu().lookup_many(gfns)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        change(vm)
    for thread in threads:
        thread.join()
    vm.check()


def readers_that_are_interrupted() -> None:
    vm = machine()
    gfns = array("Q", range(128)) * 500
    ended = 0
    end = time.monotonic() + 1
    while time.monotonic() < end or ended < 4:
        there = threading.Event()

        def read(there: threading.Event = there) -> None:
            vcpu = vm.vcpu()
            try:
                there.set()
                while True:
                    vcpu.lookup_many(gfns)
                    vcpu.lookup(5)
                    vcpu.in_gfn_range(0, 128)
            except SystemExit:
                pass

        thread = threading.Thread(target=read)
        thread.start()
        there.wait()
        raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        )
        assert raised == 1
        change(vm)
        thread.join()
        ended += 1
        change(vm)
    vm.check()


def readers_that_outlive_the_interpreter() -> None:
    """Runs daemon threads in a batch while Python ends and changes slots for the last time."""
    vm = machine()
    gfns = array("Q", range(128)) * 20_000

    def read() -> None:
        vcpu = vm.vcpu()
        while True:
            vcpu.lookup_many(gfns)

    class AtTheEnd:
        def __del__(self) -> None:
            change(vm)
            vm.check()

    for _ in range(2):
        threading.Thread(target=read, daemon=True).start()
    sys.modules["at the end"] = AtTheEnd()  # type: ignore[assignment]
    atexit.register(change, vm)
    time.sleep(0.05)
    change(vm)
    print("done", end="")


@pytest.mark.parametrize("work", [vcpus_dropped_in_a_batch, readers_that_are_interrupted])
def test_no_reader_holds_a_writer_up(work: Callable[[], None]) -> None:
    run_fresh(work)


def test_daemon_threads_hold_no_writer_up() -> None:
    assert run_fresh(readers_that_outlive_the_interpreter) == "done"


def one_vcpu_in_several_threads() -> None:
    """A Vcpu is for one thread at a time, but the answers are right all the same."""
    vm = machine()
    vcpu = vm.vcpu()
    gfns = array("Q", range(128))
    ids = array("i", [gfn // 8 for gfn in gfns])
    end = time.monotonic() + 1.5
    failures: list[BaseException] = []

    def read(face: Vcpu, seed: int) -> None:
        gfn = seed
        try:
            while time.monotonic() < end:
                for _ in range(50):
                    gfn = (gfn * 5 + 3) % 128
                    slot = face.lookup(gfn)
                    assert slot is not None
                    assert slot.base_gfn <= gfn < slot.end_gfn
                    assert face.gpa_to_hva(gfn << 12) == HVA + (gfn << 12)
                assert face.lookup_many(gfns) == ids
                assert len(face.in_gfn_range(0, 128)) == 16
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=read, args=(vcpu, seed)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        for id in range(16):
            vm.set_flags(id, LOG)
            vm.set_flags(id, 0)
        vm.create(100, 0x1000, 1, HVA)
        vcpu.lookup(0x1000)
        vm.delete(100)
        assert vcpu.lookup(0x1000) is None
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    vm.check()


def test_one_vcpu_in_several_threads() -> None:
    run_fresh(one_vcpu_in_several_threads)


def test_a_transaction_is_begun_once_by_two_threads() -> None:
    """The second thread waits for the lock, and finds the transaction ended."""
    vm = machine()
    tx = vm.transaction()
    errors: list[BaseException] = []
    begun = threading.Event()

    def begin() -> None:
        begun.set()
        try:
            with tx:
                pass
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=begin)
    with tx:
        thread.start()
        begun.wait()
        time.sleep(0.05)
        tx.delete(0)
    thread.join()
    assert [str(error) for error in errors] == ["a transaction can be begun only once"]
    change_after = vm.create(0, 0, 8, HVA)
    assert vm[0] == change_after
    vm.check()


def marks_beside_get() -> None:
    """Each mark goes to exactly one of the threads that take the log, and none is lost."""
    pages, rounds = 640, 300
    vm = Memslots()
    vm.create(0, 0, pages, HVA, LOG)
    taken = [0] * pages
    marked = [0] * pages
    done = False
    lock = threading.Lock()
    barrier = threading.Barrier(4)

    def take(count: list[int]) -> None:
        log = vm.get_dirty_log(0)
        for page in range(pages):
            count[page] += log[page >> 3] >> (page & 7) & 1

    def takes() -> None:
        count = [0] * pages
        barrier.wait()
        while not done:
            take(count)
        with lock:
            for page in range(pages):
                taken[page] += count[page]

    def marks(mine: range) -> None:
        gfns = array("Q", mine)
        barrier.wait()
        for number in range(rounds):
            if number % 2:
                vm.mark_dirty_many(gfns)
            else:
                for gfn in gfns:
                    vm.mark_dirty(gfn)
            for gfn in gfns:
                marked[gfn] += 1

    threads = [
        threading.Thread(target=takes),
        threading.Thread(target=takes),
        threading.Thread(target=marks, args=(range(0, pages, 2),)),
        threading.Thread(target=marks, args=(range(1, pages, 2),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads[2:]:
        thread.join()
    done = True
    for thread in threads[:2]:
        thread.join()
    last = [0] * pages
    take(last)
    total = [taken[page] + last[page] for page in range(pages)]
    # Marks of a page that is already marked merge; none is returned twice.
    assert all(1 <= total[page] <= marked[page] for page in range(pages))
    assert not any(vm.get_dirty_log(0))
    vm.check()


def test_marks_beside_get_dirty_log() -> None:
    run_fresh(marks_beside_get)


def one_mark_at_a_time() -> None:
    """Marks a page once while several threads take the log: exactly one of them gets it."""
    vm = Memslots()
    vm.create(0, 0, 64, HVA, LOG)
    got = [0, 0]
    start = threading.Barrier(3)
    rounds = 1000

    def takes(number: int) -> None:
        for _ in range(rounds):
            start.wait()
            for _ in range(3):
                got[number] += sum(word.bit_count() for word in vm.get_dirty_log(0))

    threads = [threading.Thread(target=takes, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        start.wait()
        vm.mark_dirty(number % 64)
    for thread in threads:
        thread.join()
    left = sum(word.bit_count() for word in vm.get_dirty_log(0))
    assert got[0] + got[1] + left == rounds


def test_one_mark_at_a_time() -> None:
    run_fresh(one_mark_at_a_time)
