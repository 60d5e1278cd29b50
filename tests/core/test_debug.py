"""Tests memslots.core.debug.

A build with MEMSLOTS_DEBUG=1 stops at a broken promise. Other builds do not check.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEBUG = os.environ.get("MEMSLOTS_DEBUG", "") not in ("", "0")


# A driver, its wrong call, and the message of a debug build.
BROKEN = [
    ("update", "Space().swap_within_a_swap()", "space_swap_begin: none is under way (P2)"),
    ("srcu", "Domain().wait_in_a_section()", "srcu_wait: not from within a section"),
    ("srcu", "change_in_a_section()", "a writer's lock is not taken within a section"),
]


@pytest.mark.parametrize(("name", "wrong", "said"), BROKEN)
def test_a_broken_promise_stops_a_debug_build(
    drivers: Any, name: str, wrong: str, said: str
) -> None:
    where = Path(drivers(name).__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(where)!r})\nimport {name}_driver as driver;"
        f" driver.{wrong}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if DEBUG:
        assert done.returncode == -signal.SIGABRT
        assert f"memslots: broken: {said}" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
