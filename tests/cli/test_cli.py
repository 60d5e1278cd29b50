"""Tests the command itself: arguments, samples, terminals, pipes and signals."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from commandline import COMMAND, ONE_TEST, OVMF, SEABIOS, TRACES, Outcome, qemu, run

import memslots
from memslots.cli import commands
from memslots.traces.samples import SAMPLES

# --- the command itself


def test_entry_point() -> None:
    (script,) = [s for s in entry_points(group="console_scripts") if s.name == "memslots"]
    assert script.value == "memslots.cli:main"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert Outcome(capsys, "--version").out == f"memslots {memslots.__version__}\n"
    for arguments in (["--help"], ["replay", "--help"], ["lookup", "-h"], ["bench", "-h"]):
        outcome = Outcome(capsys, *arguments)
        assert (outcome.status, outcome.err) == (0, "")
        assert "Usage: memslots" in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay"],
        ["replay", "--sample", "none"],
        ["replay", "--sample", "qemu-pc-seabios", "file"],
        ["replay", "--format", "perf", SEABIOS],
        ["replay", "--bogus"],
        ["bogus"],
        ["lookup"],
        ["lookup", SEABIOS],
        ["lookup", "--sample", "qemu-pc-seabios"],
        ["bench", "--test", "boot"],
        ["bench", "--slots", "1"],
        ["bench", "--slots", "32765"],
        ["bench", "--slots", "ten"],
        ["bench", "--plot", "figure.pdf"],
        ["bench", "--plot", "figure"],
        ["bench", "--plot", "no-such-directory/figure.svg"],
        ["bench", "--plot", "."],
        ["bench", "--test", "single", "--no-against"],
        ["bench", "file"],
        *(["lookup", SEABIOS, gpa] for gpa in ("zz", "", "0x", "1.5", str(2**64), "-1", "0b1")),
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err


def test_the_list_of_commands_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Outcome(capsys, "--help").out
    assert "..." not in shown.partition("Commands:")[2]
    assert len(shown.partition("Commands:")[2].split("\n")) == len(commands.NAMES) + 2


#: Commands with a file F that cannot be used.
ON_A_FILE = [
    "replay F",
    "map F",
    "lookup F 0",
    "diff F GOOD",
    "diff GOOD F",
    "plan GOOD F",
    "report F -o page.html",
    "report GOOD -o F/page.html",
    "replay GOOD --csv F/table",
    "map --host F GOOD",
    "map --raw F GOOD",
    "watch --qmp F",
]


@pytest.mark.parametrize("line", ON_A_FILE)
def test_a_file_that_cannot_be_read(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.log").write_text(qemu(0, 0, 0x10000))
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "file").write_text(qemu(0, 0, 0x10000))
    (tmp_path / "closed").write_text(qemu(0, 0, 0x10000))
    words = line.replace("GOOD", "good.log").split()
    long = "n" * 5000
    prefix = []
    if os.geteuid() == 0:  # root may read everything, until it gives up that right
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, as root can read every file")
        right = "-dac_override,-dac_read_search"
        prefix = ["setpriv", f"--bounding-set={right}", f"--inh-caps={right}"]
    for name in ("locked", "closed"):
        (tmp_path / name).chmod(0)
    try:
        for file in ("locked/file", "closed", long):
            arguments = [word.replace("F", file) for word in words]
            done = subprocess.run(
                [*prefix, *COMMAND, *arguments], cwd=tmp_path, capture_output=True, timeout=600
            )
            assert (done.returncode, done.stdout) == (2, b"")
            assert done.stderr.startswith(b"memslots: ")
            assert done.stderr.count(b"\n") == 1
    finally:
        (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from memslots.cli import main; sys.exit(main(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"pip install 'memslots[cli]'" in done.stderr


def test_each_command_is_in_its_module_and_imported_late() -> None:
    for name in commands.NAMES:
        assert commands.command.commands[name].name == name
    where = Path(commands.__file__).parent
    named = {p.stem for p in where.glob("*.py") if "@click.command(" in p.read_text("utf-8")}
    assert named == {*commands.NAMES}
    code = (
        "import sys; from memslots.cli import main; main(sys.argv[1:])\n"
        "late = ['rich.console', 'memslots.traces', 'memslots.bench', 'memslots.maps']\n"
        "sys.exit(' '.join(name for name in late if name in sys.modules) or 0)"
    )
    for arguments in (["--version"], ["bogus"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], timeout=600)
        assert done.returncode == 0


# --- samples


def test_list_samples(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--list-samples")
    assert outcome.status == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == list(SAMPLES)
    found = json.loads(Outcome(capsys, "replay", "--list-samples", "--json").out)
    assert [sample["name"] for sample in found["samples"]] == list(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--sample", name)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{name}: {SAMPLES[name].format}\n")
    assert "DISAGREE" not in outcome.out
    assert "LOST" not in outcome.out


def test_samples_are_the_traces() -> None:
    """The samples are the whole traces, only compressed again."""
    pairs = {
        "qemu-pc-seabios": gzip.decompress(Path(SEABIOS).read_bytes()),
        "qemu-q35-ovmf": gzip.decompress(Path(OVMF).read_bytes()),
        "qemu-pc-hotplug": (TRACES / "qemu-pc-hotplug.qemu-trace").read_bytes(),
    }
    assert pairs.keys() == SAMPLES.keys()
    for name, content in pairs.items():
        with SAMPLES[name].open() as stream:
            assert lzma.decompress(stream.read()) == content


# --- terminals, pipes and signals


def long_trace(path: Path) -> bytes:
    line = b"8379  futex(0x7f0000000000, FUTEX_WAIT_PRIVATE, 2, NULL) = 0\n"
    call = b"8379  ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, "
    call += b"memory_size=4096, userspace_addr=0x1000}) = 0\n"
    content = call + line * 120_000
    path.write_bytes(content)
    return content


def on_terminal(
    arguments: list[str], stdin: bytes | None = None, command: list[str] = COMMAND
) -> tuple[int, bytes, bytes]:
    """Runs with standard error on a terminal.

    Returns status, standard output and terminal output.
    """
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen = b""
    assert process.stdin is not None
    assert process.stdout is not None
    if stdin is not None:
        process.stdin.write(stdin)
    process.stdin.close()
    while select.select([ours], [], [], 30)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux reports a closed other side so
            break
        seen += data
        if not data:
            break
    with process.stdout as stdout:
        out = stdout.read()
    os.close(ours)
    return process.wait(600), out, seen


def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "long.strace"
    content = long_trace(path)
    status, out, seen = on_terminal(["replay", str(path)])
    assert status == 0
    assert b"reading" in seen
    assert b"all 1 result agree" in out
    assert b"\x1b" not in out
    status, out, seen = on_terminal(["replay", "-"], stdin=content)
    assert status == 0
    assert b"reading standard input" in seen


#: The command with little patience, on files that are slow to read, with plans that take long:
#: until the bar is shown, if there is to be one.
SLOW = """
import sys, time
import memslots.cli.plan, memslots.cli.report
from memslots.cli import main, progress
from memslots.traces.source import Source

