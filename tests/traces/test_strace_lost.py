"""Reads calls in two parts, and counts the lost parts of a trace with their reasons."""

import errno

import pytest
from stracetext import CALL, STRUCT, calls, one, read

from memslots.traces import (
    RegionCall,
    TaskEnded,
    TaskStarted,
    TraceError,
)


def lost(text: str) -> dict[str, int]:
    """Returns the reasons of lost calls; adds a good call, so that the trace is usable."""
    events, trace = read(f"{CALL}\n{text}")
    assert sum(isinstance(event, RegionCall) for event in events) == 1
    return dict(trace.counts.lost)


# --- calls in two parts


def test_unfinished_and_resumed_per_thread() -> None:
    text = (
        "100  ioctl(3, KVM_CREATE_VM, 0) = 8\n"
        f"101  1000000000.000001 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>\n"
        "102  1000000000.000002 ioctl(8, KVM_SET_USER_MEMORY_REGION, "
        f"{STRUCT.replace('slot=1', 'slot=2')} <unfinished ...>\n"
        "101  1000000000.000003 <... ioctl resumed>) = 0 <0.000002>\n"
        "102  1000000000.000004 <... ioctl resumed> ) = -1 EEXIST (File exists)\n"
    )
    first, second = calls(text)
    assert (first.slot, first.tid, first.line, first.end_line, first.errno) == (1, 101, 2, 4, 0)
    assert (second.slot, second.tid, second.line, second.end_line) == (2, 102, 3, 5)
    assert second.errno == errno.EEXIST
    assert (first.time_ns, second.time_ns) == (10**18 + 3000, 10**18 + 4000)
    counts = read(text)[1].counts
    assert (counts.lines, counts.calls, counts.unrelated, counts.lost_total) == (5, 2, 1, 0)


def test_a_line_of_several_calls_counts_once() -> None:
    begun = "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1"
    text = f"{CALL}\n{begun} {begun} strace: Process 9 attached\n{begun}}}) = 0\nother(1) = 0\n"
    counts = read(text)[1].counts
    assert (counts.lines, counts.unrelated, counts.lost_total) == (4, 1, 3)


def test_lines_of_many_calls_in_two_parts_count_once_each() -> None:
    threads = range(1000, 4000)
    begun = [
        f"{tid} ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>" for tid in threads
    ]
    resumed = [f"{tid} <... ioctl resumed>) = 0" for tid in threads]
    never = f"99 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>"
    text = "\n".join([never, *begun, *resumed, "99 +++ exited with 0 +++", *([CALL] * 3000)])
    counts = read(text)[1].counts
    assert (counts.lines, counts.calls, counts.unrelated, counts.lost_total) == (9002, 6000, 1, 1)


def test_resumed_by_another_call_of_the_thread() -> None:
    """A KVM_RUN that was cut in two plays no part in a memslot call of another thread."""
    text = (
        "101  ioctl(9, KVM_RUN <unfinished ...>\n"
        f"102  ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>\n"
        "101  <... ioctl resumed>, 0) = 0\n"
        "102  <... ioctl resumed>) = 0\n"
    )
    (call,) = calls(text)
    assert (call.tid, call.end_line) == (102, 4)


def test_message_of_strace_inside_a_call() -> None:
    text = (
        f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT}strace: Process 4204 attached\n"
        ") = 0\n"
        "clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD}strace: Process 4205 attached\n"
        " => {parent_tid=[4205]}, 88) = 4205\n"
        "[pid  4205] " + CALL + "\n"
    )
    events, _ = read(text)
    assert [type(event) for event in events] == [RegionCall, TaskStarted, RegionCall]
    assert events[1] == TaskStarted(4, None, 4205, True)


