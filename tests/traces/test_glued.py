"""Reads lines of which several are one: the line end is missing, or a message came between.

Each memslot call is read or counted as lost, with its own result.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest
from stracetext import CALL, STRUCT

from memslots.traces import Format, RegionCall, Trace, VmCreated, open_trace

SECOND = CALL.replace("slot=1", "slot=2")
FAILED = CALL.replace("= 0", "= -1 EEXIST (File exists)")
BEGUN = CALL.replace(") = 0", " <unfinished ...>")
MESSAGE = "strace: Process 9 attached"
EVENT = "kvm_set_user_memory Slot#1 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=0"
NO_RESULT = "the line has no result (cut off?)"
NEVER = "unfinished, and never resumed"


def read(text: str, format: Format = "auto") -> tuple[list[tuple[int, int]], Trace]:
    """Returns (slot, errno) of each call, and the trace."""
    with open_trace("trace", format, io.BytesIO(text.encode())) as trace:
        calls = [event for event in trace if isinstance(event, RegionCall)]
    return [(call.slot, call.errno) for call in calls], trace


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"{MESSAGE}{CALL}", [(1, 0)]),
        (f"{MESSAGE}[pid 9] {CALL}\n{SECOND}", [(1, 0), (2, 0)]),
        (f"{CALL}{MESSAGE} {MESSAGE} {SECOND}", [(1, 0), (2, 0)]),
        (f"{CALL[:50]}{MESSAGE}\n\n\n{CALL[50:]}", [(1, 0)]),
        (f"{MESSAGE} with 3 threads\n{CALL}", [(1, 0)]),
    ],
)
def test_a_message_of_strace_in_a_line(text: str, calls: list[tuple[int, int]]) -> None:
    found, trace = read(text + "\n")
    assert (found, trace.counts.lost_total) == (calls, 0)


def test_what_a_message_stands_before_is_no_part_of_a_call_that_was_cut() -> None:
    found, trace = read(f"{CALL[:-5]}{MESSAGE} {SECOND}\n")
    assert (found, dict(trace.counts.lost)) == ([(2, 0)], {NO_RESULT: 1})


@pytest.mark.parametrize("at", range(1, len(CALL)))
def test_the_first_line_may_be_interrupted_anywhere(at: int) -> None:
    raw = CALL.replace("KVM_SET_USER_MEMORY_REGION", "0x4020ae46")
    found, trace = read(f"{raw[:at]}{MESSAGE}\n{raw[at:]}\n{SECOND}\n")
    assert (found, trace.counts.lost_total) == ([(1, 0), (2, 0)], 0)


def test_qemus_log_with_strace_s_message_in_a_line() -> None:
    found, trace = read(f"Booting{MESSAGE}\n{EVENT}\n")
    assert (found, trace.format) == ([(1, 0)], "qemu")


@pytest.mark.parametrize("end", ["", " | "])
@pytest.mark.parametrize(
    "other",
    ["close(5) = 0", "[pid 7] <... ioctl resumed>) = 0", "[pid 7] ioctl(9, KVM_RUN, 0) = 0"],
)
def test_a_result_is_that_of_the_call(other: str, end: str) -> None:
    assert read(f"{FAILED}{end}{other}\n")[0] == [(1, 17)]
    for ended in (") = ?", ")=0", ""):
        found, trace = read(f"{CALL[:-5]}{ended}{end}{other}\n{SECOND}\n")
        assert (found, trace.counts.lost_total) == ([(2, 0)], 1)


def test_a_vm_and_another_call_in_one_line() -> None:
    text = f"ioctl(3, KVM_CREATE_VM, 0) = 9 close(5) = 0\n{CALL}\n"
    with open_trace("trace", "auto", io.BytesIO(text.encode())) as trace:
        created = next(iter(trace))
    assert isinstance(created, VmCreated)
    assert created.fd == 9


@pytest.mark.parametrize("raw", ["0x4020ae46", "_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)"])
def test_a_call_without_the_line_before(raw: str) -> None:
    begun = f"{CALL}\n{raw}, {STRUCT[:30]}\n{STRUCT[30:]}) = 0\n"
    assert dict(read(begun)[1].counts.lost) == {"the line's beginning is missing": 1}
    assert read(f"{CALL}\nl(8, {raw}, {STRUCT}) = 0\n")[1].counts.lost_total == 1
    assert read(f"{CALL}\n[pid 7] <... ioctl resumed>, {STRUCT}) = 0\n")[1].counts.lost_total == 1
    quoted = f'{CALL}\nwrite(1, "{raw}, {STRUCT}", 99) = 99\n'
    assert read(quoted)[1].counts.lost_total == 0


def test_a_number_of_a_descriptor_in_hexadecimal_in_the_first_line() -> None:
    first = "> ioctl(0x8, 0x4020ae46, 0x7ffd0001)"
    assert read(f"{first}\n{CALL}\n")[1].counts.lost_total == 1


def test_text_directly_behind_the_name_of_the_request() -> None:
    text = f"{CALL}\nioctl(8, KVM_SET_USER_MEMORY_REGIONhello\n"
    assert read(text)[1].counts.lost_total == 1


def test_a_call_in_front_of_one_with_a_known_beginning() -> None:
    found, trace = read(f" | x.c:12:{CALL} [pid 8] {BEGUN}\n")
    assert (found, dict(trace.counts.lost)) == ([(1, 0)], {NEVER: 1})


def test_a_whole_call_in_front_of_one_that_was_cut() -> None:
    text = f"[pid 7] {CALL} [pid 8] futex(0x7f <unfinished ...>\n[pid 7] {SECOND}\n"
    assert read(text)[0] == [(1, 0), (2, 0)]


def test_a_call_that_another_name_resumes_was_not_resumed() -> None:
    found, trace = read(f"[pid 7] {BEGUN}\n[pid 7] <... futex resumed>) = 0\n{SECOND}\n")
    assert (found, dict(trace.counts.lost)) == ([(2, 0)], {NEVER: 1})


def test_two_events_of_qemu_in_one_line() -> None:
    second = EVENT.replace("#1", "#2")
    assert read(f"{EVENT}{second}\n")[0] == [(1, 0), (2, 0)]
    failed = EVENT.replace("ret=0", "ret=-17")
    found, trace = read(f"{failed}8@1.000002:{second}\n")  # -17, or -178 of thread @1?
    assert (found, trace.counts.lost_total) == ([(2, 0)], 1)


@pytest.mark.parametrize(
    "event",
    [
        EVENT.replace("Slot#1", "AddrSpace#1 Slot#65537"),
        "kvm_set_user_memory 1.000 pid=7 as=0x1 slot=0x10001 flags=0x0 guest_phys_addr=0x0 "
        "memory_size=0x1000 userspace_addr=0x0 fd=0x0 fd_offset=0x0 ret=0x0",
    ],
)
def test_a_slot_that_reaches_into_the_bits_of_the_space(event: str) -> None:
    found, trace = read(f"{EVENT}\n{event}\n")
    assert (found, trace.counts.lost_total) == ([(1, 0)], 1)


# A line of any length takes the same time for each byte.

LINES: dict[str, tuple[Format, Callable[[int], str]]] = {
    "bytes": ("strace", lambda size: "\1" * size + "MEMORY_REGION"),
    "one word": ("strace", lambda size: "A" * size + "MEMORY_REGION"),
    "names of threads": ("strace", lambda size: "? " + " 1<" * (size // 3) + " MEMORY_REGION"),
    "other pids": ("strace", lambda size: "? " + " 1 /*" * (size // 16) + " MEMORY_REGION"),
    "backslashes": ("strace", lambda size: 'write(1, "' + "\\" * size + " ioctl( MEMORY_REGION"),
    "calls in a string": (
        "strace",
        lambda size: '? MEMORY_REGION write(1, "' + " ioctl(8, " * (size // 10) + '")',
    ),
    "numbers in a string": (
        "strace",
        lambda size: 'write(1, "sys_ioctl(8, 0x4020ae46, 0x7)") = 1 ' * (size // 36),
    ),
    "messages": (
        "strace",
        lambda size: "recvmsg(5, " + "cmsg_type=SCM_RIGHTS, cmsg_data=[ " * (size // 8) + ") = 1",
    ),
    "calls": ("strace", lambda size: f"[pid 7] {CALL} " * (size // 16)),
    "structs": ("strace", lambda size: "guest_phys_addr=" * (size // 4) + "MEMORY_REGION"),
    "events": ("auto", lambda size: f"{EVENT} " * (size // 16)),
    "names of events": ("qemu", lambda size: "kvm_set_user_memory " * (size // 8)),
    "digits": ("qemu", lambda size: "1" * size + " kvm_set_user_memory"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_long_line_takes_no_longer_for_each_byte(name: str) -> None:
    format, line = LINES[name]
    first = CALL if format == "strace" else EVENT

    def seconds(size: int) -> float:
        text = f"{first}\n{line(size)}\n"
        began = time.process_time()
        read(text, format)
        return time.process_time() - began

    small = large = float("inf")
    for _ in range(7):  # another program may disturb one of them
        small = min(small, seconds(1 << 13))
        large = min(large, seconds(1 << 16))
        if large < 24 * small:
            return
    # Eight times the length takes 8 times as long; 64 times if the time is quadratic.
    raise AssertionError(f"{small:.4f} s, {large:.4f} s for eight times the length")
