"""Tests the examples of docs/command.md."""

from __future__ import annotations

import doctest
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import OVMF_QEMU, PAGE, SEABIOS
from needs import need_kvm

# --- the page's examples

#: The vmm.py of the page: a slot that is made, and moved.
VMM = """
import ctypes, fcntl, mmap, os, struct
memory = mmap.mmap(-1, 0x10000)
host = ctypes.addressof(ctypes.c_char.from_buffer(memory))
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
for gpa in (0, 0x100000):
    fcntl.ioctl(vm, 0x4020AE46, struct.pack("IIQQQ", 0, 0, gpa, 0x10000, host))
"""

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


def blocks(kind: str) -> list[tuple[int, str]]:
    """Returns line and text of each fenced block of `kind`."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in found]


def test_the_page_has_no_other_blocks() -> None:
    kinds = set(re.findall(r"^```(\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert kinds == {"console", "pycon", "sh"}


def test_completion_in_a_shell(workplace: Path) -> None:
    """The page's line for bash works, and the lines for other shells print a script."""
    (lines,) = [text.splitlines() for _, text in blocks("sh") if "_MEMSLOTS_COMPLETE" in text]
    environment = {**os.environ, "PATH": f"{workplace / 'bin'}:{os.environ['PATH']}"}
    ask = "COMP_WORDS=(memslots re) COMP_CWORD=1\n"
    ask += '_memslots_completion memslots; echo "${COMPREPLY[@]}"'

    def shown(command: str, **more: str) -> str:
        return subprocess.run(
            ["bash", "-c", command],
            env={**environment, **more},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=600,
        ).stdout

    assert shown(f"{lines[0]}\n{ask}").split() == ["record", "replay", "report"]
    for line, beginning in zip(lines[1:], ("#compdef memslots", "function"), strict=True):
        script = re.sub(r'^eval "\$\((.*)\)".*|^(.*) \| source.*', r"\1\2", line)
        assert shown(script).lstrip().startswith(beginning)
    named = {"_MEMSLOTS_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    assert shown("memslots", **named, COMP_WORDS="memslots replay qem") == "file,qem\n"
    assert "plain,--jobs" in shown("memslots", **named, COMP_WORDS="memslots replay --")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Returns a directory with the files that the page names, and puts the command on the path."""
    (tmp_path / "qemu.strace.gz").write_bytes(Path(SEABIOS).read_bytes())
    (tmp_path / "qemu.log").write_bytes(Path(OVMF_QEMU).read_bytes())
    shim = tmp_path / "bin" / "memslots"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m memslots "$@"\n')
    shim.chmod(0o755)
    return tmp_path


def check_examples(place: Path, wanted: Callable[[str], bool]) -> int:
    """Runs the console examples whose command is `wanted`. Returns their number."""
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    count = 0
    for line, text in blocks("console"):
        for example in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            match = re.match(r"(?:.*\\\n)*.*\n", example)  # a line goes on after a backslash
            assert match is not None
            command, expected = match[0].rstrip("\n"), example[match.end() :]
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
                timeout=600,
            )
            shown, expected = TIME.sub("TIME", done.stdout), TIME.sub("TIME", expected)
            pattern = r"(?:.*\n)*".join(re.escape(part) for part in expected.split("...\n"))
            assert re.fullmatch(pattern, shown), f"{PAGE}:{line}: {command}\n{done.stdout}"
    return count


def test_console_examples(workplace: Path) -> None:
    def wanted(command: str) -> bool:
        return "--kvm" not in command and not of_qemu(command) and not of_record(command)

    assert check_examples(workplace, wanted) == 14


def of_record(command: str) -> bool:
    return "calls.txt" in command


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_console_examples_of_record(workplace: Path) -> None:
    need_kvm()
    (workplace / "vmm.py").write_text(VMM)
    assert check_examples(workplace, of_record) == 2


def of_qemu(command: str) -> bool:
    return re.search(r"monitor|qmp|changes\.txt", command) is not None


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
def test_console_examples_of_qemu(workplace: Path) -> None:
    try:
        assert check_examples(workplace, of_qemu) == 7
    finally:
        pid = workplace / "qemu.pid"
        if pid.exists():  # QEMU removes it when it ends
            os.kill(int(pid.read_text()), signal.SIGKILL)


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
