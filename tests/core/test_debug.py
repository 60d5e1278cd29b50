"""memslots.core.debug: a build with MEMSLOTS_DEBUG=1 stops at a broken promise; no other build
even looks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

DEBUG = os.environ.get("MEMSLOTS_DEBUG", "") not in ("", "0")


def test_a_broken_promise_stops_a_debug_build(drivers: Any) -> None:
    where = Path(drivers("update").__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(where)!r})\n"
        "import update_driver; update_driver.Space().swap_within_a_swap()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if DEBUG:
        assert done.returncode == -signal.SIGABRT
        assert "memslots: broken: space_swap_begin: none is under way (P2)" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
