"""Tests which VM a call is for when descriptors are duplicated, shared, copied, sent and closed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from stracetext import CALL, STRUCT, read

from memslots.replay import Report, replay
from memslots.traces import (
    FdClosed,
    FdDuplicated,
    FdsClosed,
    FdsReceived,
    FdsUnshared,
    TaskStarted,
    open_trace,
)

DATA = Path(__file__).parents[1] / "data" / "descriptors"


def replayed(text: str) -> Report:
    with open_trace("descriptors", stream=io.BytesIO(text.encode())) as trace:
        return replay(trace)


def vms(text: str) -> list[tuple[int | None, int | None, list[int]]]:
    """Returns process, fd and the ids of the slots of each VM."""
    return [(vm.process, vm.fd, [slot.id for slot in vm.final_map]) for vm in replayed(text).vms]


def call(tid: int, fd: int, slot: int, result: str = "0") -> str:
    struct = f"slot={slot}, flags=0, guest_phys_addr={slot << 16:#x}, memory_size=4096"
    return (
        f"{tid} ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{{struct}, "
        f"userspace_addr=0x7f0000000000}}) = {result}\n"
    )


CREATED = "100 ioctl(3, KVM_CREATE_VM, 0) = 8\n" + call(100, 8, 0)
EIO = "-1 EIO (Input/output error)"


@pytest.mark.parametrize("name", ["named.strace", "raw.strace"])
def test_a_recorded_program(name: str) -> None:
    """A program with two VMs that does all this; raw: strace -X raw, with numbers for names."""
    text = (DATA / name).read_text(encoding="ascii")
    report = replayed(text)
    assert [vm.fd for vm in report.vms] == [4, 9]
    assert [[slot.id for slot in vm.final_map] for vm in report.vms] == [[*range(10)], [0, 1, 3]]
    # Two processes that have a copy of the descriptors, but not the memory, may not use them.
    assert [vm.refused["EIO"] for vm in report.vms] == [1, 1]
    assert [vm.outside for vm in report.vms] == [1, 1]
    first, second = report.notes
    assert "fd 5 (line 33), which a message or pidfd_getfd brought at line 32, is assumed" in first
    assert "fd 8 (line 35), which a message or pidfd_getfd brought at line 34, is assumed" in second


@pytest.mark.parametrize(
    "line",
    [
        "fcntl(8, F_DUPFD, 20) = 20",
        "fcntl(8, F_DUPFD_CLOEXEC, 20) = 20",
        "fcntl(8, 0, 20) = 20",
        "fcntl(8, 0x406, 20) = 20",
        "fcntl(0x8, 0, 0x14) = 0x14",
        "fcntl(8<anon_inode:kvm-vm>, 0x406 /* F_DUPFD_CLOEXEC */, 20) = 20<anon_inode:kvm-vm>",
        "fcntl(8<anon_inode:[kvm-vm]>, 0 /* F_DUPFD */, 20) = 20<anon_inode:[kvm-vm]>",
        "fcntl(fd=8, op=F_DUPFD, arg=20) = 20",
        "fcntl64(8, 0x406, 20) = 20",
        "dup(0x8) = 0x14",
        "dup2(0x8, 0x14) = 0x14",
        "dup3(0x8, 0x14, 0x80000) = 0x14",
        "dup3(8</dev/x<char 1:2>>, 20, O_CLOEXEC) = 20",
    ],
)
def test_duplicates(line: str) -> None:
    filling = "100 ioctl(18, KVM_RUN, 0) = 0\n"  # so that only lines with some words are read
    text = f"{CREATED}{filling * 3}100 {line}\n{call(100, 20, 1)}"
    events, _ = read(text)
    assert FdDuplicated(6, 100, 8, 20) in events
    assert vms(text) == [(100, 8, [0, 1])]


@pytest.mark.parametrize(
    "line",
    [
        "fcntl(8, 0x1) = 0",
        "fcntl(8, 0x2, 0x1) = 0",
        "fcntl(8, F_SETFL, 0) = 0",
        "fcntl(8, F_GETFD) = 0x1 (flags FD_CLOEXEC)",
        "fcntl(8, 0x407, 0x1) = 0x1000",
        "fcntl(8, 0, 20) = -1 EMFILE (Too many open files)",
    ],
)
def test_no_duplicates(line: str) -> None:
    events, _ = read(f"{CREATED}100 {line}\n")
    assert not any(isinstance(event, FdDuplicated) for event in events)


@pytest.mark.parametrize(
    ("line", "shares"),
    [
        ("clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101", True),
        ("clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FS|CLONE_FILES) = 101", True),
        ("clone(child_stack=0x7f, flags=0x400|17) = 101", True),
        ("clone(0x511, 0x55eb55e100d0, 0, 0, 0xffffffff) = 0x65", True),  # strace -e raw=clone
        ("clone3({flags=0x500 /* CLONE_VM|CLONE_FILES */, exit_signal=17}, 88) = 101", True),
        ("clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = 101", False),
        ("clone(child_stack=0x7f, flags=CLONE_VM|SIGCHLD) = 101", False),
        ("clone(child_stack=NULL, flags=SIGCHLD) = 101", False),
        ("clone(child_stack=0x7f, flags=0x100|17) = 101", False),
        ("clone(0x1200011, 0, 0, 0x7f8abc4a7a10, 0) = 0x65", False),
        ("clone3({flags=0, exit_signal=SIGCHLD}, 88) = 101", False),
        ("fork() = 101", False),
    ],
)
def test_tasks_that_share_or_copy(line: str, shares: bool) -> None:
    """A close in the new task closes the parent's descriptor only if they share them."""
    text = (
        f"{CREATED}100 {line}\n{call(101, 8, 1)}101 close(8) = 0\n"
        f"{call(100, 8, 2)}101 ioctl(3, KVM_CREATE_VM, 0) = 8\n{call(101, 8, 3)}{call(100, 8, 4)}"
    )
    assert TaskStarted(3, 100, 101, shares) in read(text)[0]
    if shares:
        assert vms(text) == [(100, 8, [0, 1]), (100, 8, [2]), (100, 8, [3, 4])]
    else:
        assert vms(text) == [(100, 8, [0, 1, 2, 4]), (101, 8, [3])]


