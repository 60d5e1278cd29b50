"""What a transaction comes to, as calls of a backend's set_region, one slot at a time, in order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from memslots.values.records import Change, Flags, Slot

if TYPE_CHECKING:
    from memslots.memslots import Memslots

_LOG = Flags.LOG_DIRTY_PAGES

Step = tuple[Change, Slot | None, Slot | None, Slot | None]
Key = tuple[int, int]  # as_id, id


class Call(NamedTuple):
    """One call of a backend's set_region: the slot before it and after, None where there is none.

    If both are there they differ in base_gfn or flags alone. `lost`: gfn ranges, as readers find
    them, whose marks the backend loses with this call and the Memslots keeps.
    """

    before: Slot | None
    after: Slot | None
    lost: tuple[tuple[int, int], ...] = ()

    @property
    def slot(self) -> Slot:
        """The slot, after the call or before."""
        slot = self.after or self.before
        assert slot is not None
        return slot

    def loses_log(self) -> bool:
        """Whether the backend has a dirty log before the call and not after."""
        logs = self.before is not None and bool(self.before.flags & _LOG)
        return logs and not (self.after is not None and self.after.flags & _LOG)


class _Layout:
    """Ranges of gfns that do not overlap, each of a slot."""

    def __init__(self) -> None:
        self._spans: dict[int, list[tuple[int, int, int]]] = {}  # by as_id: base, end, id

    def put(self, slot: Slot) -> None:
        insort(self._spans.setdefault(slot.as_id, []), (slot.base_gfn, slot.end_gfn, slot.id))

    def take(self, slot: Slot) -> None:
        spans = self._spans[slot.as_id]
        del spans[bisect_left(spans, (slot.base_gfn, slot.end_gfn, slot.id))]

    def overlapping(self, as_id: int, base: int, end: int) -> list[Key]:
        spans = self._spans.get(as_id, [])
        first = bisect_left(spans, (base, 0, 0))
        if first and spans[first - 1][1] > base:
            first -= 1
        found = []
        while first < len(spans) and spans[first][0] < end:
            found.append((as_id, spans[first][2]))
            first += 1
        return found


class _Planner:
    """Works out the calls of `plan`."""

    def __init__(self, vm: Memslots) -> None:
        self.vm = vm
        self.calls: list[Call] = []
        self.last: list[Call] = []  # made after all others
        self.now: dict[Key, Slot] = {}  # where the slots that change are in the backend
        self.layout = _Layout()  # the same by gfn
        self.leaving: set[Key] = set()  # those of `now` to be deleted: they go, or others come
        self.goals: dict[Key, Slot] = {}  # what is to be put somewhere, and is not yet
        self.final = _Layout()  # the same by gfn
        # Goals with slots in the way, and those. In order, since a plain dict's first item is found
        # by way of all that were taken out before it.
        self.blocked: OrderedDict[Key, list[Key]] = OrderedDict()
        # Blocked goals that wait only for slots that go anyway. Some are not blocked any more.
        self.cleared: deque[Key] = deque()
        self.waiting: dict[Key, list[Key]] = {}  # goals by a slot that is in their way
        self.lost: dict[Key, tuple[tuple[int, int], ...]] = {}  # of the slots that go or move
        self.park_end = vm.max_gfn + 1  # above it slots may have been put out of the way

    def add(self, old: Slot | None, new: Slot | None, recreated: bool) -> None:
        """What is to become of a slot; `recreated`: it was deleted and created meanwhile."""
        if old is not None:
            key = old.as_id, old.id
            self.now[key] = old
            self.layout.put(old)
        if new is None:
            if old is not None:
                self.leaving.add(key)
            return
        key = new.as_id, new.id
        if old is None or not same_memory(old, new):
            if old is not None:
                self.leaving.add(key)
            self.goals[key] = new
        else:
            if recreated and old.flags & new.flags & _LOG and old.base_gfn != new.base_gfn:
                # Its dirty log begins anew; the slot need not go for that.
                old = self._change(self.calls, old, _with(old, old.flags & ~_LOG))
            if old.base_gfn != new.base_gfn:
                self.goals[key] = new
            elif old.flags != new.flags:
                self._change(self.calls if new.flags & _LOG else self.last, old, new)
        if key in self.goals:
            self.final.put(new)

    def run(self) -> list[Call]:
        """All calls, in order."""
        self._find_lost()
        ready = deque(self.goals)
        while self.goals:
            while ready:
                self._try(ready.popleft(), ready)
            if self.blocked:
                for key in self.blocked[self._next_blocked()]:
                    self._make_room(key, ready)
        for key in [key for key in self.now if key in self.leaving]:
            self._delete(key)
        return self.calls + self.last

    def _find_lost(self) -> None:
        """T1: what logs in the same place on the same memory, in another slot, keeps its marks."""
        for key, old in self.now.items():
            if not old.flags & _LOG or (key not in self.leaving and key not in self.goals):
                continue
            lost = []
            for other in self.final.overlapping(old.as_id, old.base_gfn, old.end_gfn):
                new = self.goals[other]
                first = max(old.base_gfn, new.base_gfn)
                if new.flags & _LOG and old.gfn_to_hva(first) == new.gfn_to_hva(first):
                    lost.append((first, min(old.end_gfn, new.end_gfn)))
            if lost:
                self.lost[key] = tuple(lost)

    def _call(self, before: Slot, after: Slot | None) -> Call:
        return Call(before, after, self.lost.pop((before.as_id, before.id), ()))

    def _try(self, key: Key, ready: deque[Key]) -> None:
        """Put a slot where it is to be, if nothing is in the way."""
        goal = self.goals[key]
        found = self.layout.overlapping(goal.as_id, goal.base_gfn, goal.end_gfn)
        in_the_way = [other for other in found if other != key]
        if in_the_way:
            self.blocked[key] = in_the_way
            if self.leaving.issuperset(in_the_way):
                self.cleared.append(key)
            for other in in_the_way:
                self.waiting.setdefault(other, []).append(key)
            return
        if key in self.leaving:
            self._delete(key)
        del self.goals[key]
        self.final.take(goal)
        before = self.now.get(key)
        if before is None:
            self.calls.append(Call(None, goal))
            self.now[key] = goal
            self.layout.put(goal)
        else:
            self._change(self.calls, before, goal)
        self._left(key, ready)

    def _next_blocked(self) -> Key:
        """A goal for which room is to be made. Best is one that waits for what goes anyway."""
        while self.cleared:
            key = self.cleared.popleft()
            # What is in its way may be others by now.
            if key in self.blocked and self.leaving.issuperset(self.blocked[key]):
                return key
        return next(iter(self.blocked))

    def _make_room(self, key: Key, ready: deque[Key]) -> None:
        """Take a slot out of the way: for good, if it goes anyway; else for a moment."""
        slot = self.now[key]
        base = self.park_end - slot.npages
        if key in self.leaving:
            self._delete(key)
        elif self._is_free(slot.as_id, base, self.park_end):
            # A move keeps the dirty log, and no guest looks where this is.
            self.park_end = base
            self._change(self.calls, slot, _with(slot, slot.flags, base))
        else:
            lost = self.lost.pop(key, ())
            if slot.flags & _LOG:
                # It comes back, and keeps its log. Readers find it where it was.
                found = self.vm.address_space(slot.as_id)[slot.id]
                lost = ((found.base_gfn, found.end_gfn),)
            self.calls.append(Call(slot, None, lost))
            del self.now[key]
            self.layout.take(slot)
        self._left(key, ready)

    def _is_free(self, as_id: int, base: int, end: int) -> bool:
        return (
            base >= 0
            and not self.vm.address_space(as_id).in_gfn_range(base, end)
            and not self.layout.overlapping(as_id, base, end)
            and not self.final.overlapping(as_id, base, end)
        )

    def _left(self, key: Key, ready: deque[Key]) -> None:
        """The slot is not any more where it was: others may fit now."""
        for waiting in self.waiting.pop(key, ()):
            if self.blocked.pop(waiting, None) is not None:
                ready.append(waiting)

    def _delete(self, key: Key) -> None:
        slot = self.now.pop(key)
        self.leaving.discard(key)
        self.calls.append(self._call(slot, None))
        self.layout.take(slot)

    def _change(self, calls: list[Call], old: Slot, new: Slot) -> Slot:
        calls.append(self._call(old, new) if old.base_gfn != new.base_gfn else Call(old, new))
        self.now[old.as_id, old.id] = new
        self.layout.take(old)
        self.layout.put(new)
        return new


def same_memory(old: Slot, new: Slot) -> bool:
    """Whether a call can make one of the other (rule 5)."""
    return (
        (old.userspace_addr, old.npages) == (new.userspace_addr, new.npages)
        and not (old.flags ^ new.flags) & Flags.READONLY
    )  # fmt: skip


def _with(slot: Slot, flags: int, base_gfn: int | None = None) -> Slot:
    base = slot.base_gfn if base_gfn is None else base_gfn
    return Slot(slot.id, slot.as_id, base, slot.npages, slot.userspace_addr, flags)


def plan(vm: Memslots, steps: Iterable[Step]) -> list[Call]:
    """The calls that make of a Memslots what the steps of a transaction made of it.

    `vm` holds what there was before. Only what the steps come to is done: slots that were created
    and deleted, or moved there and back, take no call. First everything for which there is room;
    then, where slots are in the way, those are taken away just before what comes in their place:
    deleted if they go anyway, else moved to the end of guest memory for a moment, where no guest
    looks, or, if there is no room either, deleted and created. O(k log n) for k steps.
    """
    net: dict[Key, tuple[Slot | None, Slot | None, bool]] = {}
    for _, old, new, _ in steps:
        slot = new or old
        assert slot is not None
        first, _, recreated = net.get((slot.as_id, slot.id), (old, None, False))
        net[slot.as_id, slot.id] = first, new, recreated or (old is None and first is not None)
    planner = _Planner(vm)
    for first, last, recreated in net.values():
        planner.add(first, last, recreated)
    return planner.run()
