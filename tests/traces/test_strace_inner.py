"""Memslot calls inside other text: each is read, or counted as lost."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stracetext import CALL, STRUCT, calls, read

from memslots.traces import FdClosed, TaskEnded, VmCreated
from memslots.traces.strace_inner import memslot_calls

FAILED = CALL.replace("= 0", "= -1 EEXIST (File exists)")
RAW = "ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffd12345678) = 0"


def counted(text: str) -> tuple[int, int]:
    """Returns how many calls were read, and how many were lost."""
    _, trace = read(text)
    return trace.counts.calls, trace.counts.lost_total


@pytest.mark.parametrize(
    "before",
    [
        'Command line: root=/dev/vda init="/bin/sh" console',
        'he said "',
        "it's ",
        '"',
        '{"QMP": {"version": {}}}',
        "main(",
        'panic("one", "two") ',
        'panic("one", "two") = "three" ',
        "501 close(7) = 0 ",
        "init(1): ",
        "[    0.10] write(1, ",
        "\x1b[0m",
        "é—",
        'x="1" [1] ',
    ],
)
def test_a_call_that_runs_into_other_text_is_read(before: str) -> None:
    _, trace = read(f"{CALL}\n{before}{FAILED}\n")
    assert (trace.counts.calls, trace.counts.lost_total, trace.counts.unrelated) == (2, 0, 0)
    last = calls(f"{CALL}\n{before}[pid   505] 12:00:00.5 {FAILED}\n")[-1]
    assert (last.tid, last.time_ns, last.errno) == (505, 43200_500_000_000, 17)


@pytest.mark.parametrize(
    "name", ["<anon_inode:[kvm-vm]>", "<anon_inode:kvm-vm>", "</x<char 10:2>>"]
)
def test_a_descriptor_with_a_name_behind_other_text(name: str) -> None:
    assert counted(f'{CALL}\nhello "x{CALL.replace("8", f"8{name}", 1)}\n') == (2, 0)


@pytest.mark.parametrize("gap", ["", " ", " [pid 5] ", ' "', "\\n"])
def test_calls_that_lost_their_line_ends_are_read_with_their_own_results(gap: str) -> None:
    _, trace = read(f"{CALL}{gap}{FAILED}{gap}{CALL}\n")
    assert (trace.counts.calls, trace.counts.lost_total, trace.counts.unrelated) == (3, 0, 0)
    assert [call.errno for call in calls(f"{CALL}{gap}{FAILED}{gap}{CALL}\n")] == [0, 17, 0]


def test_of_two_calls_on_a_line_the_one_without_a_result_is_lost() -> None:
    _, trace = read(f"{CALL.removesuffix(' = 0')[:-1]}hello{FAILED}\n")
    assert (trace.counts.calls, trace.counts.lost_total) == (1, 1)
    assert trace.counts.first_lost[0].reason == "the line has no result (cut off?)"


def test_a_call_behind_the_second_half_of_another_is_read() -> None:
    begun, rest = CALL[:-5], CALL[-5:]
    text = f"7 {begun} <unfinished ...>\n8 futex(0x1) = 0\n7 <... ioctl resumed>{rest}{FAILED}\n"
    _, trace = read(text)
    assert (trace.counts.calls, trace.counts.lost_total, trace.counts.unrelated) == (2, 0, 1)
    assert [call.errno for call in calls(text)] == [0, 17]


def test_calls_within_json_are_read() -> None:
    line = '{"log":"501 %s\\n","stream":"stderr"}\n'
    assert counted(line % CALL + line % FAILED) == (2, 0)


@pytest.mark.parametrize(
    "string",
    [
        'write(1, "%s\\n", 99) = 99',
        '501 write(1, "%s"..., 4096) = 99',
        '[pid 501] 12:00:00 read(5<pipe:[1]>, "say \\"%s\\"", 4096) = 99',
        '[2026-01-01T00:00:00Z] 501 write(1, "%s\\n", 99) = 99',
        'sendmsg(4, {msg_iov=[{iov_base="one", iov_len=3}, {iov_base="%s", iov_len=9}]}, 0) = 9',
        'execve("/bin/echo", ["echo", "%s"], 0x7ffd /* 20 vars */) = 0',
        '{"log":"501 write(1, \\"%s\\\\n\\", 99) = 99\\n"}',
        '{"log":"501 write(1, \\"a \\\\\\"b\\\\\\" %s\\\\n\\", 99) = 99\\n"}',
    ],
)
@pytest.mark.parametrize("text", [CALL, RAW, STRUCT])
def test_what_a_program_reads_and_writes_is_no_call(string: str, text: str) -> None:
    assert counted(f"{CALL}\n{string % text}\n") == (1, 0)


def test_what_may_be_text_is_told() -> None:
    _, trace = read(f'{CALL}\nlog("got {CALL}")\n')
    assert (trace.counts.calls, trace.counts.lost_total) == (1, 1)
    assert (
        trace.counts.first_lost[0].reason
        == "after a quotation mark: a call, or text that a program wrote"
    )


def test_a_call_behind_one_without_a_result_and_a_quotation_mark_is_not_forgotten() -> None:
    _, trace = read(f'{CALL[:-5]} "hello {FAILED}\n')
    assert (trace.counts.calls, trace.counts.lost_total) == (0, 2)


@pytest.mark.parametrize(
    "unit", ['a("', 'write(1, "', '"', 'a(\\"', "ioctl(8<", f'{CALL} "', f'a("{RAW}']
)
def test_long_lines_take_no_longer_for_each_byte(unit: str) -> None:
    text = (unit * (1 << 18))[: 1 << 18] + CALL
    began = time.process_time()
    memslot_calls(text)
    # A second for a quarter of the longest line that is read, not hours.
    assert time.process_time() - began < 30


def test_a_call_behind_a_string_is_read() -> None:
    assert counted(f'501 write(1, "hello", 5) = 5 {CALL}\n') == (1, 0)
    assert counted(f'501 write(1, "\\\\", 1) = 1 {CALL}\n') == (1, 0)


def test_a_call_beside_one_that_matters_loses_neither() -> None:
    events, _ = read(f"{CALL}\n501 close(8) = 0{CALL}\n")
    assert [type(event).__name__ for event in events] == ["RegionCall", "FdClosed", "RegionCall"]


def test_every_call_whose_struct_is_not_there_is_lost() -> None:
    raw = "501 ioctl(0x3, 0xae01, 0) = 0x4\n501 ioctl(0x4, 0x4020ae46, 0x7ffe) = -1 EEXIST (x)\n"
    events, trace = read(raw + "501 ioctl(0x4, 0x40a0ae49, 0x7ffe) = 0\n501 close(0x4) = 0\n")
    assert [type(event) for event in events] == [VmCreated, FdClosed]
    assert isinstance(events[0], VmCreated)
    assert isinstance(events[1], FdClosed)
    assert events[0].fd == events[1].fd == 4
    assert [(lost.line, lost.errno) for lost in trace.counts.first_lost] == [(2, 17), (3, 0)]


def test_perf_trace_is_known_and_its_calls_are_lost() -> None:
    text = (
        "     0.000 ( 0.012 ms): qemu-system-x8/4321 "
        "ioctl(fd: 9<anon_inode:kvm-vm>, cmd: KVM_SET_USER_MEMORY_REGION, arg: 0x7ffd12345678) = 0"
    )
    _, trace = read(f"{text}\n{text} \n")
    assert [lost.reason for lost in trace.counts.first_lost] == [
        "strace did not decode the struct"
    ] * 2


def test_names_before_arguments() -> None:
    named = f"ioctl(fd=8, op=KVM_SET_USER_MEMORY_REGION, argp={STRUCT}) = 0\n"
    assert calls(named) == calls(f"{CALL}\n")


def test_names_that_end_in_ioctl_are_no_calls() -> None:
    text = (
        "kvm_vm_ioctl(8, KVM_SET_USER_MEMORY_REGION) failed: ioctl(fd, KVM_SET_USER_MEMORY_REGION)"
    )
    assert counted(f"{CALL}\n{text}\n") == (1, 0)


# --- any text

no_call = st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r\0"),
    max_size=60,
).filter(
    lambda text: "_" not in text[-1:] and not re.search(r"ioctl|[a-z_0-9]\(|strace|resumed", text)
)


@given(before=no_call, quotes=st.integers(0, 3), failed=st.booleans())
def test_no_text_hides_a_call(before: str, quotes: int, failed: bool) -> None:
    text = before + '"' * quotes + (FAILED if failed else CALL)
    calls, lost = counted(f"{CALL}\n{text}\n")
    assert calls + lost == 2
    assert lost == 0


@given(text=st.text(st.characters(codec="ascii", exclude_characters="\n\r\0"), max_size=40))
def test_any_text_that_a_program_writes_is_a_string(text: str) -> None:
    # As strace prints it: quotation marks and backslashes escaped.
    escaped = re.sub(r'(["\\])', r"\\\1", text + CALL)
    events, trace = read(f'{CALL}\n501 write(1, "{escaped}", 4096) = 99\n')
    assert (trace.counts.calls, trace.counts.lost_total) == (1, 0)
    assert not any(isinstance(event, TaskEnded) for event in events)
