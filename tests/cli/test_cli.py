"""The `memslots` command, from outside; and the examples of its page, docs/command.md."""

from __future__ import annotations

import doctest
import gzip
import io
import json
import lzma
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from needs import need_kvm

import memslots
from memslots import bench
from memslots.bench.questions import Questions
from memslots.cli import main
from memslots.traces.samples import SAMPLES

HERE = Path(__file__).parent.parent
TRACES = HERE / "data" / "traces"
PAGE = HERE.parent / "docs" / "command.md"
SEABIOS = str(TRACES / "qemu-pc-seabios.strace.gz")
OVMF = str(TRACES / "qemu-q35-ovmf-ttt-y.strace.gz")
OVMF_QEMU = str(TRACES / "qemu-q35-ovmf.qemu-trace")
COMMAND = [sys.executable, "-m", "memslots"]


def qemu(slot: int, gpa: int, size: int, ret: int = 0, ua: int = 0x7F0000000000) -> str:
    call = f"Slot#{slot} flags=0x0 gpa={gpa:#x} size={size:#x} ua={ua:#x}"
    return f"kvm_set_user_memory {call} ret={ret}\n"


@pytest.fixture
def disagreeing(tmp_path: Path) -> str:
    path = tmp_path / "bad.log"
    path.write_text(qemu(0, 0, 0x10000) + "other\n" + qemu(1, 0x8000, 0x10000))
    return str(path)


class Outcome:
    """What a run in this process gave."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.status = main(arguments)
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    def __repr__(self) -> str:
        return f"status {self.status}\n{self.out}\n--- stderr\n{self.err}"


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A run in a process of its own."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, **options)


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


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from memslots.cli import main; sys.exit(main(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"pip install 'memslots[cli]'" in done.stderr


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
    """Whole, and only compressed anew."""
    pairs = {
        "qemu-pc-seabios": gzip.decompress(Path(SEABIOS).read_bytes()),
        "qemu-q35-ovmf": gzip.decompress(Path(OVMF).read_bytes()),
        "qemu-pc-hotplug": (TRACES / "qemu-pc-hotplug.qemu-trace").read_bytes(),
    }
    assert pairs.keys() == SAMPLES.keys()
    for name, content in pairs.items():
        with SAMPLES[name].open() as stream:
            assert lzma.decompress(stream.read()) == content


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
        line.split() == ["0", "0xc0000", "0x20000000", "523520", "KiB", "124", "126", "566", "us"]
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
    expected = "1 EEXIST, 1 ENOMEM (1 for reasons outside of the rules, not replayed)"
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
    """Neither rich's markup nor bytes that are not UTF-8 in a file name do harm."""
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
        (b"9 ioctl(9, KVM_RUN, 0) = 0\n", "no memslot call in its 1 line: was strace told"),
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
        assert reason in outcome.err
        if "--json" not in arguments:
            assert outcome.out == ""


