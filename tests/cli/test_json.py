"""Tests the JSON document that docs/command.md describes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import (
    BENCH_SHAPE,
    NUMBER_OR_NONE,
    OVMF,
    OVMF_QEMU,
    PAGE,
    SEABIOS,
    Outcome,
    assert_shape,
)
from needs import need_kvm
from stracetext import CALL

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
                    "times": (dict, type(None)),
                    "final_map": [SLOT_SHAPE],
                    "differ": dict,
                    "this_kernel": (dict, type(None)),
                }
            ],
        }
    ],
}
COST_SHAPE: dict[str, Any] = {"calls": int, "total_ns": int, "longest_ns": int}
TIMES_SHAPE: dict[str, Any] = {
    **COST_SHAPE,
    "by_kind": dict,
    "slowest": [{"kind": str, "duration_ns": int, "line": int, **SLOT_SHAPE, "flags": int}],
}
LIVE_SHAPE: dict[str, Any] = {
    "limits": {"max_slots": int, "address_spaces": int, "max_gfn": HEX, "max_hva": HEX},
    "slots": int,
    "missing": [SLOT_SHAPE],
    "others": [SLOT_SHAPE],
}


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


def test_json_with_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace"
    first, second = CALL + " <0.000094>\n", CALL.replace("8192", "0") + " <0.000170>\n"
    trace.write_text(first + second)
    (file,) = json.loads(Outcome(capsys, "replay", "--json", str(trace)).out)["files"]
    times = file["vms"][0]["times"]
    assert_shape(times, TIMES_SHAPE)
    assert (times["calls"], times["total_ns"], times["longest_ns"]) == (2, 264_000, 170_000)
    assert times["by_kind"] == {
        "CREATE": {"calls": 1, "total_ns": 94_000, "longest_ns": 94_000},
        "DELETE": {"calls": 1, "total_ns": 170_000, "longest_ns": 170_000},
    }
    slowest = [(each["kind"], each["line"], each["duration_ns"]) for each in times["slowest"]]
    assert slowest == [("DELETE", 2, 170_000), ("CREATE", 1, 94_000)]
    assert times["slowest"][1]["memory_size"] == 8192
    told = "in kernel   2 calls, 264 us in all, the longest 170 us: line 2, DELETE of slot 1"
    assert told in Outcome(capsys, "replay", str(trace)).out
    trace.write_text(CALL + "\n")
    (file,) = json.loads(Outcome(capsys, "replay", "--json", str(trace)).out)["files"]
    assert file["vms"][0]["times"] is None
    assert "in kernel" not in Outcome(capsys, "replay", str(trace)).out


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
    shapes = (SHAPE, LIVE_SHAPE, TIMES_SHAPE, BENCH_SHAPE)
    keys = {*answer, *(key for shape in shapes for key in keys_of(shape))}
    missing = [key for key in keys if f"`{key}`" not in page]
    assert missing == []