# --- lost lines, and why


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffd1234) = 0",
            "strace did not decode the struct",
        ),
        ("ioctl(8, KVM_SET_USER_MEMORY_REGION, NULL) = -1 EFAULT (Bad address)", "did not decode"),
        ("ioctl(8, KVM_SET_USER_MEMORY_REGION, {...}) = 0", "the struct is elided"),
        ("ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, ...}) = 0", "the struct is elided"),
        ("ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0}) = 0", "no guest_phys_addr"),
        ("ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd1234) = 0", "KVM_SET_USER_MEMORY_REGION2"),
        ("ioctl(8, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffcca85c720) = 0", "REGION2"),
        ("ioctl(8, 0x40a0ae49, 0x7ffcca85c720) = 0", "REGION2"),
        (
            "ioctl(8, 0x40a0ae49 /* _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0) */, 0x7ffcca85c720) = 0",
            "REGION2",
        ),
        (f"9 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>", "never resumed"),
        (f"9 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>) = ?", "not return"),
        ("9 <... ioctl resumed>) = 0", "its beginning is not in the trace"),
        (CALL.replace("= 0", "= ?"), "its result is not known"),
        (CALL.replace("= 0", "= ? ERESTARTSYS (To be restarted)"), "the kernel began it again"),
        (CALL.replace(") = 0", " <detached ...>"), "no result"),
        (CALL.replace("= 0", "= -1 EBOGUS (What)"), "EBOGUS"),
        (CALL.replace("= 0", "= -1 EINVAL (Invalid argument) (INJECTED)"), "INJECTED"),
        (CALL.replace("slot=1", "slot=x"), "slot is not a number"),
        (CALL.replace("slot=1", "slot=-1"), "slot is not a number"),
        (CALL.replace("slot=1", "slot=1_0"), "slot is not a number"),
        (CALL.replace("}", ""), "the struct is cut off"),
        ("ioctl(KVM_SET_USER_MEMORY_REGION) = 0", "strace did not decode the struct"),
        (CALL.replace("slot=1", "slot=4294967296"), "slot does not fit 32 bits"),
        (CALL.replace("8192", str(2**64)), "memory_size does not fit 64 bits"),
        (CALL.replace("flags=0", "flags=KVM_MEM_NEW"), "its flag KVM_MEM_NEW is not known"),
        (CALL[20:], "the line's beginning is missing"),
    ],
)
def test_lost(text: str, reason: str) -> None:
    (found,) = lost(text + "\n")
    assert reason in found


@pytest.mark.parametrize("length", range(len("ioctl(8, KVM_SET_U"), len(CALL) - 3))
def test_cut_off_at_the_end(length: int) -> None:
    """A memslot call in the last line is counted, however little of it is left."""
    assert lost("9 " + CALL[:length]) == {"cut off where the input ends": 1}


def test_a_last_line_without_line_feed_is_read_if_whole() -> None:
    assert len(calls(f"{CALL}\n{CALL}")) == 2


def test_lost_calls_are_told_with_line_text_and_result() -> None:
    text = (
        f"{CALL}\nunrelated(1) = 0\n"
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, NULL) = -1 EFAULT (Bad address)\n"
        "ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd\x01) = 0\n"
    )
    counts = read(text)[1].counts
    first, second = counts.first_lost
    assert (first.line, first.errno) == (3, errno.EFAULT)
    assert (second.line, second.errno) == (4, 0)
    assert second.text.isprintable()
    assert (counts.lost_total, counts.lost_unknown) == (2, 1)
    assert (counts.lines, counts.unrelated) == (4, 1)


def test_only_the_first_lost_are_kept() -> None:
    counts = read(CALL + "\n" + "ioctl(8, KVM_SET_USER_MEMORY_REGION, NULL) = 0\n" * 1000)[1].counts
    assert counts.lost_total == 1000
    assert len(counts.first_lost) == 20


def test_two_parts_of_which_the_second_is_replaced() -> None:
    begun = f"9 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>\n"
    text = f"{begun}{begun.replace('slot=1', 'slot=2')}9 <... ioctl resumed>) = 0\n"
    events, trace = read(text)
    assert [(type(event), event.line) for event in events] == [(RegionCall, 2)]
    assert dict(trace.counts.lost) == {"unfinished, and never resumed": 1}


def test_a_thread_that_dies_in_a_call() -> None:
    begun = f"9 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT} <unfinished ...>\n"
    events, trace = read(f"{CALL}\n{begun}9 +++ killed by SIGKILL +++\n")
    assert dict(trace.counts.lost) == {"unfinished, and never resumed": 1}
    assert events[-1] == TaskEnded(3, 9)


# More digits than Python converts to an int.
ENDLESS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (CALL.replace("(8", f"({ENDLESS}"), {"strace did not decode the struct": 1}),
        (CALL.replace("= 0", f"= {ENDLESS}"), {"the line has no result (cut off?)": 1}),
        (CALL.replace("= 0", f"= -{ENDLESS} EIO"), {"the line has no result (cut off?)": 1}),
        (CALL.replace("slot=1", f"slot={ENDLESS}"), {"slot is not a number": 1}),
        (CALL.replace("= 0", f"= -1 (errno {ENDLESS})"), {"its error -1 has no number": 1}),
        (f"strace: Process {ENDLESS} attached", {}),
        (f"close({ENDLESS}) = 0", {}),
        (f"clone(0) = {ENDLESS}", {}),
        (f"ioctl(3, KVM_CREATE_VM, 0) = {ENDLESS}", {}),
        (f"ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = {ENDLESS}", {}),
    ],
)
def test_numbers_without_end(text: str, reasons: dict[str, int]) -> None:
    assert lost(text + "\n") == reasons


