"""Fixtures for the tests of mirrored maps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from backend import Backend, agree, mirrored

from memslots import (
    Memslots,
)


@pytest.fixture
def pair() -> Iterator[tuple[Memslots, Backend]]:
    vm, backend = mirrored()
    yield vm, backend
    agree(vm, backend)
