"""Reads clocks, and any call in any form."""

import errno

from hypothesis import given
from hypothesis import strategies as st
from stracetext import CALL, calls, fields, read

from memslots.traces import (
    RegionCall,
)

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


# --- any call is read back, in any of these forms

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
    """Returns the lines that a strace prints for `call` under options drawn at random."""
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
