"""Tests the mutants of a text, and the switches that turn them on in a built module.

Also: equivalent.txt names only mutants that exist.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mutation.mutants import Mutant, mutants_of
from mutation.run import COMPILER, HERE, ROOT, all_mutants, equivalents
from mutation.schemata import weave
from mutation.trials import Switchboard

TEXT = '''"""A text: x < y.

x == y, and z() == 1
"""

cdef struct pair:
    int left  # one == two
    int right


cdef int first(int *x, int y) noexcept nogil:
    """x < y: no change here."""
    cdef int n
    cdef int z = y + 1
    # if x == y
    if x is NULL and not y:
        free(x)
    while n < y:
        n += 1
    return call(
        n,
        z
    )
'''
EXPECTED = {
    "cdef int z = y + 1 -> cdef int z = y",
    "if x is NULL and not y: -> if x is not NULL and not y:",
    "if x is NULL and not y: -> if x is NULL or not y:",
    "if x is NULL and not y: -> if x is NULL and y:",
    "if x is NULL and not y: -> if False and (x is NULL and not y):",
    "if x is NULL and not y: -> if True or (x is NULL and not y):",
    "free(x) -> pass",
    "while n < y: -> while n <= y:",
    "n += 1 -> n += 2",
    "n += 1 -> pass",
}


def test_the_mutants_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.pyx"
    path.write_text(TEXT)
    found = list(mutants_of(path, tmp_path))
    assert {mutant.key.removeprefix("a.pyx: ") for mutant in found} == EXPECTED
    for mutant in found:
        lines = zip(TEXT.splitlines(), mutant.apply(TEXT.splitlines()), strict=True)
        (changed,) = [pair for pair in lines if pair[0] != pair[1]]
        assert changed == (mutant.before, mutant.after)


# A module with every sort of choice.
SAMPLE = '''"""A sample."""


def work(int given):
    cdef int more = given + 1
    cdef int total = 0
    cdef int n
    if (
        given < 5
        or more == 7  # not yet
    ):
        total = 101
    elif given > 8:
        total = 203
    for n in range(1, given - 1):
        total += n
    while total > 11:
        total = max(
            total - 10,
            total - 11
        )
    return {
        total: given + 1
    }
'''


def answers(lines: list[str]) -> list[object]:
    """Returns what `work` of these lines returns in Python."""
    text = "\n".join(lines).replace("cdef int n\n", "pass\n").replace("cdef ", "")
    names: dict[str, Any] = {}
    exec(text.replace("int ", ""), names)
    return [names["work"](given) for given in range(12)]


@dataclass(frozen=True)
class Sample:
    """The sample, built with all its mutants."""

    folder: Path
    library: Path
    mutants: dict[int, Mutant]

    def answers(self, number: int) -> list[object]:
        """Returns what `work` must return with a mutant, or with none if the number is 0."""
        lines = SAMPLE.splitlines()
        return answers(self.mutants[number].apply(lines) if number else lines)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("sample")
    source = folder / "sample.pyx"
    source.write_text(SAMPLE)
    mutants = dict(enumerate(mutants_of(source, folder), 1))
    assert len(mutants) > 12
    source.write_text("\n".join(line for line, _ in weave(SAMPLE, mutants)))
    options = [f"-I{HERE}", f"-DMUTANTS={len(mutants) + 1}"]
    library = folder / "libswitchboard.so"
    subprocess.run([*COMPILER, *options, HERE / "switchboard.c", "-o", library], check=True)
    c, module = source.with_suffix(".c"), source.with_suffix(".so")
    cython = [sys.executable, "-m", "cython", "-3", f"-I{HERE}", str(source), "-o", str(c)]
    subprocess.run(cython, check=True)
    subprocess.run([*COMPILER, *options, c, library, "-o", module], check=True)
    return Sample(folder, library, mutants)


def test_the_mutants_of_a_module_are_on_one_at_a_time(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(sample.folder)
    monkeypatch.setenv("MEMSLOTS_SWITCHBOARD", "")  # so that it is gone afterwards
    board = Switchboard(tmp_path / "board", len(sample.mutants) + 1, 0)
    board.connect(sample.library)
    module = importlib.import_module("sample")
    assert module.__doc__ == "A sample."
    for number in range(len(sample.mutants) + 1):
        board = Switchboard(tmp_path / "board", len(sample.mutants) + 1, number)
        board.connect(sample.library)
        assert [module.work(given) for given in range(12)] == sample.answers(number)
        # A mutant that is on can keep the rest of a choice, and of the program, from being asked.
        asked = board.take()
        assert number in asked if number else asked == set(sample.mutants)
        assert not board.take()


# The slow test runs last on a mutant. So `test_order` then fails, with and without the mutant.
TESTS = """
import os
import time
import sample

