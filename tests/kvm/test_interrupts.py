"""Raises from signal handlers at any moment: map and kernel still have the same slots."""

from __future__ import annotations

import random
import signal
from contextlib import suppress

import pytest
from needs import needs_kvm

from memslots import Backing, GuestMemory, MemslotError, Memslots
from memslots.kvm import KvmVM

pytestmark = [needs_kvm, pytest.mark.usefixtures("no_descriptor_left")]

PAGE = 4096
ROUNDS = 500


class Alarm(TimeoutError):
    pass


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("error", [Alarm, Interrupt])
def test_map_and_kernel_agree(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    choose = random.Random(0)
    # An exception that no caller sees, in a finalizer or after a change, is fine too.
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)

    armed: list[bool] = []  # for the next signal

    def handler(*_: object) -> None:
        if armed:
            armed.clear()
            raise error

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    try:
        with KvmVM() as kvm:
            vm = Memslots(backend=kvm)
            mem = GuestMemory(vm)
            for _ in range(ROUNDS):
                with suppress(error):
                    until_it_raises(mem, choose, armed)
                # After a successful change nothing is left to undo.
                with suppress(MemslotError):
                    vm.delete(9)
                mem.place(9, 1 << 30, Backing.anonymous(PAGE))
                vm.check()
                assert sorted(vm, key=lambda slot: slot.id) == kvm.slots
                for slot in vm:
                    mem.read(slot.guest_phys_addr, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def until_it_raises(mem: GuestMemory, choose: random.Random, armed: list[bool]) -> None:
    # A function of its own: an exception at the loop's jump back is outside any `with` here.
    armed.append(True)
    while armed:
        step(mem, choose)


def step(mem: GuestMemory, choose: random.Random) -> None:
    """Makes a change of a few slots, which may be refused."""
    vm, id = mem.vm, choose.randrange(3)
    with suppress(MemslotError):
        match choose.randrange(4):
            case 0:
                mem.place(id, choose.randrange(4) * PAGE, Backing.anonymous(PAGE), flags=1)
            case 1:
                vm.delete(id)
            case 2:
                vm.move(id, choose.randrange(4))
            case _:
                with vm.transaction() as tx:
                    tx.move(id, vm[(id + 1) % 3].base_gfn)
                    tx.move((id + 1) % 3, vm[id].base_gfn)