@pytest.mark.parametrize("head", [ENDLESS, f"[pid {ENDLESS}]", f"7 {ENDLESS}.5"])
def test_a_call_behind_a_number_without_end(head: str) -> None:
    call = one(f"{head} {CALL}")
    assert (call.tid, call.time_ns, call.errno) == (None, None, 0)


@pytest.mark.parametrize("zeros", ["0", "00", "000017"])
def test_a_result_with_zeros_in_front(zeros: str) -> None:
    assert one(CALL.replace("= 0", f"= {zeros}")).errno == 0


@pytest.mark.parametrize(
    "text",
    [
        'write(2, "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0}) = 0", 9) = 9',
        "ioctl(9, KVM_RUN, 0) = 0",
        "qemu-system-x86_64: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, "
        "slot=4, start=0xc0000, size=0xbff40000: File exists",
        "ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_DESTROY_MEMORY_REGION_WORKS) = 1",
        "101  <... futex resumed>) = 0",
        "101  <... ioctl resumed>, 0) = 0",
        "--- SIGUSR1 {si_signo=SIGUSR1} ---",
        " > /usr/lib/libc.so.6(__ioctl+0x3b) [0x108d3b]",
        "",
        "\0\xff garbage",
    ],
)
def test_unrelated(text: str) -> None:
    trace = read(f"{CALL}\n{text}\n")[1]
    assert (trace.counts.unrelated, trace.counts.lost_total) == (1, 0)


def test_qemus_lines_among_straces_are_told() -> None:
    trace = read(f"{CALL}\nkvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x0 ret=0\n")[1]
    assert "--format qemu" in trace.notes[0]


def test_no_call_at_all() -> None:
    with pytest.raises(TraceError, match=r"no memslot call in its 2 lines.*-f"):
        read("ioctl(9, KVM_RUN, 0) = 0\n" * 2)


# --- the long struct


def test_region2_where_its_fields_are_printed() -> None:
    text = STRUCT[:-1] + ", guest_memfd_offset=0, guest_memfd=13<anon_inode:[kvm-gmem]>}"
    text = text.replace("flags=0", "flags=KVM_MEM_GUEST_MEMFD")
    call = one(f"ioctl(8, KVM_SET_USER_MEMORY_REGION2, {text}) = 0")
    assert (call.flags, call.guest_memfd) == (4, 13)


@pytest.mark.parametrize(
    ("result", "number"),
    [
        ("-1 ENOTSUPP (Unknown error 524)", 524),
        ("-1 (errno 524)", 524),
        ("-17", 17),
        ("0xffffffffffffffea", 22),
    ],
)
def test_errors_without_a_known_name(result: str, number: int) -> None:
    assert one(CALL.replace("= 0", f"= {result}")).errno == number


def test_a_tab_before_the_result() -> None:
    assert one(CALL.replace(") = 0", ")\t= 0")).errno == 0


def test_a_call_that_began_again_changed_nothing() -> None:
    again = CALL.replace("= 0", "= ? ERESTARTSYS (To be restarted if SA_RESTART is set)")
    events, trace = read(f"{again}\n{CALL}\n")
    assert len(events) == 1
    assert trace.counts.lost == {"the kernel began it again": 1}
    assert trace.counts.lost_unknown == 0


def test_a_flag_whose_number_is_not_known() -> None:
    text = CALL.replace("flags=0", "flags=KVM_MEM_READONLY|KVM_MEM_OF_LATER")
    assert lost(text) == {"the number of its flag KVM_MEM_OF_LATER is not known": 1}


def test_a_reason_can_be_printed() -> None:
    """A flag's name may have control characters, or no end."""
    (reason,) = lost(CALL.replace("flags=0", "flags=KVM_MEM_\x00\x07"))
    assert reason == "the number of its flag KVM_MEM_\ufffd\ufffd is not known"
    (reason,) = lost(CALL.replace("flags=0", f"flags=KVM_MEM_{'X' * 10_000}"))
    assert len(reason) == 160


def test_a_thread_that_another_one_superseded() -> None:
    """A thread that calls execve gets the pid of its process, which closes the VM's fd."""
    events, _ = read(f"9 {CALL}\n9 +++ superseded by execve in pid 10 +++\n")
    assert events[1:] == [TaskEnded(2, 9, by_exec=True)]
