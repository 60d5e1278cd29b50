"""Opens /dev/kvm, or raises an error that says what to do."""

from __future__ import annotations

import errno
import os

from memslots.errors import KvmError, KvmUnavailableError
from memslots.kvm import ioctls
from memslots.kvm.fd import Fd

DEVICE = "/dev/kvm"

_WHAT_TO_DO = {
    errno.ENOENT: "load KVM (modprobe kvm_intel or kvm_amd); if that fails, turn virtualization on "
    "in the firmware's setup; inside a virtual machine, allow nested virtualization on its host; "
    "in a container, pass the device on (--device /dev/kvm)",
    errno.EACCES: "join the group that owns it (usermod -aG kvm USER, then log in again) or run as "
    "root; in a container, pass the device on (--device /dev/kvm)",
    errno.ENODEV: "load KVM (modprobe kvm_intel or kvm_amd); the device is there, its module not",
}
_WHAT_TO_DO[errno.EPERM] = _WHAT_TO_DO[errno.EACCES]
_WHAT_TO_DO[errno.ENXIO] = _WHAT_TO_DO[errno.ENODEV]


def open_device(path: str = DEVICE) -> Fd:
    """Opens /dev/kvm. Raises KvmUnavailableError, whose message says what to do."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        todo = _WHAT_TO_DO.get(error.errno or 0)
        text = f"{path} cannot be opened: {error.strerror}" + (f"; {todo}" if todo else "")
        raise KvmUnavailableError(error.errno or 0, text) from None
    device = Fd(number, path)
    try:
        _check_version(device, path)
    except BaseException:
        device.close()
        raise
    return device


def _check_version(device: Fd, path: str) -> None:
    try:
        version = device.ioctl("KVM_GET_API_VERSION", ioctls.GET_API_VERSION)
    except KvmError as error:
        text = f"{path} is not KVM's device: {error.strerror}"
        raise KvmUnavailableError(error.errno or 0, text) from None
    if version != ioctls.API_VERSION:
        text = (
            f"{path} has version {version} of KVM's API, not {ioctls.API_VERSION}; a Linux of "
            "2.6.22 or later is needed"
        )
        raise KvmUnavailableError(errno.ENOTSUP, text)


def missing_capability(name: str, needed_for: str, since: str) -> KvmUnavailableError:
    """Returns the error for a capability that this kernel does not have."""
    return KvmUnavailableError(
        errno.ENOTSUP, f"{needed_for} needs KVM_CAP_{name}, which this kernel lacks; {since} has it"
    )
