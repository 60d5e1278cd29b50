"""Tests `memslots watch`: on a made-up QEMU, and on a real one."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commandline import COMMAND, Outcome
from fakeqmp import EVENT, GREETING, SHUTDOWN, Peer, fake_qemu

from memslots.cli import qmp
from memslots.cli.watch import changes
from memslots.maps import Entry, Map

RAM = (0x0, 0x9FFFF, "ram", "pc.ram")
ROM = (0xC0000, 0xDFFFF, "rom", "pc.rom")
OPEN = (0xC0000, 0xDFFFF, "ram", "pc.ram @00000000000c0000")
DIMM = (0x100000000, 0x103FFFFFF, "ram", "more")
DEVICE = (0xFEC00000, 0xFEC00FFF, "i/o", "ioapic")


def view(*ranges: tuple[int, int, str, str]) -> str:
    lines = [f"  {a:016x}-{b:016x} (prio 0, {kind}): {name}\r\n" for a, b, kind, name in ranges]
    shown = "".join(lines) or "  No rendered FlatView\r\n"
    return f'FlatView #0\r\n AS "memory", root: system\r\n Root memory region: system\r\n{shown}'


FIRST = view(RAM, ROM, DEVICE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "PATIENCE", 1.5)


Watched = Callable[..., Outcome]


@pytest.fixture
def watched(capsys: pytest.CaptureFixture[str], path: Path) -> Watched:
    def run(act: Callable[[Peer], object], *options: str) -> Outcome:
        with fake_qemu(path, act):
            return Outcome(capsys, "watch", "--qmp", str(path), "--interval", "0.01", *options)

    return run


# --- what it shows


def test_the_map(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def act(peer: Peer) -> None:
        peer.say(GREETING)
        peer.hear()
        peer.say(EVENT, {"return": {}}, EVENT)  # events may come at any time
        peer.hear()
        peer.say(EVENT, EVENT, {"return": FIRST})

    with fake_qemu(path, act) as asked:
        outcome = Outcome(capsys, "watch", "--qmp", str(path), "--once")
    assert asked == [
        {"execute": "qmp_capabilities"},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info mtree -f"}},
    ]
    assert (outcome.status, outcome.err) == (0, "")
    head, *rows = outcome.out.splitlines()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}}  {re.escape(str(path))}", head)
    assert [row.split()[1:5] for row in rows[1:]] == [
        ["0x0", "0xa0000", "640", "KiB"],
        ["0xc0000", "0xe0000", "128", "KiB"],
    ]


def changing(peer: Peer) -> None:
    peer.greet()
    peer.answer(FIRST, FIRST, view(RAM, OPEN, DIMM))
    peer.say(EVENT)
    peer.answer(view(RAM, OPEN, DIMM), view(RAM))
    peer.say(SHUTDOWN)


def test_changes(watched: Watched) -> None:
    outcome = watched(changing)
    assert outcome.status == 0
    assert re.search(r"^memslots: .*/q: QEMU shut down: guest-shutdown$", outcome.err)
    _, second, third = re.split(r"^\n.{23}\n", outcome.out, flags=re.MULTILINE)
    assert [" ".join(line.split()) for line in second.splitlines()] == [
        "as start end size kind hva offset id flags name",
        "- 0 0xc0000 0xe0000 128 KiB rom - 0x0 - READONLY pc.rom",
        "+ 0 0xc0000 0xe0000 128 KiB ram - 0xc0000 - - pc.ram",
        "+ 0 0x100000000 0x104000000 64 MiB ram - 0x0 - - more",
        "! gpa [0xc0000, 0xe0000), 128 KiB: rom pc.rom at offset 0x0 is now"
        " ram pc.ram at offset 0xc0000",
        "+ gpa [0x100000000, 0x104000000), 64 MiB: came",
    ]
    assert third.splitlines()[-2:] == [
        "- gpa [0xc0000, 0xe0000), 128 KiB: went",
        "- gpa [0x100000000, 0x104000000), 64 MiB: went",
    ]


def test_changes_in_json(watched: Watched) -> None:
    outcome = watched(changing, "--json")
    assert outcome.status == 0
    first, second, third = map(json.loads, outcome.out.splitlines())
    assert first.keys() == {"memslots", "time", "files"}
    assert [slot["name"] for slot in first["files"][0]["vms"][0]["final_map"]] == [
        "pc.ram",
        "pc.rom",
    ]
    assert second.keys() == third.keys() == {"memslots", "time", "spaces"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", second["time"])
    (space,) = second["spaces"]
    assert space["as_id"] == 0
    assert [entry["name"] for entry in space["removed"]] == ["pc.rom"]
    assert [entry["name"] for entry in space["added"]] == ["pc.ram", "more"]
    assert space["runs"] == [
        {
            "guest_phys_addr": "0xc0000",
            "memory_size": 0x20000,
            "before": {"kind": "rom", "name": "pc.rom", "offset": "0x0"},
            "after": {"kind": "ram", "name": "pc.ram", "offset": "0xc0000"},
        },
        {
            "guest_phys_addr": "0x100000000",
            "memory_size": 64 << 20,
            "before": None,
            "after": {"kind": "ram", "name": "more", "offset": "0x0"},
        },
    ]
    assert [run["after"] for run in third["spaces"][0]["runs"]] == [None, None]


def test_the_map_in_json_is_read_again(
    watched: Watched, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcome = watched(lambda peer: (peer.greet(), peer.answer(FIRST)), "--once", "--json")
    file = tmp_path / "map.json"
    file.write_text(outcome.out)
    again = Outcome(capsys, "lookup", str(file), "0xc1000")
    assert "rom pc.rom, [0xc0000, 0xe0000), offset 0x1000" in again.out


@pytest.mark.parametrize(
    ("kinds", "shown"), [("mmio", ["ioapic"]), ("rom,mmio", ["pc.rom", "ioapic"])]
)
def test_kinds(watched: Watched, kinds: str, shown: list[str]) -> None:
    outcome = watched(lambda peer: (peer.greet(), peer.answer(FIRST)), "--once", "--kind", kinds)
    assert [line.split()[-1] for line in outcome.out.splitlines()[2:]] == shown


def test_no_memory_yet(watched: Watched) -> None:
    def act(peer: Peer) -> None:
        peer.greet()
        peer.answer(view(), view(RAM))
        peer.say(SHUTDOWN)

    outcome = watched(act)
    assert outcome.status == 0
    assert outcome.out.splitlines()[1] == "no memory"
    assert outcome.out.splitlines()[-1] == "+ gpa [0x0, 0xa0000), 640 KiB: came"


def test_the_second_address_space() -> None:
    """QEMU's reader leaves it out while it is equal to the first."""
    ram, smram = Entry(0, 0x1000, "ram", "ram", 0), Entry(0x2000, 0x1000, "ram", "smram", 0)
    same, apart = [Map((ram,))], [Map((ram,)), Map((ram, smram), as_id=1)]
    assert changes(same, same) == changes(apart, apart) == []
    (came,) = changes(same, apart)
    assert (came.as_id, came.added, came.removed) == (1, [smram], [])
    (went,) = changes(apart, same)
    assert (went.as_id, went.added, went.removed) == (1, [], [smram])
    assert [found.as_id for found in changes([], apart)] == [0, 1]
    assert [found.as_id for found in changes(apart, [Map(()), Map((), as_id=1)])] == [0, 1]


