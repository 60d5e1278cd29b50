"""The tables of docs/performance.md are those of the run in docs/performance.json."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "benchmarks" / "figures.py"

HISTORY = SOURCE.parent / "history.tar.xz"  # results of asv
ABOUT = ("machine.json", "benchmarks.json")  # files of these results that hold no figures

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason="benchmarks/ is not here")


@pytest.fixture
def figures() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("figures", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["figures"]


def test_the_page_has_the_figures_of_its_run(figures: Any) -> None:
    found = json.loads(figures.FILE.read_text(encoding="utf-8"))
    page = figures.PAGE.read_text(encoding="utf-8")
    assert {place[1] for place in figures.PLACE.findall(page)} == set(figures.TABLES)
    assert figures.page_of(page, found) == page, "run python benchmarks/figures.py --page"


def test_the_front_pages_have_the_figures_of_the_table(figures: Any) -> None:
    page = figures.PAGE.read_text(encoding="utf-8")
    table = page[page.index("<!-- figures: single -->") :]
    row = {
        name: [float(cell) for cell in cells.split("|") if cell]
        for name, cells in re.findall(r"^\| (.+?) \|(.*)\|$", table, re.MULTILINE)
        if name in ("Memslots, ns", "list + bisect / memslots")
    }
    gains = row["list + bisect / memslots"]
    least, most = NUMBERS[int(min(gains))], NUMBERS[int(max(gains))]
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{least} to {most} times [faster]" in " ".join(front.split())
    site = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    among_509 = row["Memslots, ns"][1]
    assert f"[about {among_509:.0f} ns]" in site


def test_a_figure_that_is_not_the_runs_is_seen(figures: Any) -> None:
    found = json.loads(figures.FILE.read_text(encoding="utf-8"))
    page = figures.PAGE.read_text(encoding="utf-8")
    found["goals"][0]["figure"] *= 2
    assert figures.page_of(page, found) != page


def test_a_difference_from_the_page_is_reported(
    figures: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("a", 2.0, 2.1, 1.1), ("b", 42.0, 42.0, 1.0), ("c", 300.0, 290.0, 1.1)]
    monkeypatch.setattr(figures, "compared", lambda: iter(rows))
    assert figures.check()
    assert "NOT SO" not in capsys.readouterr().out
    for wrong in (("d", 42.0, 43.0, 1.0), ("e", 1.0, 3.0, 2.5), ("f", 0.0, 3.0, 2.5)):
        monkeypatch.setattr(figures, "compared", lambda wrong=wrong: iter([*rows, wrong]))
        assert not figures.check()
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "NOT SO" in line]
        assert line.startswith(wrong[0])


def test_the_history_has_all_figures_of_twenty_commits() -> None:
    runs = []
    with tarfile.open(HISTORY) as archive:
        for member in archive:
            file = archive.extractfile(member)  # None: a folder
            if file is not None and Path(member.name).name not in ABOUT:
                runs.append(json.load(file))
    assert len({run["commit_hash"] for run in runs}) == len(runs) == 20
    assert len({run["params"]["cpu"] for run in runs}) == 1
    assert len({frozenset(run["results"]) for run in runs}) == 1
    for run in runs:
        for name, (figures, *_) in run["results"].items():
            assert figures and None not in figures, (run["commit_hash"], name)
