"""Measures the tests: they must find small changes of the core and the write side.

    python tests/mutation/run.py [--count 300] [--seed 0] [--workers 2] [--only PATTERN]

The mutants are put into a copy of the checkout, each behind a switch, and the copy is built once
(schemata.py). Then the tests run on one mutant after the other (trials.py). A mutant that no test
finds survives. equivalent.txt lists the mutants that are known to do the same, or the same more
slowly, and why. The status is 1 if more than 3 in 100 of the others survive.

Orders of memory are not changed: on x86 they do the same. `tsan` and the models test those.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

if __name__ == "__main__":  # so that it can be run by its path
    sys.path.insert(0, str(Path(__file__).parent.parent))

from mutation.mutants import Mutant, mutants_of
from mutation.schemata import Line, weave
from mutation.trials import Outcome, Trials

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = [
    f"memslots/{part}/*.{end}" for part in ("core", "write", "dirty") for end in ("pxd", "pyx")
]
#: Of 100 mutants that are not equivalent, the tests must find this many.
GOAL = 97
#: The tests to run, but for those that measure time or memory: they fail beside others. First what
#: takes longest, so that the others run beside it.
TESTS = [f"tests/test_{name}.py" for name in ("state_machine", "memslots", "errors")]
TESTS += [f"tests/{name}" for name in ("memory", "core", "write", "dirty", "read", "mirror")]
SELECTED = "not static and not kvm and not leaks and not soak"

_INCLUDE = f"-I{sysconfig.get_path('include')}"
_DIRECTIVES = {  # as in setup.py
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "binding": False,
    "auto_pickle": False,
    "cdivision": True,
    "freethreading_compatible": True,
    "embedsignature": True,
    "embedsignature.format": "clinic",
}
COMPILER = ["gcc", "-std=gnu11", "-O1", "-w", "-fPIC", "-shared", "-fwrapv", "-DNDEBUG", _INCLUDE]
_ERROR = re.compile(r"^(memslots/[\w/]+\.p(?:yx|xd)):(\d+):(?:\d+:)? (?!note:)", re.MULTILINE)


class Build:
    """A copy of the checkout that has all mutants."""

    def __init__(self, folder: Path, mutants: dict[int, Mutant]) -> None:
        self.folder = folder
        self.library = folder / "libswitchboard.so"
        self.drivers = folder / "drivers"
        self.mutants = dict(mutants)
        self._lines: dict[str, list[Line]] = {}
        self._options = [f"-I{HERE}", f"-DMUTANTS={max(mutants) + 1}"]
        ignored = ("*.so", "*.c", ".git", ".nox", "build", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*ignored))
        shutil.copy(HERE / "switchboard.pxd", folder)

    def make(self, workers: int) -> None:
        """Builds all modules. Takes out the mutants that cannot be built."""
        source = str(HERE / "switchboard.c")
        command = [*COMPILER, *self._options, source, "-o", str(self.library)]
        subprocess.run(command, check=True)
        self._weave({mutant.path for mutant in self.mutants.values()})
        waiting = sorted(path for path in self.folder.glob("memslots/**/*.pyx"))
        while waiting:
            with ThreadPoolExecutor(workers) as pool:
                errors = dict(zip(waiting, pool.map(self._module, waiting), strict=True))
            waiting = [path for path in waiting if errors[path]]
            bad = {number for path in waiting for number in self._blamed(errors[path])}
            if waiting and not bad:
                raise SystemExit(errors[waiting[0]])
            self._weave({self.mutants.pop(number).path for number in bad})
        self._make_drivers()

    def _weave(self, paths: set[str]) -> None:
        """Puts the mutants of these files into them."""
        by_path: dict[str, dict[int, Mutant]] = defaultdict(dict)
        for number, mutant in self.mutants.items():
            by_path[mutant.path][number] = mutant
        for path in paths:
            self._lines[path] = weave((ROOT / path).read_text(encoding="utf-8"), by_path[path])
            text = "".join(f"{line}\n" for line, _ in self._lines[path])
            (self.folder / path).write_text(text, encoding="utf-8")

    def _module(self, path: Path) -> str:
        """Builds one module. Returns the errors."""
        with tempfile.TemporaryDirectory() as folder:
            c = Path(folder) / "module.c"
            # The line directives let the C compiler name the lines of the .pyx.
            cython = [sys.executable, "-m", "cython", "-3", "--line-directives", "-o", str(c)]
            for name, value in _DIRECTIVES.items():
                cython += ["-X", f"{name}={value}"]
            module = path.with_name(path.stem + str(sysconfig.get_config_var("EXT_SUFFIX")))
            library = [str(self.library), f"-Wl,-rpath,{self.folder}"]
            gcc = [*COMPILER, *self._options, str(c), *library, "-o", str(module)]
            for command in ([*cython, str(path.relative_to(self.folder))], gcc):
                done = subprocess.run(
                    command, cwd=self.folder, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    return done.stderr
        return ""

    def _blamed(self, errors: str) -> set[int]:
        """Returns the mutants on whose lines there are errors."""
        blamed = set()
        for path, line in _ERROR.findall(errors):
            if path in self._lines:
                blamed.add(self._lines[path][int(line) - 1][1])
        return blamed & self.mutants.keys()

    def _make_drivers(self) -> None:
        """Builds the tests' drivers, which hold the core's inline functions."""
        self.drivers.mkdir()
        for file in (self.folder / "tests" / "core" / "drivers").iterdir():
            shutil.copy(file, self.drivers)
        names = sorted(path.name for path in self.drivers.glob("*.pyx"))
        command = [sys.executable, "setup.py", str(self.folder), *names]
        environment = dict(
            os.environ,
            CFLAGS=" ".join(self._options),
            LDFLAGS=f"-Wl,--no-as-needed {self.library} -Wl,-rpath,{self.folder}",
        )
        subprocess.run(
            [*command, "-q", "build_ext", "--inplace"],
            cwd=self.drivers,
            env=environment,
            check=True,
            capture_output=True,
        )


def equivalents() -> dict[str, str]:
    """Returns the mutants that do the same as the original, and why."""
    known: dict[str, str] = {}
    reason = ""
    for line in (HERE / "equivalent.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line.strip():
            known[line] = reason
    return known


def all_mutants() -> list[Mutant]:
    files = sorted(path for pattern in FILES for path in ROOT.glob(pattern))
    return [mutant for path in files for mutant in mutants_of(path, ROOT)]


def main() -> int:
    """Tries the mutants, and prints the result."""
    parser = argparse.ArgumentParser(description="How strong are the tests?")
    parser.add_argument("--count", type=int, default=300, help="how many mutants are tried")
    parser.add_argument("--seed", type=int, default=0, help="which of all that there are")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="*", help="of these files: a pattern")
    options = parser.parse_args()
    known = equivalents()
    everything = all_mutants()
    if unknown := known.keys() - {mutant.key for mutant in everything}:
        print("equivalent.txt names what is no mutant any more:", *sorted(unknown), sep="\n  ")
        return 1
    chosen = [
        mutant
        for mutant in everything
        if mutant.key not in known and fnmatch.fnmatch(mutant.path, options.only)
    ]
    random.Random(options.seed).shuffle(chosen)
    chosen = chosen[: options.count]
    print(f"{len(everything)} mutants, {len(known)} known as equivalent, {len(chosen)} tried")
    outcomes = try_all(dict(enumerate(chosen, 1)), options.workers)
    survived = [
        (mutant.path, mutant.line, mutant.kind, mutant.key, outcome)
        for mutant, outcome in outcomes
        if outcome.what != "killed"
    ]
    killed = len(outcomes) - len(survived)
    share = 100 * killed / max(len(outcomes), 1)
    missing = len(chosen) - len(outcomes)
    print(f"\n{killed} of {len(outcomes)} killed ({share:.1f} %), {missing} not built")
    for _, line, kind, key, outcome in sorted(survived):
        print(f"{outcome.what}: {kind}: line {line}: {key} ({outcome.by})")
    return 0 if share >= GOAL else 1


def try_all(mutants: dict[int, Mutant], workers: int) -> list[tuple[Mutant, Outcome]]:
    """Builds and tries all mutants. Returns the outcomes of those that could be built."""
    began = time.monotonic()
    outcomes: list[tuple[Mutant, Outcome]] = []

    def note(what: str) -> None:
        print(f"{(time.monotonic() - began) / 60:.1f} min: {what}", flush=True)

    def report(outcome: Outcome) -> None:
        mutant = build.mutants[outcome.number]
        outcomes.append((mutant, outcome))
        what = f"{outcome.what} in {outcome.seconds:.1f} s: {outcome.by}"
        note(f"{len(outcomes)} {mutant.key}: {what}")

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        build = Build(Path(folder, "checkout"), mutants)
        build.make(workers)
        note("built")
        run_trials(build, workers, report)
    return outcomes


def run_trials(build: Build, workers: int, report: Callable[[Outcome], None]) -> None:
    """Tries all mutants of a build, in this process and those that it forks."""
    os.environ.update(
        PYTHONPATH=str(build.folder),
        PYTHONDONTWRITEBYTECODE="1",
        MEMSLOTS_HYPOTHESIS_PROFILE="short",
        MEMSLOTS_TEST_DRIVERS=str(build.drivers),
    )
    sys.path.insert(0, str(build.folder))
    os.chdir(build.folder)
    arguments = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"]
    arguments += ["-m", SELECTED, *TESTS]
    status = pytest.main(arguments, [Trials(build.mutants, build.library, workers, report)])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"pytest ended with {status!r}")


if __name__ == "__main__":
    raise SystemExit(main())
