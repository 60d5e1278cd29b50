"""Replays the real traces: against a dull computation and numbers read by hand."""

from __future__ import annotations

import gzip
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from replays import Row, check, rows

from memslots.replay import Report, replay
from memslots.traces import open_trace

TRACES = Path(__file__).parent.parent / "data" / "traces"
MIB = 1 << 20
RO = 2
LOG = 1


def report_of(name: str) -> Report:
    with open_trace(TRACES / name) as trace:
        report = replay(trace)
    check(report)
    return report


# --- the real traces: a dull computation, and numbers read by hand


class Dull(NamedTuple):
    """The result of a dictionary and one pass over the text; every call in them succeeded."""

    operations: Counter[str]
    most_slots: int
    final_map: list[Row]
    gaps: list[tuple[int, int, int, int]]  # gpa, size, the lines of loss and of return


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
    assert "thread 8381 (line 365) is assumed to be a thread of process 8379" in report.notes[0]
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
    # First gaps: slot 0 shrinks from 256 MiB to 768 KiB, and three other slots fill its place.
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
    """strace and QEMU recorded the same run."""
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
