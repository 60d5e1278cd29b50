"""Replaying traces: real ones, whose results are known by hand, and short ones for each rule."""

from __future__ import annotations

import gzip
import io
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.replay import Report, VmReport, replay
from memslots.traces import TraceError, open_trace

TRACES = Path(__file__).parent.parent / "data" / "traces"
MIB = 1 << 20
RO = 2
LOG = 1


def report_of(name: str) -> Report:
    with open_trace(TRACES / name) as trace:
        report = replay(trace)
    check(report)
    return report


def replay_text(text: str) -> Report:
    with open_trace("trace", "auto", io.BytesIO(text.encode())) as trace:
        report = replay(trace)
    check(report)
    return report


def check(report: Report) -> None:
    for vm in report.vms:
        vm.memslots.check()


Row = tuple[int, int, int, int, int, int]  # as_id, id, gpa, size, hva, flags


def rows(vm: VmReport) -> list[Row]:
    return [
        (s.as_id, s.id, s.guest_phys_addr, s.memory_size, s.userspace_addr, int(s.flags))
        for s in vm.final_map
    ]


# --- the real traces: a dull computation, and numbers read off by hand


class Dull(NamedTuple):
    """What a dictionary and one pass over the text give; every call of these traces succeeded."""

    operations: Counter[str]
    most_slots: int
    final_map: list[Row]
    gaps: list[tuple[int, int, int, int]]  # gpa, size, the lines of loss and return


NUMBER = r"(0x[0-9a-f]+|\d+)"
STRACE_LINE = re.compile(
    rf"SET_USER_MEMORY_REGION, .slot={NUMBER}, flags=([^,]*), guest_phys_addr={NUMBER}, "
    rf"memory_size={NUMBER}, userspace_addr={NUMBER}.. = 0"
)
QEMU_LINE = re.compile(
    rf"kvm_set_user_memory Slot#{NUMBER} flags=([^ ]*) gpa={NUMBER} size={NUMBER} "
    rf"ua={NUMBER} ret=0"
)
FLAGS = {
    "KVM_MEM_LOG_DIRTY_PAGES": 1,
    "KVM_MEM_READONLY": 2,
    "KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY": 3,
}


