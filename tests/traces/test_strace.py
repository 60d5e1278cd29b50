from __future__ import annotations

import errno
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.traces import (
    Capability,
    Event,
    FdClosed,
    RegionCall,
    TaskEnded,
    TaskStarted,
    Trace,
    TraceError,
    VmCreated,
    open_trace,
)

STRUCT = (
    "{slot=1, flags=0, guest_phys_addr=0x1000, memory_size=8192, userspace_addr=0x7f0000000000}"
)
CALL = f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCT}) = 0"


def read(text: str | bytes) -> tuple[list[Event], Trace]:
    data = text if isinstance(text, bytes) else text.encode()
    with open_trace("trace", "strace", io.BytesIO(data)) as trace:
        return list(trace), trace


def calls(text: str | bytes) -> list[RegionCall]:
    return [event for event in read(text)[0] if isinstance(event, RegionCall)]


def one(text: str) -> RegionCall:
    (call,) = calls(text if text.endswith("\n") else text + "\n")
    return call


def lost(text: str) -> dict[str, int]:
    """The reasons of lost calls; a good call is added, so that the trace is usable."""
    events, trace = read(f"{CALL}\n{text}")
    assert sum(isinstance(event, RegionCall) for event in events) == 1
    return dict(trace.counts.lost)


def fields(call: RegionCall) -> tuple[int, int, int, int, int]:
    return (
        call.slot,
        call.flags,
        call.guest_phys_addr,
        call.memory_size,
        call.userspace_addr,
    )


# --- one call, in every way that strace has of printing it


def test_plain() -> None:
    call = one(CALL)
    assert fields(call) == (1, 0, 0x1000, 8192, 0x7F0000000000)
    assert (call.tid, call.fd, call.errno, call.time_ns) == (None, 8, 0, None)
    assert (call.line, call.end_line, call.guest_memfd) == (1, 1, None)


@pytest.mark.parametrize(
    ("prefix", "tid", "time_ns"),
    [
        ("8379  ", 8379, None),
        ("[pid  8379] ", 8379, None),
        ("[pid 8379] ", 8379, None),
        ("8379<qemu-system-x86> ", 8379, None),
        ("[pid 8379<CPU 0/KVM>] ", 8379, None),
        ("8379 /* 12 in strace's PID NS */ ", 8379, None),
        ("15:07:37 ", None, 54457 * 10**9),
        ("15:07:37.600905 ", None, 54457_600905_000),
        ("8379  15:07:37 ", 8379, 54457 * 10**9),
        ("[pid  8379] 15:07:37.000001 ", 8379, 54457_000001_000),
        ("1795346957.889580 ", None, 1795346957_889580_000),
        ("1795346957.889580123 ", None, 1795346957_889580123),
        ("1795346957 ", None, 1795346957 * 10**9),
        ("8379 1795346957.889580 ", 8379, 1795346957_889580_000),
        ("8379 1795346957 ", 8379, 1795346957 * 10**9),
        ("     0.000122 ", None, 122_000),
        ("8379       0.000122 ", 8379, 122_000),
        ("[pid  8379]      1.000122 ", 8379, 1_000122_000),
        ("15:07:37 (+     0.000123) ", None, 54457 * 10**9),
        ("1795346957.889580123 (+     0.000124985) ", None, 1795346957_889580123),
        ("[  16] [00007f688951bd6b] ", None, None),
        ("[pid  4386] [  16] [00007f688951bd6b] ", 4386, None),
        ("113:8379  ", 8379, None),
        ("log.txt:8379  ", 8379, None),
        ("log.txt:113:[pid 8379] ", 8379, None),
        ("113:8379 15:07:37.5 ", 8379, 54457_500000_000),
        ("Guest says hello[pid 8379] ", 8379, None),
    ],
)
def test_what_stands_in_front(prefix: str, tid: int | None, time_ns: int | None) -> None:
    call = one(prefix + CALL)
    assert (call.tid, call.time_ns) == (tid, time_ns)
    assert fields(call) == (1, 0, 0x1000, 8192, 0x7F0000000000)


