"""Tests `memslots replay --jobs`: several processes make the same report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import OVMF_QEMU, SEABIOS, Outcome, qemu


@pytest.mark.parametrize("as_json", [False, True])
def test_the_same_in_the_same_order(
    as_json: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.write_text("no trace\n")
    other = tmp_path / "other"
    other.write_text(qemu(0, 0, 0x10000) + qemu(1, 0x8000, 0x10000))
    files = [SEABIOS, str(bad), OVMF_QEMU, str(other), SEABIOS]
    options = ["--json"] if as_json else []
    alone = Outcome(capsys, "replay", *options, *files)
    together = Outcome(capsys, "replay", "--jobs", "2", *options, *files)
    assert (together.status, together.out, together.err) == (alone.status, alone.out, alone.err)
    assert together.status == 2
    if as_json:
        assert len(json.loads(together.out)["files"]) == 5


def test_with_one_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--jobs", "2", "--kvm", SEABIOS, SEABIOS)
    assert outcome.status == 2
    assert "--jobs must be 1, not" in outcome.err
