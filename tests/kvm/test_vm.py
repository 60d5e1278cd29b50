"""Tests a VM of the kernel: making, closing, dropping it; and how it refuses a slot."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from livekernel import PAGE
from needs import needs_kvm

from memslots import (
    Change,
    Flags,
    MemslotError,
    Memslots,
    OverlapError,
    Slot,
)
from memslots.kvm import Cap, KvmClosedError, KvmError, KvmUnavailableError, KvmVM, ioctls

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
SET = ioctls.SET_USER_MEMORY_REGION


# Its life


def test_closing(fake: Any) -> None:
    vm = KvmVM(device=fake.device)
    assert repr(vm) == "<KvmVM: 0 slots>"
    assert os.fstat(vm.fileno())
    with vm as same:
        assert same is vm
    vm.close()
    assert repr(vm) == "<KvmVM: closed>"
    calls: list[Callable[[], object]] = [
        vm.fileno,
        vm.create_vcpu,
        vm.create_irqchip,
        lambda: vm.set_region(0, 0, 0, PAGE, 0),
        lambda: vm.set_region2(0, 0, 0, PAGE, 0),
        lambda: vm.get_dirty_log(0),
        lambda: vm.clear_dirty_log(0, 0, 64, bytes(8)),
        lambda: vm.set_tss_addr(0),
        lambda: vm.set_identity_map_addr(0),
        lambda: vm.check_extension(3),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="KvmVM is closed"):
            call()


def test_the_memslots_of_a_closed_vm(fake: Any) -> None:
    """It can be read. A change is refused, and nothing is left to undo."""
    with KvmVM(device=fake.device) as kvm:
        vm = Memslots(backend=kvm)
        vm.create(0, 0, 1, 0)
    changes: list[Callable[[], object]] = [
        lambda: vm.delete(0),
        lambda: vm.create(1, 1, 1, 0),
    ]
    for call in changes:
        with pytest.raises(KvmClosedError, match="KvmVM is closed") as caught:
            call()
        assert not hasattr(caught.value, "__notes__")
    assert len(vm) == 1
    vm.check()


def test_what_is_kept_while_a_vcpu_runs(fake: Any) -> None:
    """Objects that the VM keeps only after the vCPU began to run are kept for the vCPU, too."""
    with KvmVM(device=fake.device) as kvm:
        held = kvm.kept()
        kvm.keep("memory")
    assert held == ["memory"]
    assert kvm.kept() == []


def test_dropped(fake: Any) -> None:
    vm = KvmVM(device=fake.device)
    with pytest.warns(ResourceWarning, match="unclosed KvmVM"):
        del vm


def test_dropped_with_a_vcpu(fake: Any) -> None:
    vm = KvmVM(device=fake.device)
    vm.create_vcpu()
    del vm  # the VM and the vCPU keep each other
    with pytest.warns(ResourceWarning) as warned:
        gc.collect()
    assert sorted(str(each.message) for each in warned) == ["unclosed KvmVM", "unclosed KvmVcpu"]


@pytest.mark.parametrize(
    "request_",
    [ioctls.CREATE_VM, ioctls.GET_VCPU_MMAP_SIZE, ioctls.CHECK_EXTENSION, ioctls.ENABLE_CAP_OF_VM],
)
def test_not_made(fake: Any, request_: int) -> None:
    """Nothing stays open."""
    fake.fail(request_, errno.ENOMEM)
    with pytest.raises(KvmError) as caught:
        KvmVM(device=fake.device, manual_dirty_log=1)
    assert caught.value.errno == errno.ENOMEM


def test_a_vcpu_that_cannot_be_mapped(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr("mmap.mmap", no_memory)
    with KvmVM(device=fake.device) as vm, pytest.raises(OSError, match="no"):
        vm.create_vcpu()


def test_arguments(fake: Any) -> None:
    wrong: Any
    for wrong, error in ((2, ValueError), ("1", TypeError), (-1, OverflowError)):
        with pytest.raises(error, match="manual_dirty_log"):
            KvmVM(manual_dirty_log=wrong, device=fake.device)
    for wrong, error in (("0", TypeError), (1 << 64, OverflowError)):
        with pytest.raises(error, match="vm_type"):
            KvmVM(wrong, device=fake.device)
    with KvmVM(device=fake.device) as vm:
        for wrong, error in ((1.0, TypeError), (1 << 32, OverflowError), (-1, OverflowError)):
            with pytest.raises(error, match="cap"):
                vm.check_extension(wrong)


@pytest.mark.parametrize("wanted", [1, 3])
def test_no_manual_dirty_log(fake: Any, wanted: int) -> None:
    fake.caps[Cap.MANUAL_DIRTY_LOG_PROTECT2] = 3 - wanted if wanted == 3 else 0
    text = f"manual_dirty_log={wanted} needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .*; Linux 5.7"
    with pytest.raises(KvmUnavailableError, match=text) as caught:
        KvmVM(device=fake.device, manual_dirty_log=wanted)
    assert caught.value.errno == errno.ENOTSUP


def test_missing_capabilities(fake: Any) -> None:
    with KvmVM(device=fake.device) as vm:
        fake.caps.clear()
        for name, call in (
            ("USER_MEMORY2", lambda: vm.set_region2(0, 0, 0, PAGE, 0)),
            ("GUEST_MEMFD", lambda: vm.create_guest_memfd(PAGE)),
            ("MANUAL_DIRTY_LOG_PROTECT2", lambda: vm.clear_dirty_log(0, 0, 64, bytes(8))),
        ):
            with pytest.raises(KvmUnavailableError, match=f"needs KVM_CAP_{name}, .* or later"):
                call()
        fake.caps[Cap.USER_MEMORY2] = 1
        with pytest.raises(KvmUnavailableError, match="KVM_CAP_GUEST_MEMFD"):
            vm.set_region2(0, 4, 0, PAGE, 0, guest_memfd=3)


@needs_kvm
def test_another_process() -> None:
    """A child cannot use the VM and says so, even if a thread held the lock at the fork."""
    with KvmVM() as vm:
        vm.set_region(0, LOG, 0, PAGE, 0)
        with vm._own_lock:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for call in (
                        lambda: vm.set_region(0, 0, 0, 0, 0),
                        lambda: vm.get_dirty_log(0),
                        lambda: vm.slots,
                        vm.create_vcpu,
                        lambda: vm.check_extension(3),
                    ):
                        try:
                            call()
                            break
                        except KvmError as error:
                            if error.errno != errno.EIO:
                                break
                    else:
                        vm.close()
                        status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert vm.set_region(0, 0, 0, 0, 0) is Change.DELETE


# Slots

CALLS: list[tuple[int, int, int, int, int]] = [
    (0, 0, 0, 16 * PAGE, 0),
    (0, 0, 0, 16 * PAGE, 0),
    (0, LOG, 0, 16 * PAGE, 0),
    (0, LOG, 32 * PAGE, 16 * PAGE, 0),
    (0, 0, 33 * PAGE, 16 * PAGE, 0),
    (1, READONLY, 0, PAGE, PAGE),
    (1, 4, 0, PAGE, PAGE),
    (1, 0, 0, PAGE, PAGE),
    (1, READONLY, 0, 2 * PAGE, PAGE),
    (1, READONLY, 0, PAGE, 0),
    (1, READONLY, 40 * PAGE, PAGE, PAGE),
    (2, 0, 40 * PAGE, PAGE, 0),
    (2, 0, PAGE, 100 * PAGE, 0),
    (2, 0, 1, PAGE, 0),
    (2, 0, PAGE, 1, 0),
    (2, 0, PAGE, PAGE, 1),
    (2, 0, (1 << 64) - PAGE, PAGE, 0),
    (2, 0, PAGE, 1 << 43, 0),
    (2, 0, (1 << 63) - PAGE, PAGE, 0),
    (0, 0, (1 << 63) - 16 * PAGE, 16 * PAGE, 0),
    (2, 0, 0, 0, 0),
    (1 << 31, 0, 0, PAGE, 0),
    (0xFFFF, 0, 0, PAGE, 0),
    (0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0),
    (1, READONLY, 0, 0, 0),
]


@needs_kvm
def test_answers_are_those_of_memslots() -> None:
    """The same changes give the same answers, and errors with the same words."""

    def answer(vm: Any, args: tuple[int, ...]) -> object:
        try:
            return vm.set_region(*args)
        except MemslotError as error:
            either = (getattr(error, name, None) for name in ("existing", "requested"))
            return type(error), error.errno, error.rule, str(error), *either

    with KvmVM() as kvm:
        vm = Memslots(**kvm.limits)
        seen = set()
        for args in CALLS:
            ours = answer(vm, args)
            assert answer(kvm, args) == ours, args
            assert kvm.slots == sorted(vm, key=lambda slot: slot.id)
            seen.add(ours if isinstance(ours, Change) else ours[2])  # type: ignore[index]
        assert seen == {*Change, 1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize(
    ("index", "name", "bits"),
    [
        (0, "slot", 32),
        (1, "flags", 32),
        (2, "guest_phys_addr", 64),
        (3, "memory_size", 64),
        (4, "userspace_addr", 64),
    ],
)
@pytest.mark.parametrize("verb", ["set_region", "set_region2"])
def test_fields(fake: Any, verb: str, index: int, name: str, bits: int) -> None:
    with KvmVM(device=fake.device) as vm:
        vm.set_region2(0, 0, 0, PAGE, 0)
        calls = len([1 for request, _ in fake.seen if request in (SET, SET + 3)])
        for wrong, error in ((-1, OverflowError), (1 << bits, OverflowError), ("0", TypeError)):
            args: list[Any] = [0, 0, 0, PAGE, 0]
            args[index] = wrong
            with pytest.raises(error, match=name) as theirs:
                getattr(vm, verb)(*args)
            with pytest.raises(error) as ours:
                Memslots().set_region(*args)
            assert str(theirs.value) == str(ours.value)
        assert len([1 for request, _ in fake.seen if request in (SET, SET + 3)]) == calls


def test_again_after_a_signal(fake: Any) -> None:
    with KvmVM(device=fake.device) as vm:
        fake.fail(SET, errno.EINTR, errno.EINTR)
        assert vm.set_region(0, 0, 0, PAGE, 0) is Change.CREATE
        assert [request for request, _ in fake.seen].count(SET) == 3


def test_an_interrupt_when_the_kernel_is_done(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that the kernel made is known; one that it did not make has not happened."""
    with KvmVM(device=fake.device) as vm:
        once = vm._fd.ioctl_once

        def late(*args: Any) -> bool:
            once(*args)
            raise KeyboardInterrupt

        def early(*args: Any) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(vm._fd, "ioctl_once", late)
        with pytest.raises(KeyboardInterrupt):
            vm.set_region(0, 0, 0, PAGE, 0)
        assert vm.slots == [Slot(0, 0, 0, 1, 0)]
        monkeypatch.setattr(vm._fd, "ioctl_once", early)
        with pytest.raises(KeyboardInterrupt):
            vm.set_region(0, 0, 0, 0, 0)
        assert vm.slots == [Slot(0, 0, 0, 1, 0)]


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC, errno.EINVAL, errno.EIO])
def test_refused_for_no_rule(fake: Any, code: int) -> None:
    with KvmVM(device=fake.device) as vm:
        vm.set_region(0, LOG, 0, PAGE, 0)
        fake.fail(SET, code)
        with pytest.raises(KvmError, match="no rule refuses it") as caught:
            vm.set_region(1, 0, PAGE, PAGE, 0)
        assert type(caught.value) is KvmError
        assert (caught.value.errno, caught.value.rule) == (code, None)
        assert os.strerror(code) in str(caught.value)
        assert "slot 1 of address space 0" in str(caught.value)
        assert vm.slots == [Slot(0, 0, 0, 1, 0, LOG)]
        assert vm.set_region(1, 0, PAGE, PAGE, 0) is Change.CREATE