def dull_calls(text: str) -> list[tuple[int, int, int, int, int, int]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if call := STRACE_LINE.search(line) or QEMU_LINE.search(line):
            slot, flags, gpa, size, hva = call.groups()
            flag_bits = FLAGS[flags] if flags in FLAGS else int(flags, 0)
            values = int(slot, 0), flag_bits, int(gpa, 0), int(size, 0), int(hva, 0)
            found.append((number, *values))
    return found


def dull_replay(text: str) -> Dull:
    calls = dull_calls(text)
    edges = sorted({gpa for _, _, _, gpa, _, _ in calls} | {c[3] + c[4] for c in calls})
    slots: dict[int, tuple[int, int, int, int]] = {}
    lost_at: dict[int, int] = {}  # first byte of an elementary range: the line of its loss
    closed: list[tuple[int, int, int, int]] = []
    operations: Counter[str] = Counter()
    most = 0
    for line, slot, flags, gpa, size, hva in calls:
        old = slots.get(slot)
        if not size:
            assert old is not None
            operations["DELETE"] += 1
            del slots[slot]
            lost_at |= {edge: line for edge in edges if old[0] <= edge < old[0] + old[1]}
        elif old is None:
            operations["CREATE"] += 1
            slots[slot] = gpa, size, hva, flags
            for start, end in itertools.pairwise(edges):
                if gpa <= start < gpa + size and start in lost_at:
                    closed.append((start, end - start, lost_at.pop(start), line))
        else:
            assert old[:3] == (gpa, size, hva)
            operations["FLAGS_ONLY" if old[3] != flags else "NONE"] += 1
            slots[slot] = gpa, size, hva, flags
        most = max(most, len(slots))
    gaps: list[tuple[int, int, int, int]] = []
    for start, size, opened, back in closed:
        if gaps and gaps[-1][0] + gaps[-1][1] == start and gaps[-1][2:] == (opened, back):
            gaps[-1] = gaps[-1][0], gaps[-1][1] + size, opened, back
        else:
            gaps.append((start, size, opened, back))
    final = [(0, slot, *values) for slot, values in slots.items()]
    return Dull(operations, most, sorted(final, key=lambda row: row[2]), gaps)


SEABIOS = "qemu-pc-seabios.strace.gz"
OVMF = "qemu-q35-ovmf-ttt-y.strace.gz"
OVMF_QEMU = "qemu-q35-ovmf.qemu-trace"
HOTPLUG = "qemu-pc-hotplug.qemu-trace"
REAL = [SEABIOS, OVMF, OVMF_QEMU, HOTPLUG]


def text_of(name: str) -> str:
    path = TRACES / name
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode()


@pytest.mark.parametrize("name", REAL)
def test_real_traces_against_the_dull_computation(name: str) -> None:
    text = text_of(name)
    dull = dull_replay(text)
    report = report_of(name)
    assert report.agree
    (vm,) = report.vms
    assert vm.disagreements == []
    assert report.counts.lost_total == 0
    assert report.counts.calls == vm.calls == len(dull_calls(text))
    assert report.counts.lines == len(text.splitlines())
    assert report.counts.unrelated == report.counts.lines - report.counts.calls
    assert vm.operations == dull.operations
    assert vm.most_slots == dull.most_slots
    assert rows(vm) == dull.final_map
    assert [
        (gap.base_gfn << 12, gap.npages << 12, gap.opened_line, gap.closed_line) for gap in vm.gaps
    ] == dull.gaps


def test_seabios_by_hand() -> None:
    report = report_of(SEABIOS)
    (vm,) = report.vms
    assert (report.format, report.counts.lines, report.counts.calls) == ("strace", 6856, 37)
    assert (vm.process, vm.fd, vm.born_line) == (8379, 8, 5)
    assert vm.operations == {"CREATE": 23, "DELETE": 14}
    assert (vm.most_slots, vm.refused, vm.outside) == (9, {}, 0)
    # A vCPU's thread makes most of the calls, on the fd of the process that made the VM.
    assert len(report.notes) == 1
    assert "thread 8381 (line 365) was taken for a thread of process 8379" in report.notes[0]
    assert rows(vm) == [
        (0, 0, 0x0, 655360, 0x7F703BE00000, 0),
        (0, 2, 0xC0000, 45056, 0x7F703BEC0000, 0),
        (0, 4, 0xCB000, 12288, 0x7F703BECB000, 0),
        (0, 5, 0xCE000, 106496, 0x7F703BECE000, 0),
        (0, 6, 0xE8000, 32768, 0x7F703BEE8000, 0),
        (0, 7, 0xF0000, 65536, 0x7F703BEF0000, 0),
        (0, 8, 0x100000, 267386880, 0x7F703BF00000, 0),
        (0, 3, 0xFD000000, 16777216, 0x7F7051E00000, LOG),
        (0, 1, 0xFFFC0000, 262144, 0x7F7053200000, RO),
    ]
    # The first: slot 0 shrinks from 256 MiB to 768 KiB, and three others fill its place.
    assert [(gap.opened_line, gap.closed_line) for gap in vm.gaps][:4] == [
        (118, 119), (118, 120), (118, 121), (118, 122),
    ]  # fmt: skip
    assert all(gap.duration_ns is None for gap in vm.gaps)


OVMF_MAP = [
    (0, 0, 0x0, 655360, 0x7F1477E00000, 0),
    (0, 2, 0xC0000, 131072, 0x7F14A4200000, RO),
    (0, 3, 0xE0000, 131072, 0x7F14A4400000, RO),
    (0, 4, 0x100000, 535822336, 0x7F1477F00000, 0),
    (0, 1, 0xFFC84000, 3653632, 0x7F149EC00000, RO),
]


@pytest.mark.parametrize(("name", "lines"), [(OVMF, 3175), (OVMF_QEMU, 78)])
def test_ovmf_by_hand(name: str, lines: int) -> None:
    """The same run, as strace and as QEMU saw it."""
    report = report_of(name)
    (vm,) = report.vms
    assert (report.counts.lines, report.counts.calls) == (lines, 21)
    assert vm.operations == {"CREATE": 8, "DELETE": 3, "FLAGS_ONLY": 10}
    assert (vm.most_slots, vm.refused) == (5, {})
    assert rows(vm) == OVMF_MAP
    assert len(vm.gaps) == 5


def test_ovmf_gaps_have_times() -> None:
    (vm,) = report_of(OVMF).vms
    # Line 124 at ...957.936552, 125 at .936917, 126 at .937118; 171 at .957748, 172 at .958146,
    # 173 at .958372, 174 at .958590.
    assert [
        (g.base_gfn, g.end_gfn, g.opened_line, g.closed_line, g.duration_ns) for g in vm.gaps
    ] == [
        (0x0, 0xA0, 124, 125, 365_000),
        (0xC0, 0x20000, 124, 126, 566_000),
        (0xC0, 0xE0, 171, 172, 398_000),
        (0xE0, 0x100, 171, 173, 624_000),
        (0x100, 0x20000, 171, 174, 842_000),
    ]  # fmt: skip


def test_hotplug_by_hand() -> None:
    report = report_of(HOTPLUG)
    (vm,) = report.vms
    assert (report.format, report.counts.lines, report.counts.calls) == ("qemu", 234, 233)
    assert (vm.process, vm.fd, vm.name) == (None, None, "the VM")
    # 68 slots get dirty logging and lose it again (all but slot 3, which has it from the start).
    assert vm.operations == {"CREATE": 83, "DELETE": 14, "FLAGS_ONLY": 136}
    assert vm.most_slots == 69
    found = rows(vm)
    assert len(found) == 69
    # 60 DIMMs of 128 MiB from 4 GiB on.
    dimms = [row for row in found if row[1] >= 9]
    assert [row[1:4] for row in dimms] == [
        (9 + n, 0x1_0000_0000 + n * 128 * MIB, 128 * MIB) for n in range(60)
    ]
    assert [row for row in found if row[5]] == [
        (0, 3, 0xFE000000, 0x800000, 0x7FA21B400000, LOG),
        (0, 1, 0xFFFC0000, 0x40000, 0x7FA238A00000, RO),
    ]
    assert report.notes == []


# --- short traces


def qemu(
    slot: int,
    flags: int,
    gpa: int,
    size: int,
    ua: int = 0x7F0000000000,
    ret: int = 0,
    pre: str = "",
) -> str:
    return (
        f"{pre}kvm_set_user_memory Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} "
        f"ua={ua:#x} ret={ret}\n"
    )


CREATE = qemu(0, 0, 0, 0x10000)


def one_vm(text: str) -> VmReport:
    (vm,) = replay_text(text).vms
    return vm


def test_every_change_and_every_refusal_that_agrees() -> None:
    vm = one_vm(
        CREATE
        + qemu(0, 0, 0, 0x10000)  # nothing differs
        + qemu(0, 1, 0, 0x10000)  # flags
        + qemu(0, 1, 0x20000, 0x10000)  # move
        + qemu(1, 0, 0x28000, 0x10000, ret=-17)  # overlap
        + qemu(1, 4, 0, 0x1000, ret=-22)  # unknown flag
        + qemu(9, 0, 0, 0, ret=-22)  # no such slot
        + qemu(0, 0, 0, 0)  # delete
    )
    assert vm.disagreements == []
    assert vm.operations == {"CREATE": 1, "NONE": 1, "FLAGS_ONLY": 1, "MOVE": 1, "DELETE": 1}
    assert vm.refused == {"EEXIST": 1, "EINVAL": 2}
    assert (vm.calls, vm.most_slots, vm.final_map) == (8, 1, [])


def test_a_refusal_outside_of_the_rules_is_not_made() -> None:
    vm = one_vm(CREATE + qemu(1, 0, 0x10000, 0x1000, ret=-12) + qemu(1, 0, 0x10000, 0x1000, ret=-4))
    assert (vm.disagreements, vm.outside) == ([], 2)
    assert vm.refused == {"ENOMEM": 1, "EINTR": 1}
    assert len(vm.final_map) == 1


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (qemu(1, 0, 0x20000, 0x1000, ret=-17), "CREATE"),
        (qemu(0, 0, 0, 0, ret=-22), "DELETE"),
        (qemu(0, 1, 0, 0x10000, ret=-22), "FLAGS_ONLY"),
        (qemu(0, 1, 0x8000, 0x10000, ret=-22), "MOVE"),
        (qemu(0, 0, 0, 0x10000, ret=-22), "NONE"),
    ],
)
def test_refused_by_the_kernel_alone(call: str, kind: str) -> None:
    report = replay_text(CREATE + call)
    assert not report.agree
    (vm,) = report.vms
    (found,) = vm.disagreements
    assert (found.call.line, found.ours) == (2, 0)
    assert found.recorded in (17, 22)
    assert kind in found.why
    assert found.followed == f"the {kind} was undone"
    assert rows(vm) == [(0, 0, 0, 0x10000, 0x7F0000000000, 0)]
    assert vm.operations == {"CREATE": 1}
    assert vm.gaps == []


