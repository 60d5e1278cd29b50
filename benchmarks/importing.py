"""The cost of `import memslots` in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from common import medians, seconds_of

import memslots

MODULES = """
import memslots
assert memslots.Memslots().create(0, 0, 1, 0).id == 0
assert "numpy" not in sys.modules
print(sum(name.partition(".")[0] == "memslots" for name in sys.modules))
"""


def run(program: str) -> str:
    """Returns what a fresh interpreter prints, with only memslots and the standard library.

    The interpreter runs without `site`, so imports for editable installs are not counted.
    """
    where = str(Path(memslots.__file__).parent.parent)
    whole = f"import sys; sys.path.insert(0, {where!r})\n{program}"
    command = [sys.executable, "-I", "-S", "-c", whole]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def import_ms() -> float:
    """Returns the milliseconds of `import memslots`.

    Subtracts the time of a fresh interpreter without the import from one with it.
    """
    without, with_it = medians(
        partial(seconds_of, partial(run, "")),
        partial(seconds_of, partial(run, "import memslots")),
        seconds=2,
        rounds=15,
    )
    return (with_it - without) * 1000


class Import:
    """Measures the import in fresh interpreters that do not import numpy."""

    def setup(self) -> None:
        """Checks that the import works, and does not import numpy."""
        self.modules = int(run(MODULES))

    def track_time(self) -> float:
        """Returns the time over an empty interpreter, from medians of many."""
        return import_ms()

    def track_modules(self) -> int:
        """Returns the number of modules of the package that it imports."""
        return self.modules


Import.track_time.unit = "ms"  # type: ignore[attr-defined]
Import.track_modules.unit = "modules"  # type: ignore[attr-defined]
