"""Traces as people paste them: wrapped by mails, pages, CIs and terminals."""

from __future__ import annotations

import html
import io
import quopri
import re
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.replay import replay
from memslots.traces import RegionCall, open_trace
from memslots.traces.lines import Lines
from memslots.traces.wrapping import Wrapping

STRACE = """\
501 10:11:12.000100 ioctl(3</dev/kvm>, KVM_CREATE_VM, 0) = 4<anon_inode:kvm-vm>
501 10:11:12.000200 ioctl(4<anon_inode:kvm-vm>, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, \
guest_phys_addr=0, memory_size=1048576, userspace_addr=0x7f0000000000}) = 0
502 10:11:12.000250 write(1, "a < b && c > \\"d\\"", 3) = 3
501 10:11:12.000300 ioctl(4<anon_inode:kvm-vm>, KVM_SET_USER_MEMORY_REGION, {slot=1, \
flags=KVM_MEM_READONLY, guest_phys_addr=0x100000, memory_size=4096, \
userspace_addr=0x7f0000100000} <unfinished ...>
502 10:11:12.000350 ioctl(5, KVM_RUN, 0) = 0
501 10:11:12.000400 <... ioctl resumed>) = 0
"""
QEMU = """\
123@1.000100:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000000 ua=0x7f2c0be00000 ret=0
something else
123@1.000200:kvm_set_user_memory Slot#1 flags=0x2 gpa=0xfffc0000 size=0x40000 ua=0x7f2c0000 ret=0
"""


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda text: "".join(f"{prefix}{line}\n" for line in text.splitlines())


def in_a_mail(width: int, space: str = "") -> Callable[[str], str]:
    """Breaks lines at spaces. In format=flowed a broken line ends with a space."""

    def wrap(text: str) -> str:
        return "".join(
            part + ("\n" if part is parts[-1] else f"{space}\n")
            for line in text.splitlines()
            for parts in [
                textwrap.wrap(line, width, break_on_hyphens=False, break_long_words=False)
            ]
            for part in parts
        )

    return wrap


def quoted_printable(text: str) -> str:
    return quopri.encodestring(text.encode()).decode()


def in_a_terminal(width: int) -> Callable[[str], str]:
    return lambda text: "".join(
        f"{line[at : at + width]}\n"
        for line in text.splitlines()
        for at in range(0, len(line), width)
    )


#: What logs, containers and editors put in front of each line.
FRONTS = (
    "Nov 29 18:32:10 host strace[123]: ",
    "Nov  9 18:32:10 host qemu-system-x86_64[123]: ",
    "2026-11-29T18:32:10+0000 host strace[123]: ",
    "2026-11-29T18:32:10.123456789Z stderr F ",
    "2026-11-29 18:32:10.123456 | node | ",
    "2026-11-29 18:32:10,123 INFO ",
    "[2026-11-29T18:32:10Z INFO  vmm] ",
    "<13>Nov 29 18:32:10 host x: ",
    "[18:32:10] ",
    "[18:32:10]\t[Step 1/2] ",
    "Nov 29 18:32:10 ",
    "00:00:01 ",
    "vmm-1  | ",
    "[pod/virt-launcher-x/compute] ",
    "build\trun tests\t2026-11-29T18:32:10.1234567Z ",
    "INFO:root:",
    "    12\t",
    "- ",
    "+",
    "E       ",
)

WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "quoted": prefixed("> "),
    "quoted twice": prefixed("> > "),
    "quoted without spaces": prefixed(">>"),
    "a CI's time": prefixed("[2026-03-02T21:01:29.045Z] "),
    "another CI's time": prefixed("2026-03-02T21:01:29.0451234Z "),
    "a CI's time in a mail": lambda text: prefixed("> ")(prefixed("[2026-03-02T21:01:29Z] ")(text)),
    "a page": lambda text: f"<pre>{html.escape(text)}</pre>\n",
    "a page's table": lambda text: "".join(
        f'<td class="line">{html.escape(line)}</td>\n' for line in text.splitlines()
    ),
    "no-break spaces": lambda text: text.replace(", ", ",\u00a0").replace(" gpa", "\u00a0gpa"),
    "colours": lambda text: text.replace("KVM_SET", "\x1b[01;31m\x1b[KKVM_SET").replace(
        "kvm_set_user_memory", "\x1b[32mkvm_set_user_memory\x1b[0m"
    ),
    "numbers of characters": lambda text: "".join(
        f"&#{ord(c)};" if c in '<>="' else f"&#x{ord(c):X};" if c in "{}_" else c for c in text
    ),
    "spaces of a page": lambda text: text.replace(" ", "&nbsp;"),
    **{f"behind {front!r}": prefixed(front) for front in FRONTS},
    "comments": prefixed("    // "),
    "CR": lambda text: text.replace("\n", "\r"),
    "CR CR LF": lambda text: text.replace("\n", "\r\r\n"),
    "comments among code": lambda text: "fn main() {\n" * 30 + prefixed("  # ")(text),
}