def test_a_task_whose_clone_does_not_tell() -> None:
    """Without its flags a task is taken for a thread, and a note says so."""
    text = f"{CREATED}100 clone3(0x7ffd1234, 88) = 101\n{call(101, 8, 1)}"
    assert vms(text) == [(100, 8, [0, 1])]
    (note,) = replayed(text).notes
    assert "thread 101 (line 4) is assumed to be a thread of process 100" in note


def test_calls_of_a_forked_process_are_calls_on_the_same_vm() -> None:
    text = f"{CREATED}100 fork() = 200\n{call(200, 8, 1, EIO)}{call(100, 8, 2)}"
    assert vms(text) == [(100, 8, [0, 2])]


@pytest.mark.parametrize("line", ["unshare(CLONE_FILES)", "unshare(0x400)", "unshare(0x10400)"])
def test_unshare(line: str) -> None:
    text = (
        f"{CREATED}100 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101\n"
        f"101 {line} = 0\n{call(101, 8, 1)}101 close(8) = 0\n{call(100, 8, 2)}"
    )
    assert FdsUnshared(4, 101) in read(text)[0]
    assert vms(text) == [(100, 8, [0, 1, 2])]


def test_unshare_of_something_else() -> None:
    text = f"{CREATED}100 unshare(CLONE_NEWNS) = 0\n100 unshare(0x20000) = 0\n"
    assert not any(isinstance(event, FdsUnshared) for event in read(text)[0])


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("close_range(3, 4294967295, 0)", FdsClosed(4, 101, 3, 4294967295, False)),
        ("close_range(0x3, 0xffffffff, 0)", FdsClosed(4, 101, 3, 4294967295, False)),
        ("close_range(3, 20, CLOSE_RANGE_UNSHARE)", FdsClosed(4, 101, 3, 20, True)),
        ("close_range(3, 20, 0x2)", FdsClosed(4, 101, 3, 20, True)),
        ("close_range(3, 20, 0x2 /* CLOSE_RANGE_UNSHARE */)", FdsClosed(4, 101, 3, 20, True)),
        ("close_range(3, 20, CLOSE_RANGE_CLOEXEC)", None),
        ("close_range(3, 20, 0x4)", None),
        ("close_range(3, 20, CLOSE_RANGE_UNSHARE|CLOSE_RANGE_CLOEXEC)", FdsUnshared(4, 101)),
        ("close_range(3, 20, 0x6)", FdsUnshared(4, 101)),
        ("close_range(9, 20, 0)", FdsClosed(4, 101, 9, 20, False)),
    ],
)
def test_close_range(line: str, event: FdsClosed | FdsUnshared | None) -> None:
    text = (
        f"{CREATED}100 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101\n"
        f"101 {line} = 0\n{call(100, 8, 1)}"
    )
    found = [one for one in read(text)[0] if isinstance(one, (FdsClosed, FdsUnshared))]
    assert found == ([] if event is None else [event])
    closed = isinstance(event, FdsClosed) and event.first <= 8 and not event.unshared
    assert vms(text) == ([(100, 8, [0]), (100, 8, [1])] if closed else [(100, 8, [0, 1])])
    unshared = isinstance(event, FdsUnshared) or (event is not None and event.unshared)
    # What the thread opens then is at a number of its own.
    text += "101 ioctl(3, KVM_CREATE_VM, 0) = 8\n" + call(101, 8, 5) + call(100, 8, 6)
    assert (vms(text)[-1][2] == [5]) == unshared


