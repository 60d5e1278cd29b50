"""Replaying beside a kernel: the one of this machine, and one made up, which errs when it is told.

The made-up kernel shows every way in which three answers can differ, in the report, in the text and
in the JSON document; the real one must agree with all that was recorded.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import need_kvm

from memslots import Change, InvalidRegionError, MemslotError, Memslots, OverlapError, Slot
from memslots.cli import main
from memslots.errors import KvmError, KvmUnavailableError
from memslots.kvm import KvmVM
from memslots.replay import Replayer, Report, VmReport, replay
from memslots.replay.live import Live
from memslots.traces import TraceError, open_trace
from memslots.traces.samples import SAMPLES

TRACES = Path(__file__).parent.parent / "data" / "traces"
HVA = 0x7F0000000000
EEXIST, EINVAL, ENOMEM = errno.EEXIST, errno.EINVAL, errno.ENOMEM

Call = tuple[int, int, int, int, int]
#: What a kernel does instead of the right thing.
Wrong = Callable[[Memslots, Call], Change]


def refuse(number: int) -> Wrong:
    def wrong(memslots: Memslots, call: Call) -> Change:
        if number == EEXIST:
            raise OverlapError(number, "made up: something is there")
        if number == EINVAL:
            raise InvalidRegionError(number, "made up: a value is wrong")
        raise KvmError(number, "made up: no memory")

    return wrong


def pretend(memslots: Memslots, call: Call) -> Change:
    """Success, and nothing is done."""
    return Change.NONE


def force(memslots: Memslots, call: Call) -> Change:
    """Success, whatever is in the way or has the id."""
    slot, _, gpa, size, _ = call
    for other in list(memslots.in_gfn_range(gpa >> 12, gpa + size >> 12)):
        memslots.set_region(other.id, 0, 0, 0, 0)
    if memslots.get(slot) is not None:
        memslots.set_region(slot, 0, 0, 0, 0)
    return memslots.set_region(*call) if size else Change.DELETE


def take(memslots: Memslots, call: Call) -> Change:
    """Success; nothing is done that the rules refuse. No kernel goes beyond its own limits."""
    slot, _, gpa, size, _ = call
    try:
        return memslots.set_region(*call)
    except MemslotError:
        if slot >> 16 >= memslots.address_spaces or slot & 0xFFFF >= memslots.max_slots:
            raise
        if size and (gpa + size >> 12) - 1 > memslots.max_gfn:
            raise
        return Change.NONE


class MadeUpVM:
    """A kernel's VM that is a Memslots, except that its k-th call (from 1) goes wrong."""

    def __init__(self, wrong: Mapping[int, Wrong] | None = None, **limits: int) -> None:
        self.memslots = Memslots(**limits)
        self.wrong = dict(wrong or {})
        self.calls: list[Call] = []
        self.closed = 0

    @property
    def limits(self) -> dict[str, int]:
        names = ("max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log")
        return {name: getattr(self.memslots, name) for name in names}

    @property
    def slots(self) -> Sequence[Slot]:
        assert not self.closed
        spaces = range(self.memslots.address_spaces)
        return [slot for as_id in spaces for slot in self.memslots.address_space(as_id)]

    def set_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, /
    ) -> Change:
        assert not self.closed
        call = slot, flags, guest_phys_addr, memory_size, userspace_addr
        self.calls.append(call)
        wrong = self.wrong.get(len(self.calls))
        return self.memslots.set_region(*call) if wrong is None else wrong(self.memslots, call)

    def close(self) -> None:
        self.closed += 1


def qemu(slot: int, gpa: int, size: int, ret: int = 0, flags: int = 0, ua: int = HVA) -> str:
    call = f"Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x}"
    return f"kvm_set_user_memory {call} ret={-ret}\n"


