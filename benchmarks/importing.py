"""What `import memslots` adds to a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from common import medians, seconds_of

MODULES = """
import sys

before = set(sys.modules)
import memslots

added = set(sys.modules) - before
assert memslots.Memslots().create(0, 0, 1, 0).id == 0
assert "numpy" not in sys.modules
print(len(added))
"""


def run(program: str) -> str:
    """What a fresh interpreter prints. It sees what is installed and nothing else."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def import_ms() -> float:
    """Milliseconds that `import memslots` takes: a fresh interpreter with it less one without."""
    without, with_it = medians(
        partial(seconds_of, partial(run, "")),
        partial(seconds_of, partial(run, "import memslots")),
        seconds=2,
        rounds=15,
    )
    return (with_it - without) * 1000


class Import:
    """In fresh interpreters; numpy is not imported."""

    def setup(self) -> None:
        """See that it works, and imports no numpy."""
        self.modules = int(run(MODULES))

    def track_time(self) -> float:
        """Over an empty interpreter; the median of many."""
        return import_ms()

    def track_modules(self) -> int:
        """How many modules it imports, its own and others."""
        return self.modules


Import.track_time.unit = "ms"  # type: ignore[attr-defined]
Import.track_modules.unit = "modules"  # type: ignore[attr-defined]
