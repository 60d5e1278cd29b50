"""Runs work in a separate process: a crash or a hang then fails one test, not the whole run.

Also returns the environment in which a test runs a compiler.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run_fresh(work: Callable[[], object], timeout: float = 600) -> str:
    """Calls a function of a test module, without arguments. Returns what it printed.

    Fails if the process raises, is killed by a signal or times out.
    """
    path = Path(inspect.getfile(work))
    code = f"""
import faulthandler, gc, sys
faulthandler.enable()
sys.path[:0] = {[str(Path(__file__).parent), str(path.parent)]!r}
import {path.stem}
gc.collect()
gc.freeze()  # a collection that the work asks for need not look at all modules
{path.stem}.{work.__name__}()
"""
    # -P ignores the current directory's memslots, which may have no compiled modules.
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def compiler_environment() -> dict[str, str]:
    """Returns the environment without the sanitizers' libraries, which double a compiler's time."""
    sanitizers = ("LD_PRELOAD", "PYTHONMALLOC")
    return {name: value for name, value in os.environ.items() if name not in sanitizers}