MESSAGE = (
    '{0}{{msg_name=NULL, msg_namelen=0, msg_iov=[{{iov_base="x", iov_len=1}}], msg_iovlen=1, '
    "msg_control=[{{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type={1}, cmsg_data=[{2}]}}], "
    "msg_controllen=24, msg_flags=0}}, 0) = 1\n"
)


@pytest.mark.parametrize(
    "line",
    [
        "200 pidfd_getfd(4<pid:100>, 8<anon_inode:kvm-vm>, 0) = 12<anon_inode:kvm-vm>\n",
        "200 pidfd_getfd(0x4, 0x8, 0) = 0xc\n",
        "200 " + MESSAGE.format("recvmsg(7, ", "SCM_RIGHTS", "11, 12<anon_inode:kvm-vm>"),
        "200 " + MESSAGE.format("recvmsg(7, ", "0x1", "12"),
        "200 " + MESSAGE.format("recvmsg(7, ", "0x1 /* SCM_RIGHTS */", "12"),
        "200 recvmsg(7,  <unfinished ...>\n200 "
        + MESSAGE.format("<... recvmsg resumed>", "SCM_RIGHTS", "12"),
        "200 recvmmsg(7, [{msg_hdr={msg_control=[{cmsg_len=20, cmsg_level=SOL_SOCKET, "
        "cmsg_type=SCM_RIGHTS, cmsg_data=[12]}]}, msg_len=1}], 1, 0, NULL) = 1\n",
    ],
)
def test_descriptors_from_another_process(line: str) -> None:
    filling = "100 ioctl(18, KVM_RUN, 0) = 0\n" * 3
    text = f"{CREATED}{filling}{line}{call(200, 12, 1, EIO)}"
    (received,) = (event for event in read(text)[0] if isinstance(event, FdsReceived))
    assert received.fds[-1] == 12
    report = replayed(text)
    assert [(vm.calls, vm.refused["EIO"]) for vm in report.vms] == [(2, 1)]
    (note,) = report.notes
    assert "is assumed to be process 100, fd 8: no other VM is in the trace" in note


