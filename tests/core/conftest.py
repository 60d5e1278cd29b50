"""Fixtures of the core's tests: they count the core's allocations."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def no_garbage() -> None:
    """What earlier tests left is given back now, not while a test counts."""
    gc.collect()