@pytest.mark.parametrize(("path", "reason"), [(".", "is a directory"), ("none", "no such file")])
def test_unusable_paths(path: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", path)
    assert (outcome.status, outcome.out) == (2, "")
    assert reason in outcome.err


def test_the_wrong_format(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--format", "qemu", SEABIOS)
    assert outcome.status == 2
    assert "was QEMU run with -trace kvm_set_user_memory?" in outcome.err
    outcome = Outcome(capsys, "replay", "--format", "strace", OVMF_QEMU)
    assert outcome.status == 2
    assert "--format qemu" in outcome.err
    assert Outcome(capsys, "replay", "--format", "qemu", OVMF_QEMU).status == 0


# --- JSON: the document that docs/command.md describes

NUMBER_OR_NONE = (int, type(None))
HEX = re.compile(r"0x[0-9a-f]+")
SLOT_SHAPE: dict[str, Any] = {
    "as_id": int,
    "id": int,
    "flags": str,
    "guest_phys_addr": HEX,
    "memory_size": int,
    "userspace_addr": HEX,
}
SHAPE: dict[str, Any] = {
    "memslots": str,
    "agree": bool,
    "files": [
        {
            "file": str,
            "format": str,
            "agree": bool,
            "lines": {"all": int, "unrelated": int},
            "calls": int,
            "lost": {
                "all": int,
                "may_have_changed_the_map": int,
                "by_reason": dict,
                "first": [{"line": int, "reason": str, "result": (str, type(None)), "text": str}],
            },
            "notes": [str],
            "vms": [
                {
                    "vm": str,
                    "process": NUMBER_OR_NONE,
                    "fd": NUMBER_OR_NONE,
                    "created_line": NUMBER_OR_NONE,
                    "address_spaces": int,
                    "max_slots": int,
                    "calls": int,
                    "operations": dict,
                    "refused": dict,
                    "refused_outside_the_rules": int,
                    "most_slots": int,
                    "disagreements": [
                        {
                            "line": int,
                            **SLOT_SHAPE,
                            "flags": int,
                            "recorded": str,
                            "ours": str,
                            "why": str,
                            "followed": str,
                            "this_kernel": (str, type(None)),
                            "this_kernel_why": str,
                            "this_kernel_followed": str,
                        }
                    ],
                    "gaps": {
                        "all": int,
                        "total_ns": NUMBER_OR_NONE,
                        "longest_ns": NUMBER_OR_NONE,
                        "ranges": [
                            {
                                "as_id": int,
                                "guest_phys_addr": HEX,
                                "memory_size": int,
                                "opened_line": int,
                                "closed_line": int,
                                "duration_ns": NUMBER_OR_NONE,
                            }
                        ],
                    },
                    "final_map": [SLOT_SHAPE],
                    "differ": dict,
                    "this_kernel": (dict, type(None)),
                }
            ],
        }
    ],
}
LIVE_SHAPE: dict[str, Any] = {
    "limits": {"max_slots": int, "address_spaces": int, "max_gfn": HEX, "max_hva": HEX},
    "slots": int,
    "missing": [SLOT_SHAPE],
    "others": [SLOT_SHAPE],
}


TIMING_SHAPE: dict[str, Any] = {
    "median": float,
    "lower_quartile": float,
    "upper_quartile": float,
    "rounds": int,
    "samples": int,
    "seconds_per_operation": float,
}
BENCH_SHAPE: dict[str, Any] = {
    "memslots": str,
    "machine": {
        "cpu": str,
        "cpus": int,
        "memory": NUMBER_OR_NONE,
        "kernel": str,
        "python": str,
    },
    "date": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"),
    "effort": str,
    "seconds": float,
    "measured": str,
    "versions": dict,
    "not_installed": dict,
    "series": [
        {
            "test": str,
            "slots": int,
            "seconds_of": str,
            "operations": int,
            "before": {**TIMING_SHAPE, "share": float},
            "after": {**TIMING_SHAPE, "share": float},
            "loop": TIMING_SHAPE,
            "improvement": float,
            "reported": (float, type(None)),
            "above": (bool, type(None)),
        }
    ],
    "against": [
        {
            "test": str,
            "case": str,
            "slots": int,
            "seconds_of": str,
            "operations": int,
            "structures": [{"structure": str, **TIMING_SHAPE, "ratio": float}],
        }
    ],
}


def assert_shape(value: Any, shape: Any, where: str = "$") -> None:
    if isinstance(shape, dict):
        assert value.keys() == shape.keys(), where
        for key, part in shape.items():
            assert_shape(value[key], part, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            assert_shape(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, re.Pattern):
        assert shape.fullmatch(value), where
    else:
        assert isinstance(value, shape), where


def keys_of(shape: Any) -> Iterator[str]:
    if isinstance(shape, dict):
        for key, part in shape.items():
            yield key
            yield from keys_of(part)
    elif isinstance(shape, list):
        yield from keys_of(shape[0])


def test_json(disagreeing: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--json", SEABIOS, OVMF, disagreeing)
    assert (outcome.status, outcome.err) == (1, "")
    document = json.loads(outcome.out)
    assert_shape(document, SHAPE)
    first, second, third = document["files"]
    assert (document["agree"], first["agree"], third["agree"]) == (False, True, False)
    assert first["lines"] == {"all": 6856, "unrelated": 6819}
    (vm,) = first["vms"]
    assert vm["operations"] == {"CREATE": 23, "DELETE": 14}
    assert vm["final_map"][-1] == {
        "as_id": 0,
        "id": 1,
        "flags": "READONLY",
        "guest_phys_addr": "0xfffc0000",
        "memory_size": 262144,
        "userspace_addr": "0x7f7053200000",
    }
    gaps = second["vms"][0]["gaps"]
    assert (gaps["all"], gaps["total_ns"], gaps["longest_ns"]) == (5, 2_795_000, 842_000)
    assert third["vms"][0]["disagreements"][0]["line"] == 3
    assert third["vms"][0]["differ"] == {"recorded and memslots": 1}
    for file in document["files"]:
        assert [vm["this_kernel"] for vm in file["vms"]] == [None]


def test_json_with_this_kernel(disagreeing: str, capsys: pytest.CaptureFixture[str]) -> None:
    need_kvm()
    outcome = Outcome(capsys, "replay", "--kvm", "--json", SEABIOS, disagreeing)
    assert (outcome.status, outcome.err) == (1, "")
    document = json.loads(outcome.out)
    assert_shape(document, SHAPE)
    first, second = (file["vms"][0] for file in document["files"])
    for vm in (first, second):
        assert_shape(vm["this_kernel"], LIVE_SHAPE)
        assert vm["this_kernel"]["slots"] == len(vm["final_map"])
    assert (first["disagreements"], first["differ"]) == ([], {})
    (found,) = second["disagreements"]
    results = found["recorded"], found["ours"], found["this_kernel"]
    assert results == ("success", "EEXIST", "EEXIST")
    assert second["differ"] == {"recorded and memslots": 1, "recorded and this kernel": 1}


def test_json_of_an_unusable_file(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--json", "missing", OVMF_QEMU)
    assert outcome.status == 2
    document = json.loads(outcome.out)
    assert document["agree"] is False
    assert document["files"][0] == {
        "file": "missing",
        "error": {"line": None, "reason": "no such file or directory"},
    }
    assert document["files"][1]["calls"] == 21


def test_the_page_names_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    answer = {"answers", "gpa", "slot", "hva", "writable", "rule"}
    keys = {*keys_of(SHAPE), *keys_of(LIVE_SHAPE), *keys_of(BENCH_SHAPE), *answer}
    missing = [key for key in keys if f"`{key}`" not in page]
    assert missing == []


# --- lookup


def looked_up(outcome: Outcome) -> list[list[str]]:
    return [line.split(maxsplit=4) for line in outcome.out.splitlines()]


def test_lookup(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(
        capsys, "lookup", SEABIOS, "0xf1234", "0xA0000", "655359", "0xfffc0010", hex(2**64 - 1)
    )
    assert (outcome.status, outcome.err) == (0, "")
    head, *rows = looked_up(outcome)
    assert head == ["gpa", "space", "slot", "hva", "rule"]
    assert [row[:4] for row in rows] == [
        ["0xf1234", "0", "7", "0x7f703bef1234"],
        ["0xa0000", "0", "-", "-"],
        ["0x9ffff", "0", "0", "0x7f703be9ffff"],
        ["0xfffc0010", "0", "1", "0x7f7053200010"],
        ["0xffffffffffffffff", "0", "-", "-"],
    ]
    rules = [row[4] for row in rows]
    assert rules[0] == "0xf0000 <= 0xf1234 < 0x100000: 0x7f703bef0000 + (0xf1234 - 0xf0000)"
    assert rules[1] == "no slot: slot 0 below ends at 0xa0000, slot 2 above begins at 0xc0000"
    assert "read-only" in rules[3]
    assert rules[4] == "no slot: slot 1 below ends at 0x100000000"


def test_lookup_in_a_sample(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "lookup", "--sample", "qemu-pc-hotplug", "4294967296")
    assert looked_up(outcome)[1][:4] == ["0x100000000", "0", "9", "0x7fa212c00000"]


def test_lookup_in_two_spaces_and_two_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    text = qemu(0, 0, 0x10000) + qemu(0x10001, 0, 0x1000, 0, 0x7E0000000000)
    path.write_text("1@1.000000:" + qemu(0, 0, 0x2000, 0, 0x7D0000000000) + text)
    outcome = Outcome(capsys, "lookup", str(path), "0x800", "0x10000")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "VM 1 of 2: process 1"
    assert lines[7] == "VM 2 of 2: the VM"
    assert [row[:4] for row in looked_up(outcome)[9:]] == [
        ["0x800", "0", "0", "0x7f0000000800"],
        ["0x800", "1", "1", "0x7e0000000800"],
        ["0x10000", "0", "-", "-"],
        ["0x10000", "1", "-", "-"],
    ]
    assert "this address space is empty" in outcome.out


def test_lookup_json(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "lookup", "--json", SEABIOS, "0xf1234", "0xa0000")
    document = json.loads(outcome.out)
    assert document["agree"] is True
    assert document["lost"] == 0
    assert document["answers"][0] == {
        "vm": "process 8379, fd 8",
        "process": 8379,
        "fd": 8,
        "as_id": 0,
        "gpa": "0xf1234",
        "slot": 7,
        "hva": "0x7f703bef1234",
        "writable": True,
        "rule": "0xf0000 <= 0xf1234 < 0x100000: 0x7f703bef0000 + (0xf1234 - 0xf0000)",
    }
    assert (document["answers"][1]["slot"], document["answers"][1]["hva"]) == (None, None)


def test_lookup_in_a_doubtful_map(disagreeing: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "lookup", disagreeing, "0")
    assert outcome.status == 1
    assert "1 of 2 results disagree" in outcome.err


# --- bench: what it measures is in test_bench.py

QUICK = ["bench", "--quick"]
#: For those that are not about the figures.
ONE_TEST = [*QUICK, "--test", "setup", "--slots", "10"]
RIVALS = ["sortedcontainers", "BTrees", "superintervals", "numpy", "numba"]


def run_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A run in which none of the modules can be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"
        "from memslots.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60)


def test_bench_json(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, *QUICK, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    document = json.loads(outcome.out)
    assert_shape(document, BENCH_SHAPE)
    rows = document["series"]
    assert [(row["test"], row["slots"]) for row in rows] == [
        (test, slots) for test in bench.TESTS for slots in bench.QUICK_SLOTS
    ]
    assert [(each["test"], each["case"], each["slots"]) for each in document["against"]] == [
        (case.test, case.name, slots) for case in bench.CASES for slots in bench.QUICK_SLOTS
    ]
    for row in rows:
        assert row["improvement"] == row["before"]["median"] / row["after"]["median"]
        for timing in (row["before"], row["after"]):
            assert 0 < timing["lower_quartile"] <= timing["median"] <= timing["upper_quartile"]
            assert 0 < timing["share"] <= 1
            assert timing["seconds_per_operation"] == timing["median"] / row["operations"]
        assert (row["reported"] is None) == (row["above"] is None)
        if row["above"] is not None:
            assert row["above"] == (row["improvement"] > row["reported"])
    for each in document["against"]:
        ours, *others = each["structures"]
        assert (ours["structure"], ours["ratio"]) == ("memslots", 1)
        assert others
        for other in others:
            assert other["ratio"] == other["median"] / ours["median"]


def test_bench_of_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--test", "rw", "--test", "changes", "--slots", "30", "--slots", "7"]
    document = json.loads(Outcome(capsys, *QUICK, *arguments, "--json").out)
    assert [(row["test"], row["slots"]) for row in document["series"]] == [("rw", 7), ("rw", 30)]
    assert [(each["test"], each["slots"]) for each in document["against"]] == [
        ("changes", 7),
        ("changes", 30),
    ]
    document = json.loads(Outcome(capsys, *ONE_TEST, "--no-against", "--json").out)
    assert document["not_installed"] == {}  # nothing was asked of them
    assert (document["against"], document["versions"]) == ([], {})


def test_bench_tables(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, *QUICK, "--slots", "509")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert "no page tables, no TLB flushes, no guest" in lines[2]
    assert not any(line != line.rstrip() for line in lines)
    time = r"\d+(\.\d+)? (ns|us|ms|s)"
    for test in bench.TESTS.values():
        reported = r"\S+ x +(yes|no)" if 509 in test.reported else "- +-"
        row = rf"  {test.title} +{test.of} +509 +{time} +{time} +\S+ x +{reported}"
        assert [line for line in lines if re.fullmatch(row, line)], outcome
    for case in bench.CASES:
        head = f"{case.title}: the time of {case.of}, and over that of memslots"
        below = lines[lines.index(head) + 1 :]
        assert below[0].split() == ["structure", "509", "slots", "ratio"]
        assert re.fullmatch(rf"  memslots +{time} +1\.00", below[1])


def test_bench_without_rivals() -> None:
    done = run_without(RIVALS, *QUICK, "--slots", "10", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert document["versions"] == dict.fromkeys(RIVALS)
    assert document["not_installed"] == {
        structure.name: list(structure.requires)
        for structure in bench.STRUCTURES
        if structure.requires
    }
    shown = {each["structure"] for case in document["against"] for each in case["structures"]}
    assert shown == {"memslots", "array of Linux 5.16", "list + bisect", "(the loop alone)"}
    done = run_without(["BTrees", "numba"], *QUICK, "--slots", "10", "--test", "single")
    assert done.returncode == 0
    assert b"\nnot installed: LLBTree (pip install BTrees)\n" in done.stdout
    assert b"\nnot installed: numba binary search (pip install " in done.stdout


@pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<?xml"), ("b.PNG", b"\x89PNG\r\n")])
def test_bench_plot(name: str, magic: bytes, tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    path = tmp_path / name
    done = run(*QUICK, "--plot", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert path.read_bytes().startswith(magic)
    if name.endswith("svg"):
        text = path.read_text(encoding="utf-8")
        drawn = {test.title for test in bench.TESTS.values()} | {"Single, random", "Changes"}
        assert [title for title in drawn if f"<!-- {title}" not in text] == []
    done = run(*ONE_TEST, "--plot", str(tmp_path))
    assert done.returncode == 2


def test_bench_plot_where_nothing_can_be_written() -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    done = run(*ONE_TEST, "--plot", "/proc/figure.svg")
    assert done.returncode == 2
    assert done.stderr.startswith(b"memslots: /proc/figure.svg: ")
    assert done.stderr.count(b"\n") == 1
    assert b"Slot setup" in done.stdout  # what was measured is not lost


def test_bench_plot_without_matplotlib(tmp_path: Path) -> None:
    done = run_without(["matplotlib"], "bench", "--plot", str(tmp_path / "a.svg"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"memslots: --plot needs matplotlib: pip install 'memslots[plot]'\n"
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_wrong_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Questions, "answer", lambda self, gfn: -1)
    outcome = Outcome(capsys, *QUICK, "--test", "single", "--slots", "10")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("memslots: a wrong answer: memslots: found [")
    assert outcome.err.count("\n") == 1


# --- terminals, pipes and signals


def long_trace(path: Path) -> bytes:
    line = b"8379  futex(0x7f0000000000, FUTEX_WAIT_PRIVATE, 2, NULL) = 0\n"
    call = b"8379  ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, "
    call += b"memory_size=4096, userspace_addr=0x1000}) = 0\n"
    content = call + line * 120_000
    path.write_bytes(content)
    return content


def on_terminal(arguments: list[str], stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Run with standard error on a terminal: status, standard output, what the terminal got."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*COMMAND, *arguments],
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
        except OSError:  # how Linux tells that the other side is closed
            break
        seen += data
        if not data:
            break
    with process.stdout as stdout:
        out = stdout.read()
    os.close(ours)
    return process.wait(30), out, seen


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
    assert process.wait(30) == 1
    assert b"\x1b[1;31m" in seen


@pytest.mark.parametrize("arguments", [["replay", SEABIOS, SEABIOS], ONE_TEST])
def test_a_reader_who_has_had_enough(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(30) == 141


def test_interrupted() -> None:
    process = subprocess.Popen(
        [*COMMAND, "replay", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    # More than a pipe holds: once this is written, the command is reading.
    process.stdin.write(qemu(0, 0, 0x1000).encode() * 20_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert err.strip() == b"memslots: interrupted"


def test_bench_interrupted() -> None:
    """In the middle of a test that has a second thread."""
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
    out, _ = process.communicate(timeout=30)
    os.close(ours)
    assert (process.returncode, out) == (130, b"")


# --- the page's examples


def blocks(kind: str) -> list[tuple[int, str]]:
    """Line and text of each fenced block of `kind`."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in found]


def test_the_page_has_no_other_blocks() -> None:
    kinds = set(re.findall(r"^```(\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert kinds == {"console", "pycon", "sh"}  # sh: how to record, which needs a VM


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
    assert check_examples(workplace, lambda command: "--kvm" not in command) == 10


def test_console_examples_of_this_kernel(workplace: Path) -> None:
    need_kvm()
    # What the page has made before them.
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
