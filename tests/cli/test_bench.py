"""Tests `memslots bench`; tests/bench tests the measuring itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commandline import BENCH_SHAPE, ONE_TEST, QUICK, Outcome, assert_shape, run

from memslots import bench
from memslots.bench.questions import Questions
from memslots.cli.bench import _plotter

RIVALS = ["sortedcontainers", "BTrees", "superintervals", "numpy", "numba"]


def run_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a process that can import none of the modules."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"
        "from memslots.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, timeout=600)


def test_bench_json(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, *QUICK, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    document = json.loads(outcome.out)
    assert_shape(document, BENCH_SHAPE)
    rows = document["series"]
    assert [(row["test"], row["slots"]) for row in rows] == [
        (test, slots) for test in bench.TESTS for slots in bench.QUICK_SLOTS
    ]
    assert [(each["test"], each["case"], each["slots"]) for each in document["against"]] == [
        (case.test, case.name, slots) for case in bench.CASES for slots in bench.QUICK_SLOTS
    ]
    for row in rows:
        assert row["improvement"] == row["before"]["median"] / row["after"]["median"]
        for timing in (row["before"], row["after"]):
            assert 0 < timing["lower_quartile"] <= timing["median"] <= timing["upper_quartile"]
            assert 0 < timing["share"] <= 1
            assert timing["seconds_per_operation"] == timing["median"] / row["operations"]
        assert (row["reported"] is None) == (row["above"] is None)
        if row["above"] is not None:
            assert row["above"] == (row["improvement"] > row["reported"])
    for each in document["against"]:
        ours, *others = each["structures"]
        assert (ours["structure"], ours["ratio"]) == ("memslots", 1)
        assert others
        for other in others:
            assert other["ratio"] == other["median"] / ours["median"]


def test_bench_of_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--test", "rw", "--test", "changes", "--slots", "30", "--slots", "7"]
    document = json.loads(Outcome(capsys, *QUICK, *arguments, "--json").out)
    assert [(row["test"], row["slots"]) for row in document["series"]] == [("rw", 7), ("rw", 30)]
    assert [(each["test"], each["slots"]) for each in document["against"]] == [
        ("changes", 7),
        ("changes", 30),
    ]
    document = json.loads(Outcome(capsys, *ONE_TEST, "--no-against", "--json").out)
    assert document["not_installed"] == {}  # none of them was asked for
    assert (document["against"], document["versions"]) == ([], {})


def test_bench_tables(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, *QUICK, "--slots", "509")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert "no page tables, no TLB flushes, no guest" in lines[2]
    assert not any(line != line.rstrip() for line in lines)
    time = r"\d+(\.\d+)? (ns|us|ms|s)"
    for test in bench.TESTS.values():
        reported = r"\S+ x +(yes|no)" if 509 in test.reported else "- +-"
        row = rf"  {test.title} +{test.of} +509 +{time} +{time} +\S+ x +{reported}"
        assert [line for line in lines if re.fullmatch(row, line)], outcome
    for case in bench.CASES:
        head = f"{case.title}: the time of {case.of}, and its ratio to that of memslots"
        below = lines[lines.index(head) + 1 :]
        assert below[0].split() == ["structure", "509", "slots", "ratio"]
        assert re.fullmatch(rf"  memslots +{time} +1\.00", below[1])


def test_bench_without_rivals() -> None:
    done = run_without(RIVALS, *QUICK, "--slots", "10", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert document["versions"] == dict.fromkeys(RIVALS)
    assert document["not_installed"] == {
        structure.name: list(structure.requires)
        for structure in bench.STRUCTURES
        if structure.requires
    }
    shown = {each["structure"] for case in document["against"] for each in case["structures"]}
    assert shown == {"memslots", "array of Linux 5.16", "list + bisect", "(the loop alone)"}
    done = run_without(["BTrees", "numba"], *QUICK, "--slots", "10", "--test", "single")
    assert done.returncode == 0
    assert b"\nnot installed: LLBTree (pip install BTrees)\n" in done.stdout
    assert b"\nnot installed: numba binary search (pip install " in done.stdout


@pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<?xml"), ("b.PNG", b"\x89PNG\r\n")])
def test_bench_plot(name: str, magic: bytes, tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    path = tmp_path / name
    done = run(*QUICK, "--plot", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert path.read_bytes().startswith(magic)
    if name.endswith("svg"):
        text = path.read_text(encoding="utf-8")
        drawn = {test.title for test in bench.TESTS.values()} | {"Single, random", "Changes"}
        assert [title for title in drawn if f"<!-- {title}" not in text] == []
    done = run(*ONE_TEST, "--plot", str(tmp_path))
    assert done.returncode == 2


def test_bench_plot_where_nothing_can_be_written() -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    done = run(*ONE_TEST, "--plot", "/proc/figure.svg")
    assert (done.returncode, done.stdout) == (2, b"")  # nothing is measured
    assert done.stderr.startswith(b"memslots: /proc/figure.svg: ")
    assert done.stderr.count(b"\n") == 1


def test_bench_plot_on_a_full_disk(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    path = tmp_path / "full.svg"
    path.symlink_to("/dev/full")
    done = run(*ONE_TEST, "--plot", str(path))
    assert done.returncode == 2
    assert done.stderr == f"memslots: {path}: No space left on device\n".encode()
    assert b"Slot setup" in done.stdout  # the figures are not lost


def test_bench_keeps_a_figure_until_the_next_one_is_drawn(tmp_path: Path) -> None:
    """A file that can be written is neither changed nor made before it is drawn."""
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    old, new = tmp_path / "old.svg", tmp_path / "new.svg"
    old.write_text("a figure")
    for path in (old, new):
        assert _plotter(str(path)) is not None
    assert old.read_text() == "a figure" and not new.exists()


def test_bench_plot_without_matplotlib(tmp_path: Path) -> None:
    done = run_without(["matplotlib"], "bench", "--plot", str(tmp_path / "a.svg"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"memslots: --plot needs matplotlib: pip install 'memslots[plot]'\n"
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_wrong_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Questions, "answer", lambda self, gfn: -1)
    outcome = Outcome(capsys, *QUICK, "--test", "single", "--slots", "10")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("memslots: a wrong answer: memslots: found [")
    assert outcome.err.count("\n") == 1
