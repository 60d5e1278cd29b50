"""Tests `memslots lookup`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import SEABIOS, Outcome, looked_up, qemu


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