@pytest.mark.parametrize(
    "fd", ["8", "8<anon_inode:kvm-vm>", "8</dev/kvm<char 10:232>>", "8</a, b (deleted)>"]
)
def test_fd(fd: str) -> None:
    assert one(CALL.replace("(8,", f"({fd},")).fd == 8


@pytest.mark.parametrize(
    "request_text",
    [
        "KVM_SET_USER_MEMORY_REGION",
        "0x4020ae46",
        "0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */",
        "_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)",
    ],
)
def test_request(request_text: str) -> None:
    assert one(CALL.replace("KVM_SET_USER_MEMORY_REGION", request_text)).slot == 1


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("0", 0),
        ("0x0", 0),
        ("2", 2),
        ("KVM_MEM_LOG_DIRTY_PAGES", 1),
        ("KVM_MEM_READONLY", 2),
        ("KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY", 3),
        ("KVM_MEM_LOG_DIRTY_PAGES|0x8", 9),
        ("0x10 /* KVM_MEM_??? */", 0x10),
        ("0x9 /* KVM_MEM_LOG_DIRTY_PAGES|0x8 */", 9),
        ("0xfffffffc /* KVM_MEM_??? */", 0xFFFFFFFC),
    ],
)
def test_flags(text: str, flags: int) -> None:
    assert one(CALL.replace("flags=0", f"flags={text}")).flags == flags


@pytest.mark.parametrize(("text", "slot"), [("0x10003", 0x10003), ("65539", 0x10003), ("0", 0)])
def test_slot_carries_the_space(text: str, slot: int) -> None:
    call = one(CALL.replace("slot=1", f"slot={text}"))
    assert (call.slot, call.as_id, call.id) == (slot, slot >> 16, slot & 0xFFFF)


def test_zero_and_hexadecimal() -> None:
    text = CALL.replace("0x1000,", "0,").replace("8192", "0x2000").replace("0x7f0000000000", "0")
    assert fields(one(text)) == (1, 0, 0, 0x2000, 0)


@pytest.mark.parametrize(
    ("result", "number"),
    [
        ("= 0", 0),
        ("= 0 <0.000094>", 0),
        ("= -1 EINVAL (Invalid argument)", errno.EINVAL),
        ("= -1 EEXIST (File exists) <0.000034>", errno.EEXIST),
        ("= -1 ENOMEM (Cannot allocate memory)", errno.ENOMEM),
        ("= -1 (errno 22)", errno.EINVAL),
        ("       = 0", 0),
    ],
)
def test_result(result: str, number: int) -> None:
    assert one(CALL.replace("= 0", result)).errno == number


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


def test_resumed_by_another_call_of_the_thread() -> None:
    """A KVM_RUN that was cut does not take part in a memslot call of another thread."""
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


# --- what is lost, and why


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
        (CALL.replace("= 0", "= ? ERESTARTSYS (To be restarted)"), "its result is not known"),
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
        (CALL.replace("flags=0", "flags=KVM_MEM_NEW"), "flags is not a number"),
        (CALL[20:], "the line's beginning is missing"),
    ],
)
def test_lost(text: str, reason: str) -> None:
    (found,) = lost(text + "\n")
    assert reason in found


@pytest.mark.parametrize("length", range(len("ioctl(8, KVM_SET_U"), len(CALL) - 3))
def test_cut_off_at_the_end(length: int) -> None:
    """However little is left of the last line, if it is plainly a memslot call it is counted."""
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


# More digits than Python turns into an int.
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


# --- the other facts


