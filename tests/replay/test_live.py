"""Tests a replay with a kernel: every way in which three answers can differ."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from livevm import (
    CREATE,
    EEXIST,
    EINVAL,
    ENOMEM,
    HVA,
    Call,
    MadeUpVM,
    Shown,
    Wrong,
    beside,
    live_of,
    qemu,
    refuse,
    replay_text,
)

from memslots import Change, Memslots
from memslots.replay import replay
from memslots.traces import open_trace


def pretend(memslots: Memslots, call: Call) -> Change:
    """Succeeds without doing anything."""
    return Change.NONE


def force(memslots: Memslots, call: Call) -> Change:
    """Makes the change. First deletes the slots in the way, and the one with the id."""
    slot, _, gpa, size, _ = call
    for other in list(memslots.in_gfn_range(gpa >> 12, gpa + size >> 12)):
        memslots.set_region(other.id, 0, 0, 0, 0)
    if memslots.get(slot) is not None:
        memslots.set_region(slot, 0, 0, 0, 0)
    return memslots.set_region(*call) if size else Change.DELETE


# --- every way in which three answers can differ


@dataclass(frozen=True)
class Case:
    """A trace whose last line is the call, how the kernel goes wrong, and the expected report."""

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
        "NONE without flags 0x8",
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
    # The kernel's VM has the map's slots again, as the recorded kernel had.
    assert live_of(vm).same
    assert (live_of(vm).slots, live_of(vm).missing, live_of(vm).others) == (vm.final_map, [], [])
    assert list(kernel.memslots) == vm.final_map
    assert not vm.agree
    vm.memslots.check()


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
    """A slot that the kernel wrongly has, or lacks, would affect the later calls."""
    text = (
        CREATE
        + qemu(1, 0x10000, 0x1000)
        + qemu(1, 0, 0)
        + qemu(2, 0x10000, 0x1000)  # where slot 1 was
        + qemu(0, 0x20000, 0x10000)
        + qemu(3, 0, 0x10000)  # where slot 0 was
    )
    # After each call, another call makes the kernel's VM the same.
    kernel = MadeUpVM({1: refuse(ENOMEM), 4: refuse(EINVAL), 7: refuse(EINVAL)})
    vm = beside(text, kernel)
    assert [found.call.line for found in vm.disagreements] == [1, 3, 5]
    assert [found.live_followed for found in vm.disagreements] == [
        "CREATE of slot 0",
        "slot 1 deleted",
        "MOVE of slot 0",
    ]
    assert live_of(vm).same


# --- the comparison at the end


def test_a_kernel_that_only_pretends(shown: Shown) -> None:
    """All answers agree, but the slots do not."""
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


# --- calls that are not made


def test_a_refusal_outside_of_the_rules_is_not_asked(shown: Shown) -> None:
    text = CREATE + qemu(1, 0x10000, 0x1000, ENOMEM)
    kernel = MadeUpVM()
    vm = beside(text, kernel)
    assert (vm.agree, vm.outside) == (True, 1)
    assert kernel.calls == [(0, 0, 0, 0x10000, HVA)]
    status, out, _ = shown(text, MadeUpVM)
    assert status == 0
    asked = "1 for reasons outside the rules, not replayed and not made on this kernel"
    assert f"  refused     1 ENOMEM ({asked})\n" in out


def test_guest_memfd_is_asked_without_its_flag() -> None:
    text = qemu(0, 0, 0x10000, flags=4).replace(
        " ret=", " guest_memfd=9 guest_memfd_offset=0x0 ret="
    )
    kernel = MadeUpVM()
    report = replay_text(text, lambda: kernel)
    assert report.agree
    assert kernel.calls == [(0, 0, 0, 0x10000, HVA)]
    (note,) = report.notes
    assert note == "1 call names a guest_memfd; this kernel's slots have none"


def test_without_a_kernel_nothing_is_said_of_it() -> None:
    with open_trace("trace", "qemu", io.BytesIO((CREATE * 2 + qemu(5, 0, 0)).encode())) as trace:
        (vm,) = replay(trace).vms
    assert vm.live is None
    (found,) = vm.disagreements
    assert (found.live, found.live_why, found.live_followed) == (None, "", "")
    assert found.pairs == ["recorded and memslots"]
