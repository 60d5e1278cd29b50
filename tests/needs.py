"""What some tests cannot do without, and why they are skipped where it is not there."""

from __future__ import annotations

import importlib.util

import pytest

from memslots.errors import KvmUnavailableError
from memslots.kvm import KvmVM


def need_kvm() -> None:
    """Skip the test where no VM can be made; the reason is what the package itself says."""
    try:
        KvmVM().close()
    except KvmUnavailableError as error:
        pytest.skip(error.strerror or str(error))


def need_unicorn() -> None:
    """Skip the test where examples/emulator.py has no emulator."""
    if importlib.util.find_spec("unicorn") is None:
        pytest.skip("there is no unicorn: pip install 'memslots[examples]'")
