"""Fixtures for the tests of replays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memslots.cli import main


@pytest.fixture
def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs `replay --kvm` on a text. Returns status, standard output and standard error."""

    def run(text: str, live: Callable[[], Any], *options: str) -> tuple[int, str, str]:
        path = tmp_path / "a.log"
        path.write_text(text)
        monkeypatch.setattr("memslots.kvm.KvmVM", live)
        status = main(["replay", "--kvm", *options, str(path)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
