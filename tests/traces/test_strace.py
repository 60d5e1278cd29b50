"""Reads one call in every form that strace prints."""

import errno

import pytest
from stracetext import CALL, calls, fields, one, read

from memslots.traces import (
    Capability,
    FdClosed,
    FdDuplicated,
    RegionCall,
    TaskEnded,
    TaskStarted,
    VmCreated,
)

# --- one call, in every form that strace prints


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


@pytest.mark.parametrize(
    ("result", "duration_ns"),
    [
        ("= 0", None),
        ("= 0 <0.000094>", 94_000),
        ("= 0 <0.000000123>", 123),  # --syscall-times=ns
        ("= 0 <12.000001>", 12_000_001_000),
        ("= 0 <1>", 1_000_000_000),  # --syscall-times=s
        ("= -1 EEXIST (File exists) <0.000034>", 34_000),
        ("= -1 (errno 22) <0.000002>", 2_000),
        ("= 0 <0.000007>[    0.0] console: <0.5>", 7_000),
        ("= 0 and <0.000094>", None),
        ("= 0 <0.00", None),
        ("= 0 <unavailable>", None),
    ],
)
def test_the_time_in_the_kernel(result: str, duration_ns: int | None) -> None:
    assert one(CALL.replace("= 0", result)).duration_ns == duration_ns


def test_the_time_of_a_call_in_two_parts() -> None:
    first, second = CALL.split(") = 0")[0], ") = 0 <0.000250>"
    other = CALL.replace("slot=1", "slot=2").replace("= 0", "= 0 <0.000010>")
    text = f"7 {first} <unfinished ...>\n8 {other}\n7 <... ioctl resumed>{second}\n"
    assert [(call.id, call.duration_ns) for call in calls(text)] == [(2, 10_000), (1, 250_000)]


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


def test_requests_of_an_older_strace() -> None:
    text = (
        "ioctl(7, _IOC(0, 0xae, 0x1, 0), 0)      = 8\n"
        "ioctl(7, _IOC(0, 0xae, 0x3, 0), 0xa) = 32\n"
        f"{CALL.replace('KVM_SET_USER_MEMORY_REGION', '_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)')}\n"
    )
    created, capability, call = read(text)[0]
    assert created == VmCreated(1, None, 8)
    assert capability == Capability(2, None, "KVM_CAP_NR_MEMSLOTS", 32)
    assert isinstance(call, RegionCall)


def test_facts_that_cannot_be_read() -> None:
    """They are ignored: only calls are lost."""
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
    assert events[1:] == []
    assert trace.counts.lost_total == 0


def test_who_had_no_pid_before_the_second_thread() -> None:
    """On a terminal, strace prints pids only from the second thread on."""
    text = (
        "ioctl(3, KVM_CREATE_VM, 0) = 8\n"
        "strace: Process 201 attached\n"
        f"[pid   201] {CALL}\n"
        f"[pid   200] {CALL}\n"
    )
    events, _ = read(text)
    assert TaskStarted(4, None, 200, True) in events
    assert all(event.child != 201 for event in events if isinstance(event, TaskStarted))


def test_descriptors_that_are_duplicated() -> None:
    text = """\
100 dup(8) = 9
100 dup2(8<anon_inode:kvm-vm>, 8<anon_inode:kvm-vm>) = 8<anon_inode:kvm-vm>
100 dup3(8, 10, O_CLOEXEC) = 10
100 fcntl(8<anon_inode:kvm-vm>, F_DUPFD_CLOEXEC, 0) = 37<anon_inode:kvm-vm>
100 fcntl(8, F_DUPFD <unfinished ...>
101 fcntl(8, F_DUPFD, 3) = -1 EMFILE (Too many open files)
100 <... fcntl resumed>, 20) = 20
100 fcntl(8, F_GETFD) = 1 /* F_DUPFD */
"""
    found = [event for event in read(text + CALL)[0] if isinstance(event, FdDuplicated)]
    assert [(event.line, event.fd, event.new_fd) for event in found] == [
        (1, 8, 9),
        (3, 8, 10),
        (4, 8, 37),
        (7, 8, 20),
    ]