def test_refused_where_the_limits_are_not_to_be_had(fake: Any) -> None:
    """The error is that of the call, not that of asking for the limits."""
    with KvmVM(device=fake.device) as vm:
        fake.fail(SET, errno.EINVAL)
        fake.fail(ioctls.CREATE_VM, errno.EMFILE)
        with pytest.raises(
            KvmError, match="KVM_SET_USER_MEMORY_REGION: Invalid argument"
        ) as caught:
            vm.set_region(0, 0, 1, PAGE, 0)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("base", "npages", "name", "private"),
    [
        (0xFEE00, 1, "the APIC page", (0xFEE00, 1)),
        (0xFEC00, 0x400, "the APIC page", (0xFEE00, 1)),
        (0xFFFBD, 1, "the TSS", (0xFFFBD, 3)),
        (0xFFFBF, 16, "the TSS", (0xFFFBD, 3)),
        (0xFFFBB, 2, "the identity map", (0xFFFBC, 1)),
        (0x500, 1, None, None),
    ],
)
def test_slots_that_the_kernel_keeps(
    fake: Any, base: int, npages: int, name: str | None, private: tuple[int, int] | None
) -> None:
    with KvmVM(device=fake.device) as vm:
        vm.set_tss_addr(0xFFFBD000)
        assert (ioctls.SET_TSS_ADDR, 0xFFFBD000) in fake.seen
        fake.fail(SET, errno.EEXIST)
        with pytest.raises(OverlapError, match="a slot that the kernel keeps for itself") as caught:
            vm.set_region(3, 0, base * PAGE, npages * PAGE, 0)
        error = caught.value
        assert (error.errno, error.rule) == (errno.EEXIST, 6)
        assert error.requested == Slot(3, 0, base, npages, 0)
        if private is None:
            assert str(error).endswith("keeps for itself")
        else:
            assert error.existing.id >= vm.limits["max_slots"]
            assert (error.existing.base_gfn, error.existing.npages) == private
            end = private[0] + private[1]
            assert f": {name}, gfn [{private[0]:#x}, {end:#x})" in str(error)


