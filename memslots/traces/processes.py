"""Finding the VM that a call is for.

A VM is identified by its process and its fd in that process. If clone and fork were traced, the
trace says which process a thread belongs to. Otherwise the process is inferred. If only one process
has a VM at the thread's fd, and the trace shows its creation, the thread belongs to that process.
Else the thread belongs to a process whose VM would give its first call the recorded result. If
there is none, the thread is a process of its own. `notes` reports every inference.

A descriptor that a message or pidfd_getfd brought is inferred likewise: it is the only VM of the
trace, or one that would give the recorded result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from memslots.traces.events import (
    Event,
    FdClosed,
    FdDuplicated,
    FdsClosed,
    FdsReceived,
    FdsUnshared,
    RegionCall,
    TaskEnded,
    TaskStarted,
    VmCreated,
)

V = TypeVar("V")


@dataclass(slots=True)
class _Held(Generic[V]):
    """A VM at an fd. `born` is true if the trace shows its creation.

    `vm` is None between line `received`, at which a message or pidfd_getfd brought the fd, and the
    first call.
    """

    vm: V | None
    born: bool = False
    received: int = 0


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
        self._vms: list[tuple[V, str]] = []  # with their names
        self._processes: list[_Process[V]] = []
        self._of_tid: dict[int | None, _Process[V]] = {}

    def see(self, event: Event) -> None:
        """Learns from an event that is not a call."""
        if isinstance(event, VmCreated):
            process = self._of_tid.get(event.tid) or self._new(event.tid)
            process.fds[event.fd] = _Held(self._made(process, event.fd, event.line), True)
        elif isinstance(event, FdsReceived):
            process = self._of_tid.get(event.tid) or self._new(event.tid)
            for fd in event.fds:
                process.fds[fd] = _Held(None, received=event.line)
        elif isinstance(event, TaskStarted):
            self._started(event)
        elif isinstance(event, TaskEnded):
            self._ended(event)
        elif owner := self._of_tid.get(event.tid):
            self._see_descriptors(owner, event)

    def of(self, call: RegionCall) -> V:
        """Returns the VM that `call` is for; makes it if the trace began after its creation."""
        process = self._of_tid.get(call.tid)
        if process is None:
            process = self._infer(call)
        held = process.fds.get(call.fd)
        if held is None:
            held = process.fds[call.fd] = _Held(None)
        if held.vm is None:
            if held.received:
                held.vm = self._infer_received(call, held.received)
            if held.vm is None:
                held.vm = self._made(process, call.fd, None)
        return held.vm

    def _made(self, process: _Process[V], fd: int | None, line: int | None) -> V:
        vm = self._make(process.leader, fd, line)
        name = f"fd {fd}" if process.leader is None else f"process {process.leader}, fd {fd}"
        self._vms.append((vm, name))
        return vm

    def _see_descriptors(self, owner: _Process[V], event: Event) -> None:
        """Learns from what a thread of `owner` did to its descriptors."""
        if isinstance(event, FdClosed):
            owner.fds.pop(event.fd, None)
        elif isinstance(event, FdDuplicated):
            # dup2 closes `new_fd` first. If `fd` holds no VM, `new_fd` holds none either.
            held = owner.fds.get(event.fd)
            owner.fds.pop(event.new_fd, None)
            if held is not None:
                owner.fds[event.new_fd] = held
        elif isinstance(event, (FdsUnshared, FdsClosed)):
            if isinstance(event, FdsUnshared) or event.unshared:
                fds = dict(owner.fds)
                owner = self._leave(event.tid, owner, owner.leader)
                owner.fds = fds
            if isinstance(event, FdsClosed):
                for fd in list(owner.fds):
                    if fd is not None and event.first <= fd <= event.last:
                        del owner.fds[fd]

    def _new(self, tid: int | None, leader: int | None = None) -> _Process[V]:
        process: _Process[V] = _Process(tid if leader is None else leader)
        self._processes.append(process)
        self._join(tid, process)
        return process

    def _join(self, tid: int | None, process: _Process[V]) -> None:
        process.tids.add(tid)
        self._of_tid[tid] = process

    def _leave(
        self, tid: int | None, process: _Process[V], leader: int | None = None
    ) -> _Process[V]:
        """Takes a thread out of `process`. Returns its own, which is new."""
        process.tids.discard(tid)
        if not process.tids:
            self._processes.remove(process)
        return self._new(tid, leader)

    def _started(self, event: TaskStarted) -> None:
        if event.child in self._of_tid:
            return  # the child's own calls came first and settled its process
        parent = self._of_tid.get(event.parent) or self._new(event.parent)
        if event.same_process:
            self._join(event.child, parent)
        else:
            # KVM refuses calls on a VM of another process's memory (EIO), but they are calls on it.
            self._new(event.child).fds = dict(parent.fds)

    def _ended(self, event: TaskEnded) -> None:
        process = self._of_tid.get(event.tid)
        if process is None:
            return
        if event.by_exec:
            # It shares its descriptors no longer. A VM's fd is closed; a duplicate that stays open
            # is of no use, since the memory is no longer that of the VM.
            self._leave(event.tid, process)
            return
        del self._of_tid[event.tid]
        process.tids.discard(event.tid)
        if not process.tids:
            self._processes.remove(process)

    def _infer(self, call: RegionCall) -> _Process[V]:
        candidates: dict[int, tuple[_Process[V], V, bool]] = {}  # once for each VM at that fd
        for process in self._processes:
            held = process.fds.get(call.fd)
            if held is not None and held.vm is not None:
                candidates.setdefault(id(held.vm), (process, held.vm, held.born))
        if not candidates:
            return self._new(call.tid)
        chosen, _, born = next(iter(candidates.values()))
        if len(candidates) == 1 and born:
            why = f"it uses fd {call.fd}, at which only that process has a VM"
        else:
            fitting = [p for p, vm, _ in candidates.values() if self._fits(vm, call)]
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

    def _infer_received(self, call: RegionCall, received: int) -> V | None:
        """Returns the VM at a descriptor that came at line `received`, or None if none fits."""
        vms, why = self._vms, "no other VM is in the trace"
        if len(vms) > 1:
            vms, why = [one for one in vms if self._fits(one[0], call)], "its first call fits it"
        vm, name = vms[-1] if vms else (None, "another VM")
        if vm is None:
            why = "its first call fits no other VM"
        self.notes.append(
            f"fd {call.fd} (line {call.line}), which a message or pidfd_getfd brought at line "
            f"{received}, is assumed to be {name}: {why}"
        )
        return vm

    def _note(self, call: RegionCall, what: str, why: str) -> None:
        self.notes.append(
            f"thread {call.tid} (line {call.line}) is assumed to be {what}: {why}; "
            "the trace has no clone call for it"
        )


def _nearness(leader: int | None, tid: int | None) -> tuple[bool, int]:
    """Returns a key that is greatest for the leader nearest below `tid`.

    Threads get their tids after their process.
    """
    if leader is None or tid is None:
        return False, 0
    return leader <= tid, -abs(tid - leader)
