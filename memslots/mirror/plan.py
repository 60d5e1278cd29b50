"""Plan: the fewest calls from the present map to the map that is wanted."""

from __future__ import annotations

import errno
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

from memslots.errors import (
    InvalidRegionError,
    NoRoomError,
    NoWindowError,
    WrongAnswerError,
)
from memslots.mirror.planner import (
    Aside,
    Call,
    Goal,
    Ids,
    Surroundings,
    least_calls,
    same_memory,
)
from memslots.read.memorymap import MemoryMap, changes_between
from memslots.read.table import COLUMNS, cells, lines
from memslots.values.guestmemfd import GuestMemfd, StandIns
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE, field
from memslots.values.records import (
    Flags,
    Slot,
    deletion_arguments,
    region_arguments,
    size_text,
)

if TYPE_CHECKING:
    from memslots.memslots import Memslots
    from memslots.mirror.backend import Backend
    from memslots.read.memorymap import _Fields
    from memslots.write.transaction import Transaction

#: KVM's limits on x86.
_MAX_SLOTS = 32764
_MAX_GFN = (1 << 40) - 1
#: The limits of any Memslots.
_MOST_SLOTS = (1 << 31) - 1
_MOST_SPACES = 16
_LAST_GFN = (1 << 52) - 1


class SetRegion(NamedTuple):
    """The arguments of a call of set_region: ``vm.set_region(*call)`` makes it."""

    slot: int
    """The id in bits 0-15, the address space in bits 16-31."""
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int


class SetRegion2(NamedTuple):
    """The arguments of a call of set_region2, for a slot of a guest_memfd."""

    slot: int
    """The id in bits 0-15, the address space in bits 16-31."""
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    guest_memfd: GuestMemfd
    guest_memfd_offset: int


class Window(NamedTuple):
    """Pages that both maps have but that are in no slot for a moment.

    A guest that touches them between the two calls finds no memory there.
    """

    start_gfn: int
    end_gfn: int
    from_call: int
    """The number of the call that takes them away; the first call is 0."""
    to_call: int
    """The number of the call that gives them back."""


