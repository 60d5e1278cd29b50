"""Private pages: Memslots.set_private, by itself, mirrored, copied and beside other threads."""

from __future__ import annotations

import copy
import pickle
from threading import Thread

import pytest
from needs import need_kvm

from memslots import (
    BusyError,
    Change,
    GuestMemory,
    InvalidRegionError,
    KvmError,
    KvmUnavailableError,
    Memslots,
    Slot,
)
from memslots.kvm import Cap, KvmVM
from memslots.mirror.backend import PRIVATE_ATTRIBUTE

LAST = (1 << 52) - 1


def test_pages_become_private_and_shared() -> None:
    vm = Memslots()
    assert vm.private_runs() == []
    assert not vm.is_private(LAST)
    vm.set_private(0x10, 0x20)
    vm.set_private(0x18, 0x1A, False)
    vm.set_private(LAST, LAST + 1)
    assert vm.private_runs() == [(0x10, 0x18), (0x1A, 0x20), (LAST, LAST + 1)]
    assert vm.private_runs(0x17, 0x1B) == [(0x17, 0x18), (0x1A, 0x1B)]
    assert [vm.is_private(gfn) for gfn in (0xF, 0x10, 0x18, 0x1F, 0x20)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    vm.create(0, 0x10, 0x10, 0x7F00_0000_0000)  # slots and attributes know nothing of each other
    vm.delete(0)
    vm.set_private(0, 0)
    assert len(vm.private_runs()) == 3
    vm.check()


def test_wrong_arguments_change_nothing() -> None:
    vm = Memslots()
    vm.set_private(3, 5)
    with pytest.raises(ValueError, match="start"):
        vm.set_private(6, 5)
    with pytest.raises(InvalidRegionError, match="the last guest page"):
        vm.set_private(0, LAST + 2)
    with pytest.raises(OverflowError, match="start"):
        vm.set_private(-1, 5)
    with pytest.raises(TypeError):
        vm.set_private(0, "5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start"):
        vm.private_runs(6, 5)
    with pytest.raises(OverflowError):
        vm.is_private(1 << 64)
    assert vm.private_runs() == [(3, 5)]


def test_guest_memory_tells_of_bytes() -> None:
    vm = Memslots()
    memory = GuestMemory(vm)
    vm.set_private(5, 6)
    assert [
        memory.is_private(gpa, n) for gpa, n in ((0x4FFF, 1), (0x4FFF, 2), (0x5FFF, 1), (0x6000, 9))
    ] == [
        False,
        True,
        True,
        False,
    ]
    assert not memory.is_private(0x5000, 0)
    assert not memory.is_private(2**64 - 1, 2**64 - 1)


def test_copies_and_pickles_have_them() -> None:
    vm = Memslots()
    vm.set_private(3, 5)
    for other in (copy.copy(vm), copy.deepcopy(vm), pickle.loads(pickle.dumps(vm))):
        assert other.private_runs() == [(3, 5)]
        other.set_private(3, 5, False)
        assert pickle.loads(pickle.dumps(other)).private_runs() == []
    assert vm.private_runs() == [(3, 5)]


def test_a_change_from_a_listener_is_refused() -> None:
    vm = Memslots()

    class Listener:
        def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            vm.set_private(0, 1)

    with vm.subscribe(Listener()), pytest.raises(BusyError):
        vm.create(0, 0, 1, 0)
    assert not vm.is_private(0)


class Backend:
    """Keeps what it is told, or refuses."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.error: Exception | None = None

    def set_region(self, *region: int) -> None:
        """Takes any region."""

    def set_memory_attributes(self, address: int, size: int, attributes: int) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append((address, size, attributes))


def test_a_backend_is_told_first() -> None:
    backend = Backend()
    vm = Memslots(backend=backend)
    vm.set_private(1, 3)
    vm.set_private(2, 3, False)
    vm.set_private(7, 7)
    assert backend.calls == [(0x1000, 0x2000, PRIVATE_ATTRIBUTE), (0x2000, 0x1000, 0)]
    backend.error = KvmError(22, "no")
    with pytest.raises(KvmError):
        vm.set_private(0, 9)
    assert vm.private_runs() == [(1, 2)]


def test_an_unknown_outcome_is_undone() -> None:
    """A signal's handler may raise after the kernel has made the change."""

    class Interrupted(Backend):
        def set_memory_attributes(self, address: int, size: int, attributes: int) -> None:
            super().set_memory_attributes(address, size, attributes)
            if len(self.calls) == 3:
                raise KeyboardInterrupt

    backend = Interrupted()
    vm = Memslots(backend=backend)
    vm.set_private(1, 3)
    vm.set_private(6, 9)
    with pytest.raises(KeyboardInterrupt):
        vm.set_private(2, 8)
    assert vm.private_runs() == [(1, 3), (6, 9)]
    assert backend.calls[2:] == [
        (0x2000, 0x6000, PRIVATE_ATTRIBUTE),
        (0x2000, 0x6000, 0),
        (0x2000, 0x1000, PRIVATE_ATTRIBUTE),
        (0x6000, 0x2000, PRIVATE_ATTRIBUTE),
    ]


def test_a_backend_without_attributes_is_not_told() -> None:
    class Plain:
        def set_region(self, *region: int) -> None:
            """Takes any region."""

    vm = Memslots(backend=Plain())
    vm.set_private(1, 3)
    assert vm.private_runs() == [(1, 3)]


def test_the_kernel_has_them_or_says_so() -> None:
    need_kvm()
    with KvmVM() as kernel:
        vm = Memslots(backend=kernel)
        if kernel.check_extension(Cap.MEMORY_ATTRIBUTES) & PRIVATE_ATTRIBUTE:
            vm.set_private(1, 3)
            with pytest.raises(KvmError):
                kernel.set_memory_attributes(0, 0, 0)
        else:
            with pytest.raises(KvmUnavailableError, match="KVM_CAP_MEMORY_ATTRIBUTES"):
                vm.set_private(1, 3)
        assert vm.is_private(1) == bool(kernel.check_extension(Cap.MEMORY_ATTRIBUTES))


def test_readers_see_whole_changes() -> None:
    vm = Memslots()
    vm.set_private(0, 4)
    wrong: list[object] = []

    def read() -> None:
        for _ in range(3000):
            runs = vm.private_runs()
            if runs not in ([(0, 4)], [(0, 4), (8, 12)]):
                wrong.append(runs)

    threads = [Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3000):
        vm.set_private(8, 12, number % 2 == 0)
    for thread in threads:
        thread.join()
    assert not wrong