def calls(text: str) -> list[RegionCall]:
    with open_trace("pasted", stream=io.BytesIO(text.encode())) as trace:
        found = [event for event in trace if isinstance(event, RegionCall)]
    end = "\n" if "\n" in text else "\r"
    assert trace.counts.lost_total == 0 and trace.counts.lines == text.count(end)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", [STRACE, QEMU], ids=["strace", "qemu"])
def test_the_same_calls(text: str, way: str) -> None:
    wrapped = WAYS[way](text)
    before = wrapped.count("fn main")
    assert [
        (call.line - before, call.slot, call.flags, call.guest_phys_addr, call.time_ns)
        for call in calls(wrapped)
    ] == [
        (call.line, call.slot, call.flags, call.guest_phys_addr, call.time_ns)
        for call in calls(text)
    ]


TWO_PROCESSES = """\
100 ioctl(7, KVM_CREATE_VM, 0) = 8
100 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, \
memory_size=1048576, userspace_addr=0x7f0000000000}) = 0
100 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101
101 fcntl64(8, F_DUPFD_CLOEXEC, 3) = 9
100 ioctl(9, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0x100000, \
memory_size=4096, userspace_addr=0x7f0000100000} <unfinished ...>
200 ioctl(7, KVM_CREATE_VM, 0) = 8
100 <... ioctl resumed>) = 0
200 close(8) = 0
200 +++ exited with 0 +++
"""


@pytest.mark.parametrize("front", ["", *FRONTS])
@pytest.mark.parametrize("pid", [r"\1", r"[pid \1]"])
def test_processes_and_descriptors(front: str, pid: str) -> None:
    """What is in front of each line hides neither the thread nor the calls around memslots."""
    text = prefixed(front)(re.sub(r"(?m)^(\d+)", pid, TWO_PROCESSES))
    with open_trace("pasted", stream=io.BytesIO(text.encode())) as trace:
        events = [(type(event).__name__, event.line) for event in trace]
    assert events == [
        ("VmCreated", 1),
        ("RegionCall", 2),
        ("TaskStarted", 3),
        ("FdDuplicated", 4),
        ("VmCreated", 6),
        ("RegionCall", 5),
        ("FdClosed", 8),
        ("TaskEnded", 9),
    ]


def test_text_that_a_program_reads_is_no_call() -> None:
    text = prefixed("host: ")(STRACE + '501 read(3, "502 close(4) = 0", 99) = 16\n')
    with open_trace("pasted", stream=io.BytesIO(text.encode())) as trace:
        assert [type(event).__name__ for event in trace] == ["VmCreated", *["RegionCall"] * 2]


@pytest.mark.parametrize("quote", ["", "> > "])
@pytest.mark.parametrize("text", [STRACE, QEMU], ids=["strace", "qemu"])
@pytest.mark.parametrize(
    "wrap",
    [
        *(in_a_mail(width) for width in range(60, 100)),
        *(in_a_mail(width, " ") for width in range(60, 100, 5)),
        *(in_a_terminal(width) for width in range(77, 140)),
    ],
)
def test_lines_that_were_broken(wrap: Callable[[str], str], text: str, quote: str) -> None:
    """Calls are read wherever a mail or a terminal broke their lines."""
    broken = prefixed(quote)(wrap(text)) if quote else wrap(text)
    found = [(call.slot, call.guest_phys_addr, call.memory_size) for call in calls(broken)]
    assert found == [(call.slot, call.guest_phys_addr, call.memory_size) for call in calls(text)]


@pytest.mark.parametrize("end", ["\r", "\r\r\n"])
@pytest.mark.parametrize("text", [STRACE, QEMU], ids=["strace", "qemu"])
@pytest.mark.parametrize(
    "wrap", [in_a_mail(72), in_a_terminal(80), quoted_printable], ids=["mail", "terminal", "qp"]
)
def test_ends_of_lines(wrap: Callable[[str], str], text: str, end: str) -> None:
    """Old Macs end lines with CR, and serial consoles in Windows terminals with CR CR LF."""
    found = [call.slot for call in calls(wrap(text).replace("\n", end))]
    assert found == [call.slot for call in calls(text)]