@pytest.mark.parametrize(
    ("call", "ours", "followed", "final"),
    [
        # It overlaps slot 0: that must have gone.
        (
            qemu(1, 0, 0x8000, 0x10000),
            17,
            "slot 0 dropped, then CREATE",
            [(0, 1, 0x8000, 0x10000, 0x7F0000000000, 0)],
        ),
        # Another size: it must have been deleted and created anew.
        (
            qemu(0, 0, 0, 0x8000),
            22,
            "slot 0 dropped, then CREATE",
            [(0, 0, 0, 0x8000, 0x7F0000000000, 0)],
        ),
        (qemu(5, 0, 0, 0), 22, "there was nothing to delete", None),
        (qemu(5, 8, 0x40000, 0x1000), 22, "the call was left out", None),
        (qemu(0, 8, 0, 0x10000), 22, "the call was left out", None),
    ],
)
def test_refused_by_us_alone(call: str, ours: int, followed: str, final: list[Row] | None) -> None:
    (vm,) = replay_text(CREATE + call).vms
    (found,) = vm.disagreements
    assert (found.recorded, found.ours, found.followed) == (0, ours, followed)
    assert "rule" in found.why
    assert rows(vm) == (final or [(0, 0, 0, 0x10000, 0x7F0000000000, 0)])