def test_slow():
    time.sleep(0.2)
    os.environ["SLOW"] = str(sample.work(0))
def test_order():
    sample.work(0)
    assert "SLOW" in os.environ
def test_fails():
    assert sample.work(5) == {expected[5]}
def test_dies():
    if sample.work(9) != {expected[9]}:
        os.abort()
def test_hangs():
    if sample.work(2) != {expected[2]}:
        time.sleep(60)
"""
PROGRAM = """
import sys
from pathlib import Path
import pytest
from mutation import trials

trials.PATIENCE = 4
def report(outcome):
    print(outcome.number, outcome.what, outcome.by.split()[-1], flush=True)
plugin = trials.Trials(range(1, int(sys.argv[1]) + 1), Path(sys.argv[2]), 2, report)
sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "--rootdir=.", "."], [plugin]))
"""
PROFILES = """
from hypothesis import settings

settings.register_profile("short")
"""


def test_trials(sample: Sample) -> None:
    usual = sample.answers(0)
    (sample.folder / "test_sample.py").write_text(TESTS.format(expected=usual))
    (sample.folder / "conftest.py").write_text(PROFILES)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(len(sample.mutants)), str(sample.library)],
        cwd=sample.folder,
        env=dict(os.environ, PYTHONPATH=f"{HERE.parent}:{sample.folder}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[int, tuple[str, str]] = {}
    for line in done.stdout.splitlines():
        if line[:1].isdigit() and line.split()[1] in ("killed", "survived"):
            name, what, how = line.split()
            found[int(name)] = what, how
    assert found.keys() == sample.mutants.keys()
    for number in found:
        answers = sample.answers(number)
        ends = [("fails", 5), ("dies", 9), ("hangs", 2)]
        possible = {("killed", end) for end, given in ends if answers[given] != usual[given]}
        assert found[number] in (possible or {("survived", "it")}), sample.mutants[number]
    assert {how for _, how in found.values()} == {"fails", "dies", "hangs", "it"}
    assert done.stdout.count("test_order fails") == 1


def test_an_error_is_blamed_on_the_mutant_of_its_line() -> None:
    text = "    a = 1\n    b += 1\n    return a\n"
    mutant = Mutant("a.pyx", 2, "count", "    b += 1", "    b += 2")
    assert [line for line in weave(text, {7: mutant}) if line[1]] == [("        b += 2", 7)]


@pytest.fixture(scope="module")
def everything() -> list[Mutant]:
    return all_mutants()


def test_there_are_many_of_every_kind(everything: list[Mutant]) -> None:
    for kind in ("comparison", "condition", "side", "count", "bits", "branch", "left out"):
        assert sum(mutant.kind == kind for mutant in everything) >= 50, kind
    assert len(everything) > 2000


def test_every_mutant_is_put_in(everything: list[Mutant]) -> None:
    for path in {mutant.path for mutant in everything}:
        own = {n: mutant for n, mutant in enumerate(everything, 1) if mutant.path == path}
        woven = weave((ROOT / path).read_text(encoding="utf-8"), own)
        assert {number for _, number in woven} == {0, *own}


def test_equivalent_mutants_are_mutants_and_say_why(everything: list[Mutant]) -> None:
    known = equivalents()
    assert set(known) <= {mutant.key for mutant in everything}
    assert all(len(reason) > 20 for reason in known.values())
