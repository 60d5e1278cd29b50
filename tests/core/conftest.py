"""Fixtures of the core's tests that count the core's allocations."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture
def no_garbage() -> None:
    """Collects the garbage of earlier tests, so that it is not freed while a test counts.

    Only the modules that count ask for it: a Python without a GIL walks its whole heap each time.
    """
    gc.collect()