def flowed_calls(number: int) -> dict[str, list[str]]:
    """Returns lines of one call each, with results of several kinds."""
    fields = "flags=0, guest_phys_addr={0:#x}, memory_size=4096, userspace_addr={1:#x}"
    results = ("0", "-1 EEXIST (File exists)", "0 <0.000012>")
    places = [(0x1000 * n, 0x7F0000000000 + 0x1000 * n) for n in range(number)]
    strace = [
        f"{'[pid 12] ' * (n % 3 == 1)}ioctl(4, KVM_SET_USER_MEMORY_REGION, {{slot={n}, "
        f"{fields.format(*place)}}}) = {results[n % 3]}"
        for n, place in enumerate(places)
    ]
    qemu = [
        f"7@1.{n:06}:kvm_set_user_memory Slot#{n} flags=0x0 gpa={place[0]:#x} size=0x1000 "
        f"ua={place[1]:#x} ret={-17 * (n % 3 == 1)}"
        for n, place in enumerate(places)
    ]
    return {"strace": strace, "qemu": qemu}


@pytest.mark.parametrize("width", [*range(50, 140, 7), 400])
@pytest.mark.parametrize("kind", ["strace", "qemu"])
def test_a_paragraph_that_flows_over_all_calls(kind: str, width: int) -> None:
    """A program filled the lines anew, so a call may begin wherever the one before ends."""
    lines = flowed_calls(30)[kind]
    with open_trace("pasted", stream=io.BytesIO("\n".join(lines).encode())) as trace:
        wanted = [(call.slot, call.errno) for call in trace if isinstance(call, RegionCall)]
    text = textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
    with open_trace("pasted", stream=io.BytesIO(text.encode())) as trace:
        found = [(call.slot, call.errno) for call in trace if isinstance(call, RegionCall)]
    # Where the input's last block begins, a call may be in two blocks. It is counted as lost.
    missing = [call for call in wanted if call not in found]
    assert len(missing) <= min(1, trace.counts.lost_total)
    assert [call for call in wanted if call in found] == found
    assert trace.counts.lines == text.count("\n") + 1


@pytest.mark.parametrize("text", [STRACE, QEMU], ids=["strace", "qemu"])
def test_a_quoted_mail_is_encoded_last(text: str) -> None:
    found = [call.slot for call in calls(quoted_printable(prefixed("> > ")(text)))]
    assert found == [call.slot for call in calls(text)]


