"""What some tests need, and why they are skipped without it."""

from __future__ import annotations

import importlib.util
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


def need_unicorn() -> None:
    """Skips the test if there is no emulator for examples/emulator.py."""
    if importlib.util.find_spec("unicorn") is None:
        pytest.skip("there is no unicorn: pip install 'memslots[examples]'")
