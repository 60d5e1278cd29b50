"""Fixtures for the tests of the benchmarks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def foreign_warnings() -> Iterator[None]:
    """What another library's import warns of is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
