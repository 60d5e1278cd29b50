"""Fixtures for the tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import qemu


@pytest.fixture
def disagreeing(tmp_path: Path) -> str:
    path = tmp_path / "bad.log"
    path.write_text(qemu(0, 0, 0x10000) + "other\n" + qemu(1, 0x8000, 0x10000))
    return str(path)
