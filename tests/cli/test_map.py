"""Tests `memslots map`, and the other commands on maps that are not traces."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from commandline import SEABIOS, Outcome, run

DATA = Path(__file__).parent.parent / "data" / "maps"
MTREE, LIME, E820 = (str(DATA / name) for name in ("mtree-f.txt", "lime.lime", "e820.txt"))


def test_a_table_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "map", LIME, E820)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        f"{LIME}: lime",
        "as  start     end       size   kind  hva  offset  id  flags  name",
        "0   0x1000    0x3000    8 KiB  ram   -    0x20    -   -      -",
        "0   0x100000  0x101000  4 KiB  ram   -    0x2040  -   -      -",
        f"{E820}: e820",
        "as  start        end          size         kind  hva  offset  id  flags  name",
        "0   0x0          0x9fc00      639 KiB      ram   -    -       -   -      usable",
        "0   0x100000     0xbffe0000   3144576 KiB  ram   -    -       -   -      usable",
        "0   0x100000000  0x140000000  1 GiB        ram   -    -       -   -      usable",
    ]


def test_another_format(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "map", MTREE, "--to", "memmap", "--kind", "ram")
    assert outcome.out.splitlines()[2:] == [
        "0000            0 -        9ffff",
        "0001       100000 -     bfffffff",
        "0002    100000000 -    13fffffff -> c0000000",
    ]


def test_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "map", E820, "--kind", "all", "--to", "csv")
    assert [line.split(",")[2] for line in outcome.out.splitlines()[1:]] == [
        "ram",
        "reserved",
        "ram",
        "reserved",
        "ram",
    ]
    outcome = Outcome(capsys, "map", E820, "--kind", "ram,apples")
    assert outcome.status == 2
    assert "there is no kind 'apples'" in outcome.err


def test_json_has_the_slots_where_replay_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    by_map = json.loads(Outcome(capsys, "map", SEABIOS, "--json").out)["files"][0]
    by_replay = json.loads(Outcome(capsys, "replay", SEABIOS, "--json").out)["files"][0]
    assert by_map["format"] == "trace"
    wanted = by_replay["vms"][0]["final_map"]
    assert len(wanted) > 3
    got = by_map["vms"][0]["final_map"]
    assert [{name: slot[name] for name in wanted[0]} for slot in got] == wanted


def test_what_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("hello\n")
    outcome = Outcome(capsys, "map", str(bad), LIME)
    assert outcome.status == 2
    assert "it is in no known format" in outcome.err
    assert f"{LIME}: lime\n" in outcome.out
    found = json.loads(Outcome(capsys, "map", str(bad), "--json").out)["files"]
    assert "no known format" in found[0]["error"]["reason"]
    for command in (
        ["lookup", str(bad), "0x1000"],
        ["diff", str(bad), LIME],
        ["plan", LIME, str(bad)],
    ):
        outcome = Outcome(capsys, *command)
        assert (outcome.status, outcome.out) == (2, "")
        assert "it is in no known format" in outcome.err


@pytest.mark.parametrize("command", [["map", LIME], ["lookup", LIME, "0x1000"]])
def test_a_layout_of_no_file(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, *command, "--layout", "pc")
    assert (outcome.status, outcome.out) == (2, "")
    assert "--layout tells how the file of --raw is laid out" in outcome.err


def test_lookup(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "lookup", MTREE, "0xc0010", "0x100000000", "0xc0000000", "0xfebc0001")
    assert outcome.status == 0
    assert outcome.out.splitlines() == [
        f"{MTREE}: mtree-f",
        "gpa 0xc0010: rom pc.ram, [0xc0000, 0xcb000), offset 0xc0010",
        "gpa 0x100000000: ram pc.ram, [0x100000000, 0x140000000), offset 0xc0000000",
        "gpa 0xc0000000: nothing",
        "gpa 0xfebc0001: mmio e1000-mmio, [0xfebc0000, 0xfebe0000)",
    ]
    answers = json.loads(Outcome(capsys, "lookup", "--json", LIME, "0x100010").out)["answers"]
    assert [(a["gpa"], a["offset"], a["hva"]) for a in answers] == [("0x100010", "0x2050", None)]


BLOCKS = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000100000000 0x0000000100000000 0x00007f1200000000  rw
"""  # noqa: E501 (as QEMU prints it)


def test_host_memory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blocks = tmp_path / "blocks"
    blocks.write_text(BLOCKS)
    outcome = Outcome(capsys, "map", MTREE, "--host", str(blocks), "--kind", "ram")
    assert (outcome.status, outcome.err) == (0, "")
    hosts = [line.split()[6] for line in outcome.out.splitlines()[2:]]
    assert hosts == ["0x7f1200000000", "0x7f1200100000", "0x7f12c0000000"]
    outcome = Outcome(capsys, "lookup", "--host", str(blocks), MTREE, "0x100000010")
    assert outcome.out.splitlines()[1].endswith("hva 0x7f12c0000010, offset 0xc0000010")
    outcome = Outcome(capsys, "map", MTREE, "--host", LIME)
    assert outcome.status == 2
    assert f"{LIME}: it is neither QEMU's info ramblock nor" in outcome.err
    outcome = Outcome(capsys, "lookup", "--sample", "qemu-pc-hotplug", "--host", str(blocks), "0")
    assert outcome.status == 2
    assert "says nothing of these maps" in outcome.err
    assert Outcome(capsys, "map", str(blocks)).status == 2


