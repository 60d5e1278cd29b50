"""Tests `memslots replay`: the tables, and input that cannot be used."""

from __future__ import annotations

import gc
import gzip
import io
import json
import lzma
import os
import re
from pathlib import Path
from typing import Any

import pytest
from commandline import OVMF, OVMF_QEMU, SEABIOS, Outcome, qemu, run

# --- replay


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", OVMF)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[0] == f"{OVMF}: strace"
    assert "  3175 lines: 21 memslot calls, 0 lost, 3154 unrelated lines" in lines
    assert "VM: process 20450, fd 11, created at line 5" in lines
    assert "  results     all 21 results agree" in lines
    assert "  operations  8 CREATE, 3 DELETE, 10 FLAGS_ONLY" in lines
    assert "  most slots  5" in lines
    assert "  gaps        5, 2.795 ms in all, the longest 842 us" in lines
    assert any(
        line.split() == ["0", "0xc0000", "0x20000000", "511.25", "MiB", "124", "126", "566", "us"]
        for line in lines
    )
    assert lines[-6:-1] == [
        "        0   0         0x0      0xa0000   640 KiB  0x7f1477e00000  -",
        "        0   2     0xc0000      0xe0000   128 KiB  0x7f14a4200000  READONLY",
        "        0   3     0xe0000     0x100000   128 KiB  0x7f14a4400000  READONLY",
        "        0   4    0x100000   0x20000000   511 MiB  0x7f1477f00000  -",
        "        0   1  0xffc84000  0x100000000  3568 KiB  0x7f149ec00000  READONLY",
    ]
    assert not any(line != line.rstrip() for line in lines)


