"""Runs threads on the core, without Python: readers, dirty logs and a writer on one machine.

MEMSLOTS_STRESS_SECONDS says for how long. ThreadSanitizer looks for wrong reordering by the
compiler and the processor: the session `tsan` runs the same driver under it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = float(os.environ.get("MEMSLOTS_STRESS_SECONDS", "2"))


def test_no_thread_sees_a_change_half_made(drivers: Any) -> None:
    where = Path(drivers("threads").__file__).parent
    code = (
        f"import json, sys; sys.path.insert(0, {str(where)!r})\n"
        f"import threads_driver; print(json.dumps(threads_driver.stress({SECONDS})))"
    )
    # In a process of its own: a fault may end in a crash or an endless wait.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS + 600,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    # Every thread did its part, the writer met readers, and batches met an index.
    assert all(rounds > 0 for _, rounds in json.loads(done.stdout)), done.stdout
