"""Replaying a trace: makes every call on a Memslots and compares its result with the kernel's.

The rules of a Memslots give EINVAL and EEXIST. A kernel also refuses calls for other reasons, such
as ENOMEM, EINTR or a foreign process's EIO (see OUTSIDE). Such a call is counted, not made.

If the two answers disagree, the map follows the kernel. A call that only the kernel refused is
undone. A call that only the rules refused is made again. Before that the replay drops the slots
that cannot exist if the call succeeded: those it overlaps, and the one with its id. If the rules
refuse it again, the call is left out.

On request every call is made on this machine's kernel as well (live.py), and all three answers are
compared. The map still follows the recorded answer. This kernel's VM is then made equal to the
map, so later answers can be compared too.
"""

from __future__ import annotations

import errno as errno_module
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from operator import attrgetter
from typing import NamedTuple

from memslots import (
    PAGE_SHIFT,
    PAGE_SIZE,
    AddressSpace,
    Change,
    Flags,
    GuestMemfd,
    MemslotError,
    Memslots,
    Slot,
)
from memslots.replay.costs import Costs
from memslots.replay.explaining import Succeeded, explanation
from memslots.replay.live import Live, LiveVM, number_of, slot_name
from memslots.traces import Counts, Event, RegionCall, Trace, TraceError
from memslots.traces.births import BirthsFirst
from memslots.traces.events import GUEST_MEMFD_FLAG, Capability
from memslots.traces.gaps import Gap, Gaps
from memslots.traces.processes import Machines
from memslots.values.limits import DEFAULT_LIMITS
from memslots.values.records import deletion_arguments, region_arguments

#: Errors that have nothing to do with the map: resources, signals, fds, permissions.
OUTSIDE = frozenset(
    (
        errno_module.ENOMEM,
        errno_module.EINTR,
        errno_module.EAGAIN,
        errno_module.EIO,
        errno_module.EBADF,
        errno_module.ENOTTY,
        errno_module.EFAULT,
        errno_module.EPERM,
        errno_module.EACCES,
        errno_module.ENODEV,
        errno_module.ENOSPC,
    )
)
#: Ends of user space, smallest first: x86 and arm64 with 4 and 5 levels of page tables.
_MAX_HVA = (
    DEFAULT_LIMITS["max_hva"],
    1 << 48,
    1 << 52,
    (1 << 56) - PAGE_SIZE,
    (1 << 64) - PAGE_SIZE,
)
_MOST_SPACES = 16
_LARGEST_MEMFD = (1 << 63) - PAGE_SIZE  # the size in bytes assumed, as a trace has no sizes
#: The kinds of calls that change something.
_CHANGES = frozenset(change.name for change in Change if change is not Change.NONE)
#: Two of them by a plain name: Python 3.11 takes 0.1 µs to find a member of an enumeration.
_NO_CHANGE, _FLAGS_ONLY = Change.NONE, Change.FLAGS_ONLY
#: The flags that the rules know.
_FLAGS = int(Flags.LOG_DIRTY_PAGES | Flags.READONLY)


