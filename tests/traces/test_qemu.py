from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.traces import RegionCall, Trace, TraceError, open_trace

OLD = "kvm_set_user_memory Slot#1 flags=0x2 gpa=0xffc84000 size=0x37c000 ua=0x7f149ec00000 ret=0"
NEW = OLD.replace("Slot#", "AddrSpace#0 Slot#")
NEWEST = NEW.replace(" ret=", " guest_memfd=-1 guest_memfd_offset=0x0 ret=")


def read(text: str) -> tuple[list[RegionCall], Trace]:
    with open_trace("log", "qemu", io.BytesIO(text.encode())) as trace:
        return [event for event in trace if isinstance(event, RegionCall)], trace


def one(text: str) -> RegionCall:
    (call,), _ = read(text + "\n")
    return call


def lost(text: str) -> dict[str, int]:
    calls, trace = read(f"{OLD}\n{text}")
    assert len(calls) == 1
    return dict(trace.counts.lost)


@pytest.mark.parametrize("line", [OLD, NEW, NEWEST])
@pytest.mark.parametrize(
    ("prefix", "tid", "time_ns"),
    [
        ("", None, None),
        ("8379@1795346957.000123:", 8379, 1795346957_000123_000),
        ("(qemu) 8379@1795346957.000123:", 8379, 1795346957_000123_000),
        ("2026-11-22T15:00:00.000000Z ", None, None),
        ("text of the guest", None, None),
    ],
)
def test_forms(line: str, prefix: str, tid: int | None, time_ns: int | None) -> None:
    call = one(prefix + line)
    assert (call.slot, call.flags, call.guest_phys_addr) == (1, 2, 0xFFC84000)
    assert (call.memory_size, call.userspace_addr, call.errno) == (0x37C000, 0x7F149EC00000, 0)
    assert (call.tid, call.fd, call.time_ns, call.guest_memfd) == (tid, None, time_ns, None)


def test_the_space() -> None:
    assert one(OLD.replace("#1", "#65539")).slot == 0x10003
    assert one(NEW.replace("AddrSpace#0 Slot#1", "AddrSpace#1 Slot#3")).slot == 0x10003


def test_failed() -> None:
    assert one(OLD.replace("ret=0", "ret=-17")).errno == 17


def test_guest_memfd() -> None:
    assert one(NEWEST.replace("guest_memfd=-1", "guest_memfd=13")).guest_memfd == 13


def test_several_on_one_line() -> None:
    calls, trace = read(f"{OLD}{NEW}{NEWEST}\n")
    assert [call.line for call in calls] == [1, 1, 1]
    assert (trace.counts.lines, trace.counts.unrelated) == (1, 0)


def test_among_other_lines() -> None:
    error = (
        "qemu-system-x86_64: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, "
        "slot=4, start=0xc0000, size=0xbff40000: File exists"
    )
    text = f"KVM internal error. Suberror: 1\n{OLD}\r\n{error}\nkvm_vm_ioctl type 0x4020ae46\n\0\n"
    calls, trace = read(text)
    assert [call.line for call in calls] == [2]
    assert (trace.counts.lines, trace.counts.unrelated, trace.counts.lost_total) == (5, 4, 0)


@pytest.mark.parametrize(
    "text",
    [
        "kvm_set_user_memory 0.000 pid=8379 slot=0x0 flags=0x0 ret=0x0\n",
        "kvm_set_user_memory\n",
        OLD.replace("gpa=0xffc84000 ", "") + "\n",
        OLD.replace("ret=0", "ret=") + "\n",
        OLD.replace("0x37c000", "lots") + "\n",
        # More digits than Python converts to an int.
        OLD.replace("Slot#1", f"Slot#{'9' * 5000}") + "\n",
        OLD.replace("ret=0", f"ret=-{'9' * 5000}") + "\n",
        NEW.replace("AddrSpace#0", f"AddrSpace#{'9' * 5000}") + "\n",
        NEWEST.replace("guest_memfd=-1", f"guest_memfd={'9' * 5000}") + "\n",
        f"{'9' * 5000}@1.000123:{OLD}\n",
        f"8379@{'9' * 5000}.000123:{OLD}\n",
    ],
)
def test_lost(text: str) -> None:
    assert lost(text) == {"not in a format of QEMU's log back end": 1}


@pytest.mark.parametrize(
    "text", [OLD.replace("0x2", "0x100000000"), OLD.replace("#1", "#4294967296")]
)
def test_out_of_range(text: str) -> None:
    assert lost(text + "\n") == {"a number does not fit its field": 1}


@pytest.mark.parametrize("length", range(len("kvm_set_user_memory"), len(OLD)))
def test_cut_off_at_the_end(length: int) -> None:
    assert lost(OLD[:length]) == {"cut off where the input ends": 1}


def test_a_cut_number_is_not_taken_for_a_whole_one() -> None:
    assert lost(OLD.replace("ret=0", "ret=-1")) == {"cut off where the input ends": 1}
    # No number of an error begins with 17 and goes on.
    assert read(OLD.replace("ret=0", "ret=-17"))[0][0].errno == 17
    assert len(read(OLD)[0]) == 1


def test_no_call() -> None:
    with pytest.raises(TraceError, match="-trace kvm_set_user_memory"):
        read("hello\n")


@given(
    st.integers(0, 3),
    st.integers(0, 0xFFFF),
    st.integers(0, 2**32 - 1),
    *[st.integers(0, 2**64 - 1)] * 3,
    st.integers(0, 133),
    st.integers(0, 2),
    st.sampled_from(["", "1@2.000003:", "x 77@1795346957.999999:"]),
)
def test_printed_and_read_back(
    space: int,
    slot: int,
    flags: int,
    gpa: int,
    size: int,
    ua: int,
    number: int,
    form: int,
    prefix: str,
) -> None:
    name = f"AddrSpace#{space} Slot#{slot}" if form else f"Slot#{space << 16 | slot}"
    memfd = "guest_memfd=-1 guest_memfd_offset=0x0 " if form == 2 else ""
    call = one(
        f"{prefix}kvm_set_user_memory {name} flags={flags:#x} gpa={gpa:#x} size={size:#x} "
        f"ua={ua:#x} {memfd}ret={-number}"
    )
    assert (call.slot, call.flags, call.errno) == (space << 16 | slot, flags, number)
    assert (call.guest_phys_addr, call.memory_size, call.userspace_addr) == (gpa, size, ua)


def test_events_of_all_requests() -> None:
    """-trace 'kvm_*' has an event of each request besides, which is no call of another tracer."""
    line = "4321@1.5:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f2c0000 ret=0\n"
    text = f"4321@1.4:kvm_vm_ioctl type 0x4020ae46, arg 0x7ffe13b0c970\n{line}" * 2
    with open_trace("x", stream=io.BytesIO(text.encode())) as trace:
        assert sum(isinstance(event, RegionCall) for event in trace) == 2
    assert (trace.format, trace.counts.lost_total) == ("qemu", 0)


@pytest.mark.parametrize("front", ["", "> ", "console "])
def test_a_log_may_begin_with_a_message_of_strace(front: str) -> None:
    event = "kvm_set_user_memory Slot#1 flags=0x0 gpa=0x1000 size=0x1000 ua=0x7f0000001000 ret=0"
    text = "".join(
        f"{front}{line}\n" for line in ("strace: Process 13 attached", "warning", event, event)
    )
    with open_trace("log", stream=io.BytesIO(text.encode())) as trace:
        found = list(trace)
    assert (trace.format, len(found), trace.counts.lines) == ("qemu", 2, 4)
