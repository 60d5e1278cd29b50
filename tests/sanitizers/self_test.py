"""Shows that this set-up of the sanitizers stops wrong programs and lets a right one run.

A set-up that cannot fail proves nothing. Run it in the environment of the tests under the
sanitizers: with their libraries loaded, and MEMSLOTS_SANITIZE set.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import memslots

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STATUS = 99  # of a process that a sanitizer stopped
# The end of each program: its status and its output.
CASES = {
    "right": (0, r"^8$"),
    "beyond": (STATUS, r"AddressSanitizer: heap-buffer-overflow"),
    "freed": (STATUS, r"AddressSanitizer: heap-use-after-free"),
    "shift": (STATUS, r"runtime error: shift exponent"),
}


def uninstrumented() -> list[str]:
    """Returns the names of the package's modules that no sanitizer was built into."""
    modules = sorted(Path(memslots.__file__).parent.rglob("*.so"))
    assert modules, "the package has no compiled module"
    return [path.name for path in modules if b"__asan_init" not in path.read_bytes()]


def build(where: Path) -> None:
    """Builds the wrong programs in `where`."""
    for name in ("wrong.pyx", "setup.py"):
        shutil.copy(HERE / name, where)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", str(ROOT / "setup.py")]
    # The compiler runs without the sanitizers.
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, cwd=where, env=plain, check=True)


def problem(where: Path, case: str) -> str:
    """Runs one program. Returns what is wrong with its end, or nothing."""
    options = {
        name: re.sub(r"log_path=[^:]*", "log_path=stderr", os.environ[name])
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import wrong; print(wrong.{case}(8))"],
        cwd=where,
        env=os.environ | options,
        capture_output=True,
        text=True,
        check=False,
    )
    status, output = CASES[case]
    shown = done.stdout + done.stderr
    if done.returncode == status and re.search(output, shown):
        return ""
    return f"{case}: status {done.returncode}, not {status}, or not {output!r} in:\n{shown}"


def main() -> int:
    """Prints what is wrong. Returns the exit status."""
    problems = [f"{name} is not instrumented" for name in uninstrumented()]
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        build(where)
        problems += filter(None, (problem(where, case) for case in CASES))
    for each in problems:
        print(each, file=sys.stderr)
    print(f"sanitizers' self-test: {len(CASES)} programs, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
