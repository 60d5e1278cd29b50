"""What some tests need, and why they are skipped without it."""

from __future__ import annotations

import importlib.util
from functools import cache

import pytest

from memslots.errors import KvmUnavailableError
from memslots.kvm import KvmVM


@cache
def why_no_kvm() -> str:
    """Why no VM can be made here, as the package itself says it; empty where one can."""
    try:
        KvmVM().close()
    except KvmUnavailableError as error:
        return str(error.strerror)
    return ""


def need_kvm() -> None:
    """Skip the test where no VM can be made."""
    if reason := why_no_kvm():
        pytest.skip(reason)


needs_kvm = pytest.mark.skipif(bool(why_no_kvm()), reason=why_no_kvm())


def need_unicorn() -> None:
    """Skip the test where examples/emulator.py has no emulator."""
    if importlib.util.find_spec("unicorn") is None:
        pytest.skip("there is no unicorn: pip install 'memslots[examples]'")
