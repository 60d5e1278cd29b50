"""Fixtures for the tests of changes."""

from __future__ import annotations

from typing import Any

import pytest
from listening import HVA

from memslots import Memslots


@pytest.fixture
def used(vm: Memslots) -> Memslots:
    vm.create(1, 0x10, 4, HVA, 1)
    vm.mark_dirty(0x12)
    return vm


@pytest.fixture
def log() -> list[tuple[Any, ...]]:
    return []
