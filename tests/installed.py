"""The installed memslots, and fresh interpreters that can import nothing else of this project."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from fresh import compiler_environment

ROOT = Path(__file__).parent.parent
DISTRIBUTION = importlib.metadata.distribution("memslots")


def is_editable() -> bool:
    direct_url = json.loads(DISTRIBUTION.read_text("direct_url.json") or "{}")
    return bool(direct_url.get("dir_info", {}).get("editable", False))


def python(
    *arguments: str, cwd: Path, path: str = "", fails: bool = False, compiles: bool = False
) -> str:
    """What a fresh interpreter prints, in a directory from which it can import nothing of ours."""
    env = compiler_environment() if compiles else os.environ.copy()
    env.pop("PYTHONPATH", None)
    env.pop("PYTHONSAFEPATH", None)  # a script may import files beside it
    if path:
        env["PYTHONPATH"] = path
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (result.returncode != 0) == fails, result.stdout
    return result.stdout
