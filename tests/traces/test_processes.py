"""Tests which VM a call is for. A VM is a list of calls here; it fits a call of its last slot."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from memslots.traces import (
    Event,
    FdClosed,
    FdDuplicated,
    RegionCall,
    TaskEnded,
    TaskStarted,
    VmCreated,
)
from memslots.traces.births import BirthsFirst
from memslots.traces.processes import Machines


@dataclass
class Vm:
    process: int | None
    fd: int | None
    line: int | None
    lines: list[int] = field(default_factory=list)
    slot: int | None = None


def make(process: int | None, fd: int | None, line: int | None) -> Vm:
    return Vm(process, fd, line)


def fits(vm: Vm, call: RegionCall) -> bool:
    return vm.slot == call.slot


def call(line: int, tid: int | None, fd: int | None = 8, slot: int = 0) -> RegionCall:
    return RegionCall(line, slot, 0, 0, 0, 0, 0, tid=tid, fd=fd, end_line=line)


def sort(*events: Event) -> tuple[list[tuple[int | None, int | None, list[int]]], list[str]]:
    """Returns process, fd and lines of each VM."""
    vms: list[Vm] = []

    def make_and_keep(process: int | None, fd: int | None, line: int | None) -> Vm:
        vms.append(make(process, fd, line))
        return vms[-1]

    machines = Machines(make_and_keep, fits)
    for event in BirthsFirst(events):
        if isinstance(event, RegionCall):
            vm = machines.of(event)
            vm.lines.append(event.line)
            vm.slot = event.slot
        else:
            machines.see(event)
    return [(vm.process, vm.fd, vm.lines) for vm in vms], machines.notes


def test_threads_by_clone() -> None:
    vms, notes = sort(
        VmCreated(1, 100, 8),
        TaskStarted(2, 100, 101, True),
        TaskStarted(3, 101, 102, True),
        call(4, 102),
        call(5, 100),
    )
    assert vms == [(100, 8, [4, 5])]
    assert notes == []


def test_a_thread_that_runs_before_its_clone_returns() -> None:
    vms, notes = sort(
        VmCreated(1, 100, 8), call(2, 101, slot=7), TaskStarted(3, 100, 101, True), call(4, 101)
    )
    assert (vms, notes) == ([(100, 8, [2, 4])], [])


def test_processes_by_fork() -> None:
    vms, notes = sort(
        TaskStarted(1, 100, 200, False),
        VmCreated(2, 100, 8),
        VmCreated(3, 200, 8),
        TaskStarted(4, 200, 201, True),
        call(5, 201),
        call(6, 100),
    )
    assert (vms, notes) == ([(100, 8, [6]), (200, 8, [5])], [])


def test_two_vms_of_one_process() -> None:
    vms, _ = sort(VmCreated(1, 100, 8), VmCreated(2, 100, 9), call(3, 100, 9), call(4, 100, 8))
    assert vms == [(100, 8, [4]), (100, 9, [3])]


def test_an_fd_used_again() -> None:
    vms, _ = sort(
        VmCreated(1, 100, 8), call(2, 100), FdClosed(3, 100, 8), VmCreated(4, 100, 8), call(5, 100)
    )
    assert vms == [(100, 8, [2]), (100, 8, [5])]
    vms, _ = sort(VmCreated(1, 100, 8), call(2, 100), VmCreated(4, 100, 8), call(5, 100))
    assert vms == [(100, 8, [2]), (100, 8, [5])]


@pytest.mark.parametrize("end", [TaskEnded(3, 100), TaskEnded(3, 100, by_exec=True)])
def test_after_the_end_of_a_process(end: TaskEnded) -> None:
    vms, _ = sort(VmCreated(1, 100, 8), call(2, 100), end, call(4, 100))
    assert vms == [(100, 8, [2]), (100, 8, [4])]


def test_inferred_from_the_only_vm_at_that_fd() -> None:
    """A trace of ioctls only has no clone."""
    vms, notes = sort(VmCreated(1, 100, 8), call(2, 100), call(3, 101, slot=9), call(4, 101))
    assert vms == [(100, 8, [2, 3, 4])]
    (note,) = notes
    assert "thread 101 (line 3) is assumed to be a thread of process 100" in note


def test_inferred_from_what_fits() -> None:
    """Two processes, grepped: the trace has neither clone nor KVM_CREATE_VM."""
    vms, notes = sort(call(1, 100, slot=1), call(2, 200, slot=2), call(3, 201, slot=2))
    assert vms == [(100, 8, [1]), (200, 8, [2, 3])]
    assert len(notes) == 2
    assert "200 (line 2) is assumed to be a process of its own" in notes[0]
    assert "201 (line 3) is assumed to be a thread of process 200" in notes[1]


def test_several_fit() -> None:
    """The process with the nearest lower tid is chosen."""
    events: list[Event] = [VmCreated(1, 100, 8), VmCreated(2, 200, 8), call(3, 100), call(4, 200)]
    assert sort(*events, call(5, 201))[0] == [(100, 8, [3]), (200, 8, [4, 5])]
    assert sort(*events, call(5, 101))[0] == [(100, 8, [3, 5]), (200, 8, [4])]


def test_without_pids() -> None:
    assert sort(call(1, None), call(2, None, 9)) == ([(None, 8, [1]), (None, 9, [2])], [])
    assert sort(call(1, None, None), call(2, None, None)) == ([(None, None, [1, 2])], [])


def test_a_pid_that_turns_up_later() -> None:
    """strace on a terminal: the first process has no pid until there is a second one."""
    vms, notes = sort(
        VmCreated(1, None, 8), call(2, None), TaskStarted(3, None, 100, True), call(4, 100)
    )
    assert (vms, notes) == ([(None, 8, [2, 4])], [])


def test_a_birth_told_twice() -> None:
    vms, notes = sort(
        VmCreated(1, 100, 8),
        TaskStarted(2, 100, 101, True),
        TaskStarted(3, 100, 101, True),
        call(4, 101),
    )
    assert (vms, notes) == ([(100, 8, [4])], [])


def test_a_vm_at_two_descriptors() -> None:
    """The VM stays as long as one of them is open, whichever was closed."""
    vms, notes = sort(
        VmCreated(1, 100, 8),
        FdDuplicated(2, 100, 8, 9),
        call(3, 100, 9),
        FdClosed(4, 100, 8),
        call(5, 100, 9),
        FdDuplicated(6, 999, 8, 9),  # of an unknown process
        FdDuplicated(7, 100, 3, 9),  # another descriptor takes the VM's number
        VmCreated(8, 100, 8),
        FdDuplicated(9, 100, 8, 9),
        call(10, 100, 9),
    )
    assert vms == [(100, 8, [3, 5]), (100, 8, [10])]
    assert notes == []
