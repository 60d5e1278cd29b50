"""Checks the protocols of readers and of marks in every possible order: models for spin.

Each .pml says what it models and claims. If something is taken out of it, a claim fails. That shows
that the claims can fail.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None or COMPILER is None,
    reason="there is no spin, or no C compiler for what it makes: apt install spin",
)

READERS, MARKS = "readers.pml", "marks.pml"
#: The removed part, and the claim that fails: an assertion, or that the model ends.
FAULTS = [
    (READERS, "NO_READER_FENCE", "!(freed[version])"),
    (READERS, "NO_FIRST_FENCE", "!(freed[version])"),
    (READERS, "NO_FIRST_DRAIN", "!(freed[version])"),
    (READERS, "NO_FIRST_DRAIN SHARED", "!(freed[version])"),
    (READERS, "NO_SECOND_DRAIN", "!(freed[version])"),
    (READERS, "NO_TURN", "acceptance cycle"),
    (MARKS, "NO_CARRY", "(seen==2)"),
    (MARKS, "CARRY_EARLY", "(seen==2)"),
    (MARKS, "CARRY_LATE", "!(freed[0])"),
    (MARKS, "MARK_FIRST", "(seen==2)"),
    (MARKS, "CARRY_WHOLE", "(seen==2)"),
    (MARKS, "CLEAR_LATE", "(seen==2)"),
]


def check(folder: Path, model: str, without: str, claim: bool) -> tuple[int, str]:
    """Visits every state of a model. Returns their number, and what is wrong in one, or nothing.

    Without `claim` it looks for failed assertions and for states without a next state. With it, it
    checks that every run in which each process goes on ends.
    """
    macros = [f"-D{name}" for name in without.split()]
    generate = ["spin", *macros, "-a", str(HERE / model)]
    subprocess.run(generate, cwd=folder, check=True, capture_output=True)
    what = ["-DNFAIR=4"] if claim else ["-DSAFETY", "-DNOCLAIM"]
    build = [str(COMPILER), "-w", "-O1", *what, "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=folder, check=True)
    run = ["./pan", "-m1000000", *(["-a", "-f"] if claim else [])]
    done = subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True)
    assert "max search depth too small" not in done.stdout, done.stdout
    found = re.search(r"^ *(\d+) states, stored", done.stdout, re.MULTILINE)
    assert found, done.stdout
    errors = re.search(r"errors: (\d+)", done.stdout)
    assert errors, done.stdout
    wrong = re.search(r"^pan:\d+: (.*)$", done.stdout, re.MULTILINE)
    assert (errors[1] == "0") == (wrong is None), done.stdout
    return int(found[1]), wrong[1] if wrong else ""


@pytest.mark.parametrize("claim", [False, True], ids=["assertions", "ends"])
@pytest.mark.parametrize(
    ("model", "without", "states"),
    [
        (READERS, "", 30_000),
        (READERS, "SHARED", 20_000),
        (READERS, "NO_SECOND_FENCE", 30_000),
        (MARKS, "", 1000),
    ],
)
def test_what_is_claimed_holds(
    model: str, without: str, states: int, claim: bool, tmp_path: Path
) -> None:
    found, wrong = check(tmp_path, model, without, claim)
    assert wrong == ""
    # The model does not fail because it stands still.
    assert found > states


@pytest.mark.parametrize(("model", "without", "claim"), FAULTS)
def test_a_fault_is_found(model: str, without: str, claim: str, tmp_path: Path) -> None:
    _, wrong = check(tmp_path, model, without, claim.startswith("acceptance"))
    assert claim in wrong


def test_every_fault_that_a_model_names_is_tried() -> None:
    for model in (READERS, MARKS):
        text = (HERE / model).read_text(encoding="ascii")
        named = set(re.findall(r"^ \*   ([A-Z_]{5,})  ", text, re.MULTILINE))
        used = set(re.findall(r"^#if(?:n?def) ([A-Z_]+)$", text, re.MULTILINE))
        tried = {name for each, without, _ in FAULTS if each == model for name in without.split()}
        assert named == tried - {"SHARED"}
        assert used == named | ({"SHARED", "NO_SECOND_FENCE"} if model == READERS else set())