def test_raw_memory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(4 << 30)
    outcome = Outcome(capsys, "map", E820, "--raw", str(raw))
    assert (outcome.status, outcome.err) == (
        0,
        f"memslots: {raw}: its layout is pc, by its size\n",
    )
    places = [line.split()[7] for line in outcome.out.splitlines()[2:]]
    assert places == ["0x0", "0x100000", "0xc0000000"]
    outcome = Outcome(capsys, "lookup", E820, "--raw", str(raw), "0x100000010", "0xa0000")
    assert outcome.out.splitlines()[1:] == [
        "gpa 0x100000010: ram usable, [0x100000000, 0x140000000), offset 0xc0000010",
        "gpa 0xa0000: nothing",
    ]
    outcome = Outcome(capsys, "map", E820, "--raw", str(raw), "--layout", "padded")
    assert outcome.err == ""
    assert [line.split()[7] for line in outcome.out.splitlines()[2:]] == ["0x0", "0x100000", "-"]
    outcome = Outcome(capsys, "map", MTREE, "--raw", str(raw))
    assert outcome.status == 2
    assert "have places in a file or a block already" in outcome.err
    for other, reason in (("/dev/null", "no regular file"), ("nowhere", "no such file")):
        outcome = Outcome(capsys, "map", E820, "--raw", other)
        assert outcome.status == 2
        assert reason in outcome.err


def test_diff_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "diff", LIME, E820)
    assert outcome.status == 1
    assert "came" in outcome.out
    assert Outcome(capsys, "diff", LIME, LIME).status == 0
    outcome = Outcome(capsys, "plan", LIME, MTREE, "--check")
    assert (outcome.status, outcome.err) == (0, "")
    outcome = Outcome(capsys, "diff", f"{LIME}:3", MTREE)
    assert outcome.status == 2
    assert "is a map (lime), not a trace" in outcome.err


def test_the_maps_of_two_boots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each boot in a log has a map of its own, which --vm names."""
    log = tmp_path / "log"
    lines = "".join(
        f"BIOS-e820: [mem 0x0000000000000000-{end:#018x}] usable\n" for end in (0xFFF, 0x1FFF)
    )
    log.write_text(lines)
    outcome = Outcome(capsys, "map", str(log))
    heads = [line for line in outcome.out.splitlines() if line.startswith("map")]
    assert (outcome.status, heads) == (0, ["map 1", "map 2"])
    outcome = Outcome(capsys, "map", str(log), "--json")
    vms = json.loads(outcome.out)["files"][0]["vms"]
    assert [vm["final_map"][0]["memory_size"] for vm in vms] == [
        0x1000,
        0x2000,
    ]
    outcome = Outcome(capsys, "lookup", str(log), "0x1000")
    assert outcome.out.splitlines()[1:] == [
        "gpa 0x1000 in map 1: nothing",
        "gpa 0x1000 in map 2: ram usable, [0x0, 0x2000)",
    ]
    second = tmp_path / "second"
    second.write_text(lines.splitlines()[1])
    for vm, status in (("1", 1), ("2", 0)):
        assert Outcome(capsys, "diff", str(log), str(second), "--vm", vm).status == status
    outcome = Outcome(capsys, "diff", str(log), str(second), "--vm", "3")
    assert (outcome.status, "there is no VM 3" in outcome.err) == (2, True)


def test_several_files_are_no_one_file_of_a_format(capsys: pytest.CaptureFixture[str]) -> None:
    for format in ("csv", "json", "e820"):
        outcome = Outcome(capsys, "map", "--to", format, E820, LIME)
        assert (outcome.status, outcome.out) == (2, "")
        assert f"--to {format} takes one FILE, not 2" in outcome.err
    assert Outcome(capsys, "map", "--to", "text", E820, LIME).status == 0


@pytest.mark.parametrize("file", [E820, LIME, SEABIOS])
def test_a_fifo_is_opened_once(file: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cp", file, tmp_path / "fifo"]) as writer:
        outcome = run("map", str(tmp_path / "fifo"))
        assert writer.wait(600) == 0
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert outcome.stdout.splitlines()[1:] == run("map", file).stdout.splitlines()[1:]


def test_replaying_a_fifo_with_a_map_does_not_wait_for_another_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cp", E820, tmp_path / "fifo"]):
        outcome = run("replay", str(tmp_path / "fifo"))
    assert outcome.returncode == 2
    assert b"if it is a map, `memslots map` reads it" in outcome.stderr
