"""Tests `memslots record`: a VMM under strace."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import COMMAND, Outcome
from needs import needs_kvm

from memslots.cli.record import _calls
from memslots.cli.text_output import live_call
from memslots.traces import LostCall, RegionCall

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
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "1 CREATE" in run.stdout
    assert "1 MOVE" in run.stdout
    assert "in kernel   " in run.stdout, "strace was asked for the times"
    assert (f"ended with status {status}" in run.stderr) == bool(status)
    assert "KVM_SET_USER_MEMORY_REGION" in trace.read_text()


@needs_strace
def test_what_makes_no_calls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "record", "-o", str(tmp_path / "trace"), "--", "true")
    assert outcome.status == 2
    assert "did the VMM use KVM" in outcome.err
    outcome = Outcome(capsys, "record", "-o", str(tmp_path / "trace"), "--", "no-such-vmm")
    assert outcome.status == 2
    assert "there is no program 'no-such-vmm' that may be executed" in outcome.err


def test_without_strace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = Outcome(capsys, "record", "--", "true")
    assert outcome.status == 2
    assert "record needs strace, which is not installed" in outcome.err


# --- calls as they come

#: Makes a call that no kernel takes (strace knows it by its number), and waits for a file.
WAITING = """
import fcntl, os, struct, sys, time
with open("/dev/null") as null:
    for gpa in (0x1000, 0x2000):
        try:
            fcntl.ioctl(null, 0x4020AE46, struct.pack("IIQQQ", 0, 0, gpa, 0x1000, 0x7F0000000000))
        except OSError:
            print("refused", flush=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
"""


def waiting(folder: Path, *options: str, stderr: int) -> subprocess.Popen[str]:
    program = folder / "vmm.py"
    program.write_text(WAITING)
    words = [sys.executable, str(program), str(folder / "go")]
    return subprocess.Popen(
        [*COMMAND, "record", "-o", str(folder / "trace"), *options, "--", *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        # A run of the tests in the background may ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@needs_strace
def test_calls_come_while_the_vmm_runs(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("1 ioctl(3, KVM_SET_USER_MEMORY_REGION, {old}) = 0\n")
    with waiting(tmp_path, "--live", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert process.poll() is None
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=600)
    call = "slot=0x0 flags=0x0 gpa={} size=0x1000 hva=0x7f0000000000: ENOTTY\n"
    assert first.endswith(call.format("0x1000"))
    assert err.endswith(call.format("0x2000"))
    assert err.count("\n") == 1
    assert "refused     2 ENOTTY" in out
    assert process.returncode == 0


@needs_strace
@pytest.mark.parametrize(("options", "lines"), [([], 2), (["--no-live"], 0)])
def test_a_terminal_shows_calls(tmp_path: Path, options: list[str], lines: int) -> None:
    (tmp_path / "go").touch()
    ours, theirs = pty.openpty()
    with waiting(tmp_path, *options, stderr=theirs) as process:
        out, _ = process.communicate(timeout=600)
    os.write(theirs, b"end\n")
    os.close(theirs)
    shown = b""
    while b"end" not in shown:
        shown += os.read(ours, 65536)
    os.close(ours)
    assert shown.count(b"ENOTTY\r") == lines
    assert "refused     2 ENOTTY" in out


@needs_strace
def test_no_terminal_shows_no_calls(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with waiting(tmp_path, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "refused     2 ENOTTY" in out


@needs_strace
@pytest.mark.parametrize("options", [["--live"], []])
def test_interrupted(tmp_path: Path, options: list[str]) -> None:
    with waiting(tmp_path, *options, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "refused\n"  # of the VMM, which waits now
        process.send_signal(signal.SIGINT)
        (tmp_path / "go").touch()
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert err.endswith("memslots: interrupted\n")


@needs_strace
def test_files_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (
        ("fifo", "it is no regular file, and could not be read again"),
        ("nothing/trace", "No such file or directory"),
    ):
        outcome = Outcome(capsys, "record", "-o", str(tmp_path / name), "--", "true")
        assert outcome.status == 2
        assert outcome.err == f"memslots: {tmp_path / name}: {reason}\n"


def test_a_file_that_grows(tmp_path: Path) -> None:
    region = "{{slot=65537, flags=0, guest_phys_addr={}, memory_size=4096, userspace_addr=0x7000}}"
    call = f"7 1764429315.5 ioctl(4, KVM_SET_USER_MEMORY_REGION, {region}) = 0\n"
    lost = "7 1764429315.6 ioctl(4, KVM_SET_USER_MEMORY_REGION, 0x7ffc) = 0\n"
    cut = "7 1764429316 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=1 <unfinished ...>\n"
    parts = [lost + call.format("0x1000")[:30], call.format("0x1000")[30:], "", "", cut]
    path = tmp_path / "trace"
    path.touch()
    seen_at = []

    def ended() -> bool:
        """Writes the next part each time the reader asks."""
        if not parts:
            return True
        with path.open("a") as file:
            file.write(parts.pop(0))
        return False

    calls = []
    for one in _calls(path, ended):
        calls.append(one)
        seen_at.append(len(parts))
    first, second, third = calls
    assert isinstance(first, LostCall)
    assert isinstance(second, RegionCall)
    assert isinstance(third, LostCall)
    assert seen_at == [3, 3, 0]  # as soon as the line was whole
    assert live_call(first).startswith("line 1: LOST: ")
    assert live_call(second).endswith(
        ".500000  thread 7, fd 4: slot=0x10001 flags=0x0 gpa=0x1000 size=0x1000 hva=0x7000: success"
    )
    assert live_call(third) == "line 3: LOST: unfinished, and never resumed"