def slowly(function):
    def slow(*arguments, **named):
        bar = progress.Meter.current and progress.Meter.current._progress
        if bar is None:  # no terminal, or one of several processes
            time.sleep(1 if sys.stderr.isatty() else 0.4)
        else:
            end = time.monotonic() + 60
            while not bar.live.is_started and time.monotonic() < end:
                time.sleep(0.01)
            bar.refresh()
        return function(*arguments, **named)
    return slow

progress.PATIENCE = 0.05
Source.blocks = slowly(Source.blocks)
memslots.cli.plan.plan = slowly(memslots.cli.plan.plan)
memslots.cli.report.html = slowly(memslots.cli.report.html)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["replay", "A"], ["reading A"]),
        (["replay", "--jobs", "2", "A", "B"], ["waiting for A, file 1 of 2"]),
        (["report", "A", "-o", "page.html"], ["reading A", "writing page.html"]),
        (["map", "A", "B"], ["reading A", "reading B"]),
        (["lookup", "A", "0"], ["reading A"]),
        (["diff", "A", "B"], ["reading A", "reading B"]),
        (["plan", "A", "B"], ["reading A", "reading B", "planning"]),
    ],
    ids=lambda each: each[0],
)
def test_long_work_says_what_it_does_on_a_terminal(
    arguments: list[str],
    shown: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "AB":
        Path(name).write_text(qemu(0, 0, 0x10000))
    command = [sys.executable, "-c", SLOW]
    status, out, seen = on_terminal(arguments, command=command)
    assert status == 0
    for text in shown:
        assert text.encode() in seen
    assert seen.endswith(b"\x1b[2K"), "at the end the bar is removed"
    piped = subprocess.run([*command, *arguments], capture_output=True, timeout=600)
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, out, b"")


