"""Registers for a fork before memslots does, and runs the test of tests/write/test_fork.py for it.

The child of a fork calls the registered functions in that order. So this needs a process that has
not imported memslots yet.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

early: list[Callable[[], None]] = []


def call_early() -> None:
    """Calls what the test wants called in the child before memslots hears of the fork."""
    for call in early:
        call()


if __name__ == "__main__":
    os.register_at_fork(after_in_child=call_early)
    tests = Path(__file__).parent.parent
    sys.path.insert(0, str(tests))
    test = runpy.run_path(str(tests / "write" / "test_fork.py"))
    told = test["told_of_a_fork_before_memslots"]
    told.__globals__["EARLY"] = early
    told()
