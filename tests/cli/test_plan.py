"""Tests `memslots plan` and `memslots diff`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from commandline import SEABIOS, Outcome, qemu

from memslots import MemoryMap, Memslots

PAGE = 4096


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Writes two maps: one slot, and the two parts of it that remain."""
    now = MemoryMap([(0, 256, 1 << 30)])
    paths = tmp_path / "now.json", tmp_path / "wanted.json"
    for path, m in zip(paths, (now, now - MemoryMap([(160, 32, 0)])), strict=True):
        path.write_text(m.to_json())
    return str(paths[0]), str(paths[1])


def test_the_calls_and_windows(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "plan", *files, "--check")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[2:] == [
        "",
        "3 calls: 2 CREATE, 1 DELETE",
        "call          space  id      gpa       end     size         hva  flags",
        "   0  DELETE      0   0      0x0  0x100000    1 MiB  0x40000000  -",
        "   1  CREATE      0   0      0x0   0xa0000  640 KiB  0x40000000  -",
        "   2  CREATE      0   1  0xc0000  0x100000  256 KiB  0x400c0000  -",
        "absent between calls 0 and 1: gpa [0x0, 0xa0000), 640 KiB",
        "absent between calls 0 and 2: gpa [0xc0000, 0x100000), 256 KiB",
        "",
        "a rebuild would take 3 calls",
        "checked by the rules",
    ]


def test_as_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "plan", *files, "--json")
    document = json.loads(outcome.out)
    (made,) = document["plans"]
    assert (document["current"], document["wanted"], document["checked"]) == (*files, "")
    assert made["calls"][1] == {
        "slot": 0,
        "flags": 0,
        "guest_phys_addr": "0x0",
        "memory_size": 0xA0000,
        "userspace_addr": "0x40000000",
    }
    assert made["windows"][1] == {
        "guest_phys_addr": "0xc0000",
        "memory_size": 0x40000,
        "from_call": 0,
        "to_call": 2,
    }
    # The printed calls can be made.
    vm = Memslots(map=MemoryMap.from_json(Path(files[0]).read_text()))
    for call in made["calls"]:
        vm.set_region(
            *(int(value, 0) if isinstance(value, str) else value for value in call.values())
        )
    assert vm.map() == MemoryMap.from_json(Path(files[1]).read_text())


def test_two_moments_of_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace"
    path.write_text(
        qemu(0, 0, 0x10000)
        + "other\n"
        + qemu(1, 0x10000, 0x10000)
        + qemu(0, 0, 0)
        + qemu(2, 0, PAGE)
    )
    outcome = Outcome(capsys, "plan", f"{path}:2", f"{path}:3")
    assert "1 call: 1 CREATE" in outcome.out
    assert "no calls" in Outcome(capsys, "plan", f"{path}:1", f"{path}:2").out
    assert "2 calls: 1 CREATE, 1 DELETE" in Outcome(capsys, "plan", f"{path}:3", str(path)).out
    assert "2 calls: 2 DELETE" in Outcome(capsys, "plan", str(path), f"{path}:0").out
    assert Outcome(capsys, "diff", f"{path}:1", f"{path}:2").out.endswith("no difference\n")
    assert Outcome(capsys, "diff", f"{path}:5", str(path)).out.endswith("no difference\n")