def test_a_disagreement(disagreeing: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", disagreeing)
    assert (outcome.status, outcome.err) == (1, "")
    assert "1 of 2 results DISAGREE" in outcome.out
    assert "line 3: slot=0x1 flags=0x0 gpa=0x8000" in outcome.out
    assert "kernel: success, memslots: EEXIST, because" in outcome.out
    assert "slot 0 dropped, then CREATE" in outcome.out


def test_refused_outside_of_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text(qemu(0, 0, 0x10000) + qemu(1, 0, 0x10000, -17) + qemu(1, 0x10000, 4096, -12))
    outcome = Outcome(capsys, "replay", str(path))
    assert outcome.status == 0
    expected = "1 EEXIST, 1 ENOMEM (1 for reasons outside the rules, not replayed)"
    assert f"  refused     {expected}\n" in outcome.out


def test_lost_calls_are_prominent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lost.strace"
    good = "9  ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, "
    good += "memory_size=4096, userspace_addr=0x1000}) = 0\n"
    unread = "9  ioctl(8, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffc) = 0\n"
    path.write_text(good + unread * 25)
    outcome = Outcome(capsys, "replay", str(path))
    assert outcome.status == 0
    assert "LOST: 25 memslot calls were lost; 25 of them may have changed the map" in outcome.out
    assert "25 x KVM_SET_USER_MEMORY_REGION2: strace did not decode the struct" in outcome.out
    assert "and 5 more" in outcome.out
    looked_up = Outcome(capsys, "lookup", str(path), "0")
    assert looked_up.status == 0
    assert "25 memslot calls were lost" in looked_up.err


def test_a_trace_cut_in_a_memslot_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = gzip.decompress(Path(SEABIOS).read_bytes()).splitlines(keepends=True)
    path = tmp_path / "cut"
    path.write_bytes(b"".join(text[:118])[:-40])
    outcome = Outcome(capsys, "replay", str(path))
    assert outcome.status == 0
    assert "118 lines: 2 memslot calls, 1 lost, 115 unrelated lines" in outcome.out
    assert "1 x cut off where the input ends" in outcome.out
    assert re.search(r"^ +118  unknown +ioctl\(8, KVM_SET", outcome.out, re.MULTILINE)


def test_many_gaps_are_not_all_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text((qemu(0, 0, 0x1000) + qemu(0, 0, 0)) * 31)
    outcome = Outcome(capsys, "replay", str(path))
    assert "gaps        30" in outcome.out
    assert "and 10 more (--json has them all)" in outcome.out
    document = json.loads(Outcome(capsys, "replay", "--json", str(path)).out)
    assert len(document["files"][0]["vms"][0]["gaps"]["ranges"]) == 30


def test_several_files(disagreeing: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", SEABIOS, disagreeing, OVMF_QEMU)
    assert outcome.status == 1
    heads = [line for line in outcome.out.splitlines() if re.fullmatch(r"\S+: (strace|qemu)", line)]
    assert heads == [f"{SEABIOS}: strace", f"{disagreeing}: qemu", f"{OVMF_QEMU}: qemu"]
    outcome = Outcome(capsys, "replay", disagreeing, "missing", SEABIOS)
    assert outcome.status == 2
    assert outcome.err == "memslots: missing: no such file or directory\n"
    assert f"{SEABIOS}: strace" in outcome.out


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_standard_input(pack: Any) -> None:
    content = gzip.decompress(Path(SEABIOS).read_bytes())
    done = run("replay", "-", input=pack(content))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"standard input: strace\n")
    assert b"all 37 results agree" in done.stdout


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """File names with rich's markup, or with bytes that are not UTF-8, do no harm."""
    path = os.fsencode(tmp_path) + b"/[bold]\xff.log"
    Path(os.fsdecode(path)).write_text(qemu(0, 0, 0x1000))
    done = run("replay", os.fsdecode(path), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"/[bold]" in done.stdout


# --- input that cannot be used: status 2, one line that says which file, where and why


def compressed_and_cut() -> bytes:
    return gzip.compress(gzip.decompress(Path(SEABIOS).read_bytes()))[:3000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello\n", "line 2: neither strace's output nor QEMU's"),
        (bytes(range(256)) * 100, "it has zero bytes: is it binary?"),
        (b"x" * 10_000_000, "line 1: the line is longer than 1 MiB"),
        (qemu(0, 0, 4096).encode("utf-16"), "UTF-16"),
        (compressed_and_cut(), "the file is truncated"),
        (lzma.compress(b"hello\n" * 99)[:-20], "the file is truncated"),
        (b"\x1f\x8b" + bytes(100), "its gzip compression is damaged"),
        (b"9 ioctl(9, KVM_RUN, 0) = 0\n", "no memslot call in its 1 line: did the VMM use KVM"),
        (
            b"9 ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffd) = 0\n",
            "line 1: none of its 1 memslot calls can be read; strace did not decode the struct",
        ),
    ],
)
def test_unusable(
    content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    for arguments in (["replay"], ["replay", "--json"], ["lookup"]):
        outcome = Outcome(
            capsys, *arguments, str(path), *(["0"] if arguments == ["lookup"] else [])
        )
        assert outcome.status == 2
        assert outcome.err.startswith(f"memslots: {path}: ")
        assert outcome.err.count("\n") == 1
        # `lookup` names the formats of maps too, which are not about one line.
        wanted = reason.removeprefix("line 2: ") if arguments == ["lookup"] else reason
        assert wanted in outcome.err
        if "--json" not in arguments:
            assert outcome.out == ""


@pytest.mark.parametrize("name", ["e820.txt", "mtree-f.txt", "iomem.txt", "lime.lime"])
def test_a_map_is_no_trace(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "data" / "maps" / name
    like = path.stem if path.suffix == ".txt" else "lime"
    told = f"memslots: {path}: it is no trace; it looks like {like}: try `memslots map`\n"
    for arguments in (["replay"], ["replay", "--jobs", "2", str(path)]):
        outcome = Outcome(capsys, *arguments, str(path))
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err == told * (len(arguments) - len(arguments) // 2)


def test_a_map_on_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, told in ((b"00001000-00001fff : System RAM\n", True), (b"", False)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        outcome = Outcome(capsys, "replay", "-")
        assert outcome.status == 2
        assert ("if it is a map, `memslots map` reads it" in outcome.err) is told


@pytest.mark.parametrize(("path", "reason"), [(".", "is a directory"), ("none", "no such file")])
def test_unusable_paths(path: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", path)
    assert (outcome.status, outcome.out) == (2, "")
    assert reason in outcome.err


def test_the_wrong_format(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--format", "qemu", SEABIOS)
    assert outcome.status == 2
    assert "was QEMU run with -accel kvm and -trace kvm_set_user_memory?" in outcome.err
    outcome = Outcome(capsys, "replay", "--format", "strace", OVMF_QEMU)
    assert outcome.status == 2
    assert "--format qemu" in outcome.err
    assert Outcome(capsys, "replay", "--format", "qemu", OVMF_QEMU).status == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        assert Outcome(capsys, "replay", OVMF).status == 0
        assert gc.isenabled() is enabled
        assert Outcome(capsys, "replay", os.devnull).status != 0
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
