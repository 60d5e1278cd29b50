"""Measures what each part of a batch's search is worth: `python benchmarks/ablation.py`.

For each part, the script builds a copy of the package in which core/lookup_batch.pyx lacks that
part. All copies and an unchanged copy are asked the same, and are measured alternately. The script
needs a checkout built in place, Cython and gcc.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE = Path("memslots") / "core" / "lookup_batch.pyx"
ROUNDS = 5
CASES = ("random", "boot", "local", "turns", "sequential", "hot")

WHOLE = "as it is, ns"
_LOOP = "    while i < count:\n        if scattered[0]:"
#: The (old, new) replacements in the source.
WITHOUT: dict[str, list[tuple[str, str]]] = {
    WHOLE: [],
    "without RECENT": [("if is_recent(recent, given[i], same):", "if False:")],
    "never in groups": [
        ("scattered[0] = searches > n // FAR_APART", "scattered[0] = False"),
        ("or searches[0] > FAR_APART + i // FAR_APART:", ":"),
    ],
    "always in groups": [("        if scattered[0]:", "        if True:")],
    "without `scattered`": [(_LOOP, f"    scattered[0] = False\n{_LOOP}")],
}

MEASURE = """
import json, sys
import numpy as np
sys.path.insert(1, sys.argv[1])
from functools import partial
from common import MILLION, medians, seconds_of
from guests import Guest

figures = {}
for slots in (509, 32764):
    guest = Guest(slots)
    vm = guest.make()
    out = np.empty(MILLION, np.int32)
    for case in sys.argv[2:]:
        if case == "turns":  # five slots by turns
            turns = np.arange(MILLION, dtype=np.uint64) % np.uint64(5)
            asked = guest.hits(turns * np.uint64(slots // 5 * 512))
        else:
            asked = guest.accesses(case)
        step = partial(vm.lookup_many, asked.gfns, out)
        step()
        assert np.array_equal(out, asked.ids)
        (took,) = medians(partial(seconds_of, step), seconds=0.1, rounds=5)
        figures[f"{case}, {slots}"] = took / MILLION * 1e9
print(json.dumps(figures))
"""


def build(folder: Path, changes: list[tuple[str, str]]) -> None:
    """Copies the package to `folder`, changes the one module and builds it again."""
    shutil.copytree(ROOT / "memslots", folder / "memslots")
    source = folder / MODULE
    text = source.read_text(encoding="utf-8")
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    source.write_text(text, encoding="utf-8")
    c = source.with_suffix(".c")
    cython = [sys.executable, "-m", "cython", "-3", "-o", str(c), str(source)]
    for name in ("boundscheck", "wraparound", "initializedcheck", "binding"):
        cython += ["-X", f"{name}=False"]
    cython += ["-X", "cdivision=True", "-X", "freethreading_compatible=True"]
    subprocess.run(cython, cwd=folder, check=True)
    module = source.with_name(source.stem + str(sysconfig.get_config_var("EXT_SUFFIX")))
    module.unlink()
    compiler = ["gcc", "-O3", "-w", "-fPIC", "-shared", "-fwrapv", "-DNDEBUG", "-std=gnu11"]
    compiler += [f"-I{sysconfig.get_path('include')}", str(c), "-o", str(module)]
    subprocess.run(compiler, check=True)


def measure(folder: Path) -> dict[str, float]:
    """Returns the nanoseconds of a look-up for each case, measured in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(ROOT / "benchmarks"), *CASES],
        env=dict(os.environ, PYTHONPATH=str(folder)),
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measured() -> dict[str, dict[str, float]]:
    """Returns a figure for each copy and case.

    For the unchanged copy a figure is nanoseconds, for the others a multiple of these.
    """
    with tempfile.TemporaryDirectory() as directory:
        folders = {name: Path(directory) / str(n) for n, name in enumerate(WITHOUT)}
        for name, changes in WITHOUT.items():
            build(folders[name], changes)
        took: dict[str, list[dict[str, float]]] = {name: [] for name in WITHOUT}
        for _ in range(ROUNDS):
            for name, folder in folders.items():
                took[name].append(measure(folder))
    whole = took.pop(WHOLE)
    asked = list(whole[0])
    found = {WHOLE: {case: statistics.median(each[case] for each in whole) for case in asked}}
    for name, rounds in took.items():
        found[name] = {
            case: statistics.median(
                each[case] / full[case] for each, full in zip(rounds, whole, strict=True)
            )
            for case in asked
        }
    return found


def main() -> None:
    """Prints the table."""
    for name, figures in measured().items():
        for case, figure in figures.items():
            print(f"{name:<22}{case:<20}{figure:>8.2f}{' ns' if name == WHOLE else ' x'}")


if __name__ == "__main__":
    main()
