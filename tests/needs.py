"""What some tests need, and why they are skipped without it."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
from functools import cache

import pytest

from memslots.errors import KvmUnavailableError
from memslots.kvm import KvmVM


@cache
def why_no_kvm() -> str:
    """Returns why no VM can be made here, in the package's words; empty if one can be made."""
    try:
        KvmVM().close()
    except KvmUnavailableError as error:
        return str(error.strerror)
    return ""


def need_kvm() -> None:
    """Skips the test if no VM can be made."""
    if reason := why_no_kvm():
        pytest.skip(reason)


needs_kvm = pytest.mark.skipif(bool(why_no_kvm()), reason=why_no_kvm())


def kernel_copies() -> bool:
    """Returns whether the kernel copies memory of this process, and so reports missing pages.

    Some sandboxes and emulators have no such call. There an access to memory that is gone is a
    SIGBUS.
    """
    copied = ctypes.create_string_buffer(1)
    parts = (ctypes.c_void_p * 2)(ctypes.addressof(copied), 1)  # a struct iovec
    call = ctypes.CDLL(None).process_vm_readv
    call.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
        *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
    )
    call.restype = ctypes.c_ssize_t
    done: int = call(os.getpid(), parts, 1, parts, 1, 0)
    return done == 1


needs_kernel_copies = pytest.mark.skipif(
    not kernel_copies(), reason="the system does not allow process_vm_readv"
)


def madvise_reaches_the_kernel() -> bool:
    """Returns whether a kernel sees what madvise is asked.

    qemu-user answers nearly all of it by itself: it does nothing, and says that all went well, even
    of an advice that no kernel knows.
    """
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(0x7FFF)
        except OSError:
            return True
    return False


needs_madvise = pytest.mark.skipif(
    not madvise_reaches_the_kernel(), reason="madvise does not reach the kernel"
)


def need_unicorn() -> None:
    """Skips the test if there is no emulator for examples/emulator.py."""
    if importlib.util.find_spec("unicorn") is None:
        pytest.skip("there is no unicorn: pip install 'memslots[examples]'")
