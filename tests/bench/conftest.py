"""Fixtures for the tests of the benchmarks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def foreign_warnings() -> Iterator[None]:
    """Ignores warnings of other libraries' imports, which we cannot fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
