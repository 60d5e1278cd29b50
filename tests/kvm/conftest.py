"""A kernel that gives the answers a test wants, for answers that no real kernel gives on demand."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from descriptors import descriptors

from memslots.kvm import Cap, fd, ioctls

MAX_GFN, MAX_HVA = (1 << 36) - 1, 1 << 47


class FakeKernel:
    """Takes the ioctls of descriptors that are not KVM's: those of a file with a vCPU's page."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self.device = str(path)
        self.version = 12
        self.caps: dict[int, int] = {
            Cap.NR_MEMSLOTS: 32764,
            Cap.MANUAL_DIRTY_LOG_PROTECT2: 3,
            Cap.USER_MEMORY2: 1,
        }
        self.errors: dict[int, list[int]] = {}  # by request: the errnos of its next calls
        self.seen: list[tuple[int, Any]] = []

    def fail(self, request: int, *errnos: int) -> None:
        self.errors[request] = list(errnos)

    def by_value(self, number: int, request: int, argument: int) -> int:
        try:
            return self.by_struct(number, request, argument)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1

    def by_struct(self, number: int, request: int, argument: Any) -> int:
        value = argument if isinstance(argument, int) else bytes(argument)
        self.seen.append((request, value))
        code = self.errors[request].pop(0) if self.errors.get(request) else 0
        if code == 0 and request == ioctls.SET_USER_MEMORY_REGION:
            _, _, gpa, size, hva = ioctls.REGION.unpack(argument)
            beyond = (gpa + size) >> 12 > MAX_GFN + 1 or hva + size > MAX_HVA
            code = errno.EINVAL if beyond else 0
        if code:
            raise OSError(code, os.strerror(code))
        if request in (ioctls.CREATE_VM, ioctls.CREATE_VCPU):
            return os.open(self.device, os.O_RDWR)
        if request == ioctls.CHECK_EXTENSION:
            return self.caps.get(value, 0) if isinstance(value, int) else 0
        return {ioctls.GET_API_VERSION: self.version, ioctls.GET_VCPU_MMAP_SIZE: 4096}.get(
            request, 0
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeKernel:
    kernel = FakeKernel(tmp_path / "kvm")
    monkeypatch.setattr(fd, "_by_value", kernel.by_value)
    monkeypatch.setattr(fd, "_by_struct", kernel.by_struct)
    return kernel


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    before = descriptors()
    yield
    if descriptors() != before:
        gc.collect()  # a traceback may be in a cycle with the objects that it holds
    assert descriptors() == before
