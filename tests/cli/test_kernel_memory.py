"""`memslots replay --kvm` asks before it takes much of the kernel's memory."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from commandline import Outcome
from livevm import HVA, MadeUpVM, qemu

from memslots import MemslotError
from memslots.cli import kernel_memory
from memslots.cli.kernel_memory import Allowance, AllowedVM, KernelMemoryError, available, size

GIB = 1 << 30
PAGES = GIB >> 12
COST = PAGES * 8


def never(wanted: int, free: int) -> bool:
    raise AssertionError("asked")


def test_what_is_taken_and_given_back() -> None:
    allowance = Allowance(4 * 3 * COST, never)
    vm, other = AllowedVM(MadeUpVM(), allowance), AllowedVM(MadeUpVM(), allowance)
    vm.set_region(0, 0, 0, GIB, HVA)
    vm.set_region(0, 1, 0, GIB, HVA)  # only the flags differ
    vm.set_region(0, 1, GIB, GIB, HVA)  # counts twice for a moment
    assert allowance.pages == PAGES
    other.set_region(0, 0, 0, 2 * GIB, HVA)
    assert allowance.pages == 3 * PAGES
    with pytest.raises(MemslotError):
        vm.set_region(0, 0, GIB, 4 * GIB, HVA)  # the size may not change
    with pytest.raises(MemslotError):
        vm.set_region(1, 0, 0, 1 << 63, HVA)  # too many pages
    other.set_region(0, 0, 0, 0, 0)
    assert allowance.pages == PAGES
    with pytest.raises(MemslotError):
        vm.set_region(1, 0, GIB, GIB, HVA)  # overlaps
    assert allowance.pages == PAGES
    assert [slot.npages for slot in vm.slots] == [PAGES]
    assert vm.limits == MadeUpVM().limits
    vm.close()
    assert allowance.pages == 0


def test_too_much_is_not_done() -> None:
    asked: list[tuple[int, int]] = []

    def no(wanted: int, free: int) -> bool:
        asked.append((wanted, free))
        return False

    inner = MadeUpVM()
    vm = AllowedVM(inner, Allowance(4 * COST, no))
    vm.set_region(0, 0, 0, GIB, HVA)
    for _ in range(2):
        with pytest.raises(KernelMemoryError, match=r"about 2.0 MiB.* 8.0 MiB is.*--force"):
            vm.set_region(1, 0, GIB, 4096, HVA)
    assert asked == [(COST + 8, 4 * COST)] * 2
    assert len(inner.calls) == 1


def test_a_yes_is_asked_for_once() -> None:
    asked: list[int] = []
    allowance = Allowance(0, lambda wanted, free: not asked.append(wanted))  # type: ignore[func-returns-value]
    vm = AllowedVM(MadeUpVM(), allowance)
    vm.set_region(0, 0, 0, GIB, HVA)
    vm.set_region(1, 0, GIB, GIB, HVA)
    assert asked == [COST]
    AllowedVM(MadeUpVM(), Allowance(None, never)).set_region(0, 0, 0, 1 << 42, 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 bytes"), (1023, "1023.0 bytes"), (1 << 20, "1.0 MiB"), (3 << 60, "3072.0 PiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, cgroup, groups = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"
    monkeypatch.setattr(kernel_memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(kernel_memory, "_CGROUP", cgroup)
    monkeypatch.setattr(kernel_memory, "_CGROUPS", groups)
    assert available() is None
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:    90 kB\n")
    assert available() == 90 * 1024
    inner = groups / "a" / "b"
    inner.mkdir(parents=True)
    cgroup.write_text("1:name=x:/y\n0::/a/b\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("10\n")
    assert available() == 90 * 1024
    (groups / "a" / "memory.max").write_text("5000\n")
    (groups / "a" / "memory.current").write_text("1000\n")
    assert available() == 4000
    (groups / "a" / "memory.current").write_text("6000\n")
    assert available() == 0


def test_this_machine_says_what_is_available() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("needs /proc/meminfo")
    found = available()
    assert found is not None
    assert found > 1 << 20


# The command


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a trace of 64 GiB and one of a page, on a machine with 4 MiB for them."""
    monkeypatch.setattr("memslots.kvm.KvmVM", MadeUpVM)
    monkeypatch.setattr(kernel_memory, "available", lambda: 4 << 20)
    files = []
    for name, bytes_ in (("large", 64 * GIB), ("small", 4096)):
        path = tmp_path / name
        path.write_text(qemu(0, 0, 4096) + qemu(1, 1 << 40, bytes_))
        files.append(str(path))
    return files


def test_without_a_terminal_it_does_not_go_on(
    traces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome(capsys, "replay", "--kvm", *traces)
    assert outcome.status == 2
    assert "large: its slots would take about 128.0 MiB of this kernel's memory" in outcome.err
    assert "4.0 MiB is available; --force allows that" in outcome.err
    assert "small: qemu" in outcome.out
    outcome = Outcome(capsys, "replay", "--kvm", "--json", *traces)
    assert outcome.status == 2
    assert [entry["file"] for entry in json.loads(outcome.out)["files"]] == traces


@pytest.mark.parametrize("options", [["--kvm", "--force"], []])
def test_it_goes_on(
    options: list[str], traces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome(capsys, "replay", *options, *traces)
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.parametrize("answer", [True, False])
def test_at_a_terminal_it_asks(
    answer: bool,
    traces: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions: list[str] = []

    def confirm(text: str, err: bool) -> bool:
        assert err
        questions.append(text)
        return answer

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(click, "confirm", confirm)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    outcome = Outcome(capsys, "replay", "--kvm", *traces)
    assert outcome.status == (0 if answer else 2)
    (question,) = questions
    assert (
        "about 128.0 MiB of this kernel's memory, of which 4.0 MiB is available. Go on?" in question
    )
