"""Measures the tests: they must find small changes of the core and the write side.

    python tests/mutation/run.py [--count 300] [--seed 0] [--workers 2] [--only PATTERN]

Each mutant is made in a copy of the checkout whose package is built in place. Its module is built
anew. Then the tests of the module run, then those of the modules next to it. A mutant that no test
finds survives. equivalent.txt lists the mutants that are known to do the same, or the same more
slowly, and why. The status is 1 if more than 3 in 100 of the others survive.

No mutant of a .pxd is made, since every file that includes it would have to be built. Nor are
orders of memory changed: on x86 they do the same. `tsan` and the models test those.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # so that it can be run by its path
    sys.path.insert(0, str(Path(__file__).parent.parent))

from mutation.mutants import Mutant, mutants_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = ("memslots/core/*.pyx", "memslots/write/*.pyx", "memslots/dirty/*.pyx")
#: Of 100 mutants that are not equivalent, the tests must find this many.
GOAL = 97
#: Seconds for one set of tests; a set that takes longer has found the mutant, too.
TIMEOUT = 400

#: The tests of a module, besides the one of its name.
OWN = {
    "lookup_batch": ["tests/read/test_batch.py"],
    "fill": ["tests/write/test_many.py"],
    "search": ["tests/read/test_batch.py"],
    "index_policy": ["tests/core/test_index.py", "tests/read/test_batch.py"],
    "machine": ["tests/core/test_update.py"],
    "region": [
        "tests/core/test_update.py",
        "tests/write/test_guestmemfd.py",
        "tests/test_errors.py",
    ],
    "slotset": [
        "tests/core/test_update.py",
        "tests/core/test_index.py",
        "tests/write/test_many.py",
    ],
    "space": ["tests/core/test_update.py", "tests/write/test_transaction.py"],
    "update": ["tests/core/test_update.py", "tests/write/test_transaction.py"],
    "logs": ["tests/dirty/test_logs.py"],
    "runs": ["tests/dirty/test_runs.py"],
    "operations": [
        "tests/test_memslots.py",
        "tests/test_errors.py",
        "tests/write/test_guestmemfd.py",
    ],
    "writer": [
        "tests/write/test_lock.py",
        "tests/test_memslots.py",
        "tests/write/test_reentry.py",
        "tests/write/test_fork.py",
        "tests/core/test_alloc_failures.py",
    ],
    "transaction": ["tests/write/test_transaction.py", "tests/write/test_transaction_ends.py"],
    "listeners": ["tests/write/test_listeners.py", "tests/write/test_subscriptions.py"],
}
#: The tests that run next, in parts: the quick ones first.
NEXT = [
    ["tests/test_memslots.py", "tests/test_errors.py", "tests/test_state_machine.py"],
    ["tests/write", "tests/dirty", "tests/read", "tests/mirror"],
    ["tests/core", "tests/memory"],
]
_SELECTED = "not static and not kvm"
_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a mutant: "killed", "not built" or "survived", and by which test."""

    mutant: Mutant
    what: str
    by: str