# --- what goes wrong


def closed_at_once(peer: Peer) -> None:
    pass


def closed_after_the_question(peer: Peer) -> None:
    peer.greet()
    peer.hear()


def closed_later(peer: Peer) -> None:
    peer.greet()
    peer.answer(FIRST)


def shut_down_too_early(peer: Peer) -> None:
    peer.greet()
    peer.say(SHUTDOWN)


def no_shape_of_a_shutdown(peer: Peer) -> None:
    closed_later(peer)
    peer.say({"event": "SHUTDOWN"})


@pytest.mark.parametrize(
    ("act", "status", "message"),
    [
        (closed_at_once, 2, "it closed the connection, and did not say that it shuts down"),
        (closed_after_the_question, 2, "it closed the connection"),
        (closed_later, 2, "it closed the connection"),
        (shut_down_too_early, 2, "QEMU is gone: guest-shutdown"),
        (no_shape_of_a_shutdown, 0, "QEMU shut down: it shut down"),
    ],
)
def test_the_end(
    watched: Watched, act: Callable[[Peer], object], status: int, message: str
) -> None:
    outcome = watched(act)
    assert outcome.status == status
    assert message in outcome.err
    assert bool(outcome.out) == (act in (closed_later, no_shape_of_a_shutdown))


MONITOR = b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (MONITOR, 'its greeting is no QMP: "QEMU 7.2.22 monitor - type'),
        (b'{"x": 1}\n', "its greeting is no QMP: '{\"x\": 1}'"),
        (b"{}\n", "its greeting is no QMP: '{}'"),
        (b"\n", "its greeting is no QMP: ''"),
        (b"[" * 100_000 + b"\n", "its greeting is no QMP: '[[["),
        (b"\xff\x00\n", "its greeting is no QMP: "),
    ],
)
def test_a_greeting_that_is_no_qmp(watched: Watched, greeting: bytes, message: str) -> None:
    outcome = watched(lambda peer: (peer.say(greeting), peer.hear()))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b"(qemu) ", "its greeting is no QMP: '(qemu)'"),
        (b"", "no greeting in 1.5 s: a QMP socket serves one client at a time"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_no_line_in_place_of_a_greeting(watched: Watched, greeting: bytes, message: str) -> None:
    outcome = watched(lambda peer: (peer.say(greeting), peer.hear()))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err


REFUSED = {"error": {"class": "CommandNotFound", "desc": "it is disabled"}}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (REFUSED, "QEMU refuses human-monitor-command: it is disabled"),
        ({"error": 5}, "QEMU refuses human-monitor-command: 5"),
        (b"oops\n", "its reply to human-monitor-command is no QMP: 'oops'"),
        (b"[]\n", "its reply to human-monitor-command is no QMP: '[]'"),
        ({"return": 3}, "has no flat view: '3'"),
        ({"return": "unknown command: 'info'\r\n"}, 'has no flat view: "unknown command'),
        ({"return": view(RAM, RAM)}, "is no map: [0x0, 0xa0000) overlaps the entry before it"),
    ],
)
def test_a_bad_reply(watched: Watched, reply: Any, message: str) -> None:
    outcome = watched(lambda peer: (peer.greet(), peer.hear(), peer.say(reply), peer.hear()))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err


