"""Tests the examples of docs/command.md."""

from __future__ import annotations

import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import OVMF_QEMU, PAGE, SEABIOS
from needs import need_kvm

# --- the page's examples


def blocks(kind: str) -> list[tuple[int, str]]:
    """Line and text of each fenced block of `kind`."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in found]


def test_the_page_has_no_other_blocks() -> None:
    kinds = set(re.findall(r"^```(\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert kinds == {"console", "pycon", "sh"}  # sh: the recording of a trace, which needs a VM


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory with the files that the page names, and the command on the path."""
    (tmp_path / "qemu.strace.gz").write_bytes(Path(SEABIOS).read_bytes())
    (tmp_path / "qemu.log").write_bytes(Path(OVMF_QEMU).read_bytes())
    shim = tmp_path / "bin" / "memslots"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m memslots "$@"\n')
    shim.chmod(0o755)
    return tmp_path


def check_examples(place: Path, wanted: Callable[[str], bool]) -> int:
    """Run the console examples whose command is `wanted`; how many these are."""
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    count = 0
    for line, text in blocks("console"):
        for example in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = example.partition("\n")
            if not wanted(command):
                continue
            count += 1
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
            )
            pattern = r"(?:.*\n)*".join(re.escape(part) for part in expected.split("...\n"))
            assert re.fullmatch(pattern, done.stdout), f"{PAGE}:{line}: {command}\n{done.stdout}"
    return count


def test_console_examples(workplace: Path) -> None:
    assert check_examples(workplace, lambda command: "--kvm" not in command) == 14


def test_console_examples_of_this_kernel(workplace: Path) -> None:
    need_kvm()
    # Makes the files that the earlier examples of the page make.
    check_examples(workplace, lambda command: command.startswith("sed "))
    assert check_examples(workplace, lambda command: "--kvm" in command) == 2


def test_python_examples(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    names: dict[str, Any] = {}
    for line, text in blocks("pycon"):
        test = doctest.DocTestParser().get_doctest(text, names, str(PAGE), str(PAGE), line)
        test.globs = names
        failures = io.StringIO()
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
            test, out=failures.write, clear_globs=False
        )
        assert result.attempted
        assert not result.failed, failures.getvalue()