@dataclass(frozen=True)
class Plan:
    """The calls from one map to another; made by `memslots.plan`.

    Prints as a table of its calls and windows. ``len(plan)`` is the number of calls.
    """

    current: MemoryMap
    """The map to begin with."""
    wanted: MemoryMap
    """The map to end with."""
    max_slots: int
    max_gfn: int
    steps: tuple[Call, ...]
    """The calls, each with the slot before it and after it, or None."""
    windows: tuple[Window, ...]
    """The pages that both maps have and that are absent in between, in order of `from_call`."""
    _memslots: type[Memslots] = dataclass_field(repr=False, compare=False)

    @cached_property
    def calls(self) -> list[SetRegion | SetRegion2]:
        """The arguments of set_region, in order.

        OverflowError for an id or an address space of more than 16 bits, which no such call takes.
        """
        return [_call(step) for step in self.steps]

    @property
    def rebuild_calls(self) -> int:
        """The number of calls that delete all slots and create those that are wanted."""
        return len(self.current) + len(self.wanted)

    def __post_init__(self) -> None:
        # A pickle has plain tuples, since it names public classes only.
        object.__setattr__(self, "steps", tuple(Call(*step) for step in self.steps))

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        steps = tuple(tuple(step) for step in self.steps)
        values = (self.current, self.wanted, self.max_slots, self.max_gfn, steps, self.windows)
        return Plan, (*values, self._memslots)

    def __len__(self) -> int:
        return len(self.steps)

    def check(self, backend: Backend | None = None) -> None:
        """Makes the calls on a fresh Memslots and checks that the result is as the plan says.

        Parameters
        ----------
        backend : optional
            The backend of that Memslots: a memslots.kvm.KvmVM, to ask this machine's kernel as
            well. It must have no slots.

        Raises
        ------
        MemslotError
            A call is refused, or the map or a window is not as the plan says.
        ValueError
            The maps are of an address space that no Memslots has.

        Notes
        -----
        O(n + k log n).
        """
        if self.wanted.as_id >= _MOST_SPACES:
            raise ValueError(
                f"the plan is for address space {self.wanted.as_id}, so no Memslots can try it: one"
                f" has at most {_MOST_SPACES}, from 0 on"
            )
        # Above these, a limit of the plan has no effect.
        limits = {"max_slots": min(max(self.max_slots, 1), _MOST_SLOTS)}
        limits["max_gfn"] = min(self.max_gfn, _LAST_GFN)
        limits["address_spaces"] = self.wanted.as_id + 1
        limits["max_hva"] = (1 << 64) - PAGE_SIZE  # the end of user space does not matter to a plan
        vm = self._memslots(**limits) if backend is None else self._memslots(backend=backend)
        reader = vm.address_space(self.wanted.as_id)
        own = StandIns(getattr(backend, "create_guest_memfd", None)).slot
        for slot in self.current:
            _set(vm, Call(None, own(slot)))
        begin: dict[int, list[Window]] = {}
        end: dict[int, list[Window]] = {}
        for window in self.windows:
            begin.setdefault(window.from_call, []).append(window)
            end.setdefault(window.to_call, []).append(window)
        for number, step in enumerate(self.steps):
            for first, last, *_ in end.get(number, ()):
                if reader.holes(first, last) != [(first, last)]:
                    raise WrongAnswerError(f"{_pages(first, last)} is present before call {number}")
            _set(vm, Call(step.before, step.after and own(step.after)))
            for windows, there in ((begin, False), (end, True)):
                for first, last, *_ in windows.get(number, ()):
                    if reader.is_mapped(first, last) != there:
                        what = "is absent" if there else "is present"
                        raise WrongAnswerError(f"{_pages(first, last)} {what} after call {number}")
        vm.check()
        if vm.map(self.wanted.as_id) != _with(own, self.wanted):
            raise WrongAnswerError("the calls do not result in the wanted map")

    def __str__(self) -> str:
        kinds = Counter(step.change.name for step in self.steps)
        what = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        number = f"{len(self)} call{'' if len(self) == 1 else 's'}"
        head = f"{number}: {what}" if self.steps else "no calls"
        rows: list[tuple[str, ...]] = [("call", "", *COLUMNS)]
        rows += [(str(i), step.change.name, *cells(step.slot)) for i, step in enumerate(self.steps)]
        return "\n".join([head, *(lines(rows) if self.steps else ()), *self._windows()])

    def _windows(self) -> Iterator[str]:
        for start, end, first, last in self.windows:
            yield f"absent between calls {first} and {last}: {_pages(start, end)}"


# Pickles name a value by its public module. It stays when the value's own module is moved.
for _value in (Plan, SetRegion, SetRegion2, Window):
    _value.__module__ = "memslots"
del _value


def _pages(start: int, end: int) -> str:
    size = size_text((end - start) << PAGE_SHIFT)
    return f"gpa [{start << PAGE_SHIFT:#x}, {end << PAGE_SHIFT:#x}), {size}"


def _call(step: Call) -> SetRegion | SetRegion2:
    if step.after is None:
        return SetRegion(*deletion_arguments(step.slot))
    arguments = region_arguments(step.after)
    return SetRegion(*arguments) if step.after.guest_memfd is None else SetRegion2(*arguments)


def _with(own: Callable[[Slot], Slot], map: MemoryMap) -> MemoryMap:
    """Returns the map with each guest_memfd replaced by another file of the same size."""
    private = [own(slot) for slot in map if slot.flags & Flags.GUEST_MEMFD]
    return map | MemoryMap(private, map.as_id) if private else map


def _set(vm: Memslots | Transaction, step: Call) -> None:
    """Makes a step of a plan, as set_region would, but for ids of any size."""
    before, after = step.before, step.after
    if after is None:
        vm.delete(step.slot.id, as_id=step.slot.as_id)
    elif before is None:
        vm._create_slot(after)
    else:
        if before.base_gfn != after.base_gfn:
            vm.move(after.id, after.base_gfn, as_id=after.as_id)
        if before.flags != after.flags:
            vm.set_flags(after.id, after.flags, as_id=after.as_id)


