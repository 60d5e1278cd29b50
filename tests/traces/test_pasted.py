"""Traces as people paste them: whatever surrounds the calls, none is lost silently."""

from __future__ import annotations

import html
import io
import quopri
import random
import textwrap
from collections.abc import Callable

import pytest

from memslots.traces import RegionCall, open_trace

HVA = 0x7F0000000000


def strace_line(slot: int, gpa: int, size: int, result: str, pid: int) -> str:
    region = f"slot={slot}, flags=0, guest_phys_addr={gpa:#x}, memory_size={size}"
    call = f"ioctl(13, KVM_SET_USER_MEMORY_REGION, {{{region}, userspace_addr={HVA:#x}}})"
    return f"[pid {pid}] {call} = {result}"


def qemu_line(slot: int, gpa: int, size: int, result: str, pid: int) -> str:
    ret = -17 if "EEXIST" in result else 0
    call = f"kvm_set_user_memory Slot#{slot} flags=0x0 gpa={gpa:#x} size={size:#x} ua={HVA:#x}"
    return f"{pid}@1587736345.192636:{call} ret={ret}"


Wrap = Callable[[list[str], random.Random], list[str]]


def quoted(lines: list[str], choose: random.Random) -> list[str]:
    mark = choose.choice(["> ", ">> ", "> > ", "| "])
    return [mark + line for line in lines]


def timed(lines: list[str], choose: random.Random) -> list[str]:
    return [f"2026-03-02T10:11:{n % 60:02}.123Z {line}" for n, line in enumerate(lines)]


def coloured(lines: list[str], choose: random.Random) -> list[str]:
    return [f"\x1b[32m{line}\x1b[0m" for line in lines]


def escaped(lines: list[str], choose: random.Random) -> list[str]:
    return ["<pre>", *(html.escape(line) + "&gt;" for line in lines), "</pre>"]


def spaced(lines: list[str], choose: random.Random) -> list[str]:
    return [line.replace(" ", "\u00a0") for line in lines]


def windows(lines: list[str], choose: random.Random) -> list[str]:
    return [line + "\r" for line in lines]


def wrapped(lines: list[str], choose: random.Random) -> list[str]:
    width = choose.choice([60, 72, 78, 100])
    found: list[str] = []
    for line in lines:
        found += textwrap.wrap(
            line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
        ) or [""]
    return found


def printable(lines: list[str], choose: random.Random) -> list[str]:
    text = "\n".join(lines).encode() + b"\n"
    return quopri.encodestring(text).decode("ascii").splitlines()


INNER: list[Wrap] = [coloured, spaced, escaped]
OUTER: list[Wrap] = [wrapped, quoted, timed, windows, printable]


@pytest.mark.parametrize("line_of", [strace_line, qemu_line])
@pytest.mark.parametrize("seed", range(60))
def test_calls_and_lost_are_all_calls(line_of: Callable[..., str], seed: int) -> None:
    choose = random.Random(seed)
    calls = [
        (n % 8, choose.randrange(64) << 16, choose.choice([0, 0x10000]), n)
        for n in range(choose.randrange(1, 30))
    ]
    lines = []
    for slot, gpa, size, _ in calls:
        result = choose.choice(["0", "0", "-1 EEXIST (File exists)"])
        lines.append(line_of(slot, gpa, size, result, 100))
        if choose.random() < 0.2:
            lines.append(choose.choice(["", "So what?", "-- ", "Booting from ROM..."]))
    used = [wrap for wrap in INNER if choose.random() < 0.3]
    # Mails change a text in this order; the last wrapping needs an unchanged text.
    used += [wrap for wrap in OUTER if choose.random() < 0.4 and not (wrap is wrapped and used)]
    for wrap in used:
        lines = wrap(lines, choose)
    names = [wrap.__name__ for wrap in used]
    stream = io.BytesIO(("\n".join(lines) + "\n").encode())
    with open_trace("pasted", "auto", stream) as trace:
        events = [event for event in trace if isinstance(event, RegionCall)]
    assert trace.counts.calls + trace.counts.lost_total == len(calls), names
    found = [(event.slot, event.guest_phys_addr, event.memory_size) for event in events]
    if trace.counts.lost_total == 0:
        assert found == [call[:3] for call in calls], names
    numbers = [event.line for event in events]
    assert numbers == sorted(numbers), names
    assert all(number <= len(lines) for number in numbers), names