@pytest.mark.parametrize("text", [STRACE, QEMU], ids=["strace", "qemu"])
@pytest.mark.parametrize(
    "way",
    [in_a_mail(60), in_a_mail(76), in_a_terminal(80), quoted_printable],
    ids=["mail", "wider mail", "terminal", "quoted-printable"],
)
def test_a_broken_call_at_the_end_of_a_block(way: Callable[[str], str], text: str) -> None:
    wrapped = (way(text) * 3).encode().removesuffix(b"\n")
    for place in range(len(wrapped) // 3, len(wrapped)):
        lines = Lines(iter([wrapped[:place], wrapped[place:]]))
        found = b"\n".join(line for _, line in lines)
        assert found == Wrapping().taken_off(wrapped + b"\n").removesuffix(b"\n")
        assert lines.cut


def test_lines_that_end_in_an_equals_sign_are_not_kept() -> None:
    """However many follow each other, no line is lost: the numbers behind them show it."""
    first, _, second, _ = calls(STRACE + "KEY=\n" * 600_000 + STRACE)
    assert second.line - first.line == 600_000 + STRACE.count("\n")


@pytest.mark.parametrize(
    "wrap", [*map(in_a_mail, range(60, 100, 3)), *map(in_a_terminal, range(80, 140, 7))]
)
def test_broken_calls_around_memslots(wrap: Callable[[str], str]) -> None:
    """Whose memslots these are is known wherever the lines broke."""

    def vms(text: str) -> list[object]:
        with open_trace("pasted", stream=io.BytesIO(text.encode())) as trace:
            return [(vm.process, vm.fd, vm.calls) for vm in replay(trace).vms]

    fd = "<anon_inode:[a longer name than KVM's, so that lines are broken]>"
    text = TWO_PROCESSES.replace("= 8\n", f"= 8{fd}\n").replace(
        "CLONE_VM", "CLONE_FS|" * 9 + "CLONE_VM"
    )
    assert vms(wrap(text)) == vms(text)


def test_colours_in_a_mail() -> None:
    coloured = STRACE.replace("501 ", "\x1b[32m501\x1b[0m ")
    assert [call.tid for call in calls(quoted_printable(coloured))] == [501, 501]


def test_another_line_ends_a_broken_call() -> None:
    """The result of another call is not taken for that of a call whose end is missing."""
    text = (
        "501 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0,\n"
        "501 ioctl(4, KVM_GET_VCPU_MMAP_SIZE, 0) = 12288\n"
    )
    with open_trace("pasted", stream=io.BytesIO((text + STRACE).encode())) as trace:
        assert sum(isinstance(event, RegionCall) for event in trace) == 2
    assert trace.counts.lost == {"the line has no result (cut off?)": 1}


def test_what_tells_quoted_printable() -> None:
    """Most equals signs are encoded; without any, the lengths of the lines tell."""
    line = b"x" * 75
    assert Wrapping().taken_off(line + b"=\nyy\nz\n") == line + b"yy\n\nz\n"
    assert Wrapping().taken_off(b"a=3Db\nc=3D\n") == b"a=b\nc=\n"
    longer = b"a longer line than a mail has: " + line
    for text in (line + b"=\n" + longer + b"\n", b"a=\nb\n"):
        assert Wrapping().taken_off(text) == text


@given(st.binary(max_size=300).map(lambda data: data + b"\n"))
def test_lines_stay_lines(data: bytes) -> None:
    assert Wrapping().taken_off(data).count(b"\n") == data.count(b"\n")


def test_what_only_looks_so_stays() -> None:
    for text in (
        b'501 write(1, "&lt;b> \\33[1m", 3) = 3\n501 close(3) = 0\n',
        b"one\n> two\nthree\n",
        b"# a comment\ncode\n",
    ):
        expected = text.replace(b"&lt;", b"<")
        assert Wrapping().taken_off(text) in (text, expected)


# Other forms of QEMU's event

SIMPLE = """\
kvm_run_exit 0.000 pid=4321 cpu_index=0x0 reason=0x2
kvm_set_user_memory 104.221 pid=4321 as=0x1 slot=0x2 flags=0x2 guest_phys_addr=0xfffc0000 \
memory_size=0x40000 userspace_addr=0x7f2c0bc00000 fd=0xffffffff fd_offset=0x0 ret=0x0
kvm_run_exit 20.500 pid=4321 cpu_index=0x0 reason=0x2
kvm_set_user_memory 1.000 pid=4321 as=0x0 slot=0x3 flags=0x0 guest_phys_addr=0xfffc0000 \
memory_size=0x40000 userspace_addr=0x7f2c0bc00000 fd=0x9 fd_offset=0x0 ret=0xffffffef
"""
LTTNG = """\
[10:11:12.270000000] (+?.?????????) host7 qemu:kvm_set_user_memory: { cpu_id = 2 }, { slot = 0, \
flags = 2, guest_phys_addr = 4294705152, memory_size = 262144, userspace_addr = 139826895093760, \
ret = -17 }
"""
FTRACE = """\
# tracer: nop
       CPU 0/KVM-4325    [001] .....   812.345778: tracing_mark_write: kvm_set_user_memory Slot#7 \
flags=0x0 gpa=0x1000 size=0x1000 ua=0x7f2c0be00000 ret=0
"""


def test_simpletrace() -> None:
    first, second = calls(SIMPLE)
    assert (first.slot, first.flags, first.guest_phys_addr, first.errno) == (
        0x10002,
        2,
        0xFFFC0000,
        0,
    )
    assert (first.memory_size, first.userspace_addr) == (0x40000, 0x7F2C0BC00000)
    # Each line has the time since the line before it.
    assert (first.time_ns, second.time_ns) == (104_221, 125_721)
    assert (first.guest_memfd, second.guest_memfd, second.errno) == (None, 9, 17)


def test_lttng_and_ftrace() -> None:
    (call,) = calls(LTTNG)
    assert (call.slot, call.flags, call.guest_phys_addr, call.errno) == (0, 2, 0xFFFC0000, 17)
    assert call.time_ns == ((10 * 60 + 11) * 60 + 12) * 10**9 + 270_000_000
    (call,) = calls(FTRACE)
    assert (call.slot, call.time_ns) == (7, 812_345_778_000)


def test_a_guest_memfd_by_other_names() -> None:
    line = "kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 gpa=0x0 size=0x1000 ua=0x7f0000000000 "
    (call,) = calls(f"{line}ret=0 restricted_fd=19 restricted_offset=0x0\n")
    assert call.guest_memfd == 19
    (call,) = calls(f"{line}ret=0\n")
    assert call.guest_memfd is not None  # QEMU 9.0 does not say which file
    (call,) = calls(f"{line}ret=-22\n")
    assert call.guest_memfd is None


def test_encoded_ends_of_lines_keep_the_number_of_lines() -> None:
    broken = "a=3Db=0Ac=3D=\nd=0Ae=0A=\nf=3D=0A=3D=0A\ng=3D\n"
    lines = list(Lines(iter([broken.encode()])))
    assert lines == [(1, b"a=b"), (2, b"c=d"), (3, b"e f= = "), (4, b"g=")]


def test_a_broken_line_behind_a_cut_call_at_the_end_of_a_block() -> None:
    whole = (
        "[pid 7] ioctl(8, 0x4020ae46, 0x7ffd0003 <unfinished ...> | ioct=\n"
        "l(8, KVM_SET_USER_MEMORY_REGION, {slot=3D4, flags=3D0, guest=\n"
        "_phys_addr=3D0x4000, memory_size=3D4096, userspace_addr=3D0x7f00000004000})=\n"
        " =3D 0\nx=3D1"
    )
    lines = [line for _, line in Lines(iter([whole.encode()]))]
    assert b"| ioctl(8, KVM" in lines[0]
    assert len(lines) == 5


def _struct(k: int) -> str:
    return (
        f"{{slot={k}, flags=0, guest_phys_addr={k:#x}000, memory_size=4096, "
        f"userspace_addr=0x7f000000{k:x}000}}"
    )


@pytest.mark.parametrize(
    "request_", ["0x4020ae46", "KVM_SET_USER_MEMORY_REGION", "_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)"]
)
@pytest.mark.parametrize("result", [") = 0", " <unfinished ...>"])
@pytest.mark.parametrize("between", ["", " ", "; "])
def test_a_call_behind_another_one_is_broken_anywhere(
    request_: str, result: str, between: str
) -> None:
    """A width breaks the second call at each of its characters."""
    first = f"7 ioctl(8, KVM_SET_USER_MEMORY_REGION, {_struct(1)}) = 0{between}"
    second = f"[pid 12] ioctl(8, {request_}, {_struct(2)}{result}"
    silent = []
    for width in range(len(first) // 2 + 1, (len(first) + len(second)) // 2 + 1):
        both = first + second
        text = "\n".join(both[at : at + width] for at in range(0, len(both), width)) + "\n"
        with open_trace("trace", stream=io.BytesIO(text.encode())) as trace:
            found = [event for event in trace if isinstance(event, RegionCall)]
        if len(found) + trace.counts.lost_total < 2:
            silent.append(text)
    assert silent == []


def test_the_name_of_an_event_is_broken_behind_another_event() -> None:
    event = "kvm_set_user_memory Slot#{0} flags=0x0 gpa=0x{0}000 size=0x1000 ua=0x7f{0}000 ret=0"
    first, second, third = (f"7@1700000000.123456:{event.format(slot)}" for slot in (1, 2, 3))
    glued = f"{first} {second}"
    for name in range(1, len("kvm_set_user_memory")):
        at = glued.rindex("kvm_set_user_memory") + name
        text = f"{glued[:at]}\n{glued[at:]}\n{third}\n"
        with open_trace("trace", stream=io.BytesIO(text.encode())) as trace:
            found = [event for event in trace if isinstance(event, RegionCall)]
        assert [(call.slot, call.line) for call in found] == [(1, 1), (2, 1), (3, 3)], text


def test_the_first_lines_decide_even_if_they_come_one_by_one() -> None:
    page = "".join(html.escape(line) for line in STRACE.splitlines(keepends=True))

    class Terminal(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return self.readline()

    wanted = list(open_trace("trace", stream=io.BytesIO(STRACE.encode())))
    with open_trace("trace", stream=Terminal(page.encode())) as trace:
        assert list(trace) == wanted


def test_a_page_whose_last_call_never_returned() -> None:
    call = f"[pid 13] ioctl(8, KVM_SET_USER_MEMORY_REGION, {_struct(1)} &lt;unfinished ...&gt;"
    text = f"[pid 12] +++ exited with 0 +++\n{call}\n"
    with open_trace("trace", stream=io.BytesIO(text.encode())) as trace:
        list(trace)
    assert trace.counts.lost == {"unfinished, and never resumed": 1}