def plan_between(
    current: Memslots | MemoryMap,
    wanted: MemoryMap | Iterable[Slot | _Fields],
    max_slots: SupportsIndex | None,
    max_gfn: SupportsIndex | None,
    keep: Iterable[tuple[SupportsIndex, SupportsIndex]],
    memslots: type[Memslots],
) -> Plan:
    """Does what memslots.plan does. `memslots` is the class to try the plan on."""
    if not isinstance(current, memslots | MemoryMap):
        raise TypeError(f"current must be a Memslots or MemoryMap, not {type(current).__name__!r}")
    if not isinstance(wanted, MemoryMap):
        wanted = MemoryMap(wanted, current.as_id)
    now = current if isinstance(current, MemoryMap) else current.map(wanted.as_id)
    slots = _limit(current, "max_slots", max_slots, _MAX_SLOTS)
    top = _limit(current, "max_gfn", max_gfn, _MAX_GFN)
    ranges = _ranges(keep)
    gone, come = changes_between(now, wanted)
    _check(now, wanted, come, slots, top)
    goals = [Goal(slot, any_id) for slot, any_id in come]
    aside = Aside(now, wanted, max_gfn=top)
    around = Surroundings(
        lambda _, npages: aside(npages),
        {now.as_id: Ids(slots, lambda id: now.get(id) is not None)},
        ranges,
    )
    steps = tuple(least_calls(gone, goals, around)) if gone or goals else ()
    windows = tuple(_windows(steps, wanted))
    for start, end in ranges:
        for window in windows:
            if window.start_gfn < end and start < window.end_gfn:
                first, last = max(start, window.start_gfn), min(end, window.end_gfn)
                raise NoWindowError(
                    errno.EBUSY,
                    f"{_pages(first, last)} cannot be kept: it is absent between call"
                    f" {window.from_call}, which removes {steps[window.from_call].before}, and"
                    f" call {window.to_call}",
                )
    return Plan(now, wanted, slots, top, steps, windows, memslots)


def _limit(current: object, name: str, given: SupportsIndex | None, default: int) -> int:
    if given is not None:
        return field(given, name, 64)
    found: int = getattr(current, name, default)
    return found


def _ranges(keep: Iterable[tuple[SupportsIndex, SupportsIndex]]) -> list[tuple[int, int]]:
    ranges = []
    for item in keep:
        try:
            first, last = item
        except (TypeError, ValueError):
            raise TypeError(f"keep has pairs (start_gfn, end_gfn), not {item!r}") from None
        start, end = field(first, "start", 64), field(last, "end", 64)
        ranges.append((start, end))
        if start > end:
            raise ValueError(f"keep has [{start:#x}, {end:#x}), which ends before it starts")
    return ranges


def _check(
    now: MemoryMap,
    wanted: MemoryMap,
    come: Sequence[tuple[Slot, bool]],
    max_slots: int,
    max_gfn: int,
) -> None:
    """Raises if the slots that come break a limit."""
    if wanted.as_id != now.as_id:
        raise InvalidRegionError(
            errno.EINVAL, f"wanted is of address space {wanted.as_id}, current of {now.as_id}"
        )
    if len(wanted) > max_slots:
        raise NoRoomError(
            errno.ENOSPC, f"{len(wanted)} slots are wanted, but max_slots is {max_slots}"
        )
    for slot, any_id in come:
        if slot.id >= max_slots and not any_id:
            raise InvalidRegionError(
                errno.EINVAL, f"{slot}: its id is not below max_slots, {max_slots}", 2
            )
        if slot.end_gfn - 1 > max_gfn:
            raise InvalidRegionError(errno.EINVAL, f"{slot} is above max_gfn, {max_gfn:#x}", 7)


