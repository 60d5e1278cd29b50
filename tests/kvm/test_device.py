"""Opens /dev/kvm: tests every way in which it is unusable, and the advice of the error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import needs_kvm

from memslots import MemslotError
from memslots.kvm import KvmError, KvmUnavailableError, KvmVM, ioctls
from memslots.kvm.device import open_device

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


def refusing(code: int) -> Callable[..., int]:
    def opens(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return opens


def test_no_device(tmp_path: Path) -> None:
    path = str(tmp_path / "kvm")
    with pytest.raises(KvmUnavailableError, match="cannot be opened: No such file") as caught:
        KvmVM(device=path)
    assert caught.value.errno == errno.ENOENT
    text = str(caught.value)
    assert path in text
    for todo in ("modprobe kvm_intel or kvm_amd", "firmware", "nested", "--device /dev/kvm"):
        assert todo in text
    assert caught.value.rule is None
    assert isinstance(caught.value, KvmError)
    assert isinstance(caught.value, MemslotError)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    ("code", "todo"),
    [
        (errno.EACCES, "usermod -aG kvm"),
        (errno.EPERM, "usermod -aG kvm"),
        (errno.ENODEV, "modprobe"),
        (errno.ENXIO, "modprobe"),
    ],
)
def test_what_to_do(monkeypatch: pytest.MonkeyPatch, code: int, todo: str) -> None:
    monkeypatch.setattr(os, "open", refusing(code))
    with pytest.raises(KvmUnavailableError, match=todo) as caught:
        open_device()
    assert caught.value.errno == code
    assert os.strerror(code) in str(caught.value)


def test_another_error_is_not_advised_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refusing(errno.EMFILE))
    with pytest.raises(KvmUnavailableError) as caught:
        open_device()
    assert caught.value.strerror == f"/dev/kvm cannot be opened: {os.strerror(errno.EMFILE)}"


def test_not_a_device_of_kvms(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(KvmUnavailableError, match="is not KVM's device") as caught:
        open_device(str(path))
    assert caught.value.errno == errno.ENOTTY
    with pytest.raises(KvmUnavailableError, match="is not KVM's device"):
        open_device("/dev/null")


@pytest.mark.parametrize("version", [0, 11, 13])
def test_another_version(fake: Any, version: int) -> None:
    fake.version = version
    with pytest.raises(KvmUnavailableError, match=f"has version {version} of KVM's API, not 12"):
        open_device(fake.device)


def test_an_interrupt_closes_it(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(number: int, request: int, argument: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("memslots.kvm.fd._by_value", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_device(fake.device)


@needs_kvm
def test_the_live_device() -> None:
    device = open_device()
    assert device.ioctl("KVM_GET_API_VERSION", ioctls.GET_API_VERSION) == 12
    assert not os.get_inheritable(device.fileno())
    device.close()
