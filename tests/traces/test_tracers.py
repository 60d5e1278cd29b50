"""Memslot calls that tracers other than strace printed: each is counted as lost, once."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from stracetext import CALL, read

from memslots.replay import replay
from memslots.traces import Counts, TraceError, open_trace

CALLED = re.compile("1075883590|4020ae46|KVM_SET_USER_MEMORY_REGION")
#: Two calls, the second of which failed, as each tracer prints them.
DATA = Path(__file__).parents[1] / "data" / "tracers"
TRACERS = {path.stem: path.read_text(encoding="ascii") for path in sorted(DATA.iterdir())}
#: Linux printed no 0x for a long time.
TRACERS["ftrace without 0x"] = TRACERS["ftrace"].replace("0x", "")


def counts_of(text: str) -> Counts:
    with open_trace("recorded", stream=io.BytesIO(text.encode())) as trace:
        assert list(trace) == [] or trace.counts.calls == 0 or CALL in text
        return trace.counts


@pytest.mark.parametrize("name", TRACERS)
def test_each_call_is_lost_once(name: str) -> None:
    text = TRACERS[name]
    counts = counts_of(text)
    assert (counts.calls, counts.lost_total) == (0, 2)
    numbered = list(enumerate(text.splitlines(), 1))
    first = next(number for number, line in numbered if CALLED.search(line))
    assert counts.first_lost[0].line == first
    assert all("struct" in lost.reason or "no result" in lost.reason for lost in counts.first_lost)


@pytest.mark.parametrize("name", TRACERS)
def test_behind_a_strace(name: str) -> None:
    """Two recordings in one file: the strace's calls are read, and the others are lost."""
    filling = "7 ioctl(18, KVM_RUN, 0) = 0\n" * 10
    counts = counts_of(f"{CALL}\n{filling}{TRACERS[name]}{filling}{CALL}\n")
    assert (counts.calls, counts.lost_total) == (2, 2)


def test_what_a_call_answered() -> None:
    answers = [lost.errno for lost in counts_of(TRACERS["ltrace-s"]).first_lost]
    assert answers == [None, None]
    system_calls = "\n".join(line for line in TRACERS["ltrace-s"].splitlines() if " SYS_" in line)
    assert [lost.errno for lost in counts_of(system_calls).first_lost] == [0, 5]


def test_a_program_that_calls_twice_with_one_address() -> None:
    assert counts_of(TRACERS["ltrace-s"] * 3).lost_total == 6
    assert counts_of(TRACERS["ftrace-both"] * 3).lost_total == 6
    assert counts_of(TRACERS["ltrace"] * 3).lost_total == 6


def test_the_long_struct() -> None:
    counts = counts_of(TRACERS["ltrace"].replace("1075883590", "1084272201"))
    assert counts.lost_total == 2
    assert counts_of(TRACERS["ftrace"].replace("4020ae46", "40a0ae49")).lost_total == 2


@pytest.mark.parametrize(
    "text",
    [
        "#define KVM_SET_USER_MEMORY_REGION 0x4020ae46",
        "the number 1075883590",
        "ioctl(4, 10758835901, 0x7ffd) = 0",
        "ioctl(4, 0x14020ae46, 0x7ffd) = 0",
        '501 write(1, "ioctl(4, 1075883590, 0x7ffd) = 0", 33) = 33',
        '501 write(1, "sys_ioctl(fd: 4, cmd: 4020ae46, arg: 7ffd)", 33) = 33',
        "             vmm-10814   [000] ..... 15021.763230: sys_ioctl(fd: 3, cmd: 0xae01, arg: 0)",
        "mmap(0x4020ae46000, 4096) = 0x4020ae46000",
        "4321@1772446272.345600:kvm_vm_ioctl type 0x4020ae46, arg 0x7ffe13b0c970",
    ],
)
def test_what_is_no_call(text: str) -> None:
    _, trace = read(f"{CALL}\n{text}\n")
    assert (trace.counts.calls, trace.counts.lost_total) == (1, 0)


def test_a_trace_of_another_tracer_cannot_be_replayed() -> None:
    with (
        open_trace("recorded", stream=io.BytesIO(TRACERS["ftrace"].encode())) as trace,
        pytest.raises(TraceError, match=r"line 5.*none of its 2 memslot calls.*prints no struct"),
    ):
        replay(trace)