def strace(fd: int, slot: int, gpa: int, size: int) -> str:
    return (
        f"100  ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, "
        f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={HVA:#x}}}) = 0\n"
    )


def replay_text(text: str, live: Callable[[], Any]) -> Report:
    with open_trace("trace", "auto", io.BytesIO(text.encode())) as trace:
        return replay(trace, live=live)


def beside(text: str, kernel: MadeUpVM) -> VmReport:
    """The report of a trace's only VM; the kernel was closed, once."""
    (vm,) = replay_text(text, lambda: kernel).vms
    assert kernel.closed == 1
    return vm


def live_of(vm: VmReport) -> Live:
    assert vm.live is not None
    return vm.live


CREATE = qemu(0, 0, 0x10000)


# --- every way in which three answers can differ


@dataclass(frozen=True)
class Case:
    """A trace whose last line is the call, how the kernel goes wrong, and what must be told."""

    text: str
    wrong: Mapping[int, Wrong] = field(default_factory=dict)
    answers: tuple[str, str, str] = ("success", "success", "success")
    followed: str = "as recorded"
    live_followed: str = "the same"
    why: str = ""
    live_why: str = ""

    @property
    def pairs(self) -> dict[str, int]:
        recorded, ours, live = self.answers
        differ = {
            "recorded and memslots": recorded != ours,
            "recorded and this kernel": recorded != live,
            "memslots and this kernel": ours != live,
        }
        return {pair: 1 for pair, does in differ.items() if does}


CASES = {
    "this kernel alone refuses a CREATE": Case(
        CREATE,
        {1: refuse(EINVAL)},
        ("success", "success", "EINVAL"),
        live_followed="CREATE of slot 0",
        why="no rule refuses it: CREATE of slot 0",
        live_why="made up: a value is wrong",
    ),
    "this kernel alone refuses a DELETE": Case(
        CREATE + qemu(0, 0, 0),
        {2: refuse(EINVAL)},
        ("success", "success", "EINVAL"),
        live_followed="slot 0 deleted",
        why="no rule refuses it: DELETE of slot 0",
    ),
    "this kernel alone refuses a MOVE": Case(
        CREATE + qemu(0, 0x8000, 0x10000),
        {2: refuse(EINVAL)},
        ("success", "success", "EINVAL"),
        live_followed="MOVE of slot 0",
    ),
    "this kernel has no memory": Case(
        CREATE + qemu(0, 0, 0x10000, flags=1),
        {2: refuse(ENOMEM)},
        ("success", "success", "ENOMEM"),
        live_followed="FLAGS_ONLY of slot 0",
        live_why="made up: no memory",
    ),
    "this kernel alone takes an overlap": Case(
        CREATE + qemu(1, 0x8000, 0x1000, EEXIST),
        {2: pretend},
        ("EEXIST", "EEXIST", "success"),
        why="slot 1 of address space 0, rule 6: gfn [0x8, 0x9) overlaps slot 0",
        live_why="no rule refuses it here: NONE",
    ),
    "this kernel alone takes another size": Case(
        CREATE + qemu(0, 0, 0x8000, EINVAL),
        {2: force},
        ("EINVAL", "EINVAL", "success"),
        live_followed="slot 0 deleted, CREATE of slot 0",
        live_why="no rule refuses it here: CREATE",
    ),
    "this kernel refuses for another reason": Case(
        CREATE + qemu(1, 0x8000, 0x1000, EEXIST),
        {2: refuse(EINVAL)},
        ("EEXIST", "EEXIST", "EINVAL"),
    ),
    "the recorded kernel alone refuses": Case(
        CREATE + qemu(0, 0x8000, 0x10000, EINVAL),
        {},
        ("EINVAL", "success", "success"),
        "the MOVE was undone",
        "MOVE of slot 0",
        live_why="no rule refuses it here: MOVE",
    ),
    "the recorded kernel alone refuses a DELETE": Case(
        CREATE + qemu(0, 0, 0, EINVAL),
        {},
        ("EINVAL", "success", "success"),
        "the DELETE was undone",
        "CREATE of slot 0",
    ),
    "the recorded kernel alone takes an overlap": Case(
        CREATE + qemu(1, 0x8000, 0x10000),
        {},
        ("success", "EEXIST", "EEXIST"),
        "slot 0 dropped, then CREATE",
        "slot 0 deleted, CREATE of slot 1",
    ),
    "the recorded kernel alone takes a flag": Case(
        CREATE + qemu(0, 0, 0x10000, flags=8),
        {},
        ("success", "EINVAL", "EINVAL"),
        "the call was left out",
    ),
    "memslots alone refuses an overlap": Case(
        CREATE + qemu(1, 0x8000, 0x10000),
        {2: force},
        ("success", "EEXIST", "success"),
        "slot 0 dropped, then CREATE",
    ),
    "memslots alone refuses a DELETE": Case(
        CREATE + qemu(5, 0, 0),
        {2: pretend},
        ("success", "EINVAL", "success"),
        "there was nothing to delete",
    ),
    "memslots alone takes it": Case(
        CREATE + qemu(1, 0x10000, 0x1000, EINVAL),
        {2: refuse(EINVAL)},
        ("EINVAL", "success", "EINVAL"),
        "the CREATE was undone",
    ),
    "all three differ": Case(
        CREATE + qemu(1, 0x8000, 0x1000),
        {2: refuse(EINVAL)},
        ("success", "EEXIST", "EINVAL"),
        "slot 0 dropped, then CREATE",
        "slot 0 deleted, CREATE of slot 1",
    ),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_what_differs(case: Case) -> None:
    kernel = MadeUpVM(case.wrong)
    vm = beside(case.text, kernel)
    (found,) = vm.disagreements
    numbers = tuple(0 if name == "success" else getattr(errno, name) for name in case.answers)
    assert (found.recorded, found.ours, found.live) == numbers
    assert found.call.line == case.text.count("\n")
    assert (found.followed, found.live_followed) == (case.followed, case.live_followed)
    assert found.why.startswith(case.why)
    assert found.live_why.startswith(case.live_why)
    assert vm.pairs == case.pairs
    # The kernel's VM is the map again, which is what the recorded kernel had.
    assert live_of(vm).same
    assert (live_of(vm).slots, live_of(vm).missing, live_of(vm).others) == (vm.final_map, [], [])
    assert list(kernel.memslots) == vm.final_map
    assert not vm.agree
    vm.memslots.check()


@pytest.fixture
def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs `replay --kvm` on a text: status, standard output and error."""

    def run(text: str, live: Callable[[], Any], *options: str) -> tuple[int, str, str]:
        path = tmp_path / "a.log"
        path.write_text(text)
        monkeypatch.setattr("memslots.kvm.KvmVM", live)
        status = main(["replay", "--kvm", *options, str(path)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


Shown = Callable[..., tuple[int, str, str]]


def test_what_differs_in_text(case: Case, shown: Shown) -> None:
    status, out, err = shown(case.text, lambda: MadeUpVM(case.wrong))
    assert (status, err) == (1, "")
    lines = out.splitlines()
    calls = case.text.count("\n")
    pairs = ", ".join(f"1 {pair}" for pair in sorted(case.pairs))
    plural = "s" if calls > 1 else ""
    assert f"  results     1 of {calls} result{plural} DISAGREE: {pairs}" in lines
    start = lines.index("  disagreements") + 1
    recorded, ours, live = case.answers
    assert lines[start].startswith(f"    line {calls}: slot=")
    assert lines[start + 1] == f"      recorded: {recorded}"
    assert lines[start + 2].startswith(f"      memslots: {ours}, because {case.why}")
    assert lines[start + 3].startswith(f"      this kernel: {live}, because {case.live_why}")
    assert lines[start + 4] == f"      the map: {case.followed}"
    assert lines[start + 5] == f"      this kernel's slots: {case.live_followed}"


def test_what_differs_in_json(case: Case, shown: Shown) -> None:
    status, out, err = shown(case.text, lambda: MadeUpVM(case.wrong), "--json")
    assert (status, err) == (1, "")
    document = json.loads(out)
    assert (document["agree"], document["files"][0]["agree"]) == (False, False)
    (vm,) = document["files"][0]["vms"]
    (found,) = vm["disagreements"]
    assert (found["recorded"], found["ours"], found["this_kernel"]) == case.answers
    assert (found["followed"], found["this_kernel_followed"]) == (case.followed, case.live_followed)
    assert found["this_kernel_why"].startswith(case.live_why)
    assert vm["differ"] == case.pairs
    assert vm["this_kernel"] == {
        "limits": {
            "max_slots": 32764,
            "address_spaces": 1,
            "max_gfn": "0xffffffffff",
            "max_hva": "0x7ffffffff000",
        },
        "slots": len(vm["final_map"]),
        "missing": [],
        "others": [],
    }


def test_an_answer_that_differs_does_not_bring_on_others() -> None:
    """What the kernel was not made to have, or to lose, would be in the way of the later calls."""
    text = (
        CREATE
        + qemu(1, 0x10000, 0x1000)
        + qemu(1, 0, 0)
        + qemu(2, 0x10000, 0x1000)  # where slot 1 was
        + qemu(0, 0x20000, 0x10000)
        + qemu(3, 0, 0x10000)  # where slot 0 was
    )
    # Each call is followed by one that makes the kernel's VM the same.
    kernel = MadeUpVM({1: refuse(ENOMEM), 4: refuse(EINVAL), 7: refuse(EINVAL)})
    vm = beside(text, kernel)
    assert [found.call.line for found in vm.disagreements] == [1, 3, 5]
    assert [found.live_followed for found in vm.disagreements] == [
        "CREATE of slot 0",
        "slot 1 deleted",
        "MOVE of slot 0",
    ]
    assert live_of(vm).same


# --- limits that differ


@pytest.mark.parametrize(
    ("limits", "call", "told"),
    [
        ({"max_slots": 2}, qemu(2, 0, 0x1000), "max_slots is 2 here, 32764 in the replay"),
        (
            {"address_spaces": 1},
            qemu(1 << 16, 0, 0x1000),
            "address_spaces is 1 here, 2 in the replay",
        ),
        (
            {"max_gfn": 0xFF},
            qemu(0, 0xFF000, 0x2000),
            "max_gfn is 0xff here, 0xffffffffff in the replay",
        ),
        (
            {"max_hva": HVA},
            qemu(0, 0, 0x1000),
            "max_hva is 0x7f0000000000 here, 0x7ffffffff000 in the replay",
        ),
    ],
)
def test_a_smaller_limit_is_named(limits: dict[str, int], call: str, told: str) -> None:
    vm = beside(call, MadeUpVM(None, **limits))
    (found,) = vm.disagreements
    assert (found.recorded, found.ours, found.live) == (0, 0, EINVAL)
    assert found.live_why.endswith(f"; {told}")
    assert "cannot be as in the map: slot" in found.live_followed
    assert live_of(vm).missing == vm.final_map
    assert len(vm.final_map) == 1
    assert live_of(vm).others == []


def test_a_greater_limit_is_named() -> None:
    vm = beside(qemu(0, 1 << 52, 0x1000, EINVAL), MadeUpVM(max_gfn=(1 << 44) - 1))
    (found,) = vm.disagreements
    assert (found.ours, found.live) == (EINVAL, 0)
    told = "max_gfn is 0xfffffffffff here, 0xffffffffff in the replay"
    assert found.live_why == f"no rule refuses it here: CREATE; {told}"
    assert found.live_followed == "slot 0 deleted"
    assert live_of(vm).same


def test_a_limit_that_is_not_the_reason_is_not_named() -> None:
    kernel = MadeUpVM({2: refuse(EINVAL), 4: refuse(EINVAL)}, max_gfn=0xFF)
    # A delete may name any address.
    vm = beside(CREATE + qemu(0, 0, 0x10000, flags=1) + qemu(0, 1 << 30, 0), kernel)
    assert [found.live_why for found in vm.disagreements] == ["made up: a value is wrong"] * 2


def test_a_slot_that_cannot_be_there_is_told_of_later() -> None:
    text = (
        CREATE
        + qemu(0, 0x100000, 0x10000)  # beyond the kernel's max_gfn
        + qemu(1, 0x108000, 0x1000, EEXIST)  # overlaps what is not there
        + qemu(2, 0, 0x10000)  # in its old place, where it is neither
        + qemu(0, 0x100000, 0x10000, flags=1)
        + qemu(0, 0, 0)
        + qemu(0, 0x20000, 0x10000)  # refused for something else
    )
    kernel = MadeUpVM({11: refuse(ENOMEM)}, max_gfn=0x108)
    vm = beside(text, kernel)
    lines = [found.call.line for found in vm.disagreements]
    assert lines == [2, 3, 5, 6, 7]
    moved, overlaps, flags, gone, last = vm.disagreements
    beyond = "slot 0 of address space 0, rule 7: the last gfn 0x10f is above max_gfn 0x108"
    assert moved.live_followed == f"slot 0 cannot be as in the map: {beyond}, slot 0 deleted"
    since = "slot 0 is not there since line 2"
    assert (overlaps.live, overlaps.live_followed) == (0, "slot 1 deleted")
    assert overlaps.live_why == f"no rule refuses it here: CREATE; {since}"
    assert flags.live_why.endswith(f"max_gfn is 0x108 here, 0xffffffffff in the replay; {since}")
    assert (gone.live, gone.live_followed) == (EINVAL, "the same")
    assert gone.live_why.endswith(since)
    assert (last.live_why, last.live_followed) == ("made up: no memory", "CREATE of slot 0")
    assert live_of(vm).same
    assert [slot.id for slot in live_of(vm).slots] == [2, 0]


@pytest.mark.parametrize("taken", [True, False])
def test_a_slot_that_is_there_again_is_told_of_no_more(taken: bool) -> None:
    """It is there by a call that the map takes as a change of flags, or by what follows that."""
    wrong = {1: refuse(ENOMEM), 2: refuse(ENOMEM)}
    wrong |= {4: refuse(EINVAL)} if taken else {3: refuse(ENOMEM), 5: refuse(EINVAL)}
    text = CREATE + qemu(0, 0, 0x10000, flags=1) + qemu(0, 0, 0x10000)
    vm = beside(text, MadeUpVM(wrong))
    first, *others, last = vm.disagreements
    assert (first.call.line, first.live) == (1, ENOMEM)
    assert first.live_followed == "slot 0 cannot be as in the map: made up: no memory"
    assert [(found.live_why, found.live_followed) for found in others] == (
        []
        if taken
        else [("made up: no memory; slot 0 is not there since line 1", "CREATE of slot 0")]
    )
    assert (last.call.line, last.live_why) == (3, "made up: a value is wrong")
    assert live_of(vm).same


def test_a_slot_that_is_not_there_means_nothing_to_another_space() -> None:
    kernel = MadeUpVM({3: refuse(ENOMEM)}, address_spaces=1)
    vm = beside(qemu(1 << 16, 0, 0x10000) + CREATE, kernel)
    assert vm.disagreements[1].live_why == "made up: no memory"
    assert [(slot.as_id, slot.id) for slot in live_of(vm).missing] == [(1, 0)]


# --- the comparison at the end


def test_a_kernel_that_only_pretends(shown: Shown) -> None:
    """All answers agree; what is there does not."""
    text = CREATE + qemu(1, 0x10000, 0x1000, flags=2) + qemu(0, 0, 0)
    wrong = {2: pretend, 3: pretend}
    vm = beside(text, MadeUpVM(wrong))
    assert vm.disagreements == []
    assert not vm.agree
    assert [slot.id for slot in live_of(vm).missing] == [1]
    assert [slot.id for slot in live_of(vm).others] == [0]
    status, out, _ = shown(text, lambda: MadeUpVM(wrong))
    assert status == 1
    assert "  this kernel 1 slot at the end, NOT those of the map\n" in out
    ranges = "gpa [0x10000, 0x11000), hva 0x7f0000000000, flags READONLY"
    assert f"    not in this kernel: slot 1, {ranges}\n" in out
    assert "    not in the map: slot 0, gpa [0x0, 0x10000), hva 0x7f0000000000, flags -\n" in out
    status, out, _ = shown(text, lambda: MadeUpVM(wrong), "--json")
    assert status == 1
    (found,) = json.loads(out)["files"][0]["vms"]
    assert found["disagreements"] == []
    assert found["this_kernel"]["slots"] == 1
    assert found["this_kernel"]["missing"] == found["final_map"]
    assert [slot["id"] for slot in found["this_kernel"]["others"]] == [0]


def test_a_slot_that_cannot_be_deleted() -> None:
    kernel = MadeUpVM({2: refuse(EINVAL), 3: refuse(EINVAL)})
    vm = beside(CREATE + qemu(0, 0, 0), kernel)
    (found,) = vm.disagreements
    assert found.live_followed == "slot 0 cannot be deleted: made up: a value is wrong"
    assert [slot.id for slot in live_of(vm).others] == [0]
    assert live_of(vm).missing == []
    assert not live_of(vm).same


# --- what is not asked


def test_a_refusal_outside_of_the_rules_is_not_asked(shown: Shown) -> None:
    text = CREATE + qemu(1, 0x10000, 0x1000, ENOMEM)
    kernel = MadeUpVM()
    vm = beside(text, kernel)
    assert (vm.agree, vm.outside) == (True, 1)
    assert kernel.calls == [(0, 0, 0, 0x10000, HVA)]
    status, out, _ = shown(text, MadeUpVM)
    assert status == 0
    asked = "1 for reasons outside of the rules, not replayed, nor asked of this kernel"
    assert f"  refused     1 ENOMEM ({asked})\n" in out


def test_guest_memfd_is_asked_without_its_flag() -> None:
    text = qemu(0, 0, 0x10000, flags=5).replace(
        " ret=", " guest_memfd=9 guest_memfd_offset=0x0 ret="
    )
    kernel = MadeUpVM()
    report = replay_text(text, lambda: kernel)
    assert report.agree
    assert kernel.calls == [(0, 1, 0, 0x10000, HVA)]
    (note,) = report.notes
    assert note.endswith("without their KVM_MEM_GUEST_MEMFD flag, on this kernel too")


def test_without_a_kernel_nothing_is_said_of_it() -> None:
    with open_trace("trace", "qemu", io.BytesIO((CREATE * 2 + qemu(5, 0, 0)).encode())) as trace:
        (vm,) = replay(trace).vms
    assert vm.live is None
    (found,) = vm.disagreements
    assert (found.live, found.live_why, found.live_followed) == (None, "", "")
    assert found.pairs == ["recorded and memslots"]


# --- VMs are made when they are needed, and closed whatever happens


class Kernel:
    """Makes VMs, and keeps them."""

    def __init__(self, *vms: MadeUpVM | OSError) -> None:
        self.made: list[MadeUpVM] = []
        self._next = iter(vms)

    def __call__(self) -> MadeUpVM:
        vm = next(self._next, None) or MadeUpVM()
        if isinstance(vm, OSError):
            raise vm
        self.made.append(vm)
        return vm


BORN = "100  ioctl(3, KVM_CREATE_VM, 0) = {}\n"
THREE = (
    "".join(BORN.format(fd) for fd in (7, 8, 9))
    + strace(8, 0, 0, 0x1000)
    + strace(9, 0, 0, 0x2000)
    + strace(8, 0, 0, 0)
)


def test_one_vm_for_each_that_has_calls() -> None:
    kernel = Kernel()
    report = replay_text(THREE, kernel)
    assert report.agree
    assert [live_of(vm).slots for vm in report.vms] == [[], [Slot(0, 0, 0, 2, HVA)]]
    assert [(len(vm.calls), vm.closed) for vm in kernel.made] == [(2, 1), (1, 1)]


def test_no_vm_for_the_second(shown: Shown) -> None:
    full = KvmError(errno.EMFILE, "KVM_CREATE_VM: Too many open files")
    kernel = Kernel(MadeUpVM(), full)
    reason = "no VM of this machine's kernel for it: KVM_CREATE_VM: Too many open files"
    with pytest.raises(TraceError, match=f"^trace: line 5: {reason}$"):
        replay_text(THREE, kernel)
    assert [vm.closed for vm in kernel.made] == [1]
    # The command makes one before all others, to see whether it can.
    kernel = Kernel(MadeUpVM(), MadeUpVM(), full)
    status, out, err = shown(THREE, kernel)
    assert (status, out) == (2, "")
    assert err.endswith(f"a.log: line 5: {reason}\n")
    assert [vm.closed for vm in kernel.made] == [1, 1]
    status, out, _ = shown(THREE, Kernel(MadeUpVM(), full), "--json")
    assert status == 2
    assert json.loads(out)["files"][0]["error"] == {"line": 4, "reason": reason}


class NoLimits(MadeUpVM):
    """Its limits cannot be found out."""

    @property
    def limits(self) -> dict[str, int]:
        raise KvmError(errno.EMFILE, "made up: too many files")


def test_a_vm_whose_limits_cannot_be_had_is_closed() -> None:
    kernel = NoLimits()
    with pytest.raises(TraceError, match=r"line 1: .* made up: too many files"):
        replay_text(CREATE, lambda: kernel)
    assert kernel.closed == 1


def interrupt(memslots: Memslots, call: Call) -> Change:
    raise KeyboardInterrupt


def test_closed_when_interrupted(shown: Shown) -> None:
    kernel = Kernel(MadeUpVM(), MadeUpVM({1: interrupt}))
    with pytest.raises(KeyboardInterrupt):
        replay_text(THREE, kernel)
    assert [vm.closed for vm in kernel.made] == [1, 1]
    kernel = Kernel(MadeUpVM(), MadeUpVM({1: interrupt}))
    status, out, err = shown(THREE, kernel)
    assert (status, out, err.strip()) == (130, "", "memslots: interrupted")
    assert [vm.closed for vm in kernel.made] == [1, 1]


def test_closed_when_the_watcher_has_had_enough() -> None:
    kernel = Kernel()

    def watch(done: int, calls: int) -> None:
        if done:
            raise InterruptedError

    with (
        open_trace("x", "qemu", io.BytesIO((CREATE * 5000).encode())) as trace,
        pytest.raises(InterruptedError),
    ):
        replay(trace, watch, kernel)
    assert [(len(vm.calls), vm.closed) for vm in kernel.made] == [(4096, 1)]


# --- the command, where there is no KVM


def test_without_kvm(shown: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is read before that is known."""
    device = str(tmp_path / "kvm")
    without = functools.partial(KvmVM, device=device)
    with pytest.raises(KvmUnavailableError) as caught:
        without()
    message = f"memslots: {caught.value.strerror}\n"
    assert message.startswith(f"memslots: {device} cannot be opened: No such file or directory; ")
    assert shown(CREATE, without) == (2, "", message)
    assert shown(CREATE, without, "--json") == (2, "", message)
    assert main(["replay", "--kvm", "missing"]) == 2
    assert capsys.readouterr() == ("", message)
    assert main(["replay", "--kvm", "--sample", "qemu-pc-seabios"]) == 2
    assert capsys.readouterr() == ("", message)


def test_wrong_arguments_come_first(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--kvm"]) == 2
    assert "name FILEs or one --sample" in capsys.readouterr().err


def test_kvm_is_not_imported_until_it_is_asked_for() -> None:
    code = (
        "import sys, memslots.replay, memslots.cli.commands\n"
        "from memslots.cli import main\n"
        "status = main(['replay', '--sample', 'qemu-pc-seabios'])\n"
        "sys.exit(status or 'memslots.kvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"this kernel" not in done.stdout


# --- after every call of any trace, beside any kernel


@dataclass(frozen=True)
class Made:
    """A call, with the result that was recorded and the kernel's own way with it."""

    call: tuple[int, int, int, int]  # slot, gpa, size, recorded errno
    wrong: Wrong | None


def made_calls(spaces: Sequence[int]) -> st.SearchStrategy[list[Made]]:
    calls = st.tuples(
        st.sampled_from([slot | as_id << 16 for as_id in spaces for slot in (0, 1, 2)]),
        st.integers(0, 6).map(lambda n: n * 0x1000),
        st.integers(0, 3).map(lambda n: n * 0x1000),
        st.sampled_from([0, 0, 0, EEXIST, EINVAL, ENOMEM]),
    )
    kernels = st.sampled_from([None, None, refuse(EINVAL), refuse(EEXIST), refuse(ENOMEM), take])
    return st.lists(st.builds(Made, calls, kernels), min_size=1, max_size=25)


def steps(made: Sequence[Made], kernel: MadeUpVM) -> Iterator[VmReport]:
    """Replay the calls one by one."""
    text = "".join(qemu(*each.call) for each in made)
    with open_trace("trace", "qemu", io.BytesIO(text.encode())) as trace:
        events = list(trace)
    replayer = Replayer(events, lambda memslots, _: Live(kernel, memslots))
    for each, event in zip(made, events, strict=True):
        # The call itself goes wrong; what is done to follow does not.
        kernel.wrong = {} if each.wrong is None else {len(kernel.calls) + 1: each.wrong}
        replayer.feed(event)
        (vm,) = replayer.vms
        yield vm


@given(made_calls([0, 1]), st.sampled_from([1, 3, 64]), st.sampled_from([1, 2]))
def test_the_kernel_has_what_the_map_has(made: list[Made], max_slots: int, spaces: int) -> None:
    """All of it that its limits allow, and nothing else."""
    kernel = MadeUpVM(max_slots=max_slots, address_spaces=spaces, max_gfn=6)
    for vm in steps(made, kernel):
        assert set(kernel.slots) == {
            slot
            for slot in vm.final_map
            if slot.id < max_slots and slot.as_id < spaces and slot.end_gfn <= 7
        }
    for found in vm.disagreements:
        assert found.pairs
        assert found.live is not None
        assert found.live_followed


# --- this machine's kernel


def replay_on_kvm(path: Path) -> Report:
    with open_trace(path) as trace:
        return replay(trace, live=KvmVM)


@pytest.mark.parametrize("path", sorted(TRACES.iterdir()), ids=lambda path: path.name)
def test_real_traces_on_the_real_kernel(path: Path) -> None:
    need_kvm()
    report = replay_on_kvm(path)
    assert report.agree
    (vm,) = report.vms
    assert vm.disagreements == []
    assert live_of(vm).slots == sorted(vm.final_map, key=lambda slot: (slot.as_id, slot.id))
    assert len(vm.final_map) >= 5


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_on_the_real_kernel(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    need_kvm()
    assert main(["replay", "--kvm", "--sample", name]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "results agree: recorded, memslots, this kernel\n" in captured.out
    assert " slots at the end, those of the map\n" in captured.out


def test_several_files_and_json_on_the_real_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    need_kvm()
    paths = sorted(TRACES.iterdir())
    assert main(["replay", "--kvm", "--json", *map(str, paths)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agree"] is True
    assert len(document["files"]) == 4
    with KvmVM() as kvm:
        limits = kvm.limits
    for found, path in zip(document["files"], paths, strict=True):
        assert found["file"] == str(path)
        (vm,) = found["vms"]
        assert (vm["differ"], vm["disagreements"]) == ({}, [])
        assert vm["this_kernel"] == {
            "limits": {
                "max_slots": limits["max_slots"],
                "address_spaces": limits["address_spaces"],
                "max_gfn": hex(limits["max_gfn"]),
                "max_hva": hex(limits["max_hva"]),
            },
            "slots": len(vm["final_map"]),
            "missing": [],
            "others": [],
        }


def test_standard_input_on_the_real_kernel() -> None:
    need_kvm()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "memslots", "replay", "--kvm", "-"],
        input=(TRACES / "qemu-pc-seabios.strace.gz").read_bytes(),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"all 37 results agree: recorded, memslots, this kernel\n" in done.stdout


def test_every_rule_on_the_real_kernel() -> None:
    """The answers of another kernel to what the rules refuse and allow."""
    need_kvm()
    text = (
        CREATE
        + qemu(0, 0, 0x10000)
        + qemu(0, 0, 0x10000, flags=1)
        + qemu(0, 0x20000, 0x10000, flags=1)
        + qemu(1, 0x28000, 0x10000, EEXIST)
        + qemu(1, 0, 0x800, EINVAL)
        + qemu(9, 0, 0, EINVAL)
        + qemu(0, 0x20000, 0x8000, EINVAL)
        + qemu(0, 0, 0)
    )
    report = replay_text(text, KvmVM)
    assert report.agree
    assert report.vms[0].operations == {
        "CREATE": 1, "NONE": 1, "FLAGS_ONLY": 1, "MOVE": 1, "DELETE": 1,
    }  # fmt: skip


def test_a_trace_that_the_real_kernel_did_not_give() -> None:
    """It is asked again, undone, and made the map: what comes later agrees."""
    need_kvm()
    text = (
        CREATE
        + qemu(1, 0x8000, 0x10000)  # over slot 0
        + qemu(1, 0x20000, 0x10000, EINVAL)
        + qemu(1, 0, 0, EINVAL)
        + qemu(1, 0x8000, 0x10000, flags=2)  # READONLY
        + qemu(0, 0, 0x8000)
        + qemu(0, 0, 0)
        + qemu(1, 0x30000, 0x10000, flags=2)
    )
    (vm,) = replay_text(text, KvmVM).vms
    answers = {
        found.call.line: (found.recorded, found.ours, found.live) for found in vm.disagreements
    }
    assert answers == {
        2: (0, EEXIST, EEXIST),
        3: (EINVAL, 0, 0),
        4: (EINVAL, 0, 0),
        5: (0, EINVAL, EINVAL),
    }
    assert [found.live_followed for found in vm.disagreements] == [
        "slot 0 deleted, CREATE of slot 1",
        "MOVE of slot 1",
        "CREATE of slot 1",
        "slot 1 deleted, CREATE of slot 1",
    ]
    assert live_of(vm).same
    assert [(slot.id, slot.base_gfn) for slot in live_of(vm).slots] == [(1, 0x30)]


def test_a_trace_of_a_machine_with_more_address_spaces() -> None:
    need_kvm()
    with KvmVM() as kvm:
        spaces = kvm.limits["address_spaces"]
    (vm,) = replay_text(CREATE + qemu(spaces << 16, 0, 0x10000), KvmVM).vms
    (found,) = vm.disagreements
    assert (found.recorded, found.ours, found.live) == (0, 0, EINVAL)
    told = f"address_spaces is {spaces} here, {spaces + 1} in the replay"
    assert found.live_why.endswith(f"; {told}")
    assert [(slot.as_id, slot.id) for slot in live_of(vm).missing] == [(spaces, 0)]
    assert live_of(vm).others == []


def test_no_descriptor_is_left_open() -> None:
    need_kvm()
    descriptors = Path("/proc/self/fd")
    before = sorted(descriptors.iterdir())[:-1]  # the last is the directory itself
    replay_on_kvm(TRACES / "qemu-pc-hotplug.qemu-trace")
    with ExitStack() as stack:
        made: list[KvmVM] = []

        def make() -> KvmVM:
            if made:
                raise KeyboardInterrupt
            made.append(KvmVM())
            stack.callback(made[-1].close)
            return made[-1]

        with pytest.raises(KeyboardInterrupt):
            replay_text(THREE, make)
        with pytest.raises(ValueError, match="closed"):
            made[0].fileno()
    assert sorted(descriptors.iterdir())[:-1] == before
