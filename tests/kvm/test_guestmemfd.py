"""Tests set_region2 against the live kernel, and mirrored in it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from typing import Any

import numpy as np
import pytest
from atline import AtLine
from livekernel import HostMemory
from needs import needs_kvm

from memslots import (
    Change,
    Flags,
    GuestMemfd,
    KvmError,
    MemoryMap,
    MemslotError,
    Memslots,
    OverlapError,
    Slot,
)
from memslots.kvm import Cap, KvmVM
from memslots.values.guestmemfd import _file_of, number_of

PAGE = 4096
FILE_PAGES = 8
pytestmark = needs_kvm


@pytest.fixture
def kernel() -> Iterator[KvmVM]:
    with KvmVM() as vm:
        if not vm.check_extension(Cap.GUEST_MEMFD):
            pytest.skip("this kernel has no KVM_CAP_GUEST_MEMFD for this type of VM")
        yield vm


def test_the_kernel_and_the_rules(kernel: KvmVM) -> None:
    """Random calls, most of them wrong: both give the same errno, and the same slots at the end."""
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    host = HostMemory(64)
    vm = Memslots(**kernel.limits)
    files = [kernel.create_guest_memfd(FILE_PAGES * PAGE) for _ in range(2)]
    calls = 0
    for number in range(4000):
        if choose.random() < 0.01:
            at = choose.randrange(2)
            os.close(files[at])
            files[at] = kernel.create_guest_memfd(FILE_PAGES * PAGE)
        memfd = choose.choice([*files, *files, 1 << 20, kernel.fileno()])
        flags = choose.choice([4, 4, 4, 0, 0, 1, 5, 8])
        size = choose.choice([0, 0, 1, 1, 2, 3]) * PAGE + choose.choice([0] * 9 + [1])
        gpa = choose.choice([*range(12), (1 << 52) - 1]) * PAGE
        region = (choose.randrange(8), flags, gpa, size, host.address)
        offset = choose.randrange(FILE_PAGES + 1) * PAGE + choose.choice([0] * 9 + [1])
        results: list[tuple[Change | None, int]] = []
        for one in (vm, kernel):
            try:
                results.append((one.set_region2(*region, memfd, offset), 0))
            except MemslotError as error:
                results.append((None, error.errno or 0))
                if one is kernel and error.errno != errno.EBADF:
                    assert error.rule is not None or memfd == kernel.fileno(), error
        assert results[0] == results[1], f"seed {seed}, call {number}: {region} {memfd} {offset}"
        calls += results[0][1] == 0
    vm.check()
    assert calls > 500
    assert sorted(map(shape, vm)) == sorted(map(shape, kernel.slots))
    for memfd in files:
        os.close(memfd)


def shape(slot: Slot) -> tuple[int, ...]:
    return slot.id, slot.base_gfn, slot.npages, int(slot.flags), slot.guest_memfd_offset


def test_mirrored(kernel: KvmVM) -> None:
    """Transactions, cuts and plans of slots that KVM allows only to be deleted."""
    vm = Memslots(backend=kernel)
    memfd = kernel.create_guest_memfd(64 * PAGE)
    try:
        assert vm.set_region2(0, 4, 0, 16 * PAGE, 0, memfd) is Change.CREATE
        assert vm.set_region2(1, 4, 16 * PAGE, 16 * PAGE, 0, memfd, 16 * PAGE) is Change.CREATE
        with vm.transaction() as tx:  # each slot gets the other's part of the file
            tx.delete(0)
            tx.delete(1)
            tx.set_region2(0, 4, 0, 16 * PAGE, 0, memfd, 16 * PAGE)
            tx.set_region2(1, 4, 16 * PAGE, 16 * PAGE, 0, memfd, 0)
        assert list(kernel.slots) == list(vm)
        vm.unmap(4, 20)
        assert list(kernel.slots) == list(vm)
        file = vm[0].guest_memfd
        assert file is not None
        vm.become([Slot(7, 0, 100, 4, 0, Flags.GUEST_MEMFD, file, 16 * PAGE)])
        assert list(kernel.slots) == list(vm)
        assert [slot.base_gfn for slot in vm] == [100]
        with pytest.raises(MemslotError) as caught:
            vm.set_region2(3, 4, 0, PAGE, 0, GuestMemfd(PAGE))
        assert caught.value.errno == errno.EBADF
        assert len(vm) == len(kernel.slots) == 1
        vm.check()
    finally:
        os.close(memfd)


def test_what_another_vm_has(kernel: KvmVM) -> None:
    """A file of another VM: the map does not know it.

    The kernel refuses, and nothing has changed.
    """
    with KvmVM() as other:
        memfd = other.create_guest_memfd(PAGE)
        try:
            vm = Memslots(backend=kernel)
            with pytest.raises(KvmError) as caught:
                vm.set_region2(0, 4, 0, PAGE, 0, memfd)
            assert caught.value.errno == errno.EINVAL
            assert len(vm) == 0
            assert Memslots(backend=other).set_region2(0, 4, 0, PAGE, 0, memfd) is Change.CREATE
        finally:
            os.close(memfd)


def test_what_was_asked_for(kernel: KvmVM) -> None:
    """An overlap's error names one slot, whether the map or the kernel refused it."""
    host = HostMemory(4)
    found = []
    for vm in (kernel, Memslots(**kernel.limits)):
        vm.set_region(0, 0, 0, PAGE, host.address)
        with pytest.raises(OverlapError) as caught:
            vm.set_region2(1, 4, 0, PAGE, host.address)
        found.append((caught.value.requested, caught.value.existing, str(caught.value)))
    assert found[0] == found[1]
    assert found[0][0].guest_memfd is not None


def test_a_plan_is_checked_by_the_kernel(kernel: KvmVM) -> None:
    from memslots import plan

    file = GuestMemfd(64 * PAGE)
    now = MemoryMap([Slot(0, 0, 0, 4, 0, Flags.GUEST_MEMFD, file, 0), (8, 4, 0)])
    wanted = MemoryMap([Slot(5, 0, 8, 4, 0, Flags.GUEST_MEMFD, file, 2 * PAGE), (0, 4, 0)])
    plan(now, wanted).check(backend=kernel)


def test_a_descriptor_is_an_integer(kernel: KvmVM) -> None:
    with pytest.raises(TypeError, match="guest_memfd must be an integer, not 'ndarray'"):
        kernel.set_region2(0, 4, 0, PAGE, 0, np.arange(3))


def test_a_descriptor_that_two_threads_use_first(kernel: KvmVM) -> None:
    """Wherever the second thread comes in between: both know the same file."""
    for number in count(1):
        descriptor = kernel.create_guest_memfd(PAGE)
        with ThreadPoolExecutor(1) as pool:
            futures: list[Any] = []

            def meanwhile(fd: int = descriptor, futures: list[Any] = futures) -> None:
                futures.append(pool.submit(number_of, fd))
                wait(futures, 0.1)  # it may have to wait for this thread

            with AtLine(number, meanwhile, _file_of) as at:
                _, one = number_of(descriptor)
        assert one is not None
        if at.lines < number:
            break
        _, other = futures[0].result()
        assert [one.closed, other.closed] == [False, False]
        os.close(descriptor)
    assert number > 5
