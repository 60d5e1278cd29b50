"""`memslots demo`: every step runs, and shows what it says."""

from __future__ import annotations

import re

import pytest
from commandline import Outcome

from memslots.cli.demo import STEPS


def test_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "demo")
    assert (outcome.status, outcome.err) == (0, "")
    headings = re.findall(r"^\[(\d)/(\d)\] (.+)$", outcome.out, re.MULTILINE)
    expected = [(str(n), str(len(STEPS)), step.question) for n, step in enumerate(STEPS, 1)]
    assert headings == expected
    replayed, looked_up, different, planned, python = re.split(
        r"^\[\d/\d\] ", outcome.out, flags=re.MULTILINE
    )[1:]
    assert "all 21 results agree" in replayed
    assert re.search(r"^ *0xc1000 +0 +2 ", looked_up, re.MULTILINE)
    assert re.search(r"^0x30000000 +0 +- +- +no slot", looked_up, re.MULTILINE)
    assert "gpa [0xa0000, 0xc0000), 128 KiB: went" in different
    assert "3 calls: 2 CREATE, 1 DELETE" in planned
    assert "'0x7f00000c1000'" in python
    assert len(re.findall(r"^\w*Error: ", python, re.MULTILINE)) == 1  # the overlap


def test_a_key_after_each_step_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[None] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.pause", lambda: waits.append(None))
    assert Outcome(capsys, "demo").status == 0
    assert len(waits) == len(STEPS)