def _windows(steps: Sequence[Call], wanted: MemoryMap) -> Iterator[Window]:
    """Yields the pages that are absent in between, in the order in which they go, then by page."""
    absent: list[tuple[int, int, int]] = []  # start, end, the call that took them; no overlaps
    found = []
    for number, (before, after, *_) in enumerate(steps):
        if after is not None:
            found += _given_back(absent, after, number)
        if before is None or (after is not None and before.base_gfn == after.base_gfn):
            continue
        for slot in wanted.in_gfn_range(before.base_gfn, before.end_gfn):
            start, end = max(slot.base_gfn, before.base_gfn), min(slot.end_gfn, before.end_gfn)
            # Pages that the slot also has in its new place are not absent.
            ranges = [(start, end)]
            if after is not None:
                low, high = max(start, after.base_gfn), min(end, after.end_gfn)
                if low < high:
                    ranges = [(start, low), (high, end)]
            for first, last in ranges:
                if first < last:
                    insort(absent, (first, last, number))
    found.sort(key=lambda window: (window.from_call, window.to_call, window.start_gfn))
    joined: list[Window] = []
    for window in found:
        last_one = joined[-1] if joined else None
        if last_one and (last_one.end_gfn, *last_one[2:]) == (window.start_gfn, *window[2:]):
            window = Window(last_one.start_gfn, *window[1:])
            joined.pop()
        joined.append(window)
    return iter(joined)


def _given_back(absent: list[tuple[int, int, int]], slot: Slot, number: int) -> list[Window]:
    """Removes from `absent` the pages that a slot has from now on. Returns their windows."""
    first = bisect_left(absent, (slot.base_gfn,))
    if first and absent[first - 1][1] > slot.base_gfn:
        first -= 1
    last = first
    rest = []
    found = []
    while last < len(absent) and absent[last][0] < slot.end_gfn:
        start, end, since = absent[last]
        low, high = max(start, slot.base_gfn), min(end, slot.end_gfn)
        found.append(Window(low, high, since, number))
        rest += [(s, e, since) for s, e in ((start, low), (high, end)) if s < e]
        last += 1
    absent[first:last] = rest
    return found


def apply(vm: Memslots, plan: object) -> None:
    """Does what Memslots.apply does."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, from memslots.plan, not {type(plan).__name__!r}")
    with vm.transaction() as tx:
        _stage(tx, plan)


def become(
    vm: Memslots,
    wanted: MemoryMap | Iterable[Slot | _Fields],
    as_id: SupportsIndex | None,
    keep: Iterable[tuple[SupportsIndex, SupportsIndex]],
    memslots: type[Memslots],
) -> Plan:
    """Does what Memslots.become does."""
    if not isinstance(wanted, MemoryMap):
        wanted = MemoryMap(wanted, as_id)
    elif as_id is not None and field(as_id, "as_id", 32) != wanted.as_id:
        raise ValueError(f"the map is of address space {wanted.as_id}, not {as_id}")
    # Before the transaction, which keeps other threads waiting: `keep` may run the caller's code.
    ranges = _ranges(keep)
    with vm.transaction() as tx:
        made = plan_between(vm, wanted, None, None, ranges, memslots)
        _stage(tx, made)
    return made


def _stage(tx: Transaction, plan: Plan) -> None:
    """Makes the net change, in any order: slots may overlap until a transaction ends."""
    first: dict[int, Slot | None] = {}
    last: dict[int, Slot | None] = {}
    as_id = plan.wanted.as_id
    for before, after, *_ in plan.steps:
        id = (after or before).id  # type: ignore[union-attr]
        first.setdefault(id, before)
        last[id] = after
    for id, before in first.items():
        there = tx.get(id, as_id=as_id)
        if there != before:
            raise InvalidRegionError(
                errno.ESTALE,
                f"the plan was made for {before or f'no slot {id}'},"
                f" but there is {there or f'no slot {id}'}",
            )
    changed = [
        (before, last[id])
        for id, before in first.items()
        if before != last[id]
    ]  # fmt: skip
    for before, after in changed:
        if before is not None and (after is None or not same_memory(before, after)):
            _set(tx, Call(before, None))
    for before, after in changed:
        if after is not None:
            _set(tx, Call(before if before and same_memory(before, after) else None, after))
    tx._set_calls(plan.steps)
