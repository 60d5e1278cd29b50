"""`memslots report`: the page draws what the replay found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commandline import SEABIOS, Outcome, qemu

from memslots.traces.samples import SAMPLES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def written(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    """Returns the data of the page."""
    outcome = Outcome(capsys, "report", *arguments, "-o", str(path))
    assert outcome.err == ""
    text = path.read_text()
    (data,) = re.findall(r'type="application/json">(.*?)</script>', text, re.DOTALL)
    document: dict[str, Any] = json.loads(data)
    assert text.count("</script>") == 2
    assert not re.search(r"https?://|src=|@import", text), "it needs no network"
    return document


@pytest.mark.parametrize("sample", SAMPLES)
def test_its_figures_are_those_of_replay(
    sample: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = written(capsys, tmp_path / "r.html", "--sample", sample)
    replayed = json.loads(Outcome(capsys, "replay", "--sample", sample, "--json").out)["files"][0]
    assert len(document["vms"]) == len(replayed["vms"])
    for drawn, vm in zip(document["vms"], replayed["vms"], strict=True):
        done = vm["operations"]
        kinds = ("CREATE", "MOVE", "FLAGS_ONLY")
        assert len(drawn["spans"]) == sum(done.get(kind, 0) for kind in kinds)
        assert drawn["changes"] == sum(n for kind, n in done.items() if kind != "NONE")
        open_at_the_end = {
            (span["space"], span["id"], hex(span["gfn"] << 12))
            for span in drawn["spans"]
            if not span["end"]
        }
        assert open_at_the_end == {
            (slot["as_id"], slot["id"], slot["guest_phys_addr"]) for slot in vm["final_map"]
        }
        assert len(drawn["gaps"]) == vm["gaps"]["all"]


def test_disagreements_and_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a <b> & c.log"
    path.write_text(qemu(0, 0, 0x10000) + qemu(1, 0x8000, 0x10000) + qemu(0, 0, 0, ret=-22))
    outcome = Outcome(capsys, "report", str(path), "-o", str(tmp_path / "r.html"))
    assert outcome.status == 1
    document = written(capsys, tmp_path / "r.html", str(path))
    assert document["name"].endswith("a <b> & c.log")
    (vm,) = document["vms"]
    assert [(d["line"], d["recorded"], d["ours"]) for d in vm["disagreements"]] == [
        (2, "success", "EEXIST"),
    ]
    assert [(s["id"], s["from"], s["to"], s["end"]) for s in vm["spans"]] == [
        (0, 1, 2, 2),
        (1, 2, 3, 0),
    ]


def test_what_cannot_be_written_or_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "report", SEABIOS, "-o", str(tmp_path / "no" / "r.html"))
    assert outcome.status == 2
    assert "no such file" in outcome.err.lower()
    outcome = Outcome(capsys, "report", str(tmp_path / "none"), "-o", str(tmp_path / "r.html"))
    assert outcome.status == 2
    assert not (tmp_path / "r.html").exists()
    assert Outcome(capsys, "report", "-o", str(tmp_path / "r.html")).status == 2


@pytest.mark.serial
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("sample", SAMPLES)
def test_in_a_browser(sample: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every bar is drawn, and no script fails."""
    assert CHROMIUM is not None
    page = tmp_path / "r.html"
    document = written(capsys, page, "--sample", sample)
    run = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    found = re.search(r'data-drawn="(\d+)"', run.stdout)
    assert found is not None, run.stderr[-2000:]
    assert int(found[1]) == sum(len(vm["spans"]) for vm in document["vms"])
    rows = run.stdout.count("<tr data-x=")
    assert rows >= sum(len(vm["gaps"]) for vm in document["vms"])