def test_facts() -> None:
    text = (
        "100  ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = 509\n"
        "100  ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE) = 2\n"
        "100  ioctl(3, 0xae03, 0xa) = 510\n"
        "100  ioctl(3, 0xae03 /* KVM_CHECK_EXTENSION */, "
        "0x76 /* KVM_CAP_MULTI_ADDRESS_SPACE */) = 1\n"
        "100  ioctl(3, KVM_CREATE_VM, 0) = 8<anon_inode:kvm-vm>\n"
        "100  ioctl(3, KVM_CREATE_VM, 0) = -1 ENOMEM (Cannot allocate memory)\n"
        "100  ioctl(3, 0xae01, 0) = 9\n"
        "100  ioctl(3, KVM_CREATE_VM, 0 <unfinished ...>\n"
        "100  <... ioctl resumed>) = 10\n"
        "100  clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD|CLONE_SETTLS) = 101\n"
        "100  clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD}, 88) = 102\n"
        "100  clone(child_stack=NULL, flags=0x1200000|17, child_tidptr=0x7f) = 103\n"
        "100  clone3({flags=0x3d0f00, child_tid=0x7f}, 88 <unfinished ...>\n"
        "100  <... clone3 resumed>) = 104\n"
        "100  fork() = 105\n"
        "100  vfork( <unfinished ...>\n"
        "100  <... vfork resumed>) = 106\n"
        "100  fork() = -1 EAGAIN (Resource temporarily unavailable)\n"
        '106  execve("/bin/true", ["true"], 0x7ffd /* 9 vars */) = 0\n'
        "100  close(8</dev/kvm>) = 0\n"
        "100  close(99) = -1 EBADF (Bad file descriptor)\n"
        "106  +++ exited with 0 +++\n"
        f"100  {CALL}\n"
    )
    events, _ = read(text)
    assert events[:-1] == [
        Capability(1, 100, "KVM_CAP_NR_MEMSLOTS", 509),
        Capability(2, 100, "KVM_CAP_MULTI_ADDRESS_SPACE", 2),
        Capability(3, 100, "KVM_CAP_NR_MEMSLOTS", 510),
        Capability(4, 100, "KVM_CAP_MULTI_ADDRESS_SPACE", 1),
        VmCreated(5, 100, 8),
        VmCreated(7, 100, 9),
        VmCreated(8, 100, 10),
        TaskStarted(10, 100, 101, True),
        TaskStarted(11, 100, 102, False),
        TaskStarted(12, 100, 103, False),
        TaskStarted(14, 100, 104, True),
        TaskStarted(15, 100, 105, False),
        TaskStarted(17, 100, 106, False),
        TaskEnded(19, 106, by_exec=True),
        FdClosed(20, 100, 8),
        TaskEnded(22, 106),
    ]


def test_facts_that_cannot_be_read() -> None:
    """They are left out: only calls are lost."""
    text = (
        f"{CALL}\n"
        "100  clone3(0x7ffd1234, 88) = 101\n"
        "100  close(8) = ?\n"
        "100  close(8)\n"
        "100  ioctl(3, KVM_CREATE_VM, 0\n"
        "100  ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = ?\n"
        "100  ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE) = 1\n"
    )
    events, trace = read(text)
    assert events[1:] == [TaskStarted(2, 100, 101, False)]
    assert trace.counts.lost_total == 0


def test_who_had_no_pid_before_the_second_thread() -> None:
    """On a terminal strace prints pids only once there are two threads."""
    text = (
        "ioctl(3, KVM_CREATE_VM, 0) = 8\n"
        "strace: Process 201 attached\n"
        f"[pid   201] {CALL}\n"
        f"[pid   200] {CALL}\n"
    )
    events, _ = read(text)
    assert TaskStarted(4, None, 200, True) in events
    assert all(event.child != 201 for event in events if isinstance(event, TaskStarted))


# --- clocks


def times(*stamps: str) -> list[int | None]:
    return [call.time_ns for call in calls("".join(f"{stamp} {CALL}\n" for stamp in stamps))]


def test_midnight() -> None:
    day = 86400 * 10**9
    assert times("23:59:59", "00:00:01", "23:59:59", "00:00:00") == [
        day - 10**9,
        day + 10**9,
        2 * day - 10**9,
        2 * day,
    ]


def test_a_clock_a_little_out_of_order_is_not_midnight() -> None:
    assert times("12:00:00.000002", "12:00:00.000001") == [43200_000002_000, 43200_000001_000]


def test_relative_times_add_up_over_unrelated_lines() -> None:
    text = f"     0.000000 {CALL}\n" + "     0.100000 futex(0x7f) = 0\n" * 10 + f"     0.5 {CALL}\n"
    first, second = calls(text)
    assert (first.time_ns, second.time_ns) == (0, 1_500_000_000)


