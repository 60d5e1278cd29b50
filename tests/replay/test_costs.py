"""Tests what the calls took in the kernel, as the times of `strace -T` add up."""

from __future__ import annotations

import io
import random

import pytest
from replays import strace

from memslots.replay import Cost, Report, VmReport, replay
from memslots.replay.costs import SLOWEST_KEPT
from memslots.traces import open_trace

UA = 0x7F00_0000_0000


def replayed(text: str, history: bool = False) -> Report:
    with open_trace("trace", "strace", io.BytesIO(text.encode())) as trace:
        return replay(trace, history=history)


def only_vm(text: str, history: bool = False) -> VmReport:
    (vm,) = replayed(text, history).vms
    return vm


def test_the_kinds() -> None:
    vm = only_vm(
        strace(7, 8, 0, 0, 0x10000, UA, "0 <0.000005>")
        + strace(7, 8, 0, 0, 0x10000, UA, "0 <0.000001>")
        + strace(7, 8, 1, 0x8000, 0x10000, UA, "-1 EEXIST (File exists) <0.000003>")
        + strace(7, 8, 2, 0x20000, 0x10000, UA, "-1 ENOMEM (Cannot allocate memory) <0.000002>")
        + strace(7, 8, 2, 0x20000, 0x10000, UA, "0 <0.000009>")
        + strace(7, 8, 3, 0, 0, 0, "0 <0.000004>")  # no slot 3: nothing to delete
        + strace(7, 8, 0, 0, 0, 0, "0 <0.000007>")
        + strace(7, 8, 2, 0, 0, 0, "0")  # without a time
    )
    assert vm.costs is not None
    assert vm.costs.by_kind == {
        "CREATE": Cost(2, 14_000, 9_000),
        "NONE": Cost(1, 1_000, 1_000),
        "EEXIST": Cost(1, 3_000, 3_000),
        "ENOMEM": Cost(1, 2_000, 2_000),
        "left out": Cost(1, 4_000, 4_000),
        "DELETE": Cost(1, 7_000, 7_000),
    }
    assert vm.costs.all == Cost(7, 31_000, 9_000)
    found = [(each.call.line, each.kind, each.call.duration_ns) for each in vm.costs.slowest]
    assert found == [
        (5, "CREATE", 9_000),
        (7, "DELETE", 7_000),
        (1, "CREATE", 5_000),
        (6, "left out", 4_000),
        (3, "EEXIST", 3_000),
        (4, "ENOMEM", 2_000),
        (2, "NONE", 1_000),
    ]


def test_a_slot_that_is_made_after_dropping_others() -> None:
    vm = only_vm(
        strace(7, 8, 0, 0, 0x10000, UA, "0 <0.000005>")
        + strace(7, 8, 1, 0x8000, 0x10000, UA, "0 <0.000006>")
    )
    assert vm.disagreements
    assert vm.costs is not None
    assert vm.costs.by_kind == {"CREATE": Cost(2, 11_000, 6_000)}


@pytest.mark.parametrize("most", [3, 1000])
def test_the_slowest_of_many(most: int) -> None:
    """Of calls that took the same time the earlier ones are kept and come first."""
    source = random.Random(most)
    times = [source.randrange(most) for _ in range(300)]
    text = "".join(
        strace(7, 8, 0, 0, 0x10000 * (n % 2 == 0), UA, f"0 <0.{took:06}>")
        for n, took in enumerate(times)
    )
    vm = only_vm(text)
    assert vm.costs is not None
    expected = sorted((-took * 1000, n) for n, took in enumerate(times, 1))[:SLOWEST_KEPT]
    slowest = vm.costs.slowest
    assert [(-(call.duration_ns or 0), call.line) for call, _ in slowest] == expected
    assert {kind for _, kind in slowest} == {"CREATE", "DELETE"}
    assert vm.costs.all == Cost(300, sum(times) * 1000, max(times) * 1000)


def test_without_times() -> None:
    assert only_vm(strace(7, 8, 0, 0, 0x10000, UA)).costs is None


def test_two_machines() -> None:
    text = strace(7, 8, 0, 0, 0x10000, UA, "0 <0.000005>") + strace(9, 8, 0, 0, 0x10000, UA)
    first, second = replayed(
        "7  ioctl(3, KVM_CREATE_VM, 0) = 8\n9  ioctl(3, KVM_CREATE_VM, 0) = 8\n" + text
    ).vms
    assert first.costs is not None
    assert second.costs is None


def test_the_history_has_every_call_once() -> None:
    text = (
        strace(7, 8, 0, 0, 0x10000, UA)
        + strace(7, 8, 0, 0, 0x10000, UA)
        + strace(7, 8, 1, 0x8000, 0x10000, UA, "-1 EEXIST (File exists)")
        + strace(7, 8, 0, 0, 0, 0)
        + strace(7, 8, 0, 0, 0, 0)
    )
    vm = only_vm(text, history=True)
    assert [call.line for call, *_ in vm.history] == [1, 4]
    assert vm.unchanged is not None
    assert [(done, kind, call.line) for done, kind, call in vm.unchanged] == [
        (1, "NONE", 2),
        (1, "EEXIST", 3),
        (2, "left out", 5),
    ]
    assert only_vm(text).unchanged is None