@pytest.mark.parametrize("command", ["plan", "diff"])
def test_a_line_behind_the_end_of_a_trace(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line may lack its line feed. A sample has lines too."""
    path = tmp_path / "trace"
    path.write_text("other\n" + qemu(0, 0, 0x10000).removesuffix("\n"))
    for name, line, lines in ((path, 3, 2), (path, 9**20, 2), (SEABIOS, 10**6, 6856)):
        outcome = Outcome(capsys, command, str(path), f"{name}:{line}")
        assert (outcome.status, outcome.out) == (2, "")
        assert f"line {line} was asked for, but the trace ends at line {lines}" in outcome.err
    assert Outcome(capsys, command, str(path), f"{path}:2").status == 0


def test_samples_and_what_replay_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed = tmp_path / "replay.json"
    replayed.write_text(Outcome(capsys, "replay", SEABIOS, "--json").out)
    for one, two in ((SEABIOS, str(replayed)), ("sample:qemu-pc-seabios", SEABIOS)):
        outcome = Outcome(capsys, "diff", one, two)
        assert (outcome.status, outcome.out.splitlines()[2:]) == (0, ["no difference"])
        assert "no calls" in Outcome(capsys, "plan", one, two).out


def test_standard_input(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (Path(files[0]).read_bytes(), qemu(0, 0, 256 * PAGE, ua=1 << 30).encode()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert "3 calls" in Outcome(capsys, "plan", "-", files[1]).out


def test_pages_to_be_kept(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "plan", *files, "--keep", "0x1000-0x2000")
    assert (outcome.status, outcome.out) == (1, "")
    assert "gpa [0x1000, 0x2000), 4 KiB cannot be kept" in outcome.err
    assert Outcome(capsys, "plan", *files, "--keep", "0xa0000-0xc0000").status == 0
    for wrong, reason in (
        ("5", "--keep 5: it is not START-END, two guest addresses"),
        ("5-", "--keep 5-: it is not START-END"),
        ("0x2000-0x1000", "--keep 0x2000-0x1000: the range ends before it starts"),
        ("a-b", "'a' is not an address"),
    ):
        outcome = Outcome(capsys, "plan", *files, "--keep", wrong)
        assert outcome.status == 2
        assert reason in outcome.err


def test_too_few_slots(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "plan", *files, "--max-slots", "1")
    assert (outcome.status, outcome.out) == (1, "")
    assert "2 slots are wanted, but max_slots is 1" in outcome.err


@pytest.mark.parametrize("command", ["plan", "diff"])
def test_what_cannot_be_read(
    command: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    for name, text, why in (
        (str(tmp_path / "none"), None, "no such file"),
        (str(tmp_path), None, "directory"),
        ("sample:none", None, "there is no such sample"),
        (f"{SEABIOS}:x", None, "no such file"),
        (str(bad), "{", "Expecting"),
        (str(bad), "{}", 'a list "slots"'),
        (str(bad), '[{"guest_phys_addr": 1}]', 'has no "memory_size"'),
        (str(bad), '{"files": []}', "neither a map nor a document of `memslots replay --json`"),
        (f"{files[0]}:5", None, "it is a map in JSON, not a trace"),
        (str(bad), "nothing of use\n", ""),
    ):
        if text is not None:
            bad.write_text(text)
        outcome = Outcome(capsys, command, files[1], name)
        assert (outcome.status, outcome.out) == (2, ""), name
        assert why in outcome.err
        assert "Traceback" not in outcome.err
    outcome = Outcome(capsys, command, files[1], SEABIOS, "--vm", "2")
    assert (outcome.status, outcome.out) == (2, "")
    assert "there is no VM 2; the trace has 1" in outcome.err


def test_a_diff(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "diff", *files)
    assert outcome.status == 1
    assert outcome.out.splitlines()[:2] == [f"--- {files[0]}", f"+++ {files[1]}"]
    assert "- gpa [0xa0000, 0xc0000), 128 KiB: went" in outcome.out
    document = json.loads(Outcome(capsys, "diff", *files, "--json").out)
    assert document["different"] is True
    (space,) = document["spaces"]
    assert space["went"] == [{"guest_phys_addr": "0xa0000", "memory_size": 0x20000}]
    assert [each["change"] for each in space["slots"]] == ["DELETE", "CREATE", "CREATE"]


def test_a_map_without_host_addresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON of `map`, of what QEMU's info mtree tells."""
    tree = tmp_path / "tree"
    tree.write_text(
        'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
        "  0000000000000000-0000000000000fff (prio 0, ram): pc.ram\n"
        "  0000000000002000-0000000000003fff (prio 0, ram): pc.ram @0000000000002000\n"
    )
    document = tmp_path / "json"
    document.write_text(Outcome(capsys, "map", "--json", str(tree)).out)
    same = Outcome(capsys, "diff", str(tree), str(document))
    assert (same.status, same.err) == (0, "")
    assert Outcome(capsys, "plan", str(tree), str(document)).status == 0
    bad = json.loads(document.read_text())
    del bad["files"][0]["vms"][0]["final_map"][1]["guest_phys_addr"]
    document.write_text(json.dumps(bad))
    refused = Outcome(capsys, "diff", str(tree), str(document))
    assert refused.status == 2
    assert "an entry has no 'guest_phys_addr'" in refused.err


def test_several_address_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smm.json"
    path.write_text(MemoryMap([(0, 1, 0)], as_id=1).to_json())
    lines = Outcome(capsys, "plan", SEABIOS, str(path), "--check").out.splitlines()
    assert "address space 0" in lines and "address space 1" in lines
    assert "1 call: 1 CREATE" in lines