def test_a_descriptor_from_another_process_and_two_vms() -> None:
    """The VM is one whose slots give the recorded result."""
    two = CREATED + "100 ioctl(3, KVM_CREATE_VM, 0) = 9\n" + call(100, 9, 5)
    exists = "-1 EEXIST (File exists)"
    sent = "101 pidfd_getfd(4, 8, 0) = 12\n"
    overlapping = call(101, 12, 6, exists).replace("guest_phys_addr=0x60000", "guest_phys_addr=0")
    text = two + sent + overlapping + call(101, 12, 1) + call(101, 12, 2)
    assert vms(text) == [(100, 8, [0, 1, 2]), (100, 9, [5])]
    assert "is assumed to be process 100, fd 8: its first call fits it" in replayed(text).notes[0]
    text = two + sent + call(101, 12, 1, EIO)
    assert vms(text) == [(100, 8, [0]), (100, 9, [5]), (101, 12, [])]
    assert "is assumed to be another VM: its first call fits no other" in replayed(text).notes[0]


def test_what_a_message_does_not_bring() -> None:
    message = MESSAGE.format("sendmsg(7, ", "SCM_RIGHTS", "8")
    other = MESSAGE.format("recvmsg(7, ", "SCM_CREDENTIALS", "{pid=1}")
    quoted = '100 write(1, "recvmsg(7, cmsg_type=SCM_RIGHTS, cmsg_data=[8]}]", 9) = 9\n'
    events, _ = read(f"{CREATED}100 {message}100 {other}{quoted}{CALL}\n")
    assert not any(isinstance(event, FdsReceived) for event in events)


def test_a_process_that_becomes_another_program() -> None:
    """Descriptors that it shared stay with the other process."""
    text = (
        f"{CREATED}100 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES) = 101\n"
        f'101 execve("/bin/true", ["true"], 0x7ffd) = 0\n101 close(8) = 0\n{call(100, 8, 1)}'
    )
    assert vms(text) == [(100, 8, [0, 1])]


def test_a_child_that_ended_before_vfork_returned() -> None:
    text = (
        f"{CREATED}100 vfork( <unfinished ...>\n{call(101, 8, 1)}101 close(8) = 0\n"
        f"101 +++ exited with 0 +++\n100 <... vfork resumed>) = 101\n{call(100, 8, 2)}"
    )
    assert vms(text) == [(100, 8, [0, 1, 2])]
    assert replayed(text).notes == []


def test_only_the_close_of_a_vm_has_an_event() -> None:
    others = "".join(f"100 close({fd}) = 0\n" for fd in range(20, 60))
    text = f"100 close(8) = 0\n{others}{CREATED}{others}100 dup(8) = 9\n{others}100 close(9) = 0\n"
    closed = [event for event in read(text)[0] if isinstance(event, FdClosed)]
    assert [(event.line, event.fd) for event in closed] == [(125, 9)]


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_closes_of_many_vms(count: int) -> None:
    text = "".join(f"100 ioctl(3, KVM_CREATE_VM, 0) = {fd}\n" for fd in range(8, 8 + count))
    text += "".join(f"100 close({fd:#x}) = 0\n100 close({fd}0) = 0\n" for fd in range(8, 8 + count))
    events, _ = read(text + CALL)
    closed = [event.fd for event in events if isinstance(event, FdClosed)]
    assert set(closed) == set(range(8, 8 + count))
    assert len([fd for fd in closed if fd < 80]) >= count


def test_a_struct_that_is_cut_off_holds_no_vm() -> None:
    events, _ = read(f"{CALL}\nioctl(9, KVM_SET_USER_MEMORY_REGION, {STRUCT}\nclose(9) = 0\n")
    assert not any(isinstance(event, FdClosed) for event in events)