# --- any call, in any of these forms, is read back

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
some_calls = st.builds(
    RegionCall,
    line=st.just(0),
    slot=u32,
    flags=u32,
    guest_phys_addr=u64,
    memory_size=u64,
    userspace_addr=u64,
    errno=st.sampled_from([0, errno.EINVAL, errno.EEXIST, errno.ENOMEM]),
    fd=st.integers(0, 1 << 20),
    tid=st.integers(1, 4194304) | st.none(),
    time_ns=st.none() | st.integers(10**18, 2 * 10**18).map(lambda ns: ns // 1000 * 1000),
)


def flags_text(flags: int, style: int) -> str:
    names = ["KVM_MEM_LOG_DIRTY_PAGES"] * (flags & 1) + ["KVM_MEM_READONLY"] * (flags >> 1 & 1)
    rest = flags & ~3
    if not flags:
        return "0"
    if style == 0:
        return hex(flags)
    if style == 1:
        return f"{flags:#x} /* {'|'.join(names) or 'KVM_MEM_???'} */"
    if not names:
        return f"{rest:#x} /* KVM_MEM_??? */"
    return "|".join(names + [hex(rest)] * bool(rest))


@st.composite
def printed(draw: st.DrawFn, call: RegionCall) -> str:
    """The lines that a strace prints for `call` under options drawn at random."""
    prefix = ""
    if call.tid is not None:
        prefix = draw(st.sampled_from(["{0} ", "{0:<5} ", "[pid {0:5}] ", "{0}<a b> "]))
        prefix = prefix.format(call.tid)
    if call.time_ns is not None:
        prefix += f"{call.time_ns // 10**9}.{call.time_ns // 1000 % 10**6:06} "
    prefix += draw(st.sampled_from(["", "[  16] ", "[00007f688951bd6b] "]))
    fd = f"{call.fd}{draw(st.sampled_from(['', '<anon_inode:kvm-vm>', '</dev/kvm<char 10:232>>']))}"
    request = draw(
        st.sampled_from(
            [
                "KVM_SET_USER_MEMORY_REGION",
                "0x4020ae46",
                "0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */",
            ]
        )
    )

    def number(value: int) -> str:
        return draw(st.sampled_from([str(value), hex(value)]))

    struct = (
        f"{{slot={number(call.slot)}, flags={flags_text(call.flags, draw(st.integers(0, 2)))}, "
        f"guest_phys_addr={number(call.guest_phys_addr)}, memory_size={number(call.memory_size)}, "
        f"userspace_addr={number(call.userspace_addr)}}}"
    )
    result = f"= -1 {errno.errorcode[call.errno]} (Some, text)" if call.errno else "= 0"
    result += draw(st.sampled_from(["", " <0.000012>"]))
    text = f"{prefix}ioctl({fd}, {request}, {struct}"
    end = draw(st.sampled_from(["\n", "\r\n"]))
    noise = draw(
        st.sampled_from(["", f"7 futex(0x7f) = 0{end}", f"7 ioctl(9, KVM_RUN, 0) = 0{end}"])
    )
    if draw(st.booleans()):
        return f"{noise}{text}) {draw(st.sampled_from(['', '    ']))}{result}{end}"
    space = draw(st.sampled_from(["", " "]))
    return f"{text} <unfinished ...>{end}{noise}{prefix}<... ioctl resumed>{space})  {result}{end}"


@given(st.data(), st.lists(some_calls, min_size=1, max_size=4))
def test_printed_and_read_back(data: st.DataObject, made: list[RegionCall]) -> None:
    text = "".join(data.draw(printed(call)) for call in made)
    found = calls(text)
    assert [(*fields(call), call.errno, call.fd, call.tid, call.time_ns) for call in found] == [
        (*fields(call), call.errno, call.fd, call.tid, call.time_ns) for call in made
    ]


@given(
    st.lists(
        st.text("ioctl(8, KVM_SET_USER_MEMORY_REGION{slot=1}<unfinished ...>)= 0\n"), max_size=20
    )
)
def test_nonsense_is_survived(parts: list[str]) -> None:
    text = CALL + "\n" + "\n".join(parts)
    counts = read(text)[1].counts
    assert counts.lines == text.count("\n") + (not text.endswith("\n"))