def test_both_refuse_for_different_reasons() -> None:
    vm = one_vm(CREATE + qemu(1, 0, 0x8000, 0x10000, ret=-22))
    (found,) = vm.disagreements
    assert (found.recorded, found.ours) == (22, 17)
    assert found.followed == "both refuse it: nothing changed"


def test_no_gap_where_a_dropped_slot_was_replaced() -> None:
    vm = one_vm(CREATE + qemu(1, 0, 0x8000, 0x10000) + qemu(2, 0, 0, 0x8000))
    assert [(g.base_gfn, g.end_gfn, g.opened_line, g.closed_line) for g in vm.gaps] == [
        (0, 8, 2, 3)
    ]


def test_a_move_leaves_a_gap_only_where_it_went_from() -> None:
    vm = one_vm(CREATE + qemu(0, 0, 0x8000, 0x10000) + qemu(0, 0, 0, 0x10000))
    assert [(g.base_gfn, g.end_gfn) for g in vm.gaps] == [(0, 8)]


def test_gaps_of_two_spaces_are_two() -> None:
    high = 1 << 16
    vm = one_vm(
        CREATE
        + qemu(high, 0, 0, 0x10000)
        + qemu(0, 0, 0, 0)
        + qemu(high, 0, 0, 0)
        + qemu(high, 0, 0, 0x1000)
        + qemu(1, 0, 0x1000, 0x1000)
    )
    assert vm.memslots.address_spaces == 2
    assert [(g.as_id, g.base_gfn, g.npages, g.opened_line) for g in vm.gaps] == [
        (1, 0, 1, 4),
        (0, 1, 1, 3),
    ]
    assert [row[:2] for row in rows(vm)] == [(0, 1), (1, 0)]


