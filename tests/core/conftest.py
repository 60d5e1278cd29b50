"""Fixtures of the core's tests: they count the core's allocations."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def no_garbage() -> None:
    """Collects the garbage of earlier tests, so that it is not freed while a test counts."""
    gc.collect()
