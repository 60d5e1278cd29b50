"""Backing: every kind of host memory, what is refused, and what keeps it."""

from __future__ import annotations

import gc
import os

import pytest
from fresh import run_fresh

from memslots import PAGE_SIZE, Backing


def wrong_arguments() -> None:
    """What never got as far as having a descriptor closes none: 0, say."""
    there = os.fstat(0)
    for arguments in ((), (b"", b""), (8,), ("0" * PAGE_SIZE,), (None,)):
        for call in (Backing, lambda *arguments: Backing.__new__(Backing, *arguments)):
            with pytest.raises(TypeError):
                call(*arguments)
    with pytest.raises(TypeError):
        Backing(b"", size=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="multiples of 4096"):
        Backing(b"")
    gc.collect()
    assert os.fstat(0) == there


def test_wrong_arguments_close_no_descriptor() -> None:
    run_fresh(wrong_arguments)
