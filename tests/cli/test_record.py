"""Tests `memslots record`: a VMM under strace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import COMMAND, Outcome
from needs import needs_kvm

VMM = """
import sys
from memslots import Backing, GuestMemory, Memslots
from memslots.kvm import KvmVM
with KvmVM() as kvm:
    memory = GuestMemory(Memslots(backend=kvm))
    memory.place(0, 0, Backing.anonymous(0x10000))
    memory.vm.move(0, 0x100)
sys.exit(int(sys.argv[1]))
"""
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_kvm
@needs_strace
@pytest.mark.serial
@pytest.mark.parametrize("status", [0, 3])
def test_a_vmm(tmp_path: Path, status: int) -> None:
    program = tmp_path / "vmm.py"
    program.write_text(VMM)
    trace = tmp_path / "trace"
    words = [sys.executable, str(program), str(status)]
    run = subprocess.run(
        [*COMMAND, "record", "-o", str(trace), "--", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "1 CREATE" in run.stdout
    assert "1 MOVE" in run.stdout
    assert (f"ended with status {status}" in run.stderr) == bool(status)
    assert "KVM_SET_USER_MEMORY_REGION" in trace.read_text()


@needs_strace
def test_what_makes_no_calls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "record", "-o", str(tmp_path / "trace"), "--", "true")
    assert outcome.status == 2
    assert "memslots: " in outcome.err
    outcome = Outcome(capsys, "record", "-o", str(tmp_path / "trace"), "--", "no-such-vmm")
    assert outcome.status == 2
    assert "there is no command 'no-such-vmm'" in outcome.err


def test_without_strace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = Outcome(capsys, "record", "--", "true")
    assert outcome.status == 2
    assert "record needs strace, which is not installed" in outcome.err