def test_progress_bar_of_bench() -> None:
    status, out, seen = on_terminal(ONE_TEST)
    assert status == 0
    assert b"making 10 slots" in seen
    assert b"Slot setup, 10 slots" in seen
    assert b"\x1b" not in out
    assert run(*ONE_TEST).stderr == b""


def test_no_progress_bar_for_a_short_input() -> None:
    assert on_terminal(["replay", SEABIOS])[2] == b""


def test_no_progress_bar_without_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "long.strace"
    long_trace(path)
    done = run("replay", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout


def test_nothing_is_cut_at_a_width() -> None:
    narrow = {**os.environ, "COLUMNS": "40", "TERM": "dumb"}
    wide = run("replay", SEABIOS).stdout
    assert run("replay", SEABIOS, env=narrow).stdout == wide
    assert "\N{HORIZONTAL ELLIPSIS}".encode() not in wide


def test_colours_on_a_terminal(disagreeing: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([*COMMAND, "replay", disagreeing], stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert process.wait(600) == 1
    assert b"\x1b[1;31m" in seen


@pytest.mark.parametrize(
    "arguments",
    [["replay", SEABIOS, SEABIOS], ONE_TEST, ["--help"], ["--version"], ["map", "-h"], ["demo"]],
    ids=lambda each: each[0],
)
def test_a_reader_who_has_had_enough(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(600) == 141


@pytest.mark.parametrize(
    "arguments",
    [["replay", SEABIOS], ["map", "--json", SEABIOS], ["--help"], ["--version"], ["demo"]],
    ids=lambda each: each[0],
)
def test_a_full_disk(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"memslots: standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "closed", "status"),
    [
        (["replay", SEABIOS], ">&-", 0),
        (["replay", "no-such-file"], "2>&-", 2),
        (["replay", "-"], "<&-", 2),
    ],
)
def test_a_closed_stream_is_like_the_null_device(
    arguments: list[str], closed: str, status: int
) -> None:
    line = f"{shlex.join([*COMMAND, *arguments])} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=600)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr in (b"", b"memslots: standard input: it is empty\n")


def test_interrupted() -> None:
    process = subprocess.Popen(
        [*COMMAND, "replay", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A run of the tests in the background may ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    # More than a pipe holds: when it is written, the command is reading.
    process.stdin.write(qemu(0, 0, 0x1000).encode() * 20_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (130, b"")
    assert err.strip() == b"memslots: interrupted"


def test_bench_interrupted() -> None:
    """The interrupt comes during a test that has a second thread."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "bench", "--test", "move-active", "--slots", "10", "--slots", "30"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = b""
    while b"Move active" not in seen:
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    os.close(ours)
    assert (process.returncode, out) == (130, b"")
