"""Interrupts a vCPU, and tests what it keeps alive while it runs."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from livekernel import CODE, PAGE, RAM_PAGES, guest
from needs import needs_kvm

from memslots import Backing, GuestMemory, Memslots
from memslots.kvm import (
    HltExit,
    InterruptedExit,
    KvmClosedError,
    KvmVcpu,
    KvmVM,
)

pytestmark = [needs_kvm, pytest.mark.usefixtures("no_descriptor_left")]

HLT = b"\xf4"

FOREVER = b"\xeb\xfe"  # jmp $


# Interrupted


def run_in_a_thread(vcpu: Any) -> tuple[threading.Thread, list[object]]:
    stops: list[object] = []
    thread = threading.Thread(target=lambda: stops.append(vcpu.run_once()))
    thread.start()
    return thread, stops


def wait_until_it_runs(vcpu: Any) -> None:
    end = time.monotonic() + 60
    while vcpu.runs() is not None:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_request_exit_before_it_runs() -> None:
    with guest(HLT) as (_, vcpu, _):
        vcpu.request_exit()
        assert vcpu.run_once() == InterruptedExit()
        assert vcpu.run_once() == HltExit(), "asked once, it comes once"


def test_request_exit_with_a_signal() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with guest(FOREVER) as (_, vcpu, _):
            thread, stops = run_in_a_thread(vcpu)
            wait_until_it_runs(vcpu)
            time.sleep(0.05)
            assert stops == []
            vcpu.request_exit(signal.SIGUSR1)
            thread.join(60)
            assert stops == [InterruptedExit()]
            assert vcpu.get_regs()["rip"] == CODE
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_request_exit_sends_no_signal_where_nothing_runs() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("a signal"))
    try:
        with guest(HLT) as (_, vcpu, _):
            vcpu.request_exit(signal.SIGUSR1)
            assert vcpu.run_once() == InterruptedExit()
            assert vcpu.run_once() == HltExit()
            vcpu.request_exit(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


class Kept:
    pass


def test_a_guest_that_runs_keeps_its_memory() -> None:
    """Another thread closes the VM: the memory stays until the guest exits."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with guest(FOREVER) as (vm, vcpu, _):
            kept = Kept()
            alive = weakref.ref(kept)
            vm.keep(kept)
            del kept
            ended: list[object] = []

            def run() -> None:
                try:
                    vcpu.run_once()
                except ValueError as error:
                    ended.append(str(error))

            thread = threading.Thread(target=run)
            thread.start()
            wait_until_it_runs(vcpu)
            vm.close()
            gc.collect()
            assert vm.kept() == []
            assert alive() is not None
            assert thread.ident is not None
            for _ in range(1200):  # the first signal may come before the guest runs
                if not thread.is_alive():
                    break
                signal.pthread_kill(thread.ident, signal.SIGUSR1)
                thread.join(0.05)
            assert len(ended) == 1
            gc.collect()
            assert alive() is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_vcpu_keeps_its_vm_and_a_vm_its_memslots() -> None:
    """A vCPU alone can be run: everything it needs is still there."""

    def machine() -> tuple[KvmVcpu, weakref.ref[Memslots], weakref.ref[KvmVM]]:
        kvm = KvmVM()
        vm = Memslots(backend=kvm)
        memory = GuestMemory(vm)
        memory.place(0, 0, Backing.anonymous(RAM_PAGES * PAGE))
        memory.write(CODE, HLT)
        vcpu = kvm.create_vcpu()
        vcpu.set_sregs(cs_base=0, cs_selector=0)
        vcpu.set_regs(rip=CODE, rflags=2)
        return vcpu, weakref.ref(vm), weakref.ref(kvm)

    vcpu, vm, kvm = machine()
    gc.collect()
    assert vcpu.run_once() == HltExit()
    held = kvm()
    assert vm() is not None
    assert held is not None
    held.close()
    del held
    gc.collect()
    assert vm() is None


def test_a_signal_alone_is_handled_and_the_guest_goes_on() -> None:
    handled = []

    def handler(*_: object) -> None:
        handled.append(1)
        if len(handled) == 3:
            vcpu.request_exit()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with guest(FOREVER) as (_, vcpu, _):
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            assert vcpu.run_once() == InterruptedExit()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert len(handled) >= 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_keyboard_interrupt() -> None:
    # The parent of the tests may have ignored the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with guest(FOREVER) as (_, vcpu, memory):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                for _ in vcpu.run():
                    pytest.fail("it never exits")
            timer.join()
            memory.bytes[CODE : CODE + 1] = HLT
            vcpu.set_regs(rip=CODE)
            assert vcpu.run_once() == HltExit(), "it can be run again"
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_meanwhile() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with guest(FOREVER) as (_, vcpu, _):
            thread, _ = run_in_a_thread(vcpu)
            began = time.monotonic()
            assert sum(range(100_000)) == 4_999_950_000
            assert time.monotonic() - began < 60
            assert thread.is_alive()
            vcpu.request_exit(signal.SIGUSR1)
            thread.join(60)
            assert not thread.is_alive()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switch_often")
def test_closed_while_another_thread_asks_for_an_exit() -> None:
    """The thread gets a KvmClosedError, wherever it is."""
    for _ in range(200):
        with KvmVM() as kvm:
            vcpu = kvm.create_vcpu()
            barrier = threading.Barrier(2)
            told: list[BaseException] = []

            def ask(vcpu: Any = vcpu, barrier: Any = barrier, told: Any = told) -> None:
                barrier.wait()
                try:
                    while True:
                        vcpu.request_exit()
                except Exception as error:  # noqa: BLE001 (it is told of)
                    told.append(error)

            thread = threading.Thread(target=ask)
            thread.start()
            barrier.wait()
            vcpu.close()
            thread.join()
            assert [type(each) for each in told] == [KvmClosedError]


def test_all_that_is_asked_of_a_closed_vcpu() -> None:
    with KvmVM() as kvm:
        vcpu = kvm.create_vcpu()
        vcpu._reads(vcpu._shared(), 0, 1)
        vcpu.close()
        for ask in (vcpu.run_once, vcpu.request_exit, lambda: vcpu.answer(b"1"), vcpu.get_regs):
            with pytest.raises(KvmClosedError):
                ask()
