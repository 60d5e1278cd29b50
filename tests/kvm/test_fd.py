"""Tests a descriptor and its ioctls: errors, signals, and the close."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import warnings
from typing import Any

import pytest

from memslots.kvm import KvmClosedError, KvmError, ioctls
from memslots.kvm.fd import Answer, Fd

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.fixture
def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def test_closing_twice(null: int) -> None:
    fd = Fd(null, "KvmVM")
    assert fd.fileno() == null
    fd.close()
    other = os.open("/dev/null", os.O_RDWR)
    assert other == null, "the number is in use again"
    fd.close()
    os.fstat(other)
    os.close(other)
    assert fd.closed
    with pytest.raises(ValueError, match=r"KvmVM is closed$"):
        fd.fileno()
    with pytest.raises(ValueError, match=r"KvmVM is closed$"):
        fd.ioctl("KVM_RUN", ioctls.RUN)


def test_unclosed(null: int) -> None:
    fd = Fd(null, "KvmVM")
    with pytest.warns(ResourceWarning, match=r"^unclosed KvmVM$"):
        del fd


def test_unclosed_where_warnings_are_errors(null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    fd = Fd(null, "KvmVM")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del fd
    assert [each.exc_type for each in seen] == [ResourceWarning]


def test_unclosed_at_the_interpreters_end() -> None:
    code = "import os; from memslots.kvm.fd import Fd; fd = Fd(os.open('/dev/null', 0), 'KvmVM')"
    command = [sys.executable, "-P", "-Wdefault", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert re.fullmatch(r".*ResourceWarning: unclosed KvmVM\s+.*", done.stderr, re.DOTALL)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_error(null: int) -> None:
    fd = Fd(null, "KvmVM")
    with pytest.raises(KvmError) as caught:
        fd.ioctl("KVM_GET_API_VERSION", ioctls.GET_API_VERSION)
    fd.close()
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.strerror == f"KVM_GET_API_VERSION: {os.strerror(errno.ENOTTY)}"
    assert caught.value.rule is None


def test_closed_while_it_is_used(fake: Any, null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other file gets the number until the call has ended."""
    fd = Fd(null, "KvmVM")

    def by_value(number: int, request: int, argument: int) -> int:
        fd.close()
        assert fd.closed
        os.fstat(number)
        return 7

    monkeypatch.setattr("memslots.kvm.fd._by_value", by_value)
    assert fd.ioctl("KVM_CHECK_EXTENSION", ioctls.CHECK_EXTENSION, 3) == 7
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(null)
    with pytest.raises(KvmClosedError) as caught:
        fd.ioctl("KVM_CHECK_EXTENSION", ioctls.CHECK_EXTENSION, 3)
    assert caught.value.errno == errno.EBADF


def test_again_after_a_signal(fake: Any, null: int) -> None:
    fd = Fd(null, "KvmVM")
    fake.fail(ioctls.SET_TSS_ADDR, errno.EINTR, errno.EINTR)
    assert fd.ioctl("KVM_SET_TSS_ADDR", ioctls.SET_TSS_ADDR, 0xFFFFF000) == 0
    assert fake.seen == [(ioctls.SET_TSS_ADDR, 0xFFFFF000)] * 3
    fd.close()


def test_a_handler_that_raises(fake: Any, null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is not made again."""
    fd = Fd(null, "KvmVM")

    def interrupted(number: int, request: int, argument: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("memslots.kvm.fd._by_value", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fd.ioctl("KVM_RUN", ioctls.RUN)
    fd.close()


def test_a_handler_that_raises_an_oserror(
    fake: Any, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has answered: the handler's error is not a refusal by the kernel."""
    fd, answer = Fd(null, "KvmVM"), Answer()

    class Late(list[int]):
        def __iter__(self) -> Any:
            yield 5
            raise OSError(errno.EPIPE, "a handler's")

    monkeypatch.setattr("memslots.kvm.fd.map", lambda *args: Late(), raising=False)
    with pytest.raises(OSError, match="a handler's") as caught:
        fd.ioctl_once("KVM_SET_REGS", ioctls.SET_REGS, bytes(8), answer)
    assert not isinstance(caught.value, KvmError)
    assert answer == [5]
    fd.close()


def test_a_descriptor_is_closed_if_a_handler_raises(
    fake: Any, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would close what the kernel opened when the handler ran."""
    fd = Fd(null, "/dev/kvm")
    once = Fd.ioctl_once

    def interrupted(*args: Any) -> bool:
        once(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fd, "ioctl_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fd.create("KVM_CREATE_VM", ioctls.CREATE_VM, 0, "KvmVM")
    fd.close()


def test_structs(fake: Any, null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel fills a bytearray; bytes stay unchanged."""

    def fills(number: int, request: int, argument: Any) -> int:
        argument[:] = bytes([7]) * 4
        return 0

    monkeypatch.setattr("memslots.kvm.fd._by_struct", fills)
    fd = Fd(null, "KvmVM")
    given, filled = bytes(4), bytearray(4)
    fd.ioctl("KVM_GET_REGS", ioctls.GET_REGS, filled)
    fd.ioctl("KVM_SET_REGS", ioctls.SET_REGS, given)
    fd.close()
    assert filled == b"\7\7\7\7"
    assert given == bytes(4)