class Place:
    """A copy of the checkout with a package built in place."""

    def __init__(self, folder: Path, drivers: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns(".git", ".nox", "build", "__pycache__", ".*_cache", "*.c")
        shutil.copytree(ROOT, folder, ignore=ignored)
        self._environment = dict(
            os.environ,
            PYTHONPATH=str(folder),
            PYTHONDONTWRITEBYTECODE="1",
            MEMSLOTS_HYPOTHESIS_PROFILE="short",
            MEMSLOTS_TEST_DRIVERS=str(drivers),
        )

    def try_out(self, mutant: Mutant) -> Outcome:
        """Makes the mutant, runs the tests until one fails, and restores the file."""
        source = self.folder / mutant.path
        module = source.with_name(source.stem + _SUFFIX)
        text, built = source.read_text(encoding="utf-8"), module.read_bytes()
        try:
            source.write_text(mutant.apply(text), encoding="utf-8")
            module.unlink()  # a new file: the old one may be in use
            if not self.build(source, module):
                return Outcome(mutant, "not built", "")
            for tests in suites_of(mutant.path):
                if by := self.run(tests):
                    return Outcome(mutant, "killed", by)
            return Outcome(mutant, "survived", "")
        finally:
            source.write_text(text, encoding="utf-8")
            module.unlink(missing_ok=True)
            module.write_bytes(built)

    def build(self, source: Path, module: Path) -> bool:
        """Builds one module, with the directives of setup.py."""
        with tempfile.TemporaryDirectory() as folder:
            c = Path(folder) / "module.c"
            cython = [sys.executable, "-m", "cython", "-3", "-o", str(c), str(source)]
            for name in ("boundscheck", "wraparound", "initializedcheck", "binding"):
                cython += ["-X", f"{name}=False"]
            for name in ("cdivision", "freethreading_compatible"):
                cython += ["-X", f"{name}=True"]
            include = f"-I{sysconfig.get_path('include')}"
            compiler = ["gcc", "-O1", "-w", "-fPIC", "-shared", "-fwrapv", "-DNDEBUG", include]
            for command in (cython, [*compiler, "-std=gnu11", str(c), "-o", str(module)]):
                done = subprocess.run(
                    command, cwd=self.folder, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    return False
        return True

    def run(self, tests: list[str]) -> str:
        """Runs tests. Returns the name of the first that failed, or nothing."""
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        process = subprocess.Popen(
            [*command, "-m", _SELECTED, *tests],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "it does not end"
        if process.returncode == 0:
            return ""
        failed = [line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")]
        if failed:
            return failed[0]
        return "a signal" if process.returncode < 0 else "an error"


def suites_of(path: str) -> list[list[str]]:
    """Returns the sets of tests to try, one after the other."""
    stem = Path(path).stem
    own = [f"tests/core/test_{stem}.py", f"tests/write/test_{stem}.py", *OWN.get(stem, [])]
    found = [name for name in dict.fromkeys(own) if (ROOT / name).exists()]
    return [found, *NEXT] if found else NEXT


def build_drivers(folder: Path) -> None:
    """Builds the tests' drivers, once for all mutants: they call the core through pointers."""
    for file in (ROOT / "tests" / "core" / "drivers").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    names = sorted(path.name for path in folder.glob("*.pyx"))
    command = [sys.executable, "setup.py", str(ROOT), *names, "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


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


def main() -> int:
    """Tries the mutants, and prints the result."""
    parser = argparse.ArgumentParser(description="How strong are the tests?")
    parser.add_argument("--count", type=int, default=300, help="how many mutants are tried")
    parser.add_argument("--seed", type=int, default=0, help="which of all that there are")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="*", help="of these files: a pattern")
    options = parser.parse_args()
    files = sorted(path for pattern in FILES for path in ROOT.glob(pattern))
    known = equivalents()
    everything = [
        mutant
        for path in files
        if fnmatch.fnmatch(path.relative_to(ROOT).as_posix(), options.only)
        for mutant in mutants_of(path, ROOT)
    ]
    unknown = known.keys() - {mutant.key for mutant in everything}
    if unknown and options.only == "*":
        print("equivalent.txt names what is no mutant any more:", *sorted(unknown), sep="\n  ")
        return 1
    chosen = [mutant for mutant in everything if mutant.key not in known]
    random.Random(options.seed).shuffle(chosen)
    chosen = chosen[: options.count]
    print(
        f"{len(everything)} mutants, {len(known)} of them known as equivalent; {len(chosen)} tried"
    )
    outcomes = try_all(chosen, options.workers)
    survived = [each for each in outcomes if each.what == "survived"]
    counts = Counter(each.what for each in outcomes)
    tried = counts["killed"] + counts["survived"]
    share = 100 * counts["killed"] / max(tried, 1)
    print(
        f"\n{counts['killed']} of {tried} killed ({share:.1f} %), {counts['not built']} not built"
    )
    for each in sorted(survived, key=lambda each: (each.mutant.path, each.mutant.line)):
        print(f"survived: {each.mutant.kind}: line {each.mutant.line}: {each.mutant.key}")
    return 0 if share >= GOAL else 1


def try_all(chosen: list[Mutant], workers: int) -> list[Outcome]:
    """Tries all mutants, each in its worker's own copy."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in chosen:
        waiting.put(mutant)
    outcomes: list[Outcome] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        drivers = Path(folder) / "drivers"
        drivers.mkdir()
        build_drivers(drivers)
        places = [Place(Path(folder) / str(number), drivers) for number in range(workers)]
        for tests in NEXT:
            if by := places[0].run(tests):
                raise SystemExit(f"without any mutant: {by} fails")

        def work(place: Place) -> None:
            while True:
                try:
                    mutant = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = place.try_out(mutant)
                outcomes.append(outcome)
                minutes = (time.monotonic() - began) / 60
                what = f"{outcome.what} {outcome.by}".strip()
                print(f"{len(outcomes)} {minutes:.0f} min {mutant.key}: {what}", flush=True)

        threads = [threading.Thread(target=work, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


if __name__ == "__main__":
    raise SystemExit(main())
