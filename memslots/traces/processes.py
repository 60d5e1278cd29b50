"""Finding the VM that a call is for.

A VM is identified by its process and its fd in that process. If clone and fork were traced, the
trace says which process a thread belongs to. Otherwise the process is inferred. If only one process
has a VM at the thread's fd, and the trace shows its creation, the thread belongs to that process.
Else the thread belongs to a process whose VM would give its first call the recorded result. If
there is none, the thread is a process of its own. `notes` reports every inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from memslots.traces.events import (
    Event,
    FdClosed,
    FdDuplicated,
    RegionCall,
    TaskEnded,
    TaskStarted,
    VmCreated,
)

V = TypeVar("V")


@dataclass(slots=True)
class _Held(Generic[V]):
    """A VM at an fd. `born` is true if the trace shows its creation."""

    vm: V
    born: bool


@dataclass(slots=True)
class _Process(Generic[V]):
    """A set of threads that share their fds, named after the first one seen."""

    leader: int | None
    tids: set[int | None] = field(default_factory=set)
    fds: dict[int | None, _Held[V]] = field(default_factory=dict)


class Machines(Generic[V]):
    """Finds the VM of each call.

    `make(process, fd, line)` makes a VM. `line` is where it was created, or None if the trace does
    not show that. `fits(vm, call)` says whether `vm`, as it is now, would give the recorded result.
    """

    def __init__(
        self,
        make: Callable[[int | None, int | None, int | None], V],
        fits: Callable[[V, RegionCall], bool],
    ) -> None:
        self.notes: list[str] = []
        self._make = make
        self._fits = fits
        self._processes: list[_Process[V]] = []
        self._of_tid: dict[int | None, _Process[V]] = {}

    def see(self, event: Event) -> None:
        """Learns from an event that is not a call."""
        if isinstance(event, VmCreated):
            process = self._of_tid.get(event.tid) or self._new(event.tid)
            vm = self._make(process.leader, event.fd, event.line)
            process.fds[event.fd] = _Held(vm, True)
        elif isinstance(event, FdClosed):
            if closer := self._of_tid.get(event.tid):
                closer.fds.pop(event.fd, None)
        elif isinstance(event, FdDuplicated):
            # dup2 closes `new_fd` first. If `fd` holds no VM, `new_fd` holds none either.
            if owner := self._of_tid.get(event.tid):
                held = owner.fds.get(event.fd)
                owner.fds.pop(event.new_fd, None)
                if held is not None:
                    owner.fds[event.new_fd] = held
        elif isinstance(event, TaskStarted):
            self._started(event)
        elif isinstance(event, TaskEnded):
            self._ended(event)

    def of(self, call: RegionCall) -> V:
        """Returns the VM that `call` is for; makes it if the trace began after its creation."""
        process = self._of_tid.get(call.tid)
        if process is None:
            process = self._infer(call)
        held = process.fds.get(call.fd)
        if held is None:
            held = _Held(self._make(process.leader, call.fd, None), False)
            process.fds[call.fd] = held
        return held.vm

    def _new(self, tid: int | None) -> _Process[V]:
        process: _Process[V] = _Process(tid)
        self._processes.append(process)
        self._join(tid, process)
        return process

    def _join(self, tid: int | None, process: _Process[V]) -> None:
        process.tids.add(tid)
        self._of_tid[tid] = process

    def _started(self, event: TaskStarted) -> None:
        if event.child in self._of_tid and event.same_process:
            return  # the child's own calls came first and settled its process
        parent = self._of_tid.get(event.parent) or self._new(event.parent)
        if event.same_process:
            self._join(event.child, parent)
        elif event.child not in self._of_tid:
            # A forked child inherits the fds, but KVM refuses to let it use them (EIO).
            self._new(event.child)

    def _ended(self, event: TaskEnded) -> None:
        process = self._of_tid.get(event.tid)
        if process is None:
            return
        if event.by_exec:  # exec closes a VM's fd
            process.fds.clear()
            return
        del self._of_tid[event.tid]
        process.tids.discard(event.tid)
        if not process.tids:
            self._processes.remove(process)

    def _infer(self, call: RegionCall) -> _Process[V]:
        candidates = [process for process in self._processes if call.fd in process.fds]
        if not candidates:
            return self._new(call.tid)
        if len(candidates) == 1 and candidates[0].fds[call.fd].born:
            chosen = candidates[0]
            why = f"it uses fd {call.fd}, at which only that process has a VM"
        else:
            fitting = [p for p in candidates if self._fits(p.fds[call.fd].vm, call)]
            if not fitting:
                process = self._new(call.tid)
                why = "no other VM at its fd fits its first call"
                self._note(call, "a process of its own", why)
                return process
            chosen = max(fitting, key=lambda p: _nearness(p.leader, call.tid))
            why = "its first call fits that VM"
        self._join(call.tid, chosen)
        what = "the process" if chosen.leader is None else f"process {chosen.leader}"
        self._note(call, f"a thread of {what}", why)
        return chosen

    def _note(self, call: RegionCall, what: str, why: str) -> None:
        self.notes.append(
            f"thread {call.tid} (line {call.line}) is assumed to be {what}: {why}; "
            "the trace has no clone call for it"
        )


def births_first(events: Iterable[Event]) -> list[Event]:
    """Returns `events` with each TaskStarted before its child's events.

    strace prints a clone's result when the clone returns in the parent. The child may run earlier.
    """
    events = list(events)
    if not any(isinstance(event, TaskStarted) for event in events):
        return events
    keyed: list[tuple[float, Event]] = []
    first_seen: dict[int | None, int] = {}  # since the last end of that tid
    for place, event in enumerate(events):
        key: float = place
        if isinstance(event, TaskStarted):
            first_seen.setdefault(event.parent, place)
            key = first_seen.setdefault(event.child, place) - 0.5
        else:
            first_seen.setdefault(event.tid, place)
            if isinstance(event, TaskEnded) and not event.by_exec:
                del first_seen[event.tid]
        keyed.append((key, event))
    return [event for _, event in sorted(keyed, key=lambda pair: pair[0])]


def _nearness(leader: int | None, tid: int | None) -> tuple[bool, int]:
    """Returns a key that is greatest for the leader nearest below `tid`.

    Threads get their tids after their process.
    """
    if leader is None or tid is None:
        return False, 0
    return leader <= tid, -abs(tid - leader)
