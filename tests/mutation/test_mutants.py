"""Tests the mutants of a text; equivalent.txt names only mutants that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation.mutants import Mutant, mutants_of
from mutation.run import FILES, OWN, ROOT, equivalents, suites_of

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
        lines = zip(TEXT.splitlines(), mutant.apply(TEXT).splitlines(), strict=True)
        (changed,) = [pair for pair in lines if pair[0] != pair[1]]
        assert changed == (mutant.before, mutant.after)


@pytest.fixture(scope="module")
def everything() -> list[Mutant]:
    files = sorted(path for pattern in FILES for path in ROOT.glob(pattern))
    return [mutant for path in files for mutant in mutants_of(path, ROOT)]


def test_there_are_many_of_every_kind(everything: list[Mutant]) -> None:
    for kind in ("comparison", "condition", "side", "count", "bits", "branch", "left out"):
        assert sum(mutant.kind == kind for mutant in everything) >= 50, kind
    assert len(everything) > 2000


def test_equivalent_mutants_are_mutants_and_say_why(everything: list[Mutant]) -> None:
    known = equivalents()
    assert set(known) <= {mutant.key for mutant in everything}
    assert all(len(reason) > 20 for reason in known.values())


def test_modules_that_have_suites_of_their_own_are_there() -> None:
    stems = {path.stem for pattern in FILES for path in ROOT.glob(pattern)}
    assert set(OWN) <= stems
    for stem in stems:
        for tests in suites_of(f"memslots/core/{stem}.pyx"):
            assert all((ROOT / name).exists() for name in tests)