def errno_name(number: int) -> str:
    """Returns the name of an errno: `EINVAL` for 22, `success` for 0."""
    return errno_module.errorcode.get(number, f"errno {number}") if number else "success"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A call to which the kernel, the rules and this machine's kernel gave different answers.

    `recorded` and `ours` are errnos (0: success). `why` explains `ours`. `followed` says what was
    done to keep the map as the recorded kernel has it. `live` is the errno of this machine's
    kernel, or None if it was not asked; `live_why` explains `live`. `live_followed` says what was
    done to keep its VM equal to the map.
    """

    call: RegionCall
    recorded: int
    ours: int
    why: str
    followed: str
    live: int | None = None
    live_why: str = ""
    live_followed: str = ""

    @property
    def pairs(self) -> list[str]:
        """Returns which answers differ: `recorded and memslots`, `recorded and this kernel`, ..."""
        answers = {"recorded": self.recorded, "memslots": self.ours}
        if self.live is not None:
            answers["this kernel"] = self.live
        return [f"{a} and {b}" for a, b in combinations(answers, 2) if answers[a] != answers[b]]


#: A change: its call, its kind, the slots removed or changed, and the new slot.
Moment = tuple[RegionCall, Change, tuple[Slot, ...], Slot | None]
#: A call that changed nothing: the number of changes before it, and its kind as `Costs` has it.
Unchanged = tuple[int, str, RegionCall]


# No slots: pickle's protocols 0 and 1 refuse a class that has slots and is not frozen.
@dataclass
class VmReport:
    """One VM of a trace, after its last call; `live` is None if this kernel was not asked."""

    process: int | None
    fd: int | None
    born_line: int | None
    memslots: Memslots
    calls: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    guest_memfds: int = 0
    most_slots: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)
    gap_finders: list[Gaps] = field(default_factory=list)
    live: Live | None = None
    #: All changes. Empty unless replay's `history` is true.
    history: list[Moment] = field(default_factory=list)
    keeps_history: bool = False
    unknown_memfds: int = 0
    memfds: dict[int, GuestMemfd] = field(default_factory=dict)
    #: All calls that changed nothing, or None unless replay's `history` is true.
    unchanged: list[Unchanged] | None = None
    #: None if no call has a time (`strace -T`).
    costs: Costs | None = None

    @property
    def agree(self) -> bool:
        """Returns whether all answers agree, and this kernel's VM ended with the map's slots."""
        return not self.disagreements and (self.live is None or self.live.same)

    @property
    def pairs(self) -> Counter[str]:
        """Counts the disagreements in which each pair of answers differs."""
        return Counter(pair for each in self.disagreements for pair in each.pairs)

    @property
    def name(self) -> str:
        """Returns `process 8379, fd 8` with the parts that are known, or else `the VM`."""
        parts = []
        if self.process is not None:
            parts.append(f"process {self.process}")
        if self.fd is not None:
            parts.append(f"fd {self.fd}")
        return ", ".join(parts) or "the VM"

    @property
    def gaps(self) -> list[Gap]:
        """Returns all gaps, in the order in which they were closed."""
        found = [gap for finder in self.gap_finders for gap in finder.closed]
        return sorted(found, key=attrgetter("closed_line", "as_id", "base_gfn"))

    @property
    def final_map(self) -> list[Slot]:
        """Returns the slots at the end, by address space, in gfn order."""
        spaces = range(self.memslots.address_spaces)
        return [slot for as_id in spaces for slot in self.memslots.address_space(as_id)]


@dataclass
class Report:
    """The result of replaying one trace."""

    name: str
    format: str
    counts: Counts
    notes: list[str]
    vms: list[VmReport]

    @property
    def agree(self) -> bool:
        """Returns whether every replayed call gave the recorded result, here and on this kernel."""
        return all(vm.agree for vm in self.vms)


def replay(
    trace: Trace,
    watch: Callable[[int, int], None] | None = None,
    live: Callable[[], LiveVM] | None = None,
    until: int | None = None,
    history: bool = False,
) -> Report:
    """Replays an opened trace to its end, or to a line.

    Takes O(log n) time for each call on a map of n slots. The memory depends on the slots, the VMs,
    the tasks and what the Report lists, not on the length of the trace. If the trace has more than
    262,144 events, a temporary file holds the others.

    Parameters
    ----------
    trace : Trace
    watch : callable, optional
        `watch(done, all)` is called once for every 4096 events.
    live : callable, optional
        Makes a VM of this machine's kernel, such as `memslots.kvm.KvmVM`. Called for each VM of the
        trace, at its first memslot call. Every VM is closed at the end, also after an error.
    until : int, optional
        The number of a line. Events that end after this line are left out.
    history : bool
        Whether each VmReport keeps every change, in memory proportional to the changes.

    Returns
    -------
    Report

    Raises
    ------
    TraceError
        The trace cannot be used, or `live` raised an OSError.
    """
    with ExitStack() as open_vms:
        events = open_vms.enter_context(_in_order(trace))
        if not trace.counts.calls:
            lost = trace.counts.first_lost[0]
            lost_total = trace.counts.lost_total
            reason = f"none of its {lost_total} memslot calls can be read; {lost.reason}"
            raise TraceError(trace.name, reason, lost.line)
        replayer = Replayer(events, _opener(trace.name, live, open_vms), history)
        for done, event in enumerate(events):
            if watch is not None and not done % 4096:
                watch(done, len(events))
            if until is not None:
                if event.line > until:
                    break
                if isinstance(event, RegionCall) and event.end_line > until:
                    continue
            replayer.feed(event)
        replayer.explain()
        vms = [vm for vm in replayer.vms if vm.calls]
        for vm in vms:
            if vm.live is not None:
                vm.live.finish(vm.final_map)
    return Report(trace.name, trace.format, trace.counts, trace.notes + replayer.notes, vms)


def _in_order(trace: Trace) -> BirthsFirst:
    try:
        return BirthsFirst(trace)
    except TraceError:
        raise
    except OSError as error:
        reason = f"a temporary file cannot hold its memslot calls: {error.strerror or error}"
        raise TraceError(trace.name, reason, errno=error.errno or errno_module.EIO) from error


#: Makes a VM of this machine's kernel for a map; the line is the line of the first call.
_Opener = Callable[[Memslots, int], Live]


def _opener(name: str, make: Callable[[], LiveVM] | None, open_vms: ExitStack) -> _Opener | None:
    if make is None:
        return None

    def opened(memslots: Memslots, line: int) -> Live:
        try:
            vm = make()
            open_vms.callback(vm.close)
            return Live(vm, memslots)
        except OSError as error:
            reason = f"this machine's kernel made no VM for it: {error.strerror or error}"
            raise TraceError(name, reason, line) from error

    return opened


class Replayer:
    """Feeds events to one Memslots per VM.

    The constructor reads `events` for the limits that a VM needs from its first call on: the number
    of address spaces, the number of slots, and the end of user space. `opener` makes a VM of this
    machine's kernel for each VM.
    """

    def __init__(
        self,
        events: Iterable[Event] = (),
        opener: _Opener | None = None,
        history: bool = False,
    ) -> None:
        self._history = history
        self.vms: list[VmReport] = []
        self._opener = opener
        self._machines = Machines(self._make, self._fits)
        self._explained: list[str] = []
        self._max_slots = DEFAULT_LIMITS["max_slots"]
        self._succeeded = Succeeded()
        self._look_through(events)

    @property
    def notes(self) -> list[str]:
        """Returns what was inferred or left aside."""
        notes = [*self._machines.notes, *self._explained]
        if memfds := sum(vm.guest_memfds for vm in self.vms):
            text = f"{memfds} {'call names' if memfds == 1 else 'calls name'} a guest_memfd"
            if unknown := sum(vm.unknown_memfds for vm in self.vms):
                text += f"; replayed without the file, because the range is not known: {unknown}"
            if self._opener is not None:
                text += "; this kernel's slots have none"
            notes.append(text)
        return notes

    def feed(self, event: Event) -> None:
        """Replays the next event of the trace."""
        if isinstance(event, RegionCall):
            machine = self._machines.of(event)
            vm = machine.report
            vm.calls += 1
            if self._opener is not None and vm.live is None:
                vm.live = self._opener(vm.memslots, event.line)
            step = _Step(machine, event)
            step.run()
            if event.duration_ns is not None or vm.unchanged is not None:
                step.record()
        elif not isinstance(event, Capability):
            self._machines.see(event)

    def explain(self) -> None:
        """Moves disagreements that another kernel or a wrong VM explains from `vms` to `notes`."""
        for vm in self.vms:
            never_was = vm.born_line is None and not vm.operations.total()
            left = []
            for each in vm.disagreements:
                why = None
                if each.recorded and not each.ours:
                    why = explanation(each.call, self._succeeded)
                    if why is None and never_was and len(self.vms) > 1:
                        why = f"no call on descriptor {vm.fd} succeeded: it is no VM"
                if why is None:
                    left.append(each)
                else:
                    name = f"{errno_name(each.recorded)} of {slot_name(each.call.slot)}"
                    self._explained.append(f"line {each.call.line}: {name}: {why}")
            vm.disagreements = left

    def _look_through(self, events: Iterable[Event]) -> None:
        spaces_told = last_slot = last_hva = 0
        for event in events:
            if isinstance(event, RegionCall):
                if not event.errno:
                    self._succeeded.add(event)
                    if event.slot > last_slot:
                        last_slot = event.slot
                    end = event.userspace_addr + event.memory_size
                    if end > last_hva:
                        last_hva = end
            elif isinstance(event, Capability):
                if event.name == "KVM_CAP_MULTI_ADDRESS_SPACE":
                    spaces_told = max(spaces_told, event.value, 1)
                elif 0 < event.value <= 1 << 16:
                    self._max_slots = event.value
        self._spaces = min(spaces_told or (last_slot >> 16) + 1, _MOST_SPACES)
        self._max_hva = next((end for end in _MAX_HVA if last_hva <= end), _MAX_HVA[-1])

    def _make(self, process: int | None, fd: int | None, line: int | None) -> _Machine:
        memslots = Memslots(self._max_slots, address_spaces=self._spaces, max_hva=self._max_hva)
        vm = VmReport(process, fd, line, memslots)
        vm.keeps_history = self._history
        vm.unchanged = [] if self._history else None
        vm.gap_finders = [Gaps(as_id) for as_id in range(self._spaces)]
        self.vms.append(vm)
        return _Machine(vm, [memslots.address_space(as_id) for as_id in range(self._spaces)])

    @staticmethod
    def _fits(machine: _Machine, call: RegionCall) -> bool:
        """Returns whether the VM would give the recorded result, for the same host memory."""
        trial = _Step(machine, call)
        old = trial.old
        if old is not None and call.userspace_addr not in (0, old.userspace_addr):
            return False
        answer, _ = trial.attempt()
        if not answer:
            trial.undo()
        return answer == call.errno


class _Machine(NamedTuple):
    """A VM of the trace, and its address spaces."""

    report: VmReport
    spaces: list[AddressSpace]


class _Step:
    """One call on one VM."""

    __slots__ = (
        "as_id",
        "call",
        "change",
        "dropped",
        "flags",
        "guest_memfd",
        "is_private",
        "kind",
        "old",
        "rule",
        "spaces",
        "vm",
    )

    def __init__(self, machine: _Machine, call: RegionCall) -> None:
        self.vm, self.spaces = machine
        self.call = call
        self.as_id = call.slot >> 16
        self.old = self.current()
        self.change = _NO_CHANGE
        self.kind = errno_name(call.errno) if call.errno else "left out"  # as Costs.add takes it
        self.dropped: list[Slot] = []  # slots dropped to follow the kernel
        self.flags = call.flags
        self.guest_memfd = self.is_private = False
        if call.guest_memfd is not None and call.flags & GUEST_MEMFD_FLAG:
            self.guest_memfd = True
            self.is_private = call.guest_memfd_offset is not None
            self.flags &= ~GUEST_MEMFD_FLAG
        self.rule: int | str | None = None  # the rule that refused the call here

    def current(self) -> Slot | None:
        """Returns the slot that has the call's id now."""
        if self.as_id >= len(self.spaces):
            return None
        return self.spaces[self.as_id].get(self.call.slot & 0xFFFF)

    def run(self) -> None:
        """Makes the call, compares the answers and records the result."""
        vm, call = self.vm, self.call
        if self.guest_memfd:
            vm.guest_memfds += 1
            vm.unknown_memfds += not self.is_private
        if call.errno:
            vm.refused[errno_name(call.errno)] += 1
            if call.errno in OUTSIDE:
                vm.outside += 1
                return
        answer, why = self.attempt()
        live, live_why = None, ""
        if vm.live is not None and not isinstance(self.rule, str):
            live, live_why = vm.live.ask(call, self.flags, answer)
        if answer == call.errno:
            followed = "as recorded"
            if not answer:
                self._count()
            if live is None or live == answer:
                return
        elif answer == 0:
            followed = f"the {self.change.name} was undone"
            self.undo()
        elif call.errno == 0:
            followed = self._follow()
        else:
            followed = "both refuse it: nothing changed"
        if not answer:
            why = f"no rule refuses it: {self.change.name} of {slot_name(call.slot)}"
        live_followed = ""
        if vm.live is not None:
            numbers = (number_of(slot) for slot in self.dropped)
            live_followed = vm.live.follow((call.slot, *numbers), call.line)
        vm.disagreements.append(
            Disagreement(call, call.errno, answer, why, followed, live, live_why, live_followed)
        )

    def record(self) -> None:
        """Records the time of a call that was run, and the call itself if it changed nothing."""
        vm, call = self.vm, self.call
        if call.duration_ns is not None:
            vm.costs = vm.costs or Costs()
            vm.costs.add(call, self.kind)
        if vm.unchanged is not None and self.kind not in _CHANGES:
            vm.unchanged.append((len(vm.history), self.kind, call))

    def attempt(self) -> tuple[int, str]:
        """Makes the call on the Memslots. Returns its errno and message."""
        call = self.call
        self.rule = None
        try:
            if self.is_private:
                self.change = self._attempt_private()
            else:
                self.change = self.vm.memslots.set_region(
                    call.slot,
                    self.flags,
                    call.guest_phys_addr,
                    call.memory_size,
                    call.userspace_addr,
                )
        except MemslotError as error:
            self.rule = error.rule
            if error.rule == "G7" and call.errno == errno_module.EEXIST:
                return call.errno, ""  # the errno that Linux returns since 7.2
            return error.errno or errno_module.EINVAL, error.strerror or str(error)
        return 0, ""

    def _attempt_private(self) -> Change:
        """Makes the call for a slot with a guest_memfd. The trace does not show its closing."""
        call, memfds = self.call, self.vm.memfds
        assert call.guest_memfd is not None
        region = call.slot, call.flags, call.guest_phys_addr, call.memory_size, call.userspace_addr
        offset = call.guest_memfd_offset or 0
        if call.guest_memfd not in memfds:
            memfds[call.guest_memfd] = GuestMemfd(_LARGEST_MEMFD)
        try:
            return self.vm.memslots.set_region2(*region, memfds[call.guest_memfd], offset)
        except MemslotError as error:
            if error.rule != "G7" or call.errno:
                raise
        # The kernel accepted the call, so the number now names another guest_memfd.
        memfds[call.guest_memfd] = GuestMemfd(_LARGEST_MEMFD)
        return self.vm.memslots.set_region2(*region, memfds[call.guest_memfd], offset)

    def undo(self) -> None:
        """Restores the slot as it was before a call that succeeded here."""
        memslots, slot, old = self.vm.memslots, self.call.slot, self.old
        if self.change is Change.CREATE:
            memslots.set_region(slot, 0, 0, 0, 0)
        elif self.change is not Change.NONE and old is not None:
            memslots.set_region2(*region_arguments(old))

    def _follow(self) -> str:
        """Does what the kernel did although the rules refuse it. Returns what was done."""
        call = self.call
        if not call.memory_size:
            return "there was nothing to delete"
        if self.as_id >= len(self.spaces):
            return "the call was left out"
        without = ""
        if self.is_private and self.rule in ("G1", "G2"):
            self.is_private = False
            without = " without its guest_memfd"
        if unknown := self.flags & ~_FLAGS:
            # A newer kernel knows flags that the rules here do not.
            self.flags &= _FLAGS
            without = f" without flags {unknown:#x}"
            answer, _ = self.attempt()
            if not answer:
                self._count()
                return self.change.name + without
        space = self.spaces[self.as_id]
        base = call.guest_phys_addr >> PAGE_SHIFT
        end = base + (call.memory_size >> PAGE_SHIFT)
        if base < end < 1 << 52:
            self.dropped = [slot for slot in space.in_gfn_range(base, end) if slot.id != call.id]
        if self.old is not None:
            self.dropped.append(self.old)
        for slot in self.dropped:
            self.vm.memslots.set_region(*deletion_arguments(slot))
        old, self.old = self.old, None
        answer, _ = self.attempt()
        if answer:  # the dropped slots were not the reason: restore them
            for slot in self.dropped:
                self.vm.memslots.set_region2(*region_arguments(slot))
            self.old = old
            return "the call was left out"
        self._count()
        names = ", ".join(f"slot {slot.id}" for slot in self.dropped)
        done = self.change.name + without
        return f"{names} dropped, then {done}" if names else done

    def _count(self) -> None:
        """Counts a change that the map and the kernel both made, and reports it to the gaps.

        A gfn that is in a slot before and after the change has no gap, even if the slots differ.
        """
        vm, call = self.vm, self.call
        self.kind = self.change.name
        vm.operations[self.kind] += 1
        if self.change is _NO_CHANGE:
            return
        new = self.current() if call.memory_size else None
        gone = self.dropped if self.old is None else [*self.dropped, self.old]
        if vm.keeps_history:
            vm.history.append((call, self.change, tuple(gone), new))
        if self.change is _FLAGS_ONLY:
            return
        gaps = vm.gap_finders[self.as_id]
        if new is None:
            for slot in gone:
                gaps.removed(slot.base_gfn, slot.end_gfn, call.line, call.time_ns)
        else:
            start, end = new.base_gfn, new.end_gfn
            for slot in gone:
                below, above = min(slot.end_gfn, start), max(slot.base_gfn, end)
                gaps.removed(slot.base_gfn, below, call.line, call.time_ns)
                gaps.removed(above, slot.end_gfn, call.line, call.time_ns)
            gaps.added(start, end, call.line, call.time_ns)
            if self.old is None:
                vm.most_slots = max(vm.most_slots, sum(map(len, self.spaces)))
