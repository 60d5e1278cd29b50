"""Fixtures for the tests of guest memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from snapshots import USUAL, scribble

from memslots import GuestMemory, Memslots


@pytest.fixture
def usual() -> GuestMemory:
    mem = USUAL.make()
    scribble(mem)
    return mem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a scratch directory for tests with many examples."""
    return tmp_path_factory.mktemp("snapshots") / "snapshot"


@pytest.fixture
def vm() -> Iterator[Memslots]:
    vm = Memslots(64, address_spaces=2, max_gfn=(1 << 52) - 1)
    yield vm
    vm.check()


@pytest.fixture
def mem(vm: Memslots) -> GuestMemory:
    return GuestMemory(vm)