def test_the_identity_map_elsewhere(fake: Any) -> None:
    with KvmVM(device=fake.device) as vm:
        vm.set_identity_map_addr(0x1000)
        assert vm.limits["max_slots"] == 32764
        fake.fail(SET, errno.EEXIST, errno.EEXIST)
        with pytest.raises(OverlapError, match=r"the identity map, gfn \[0x1, 0x2\)"):
            vm.set_region(0, 0, PAGE, PAGE, 0)
        with pytest.raises(OverlapError, match=r"for itself$"):
            vm.set_region(0, 0, 0xFFFBC000, PAGE, 0)
        with pytest.raises(OverflowError, match="gpa"):
            vm.set_identity_map_addr(1 << 64)
        with pytest.raises(TypeError, match="gpa"):
            vm.set_tss_addr("0")  # type: ignore[arg-type]


@needs_kvm
def test_what_x86_wants() -> None:
    with KvmVM() as vm:
        vm.set_identity_map_addr(0xFFFBC000)
        vm.set_tss_addr(0xFFFBD000)
        vm.create_irqchip()
        with pytest.raises(KvmError) as caught:
            vm.create_irqchip()
        assert caught.value.errno == errno.EEXIST
        vm.create_vcpu()


@needs_kvm
def test_changes_from_many_threads() -> None:
    with KvmVM() as vm:
        barrier = threading.Barrier(4)
        failures: list[BaseException] = []

        def work(first: int) -> None:
            barrier.wait()
            try:
                for id in range(first, first + 50):
                    assert vm.set_region(id, 0, id * PAGE, PAGE, 0) is Change.CREATE
                    assert vm.set_region(id, LOG, id * PAGE, PAGE, 0) is Change.FLAGS_ONLY
                    with pytest.raises(OverlapError):
                        vm.set_region(1000, 0, id * PAGE, PAGE, 0)
                    if id % 2:
                        assert vm.set_region(id, 0, 0, 0, 0) is Change.DELETE
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n * 50,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [slot.id for slot in vm.slots] == list(range(0, 200, 2))


def test_a_mirrored_map_hands_its_slots_on(fake: Any) -> None:
    with KvmVM(device=fake.device) as kvm:
        vm = Memslots(backend=kvm)
        made = vm.create(1, 8, 1, PAGE, LOG)
        assert kvm.slots == [made]
        assert kvm.slots[0] is made
        vm.delete(1)
        assert kvm.slots == []
        assert kvm.set_slot(None, made) is Change.CREATE
        assert kvm.set_slot(made, made) is Change.NONE
        with pytest.raises(ValueError, match="a call needs a slot before or after it"):
            kvm.set_slot(None, None)
        fake.fail(SET, errno.ENOMEM)
        with pytest.raises(KvmError) as caught:
            kvm.set_slot(made, None)
        assert caught.value.errno == errno.ENOMEM
        assert kvm.slots == [made]
        assert kvm.set_slot(made, None) is Change.DELETE