def test_guest_memfd_is_replayed_without_its_flag() -> None:
    text = qemu(0, 4, 0, 0x10000).replace(" ret=", " guest_memfd=9 guest_memfd_offset=0x0 ret=")
    report = replay_text(text)
    assert report.agree
    assert rows(report.vms[0]) == [(0, 0, 0, 0x10000, 0x7F0000000000, 0)]
    assert "guest_memfd" in report.notes[0]


def test_host_addresses_of_other_machines() -> None:
    """48 bits of user space, as arm64 has; and what is beyond it is refused still."""
    vm = one_vm(
        qemu(0, 0, 0, 0x1000, ua=0xFFFF_8000_0000) + qemu(1, 0, 0x1000, 0x1000, 1 << 60, -22)
    )
    assert vm.disagreements == []
    assert vm.memslots.max_hva == 1 << 48


def strace(tid: int, fd: int, slot: int, gpa: int, size: int, ua: int, result: str = "0") -> str:
    return (
        f"{tid}  ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, "
        f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={ua:#x}}}) = {result}\n"
    )


CAP = "100  ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_{}) = {}\n"
BORN = "100  ioctl(3, KVM_CREATE_VM, 0) = 8\n"


def test_limits_from_the_capabilities() -> None:
    text = (
        BORN
        + CAP.format("NR_MEMSLOTS", 509)
        + CAP.format("MULTI_ADDRESS_SPACE", 2)
        + strace(100, 8, 508, 0, 4096, 0)
        + strace(100, 8, 509, 4096, 4096, 0, "-1 EINVAL (Invalid argument)")
        + strace(100, 8, 0x10000, 4096, 4096, 0)
        + strace(100, 8, 0x20000, 4096, 4096, 0, "-1 EINVAL (Invalid argument)")
    )
    (vm,) = replay_text(text).vms
    assert vm.disagreements == []
    assert (vm.memslots.max_slots, vm.memslots.address_spaces) == (509, 2)


def test_a_space_that_the_machine_should_not_have() -> None:
    text = CAP.format("MULTI_ADDRESS_SPACE", 1) + strace(100, 8, 0x10000, 0, 4096, 0)
    (found,) = one_vm(text).disagreements
    assert (found.recorded, found.ours, found.followed) == (0, 22, "the call was left out")


def test_no_multi_address_space_is_one_space() -> None:
    text = CAP.format("MULTI_ADDRESS_SPACE", 0) + strace(100, 8, 0, 0, 4096, 0)
    assert one_vm(text).memslots.address_spaces == 1


def test_two_vms_by_process_and_fd() -> None:
    text = (
        BORN
        + "100  ioctl(3, KVM_CREATE_VM, 0) = 9\n"
        + "200  ioctl(3, KVM_CREATE_VM, 0) = 8\n"
        + strace(100, 8, 0, 0, 4096, 0x1000)
        + strace(100, 9, 0, 0, 8192, 0x1000)
        + strace(200, 8, 0, 0, 16384, 0x1000)
        + "300  ioctl(3, KVM_CREATE_VM, 0) = 8\n"
    )
    report = replay_text(text)
    assert report.agree
    assert [(vm.name, rows(vm)[0][3]) for vm in report.vms] == [
        ("process 100, fd 8", 4096),
        ("process 100, fd 9", 8192),
        ("process 200, fd 8", 16384),
    ]


def test_two_machines_in_one_grepped_trace() -> None:
    """Neither clone nor KVM_CREATE_VM: what a thread belongs to is told by its first call."""
    text = (
        strace(100, 8, 0, 0, 4096, 0x7000_0000)
        + strace(200, 8, 0, 0, 8192, 0x7100_0000)
        + strace(201, 8, 0, 0, 0, 0x7100_0000)
        + strace(101, 8, 0, 0, 0, 0x7000_0000)
    )
    report = replay_text(text)
    assert report.agree
    assert [(vm.process, vm.calls, vm.final_map) for vm in report.vms] == [
        (100, 2, []),
        (200, 2, []),
    ]
    assert len(report.notes) == 3


def test_two_threads_of_qemu_are_one_machine() -> None:
    """The number in front of QEMU's lines is a thread's."""
    text = (
        qemu(0, 0, 0, 0x10000, pre="100@1.000000:")
        + qemu(0, 0, 0, 0, pre="102@2.000000:")
        + qemu(0, 0, 0, 0x8000, pre="102@2.500000:")
    )
    (vm,) = replay_text(text).vms
    assert vm.disagreements == []
    assert [gap.duration_ns for gap in vm.gaps] == [500_000_000]


def test_two_logs_of_qemu_in_one_are_two_machines() -> None:
    text = qemu(0, 0, 0, 0x10000, pre="100@1.0:") + qemu(0, 0, 0, 0x20000, pre="200@1.0:")
    assert [vm.process for vm in replay_text(text).vms] == [100, 200]


def test_nothing_but_lost_calls() -> None:
    with pytest.raises(
        TraceError, match=r"line 1: none of its 2 memslot calls can be read; strace"
    ):
        replay_text("ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffd) = 0\n" * 2)


def test_watch() -> None:
    seen: list[tuple[int, int]] = []
    with open_trace("x", "qemu", io.BytesIO((CREATE * 5000).encode())) as trace:
        replay(trace, lambda done, calls: seen.append((done, calls)))
    assert seen == [(0, 5000), (4096, 5000)]


# --- whatever the results recorded, the map follows them and the numbers add up

some_calls = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 0x10000, 0x10001]),
        st.sampled_from([0, 1, 2]),
        st.integers(0, 6).map(lambda n: n * 0x1000),
        st.integers(0, 3).map(lambda n: n * 0x1000),
        st.sampled_from([0x7F0000000000, 0x7F0000100000]),
        st.sampled_from([0, 0, 0, -17, -22, -12]),
    ),
    min_size=1,
    max_size=30,
)


@given(some_calls)
def test_any_results(made: list[tuple[int, int, int, int, int, int]]) -> None:
    report = replay_text("".join(qemu(*call) for call in made))
    (vm,) = report.vms
    succeeded = [call for call in made if not call[5]]
    assert vm.calls == len(made)
    assert sum(vm.refused.values()) == len(made) - len(succeeded)
    left_out = sum(
        not found.recorded and "then" not in found.followed and found.followed != "CREATE"
        for found in vm.disagreements
    )
    assert sum(vm.operations.values()) == len(succeeded) - left_out
    for slot, flags, gpa, size, hva, _ in succeeded[-1:]:
        found = vm.memslots.address_space(slot >> 16).get(slot & 0xFFFF)
        if size:
            assert found is not None
            assert (found.guest_phys_addr, found.memory_size) == (gpa, size)
            assert (found.userspace_addr, int(found.flags)) == (hva, flags)
        else:
            assert found is None
    assert report.agree == (not vm.disagreements)