@pytest.mark.usefixtures("impatient")
def test_no_reply(watched: Watched) -> None:
    outcome = watched(lambda peer: (peer.greet(), peer.hear(), peer.say({}), peer.hear()))
    assert (outcome.status, outcome.out) == (2, "")
    assert "no reply to human-monitor-command in 1.5 s" in outcome.err


@pytest.mark.usefixtures("impatient")
def test_events_without_an_end(watched: Watched) -> None:
    def act(peer: Peer) -> None:
        peer.greet()
        while True:
            peer.say(EVENT)
            time.sleep(0.001)

    outcome = watched(act)
    assert outcome.status == 2
    assert "no reply to human-monitor-command in 1.5 s" in outcome.err


def test_a_message_without_an_end(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "MOST_BYTES", 1 << 20)

    def act(peer: Peer) -> None:
        while True:
            peer.say(b"x" * 65536)

    outcome = watched(act)
    assert outcome.status == 2
    assert "a message is longer than 1048576 bytes" in outcome.err


def test_what_is_no_socket(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (
        ("nothing", "cannot connect (No such file or directory): does QEMU run with -qmp unix:"),
        ("file", "cannot connect (Connection refused)"),
        ("x" * 200, "cannot connect (AF_UNIX path too long)"),
    ):
        outcome = Outcome(capsys, "watch", "--qmp", str(tmp_path / name))
        assert (outcome.status, outcome.out) == (2, "")
        assert f"memslots: {tmp_path / name}: {message}" in outcome.err


def test_a_socket_that_is_taken(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """Nobody accepts, and no more clients can wait."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(str(path))
        server.listen(0)
        other.connect(str(path))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(qmp, "PATIENCE", 0.3)
            outcome = Outcome(capsys, "watch", "--qmp", str(path))
    assert outcome.status == 2
    assert "a QMP socket serves one client at a time" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qmp", "q", "--interval", "0"], "--interval 0: it is from 0.01 to 86400 seconds"),
        (["--qmp", "q", "--interval", "nan"], "--interval nan: "),
        (["--qmp", "q", "--interval", "inf"], "--interval inf: "),
        (["--qmp", "q", "--kind", "dust"], "there is no kind 'dust'"),
        ([], "Missing option '--qmp'"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    outcome = Outcome(capsys, "watch", *options)
    assert outcome.status == 2
    assert message in outcome.err


def started(path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "watch", "--qmp", str(path), "--interval", "0.05", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A run of the tests in the background may ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_interrupted(path: Path) -> None:
    shown = threading.Event()

    def act(peer: Peer) -> None:
        closed_later(peer)
        while peer.hear():
            peer.say({"return": FIRST})
            shown.set()

    with fake_qemu(path, act):
        process = started(path)
        assert shown.wait(600)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert err.strip() == "memslots: interrupted"
    assert "pc.rom" in out


# --- a real one

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")


@contextmanager
def running(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A machine that does not begin to run, with QMP sockets `q` and `r`."""
    assert QEMU is not None
    sockets = [w for name in "qr" for w in ("-qmp", f"unix:{folder / name},server=on,wait=off")]
    machine = subprocess.Popen(
        [QEMU, "-accel", "tcg", "-S", "-nodefaults", "-display", "none", *sockets, *options],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "r").exists():
            assert machine.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield machine
    finally:
        machine.kill()
        machine.wait()


PLUG = ["-m", "128,slots=1,maxmem=1G", "-object", "memory-backend-ram,id=more,size=64M"]


@needs_qemu
def test_a_dimm_is_plugged(tmp_path: Path) -> None:
    with running(tmp_path, *PLUG) as machine, qmp.Qmp(str(tmp_path / "r")) as monitor:
        process = started(tmp_path / "q", "--json")
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert "pc.ram" in [e["name"] for e in first["files"][0]["vms"][0]["final_map"]]
        monitor.execute("device_add", driver="pc-dimm", memdev="more")
        (space,) = json.loads(process.stdout.readline())["spaces"]
        assert space["removed"] == []
        assert [entry["name"] for entry in space["added"]] == ["more"]
        assert [run["memory_size"] for run in space["runs"]] == [64 << 20]
        monitor.execute("quit")
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (0, "")
        assert err.endswith("/q: QEMU shut down: host-qmp-quit\n")
        machine.wait(600)


@needs_qemu
def test_a_qemu_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as machine:
        process = started(tmp_path / "q", "--interval", "6000")
        assert process.stdout is not None
        assert process.stdout.readline().endswith("/q\n")
        machine.kill()
        _, err = process.communicate(timeout=600)  # before the interval is over
        assert process.returncode == 2
        assert "QEMU is gone" in err


@needs_qemu
def test_a_machine_without_memory_and_a_second_client(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running(tmp_path, "-M", "none"):
        place = str(tmp_path / "q")
        outcome = Outcome(capsys, "watch", "--qmp", place, "--once")
        assert (outcome.status, outcome.out.splitlines()[1:]) == (0, ["no memory"])
        with qmp.Qmp(place):
            monkeypatch.setattr(qmp, "PATIENCE", 0.5)
            outcome = Outcome(capsys, "watch", "--qmp", place, "--once")
        assert outcome.status == 2
        assert "no greeting in 0.5 s" in outcome.err
