"""Finds the fewest calls of set_region from some slots to others, one slot at a time, in order.

Two things decide the number of calls. The first is which slot becomes which. A slot that is to be
elsewhere on the same host memory is moved there (rule 5): one call, where a delete and a create are
two. The second is circles: if slots that move wait for each other in a circle, one of them has to
step aside (cycles.py), which costs one more call. Everything else has an order in which nothing
overlaps (rule 6).

Both choices are searches with a bound: `_MOST_WAYS` and `_MOST_MOVES` here, and one in cycles.py.
Within the bounds no other calls are fewer. Beyond them there may be more calls than needed: at most
one for each slot that steps aside.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import permutations, product
from math import perm, prod
from typing import TYPE_CHECKING, NamedTuple

from memslots.mirror.cycles import least_breaks
from memslots.read.memorymap import MemoryMap
from memslots.values.guestmemfd import ranges_meet
from memslots.values.records import Change, Flags, Slot

if TYPE_CHECKING:
    from memslots.memslots import Memslots
    from memslots.read.reader import AddressSpace

_LOG = Flags.LOG_DIRTY_PAGES

Key = tuple[int, int]  # as_id, id
Range = tuple[int, int]  # [start_gfn, end_gfn)
Step = tuple[Change, Slot | None, Slot | None, Slot | None]

#: If several slots are on the same host memory, at most this many ways to pair them with their new
#: places are compared. If there are more ways, the slots keep their order.
_MOST_WAYS = 1000
#: In all of these ways together there are at most this many moves.
_MOST_MOVES = 20_000
# One more call costs more than any number of pages (there are 2**52). A page that must be kept
# costs more than any number of calls.
_CALL = 1 << 64
_KEPT_PAGE = 1 << 128


class Call(NamedTuple):
    """One call of a backend's set_region: the slot before and after it, or None.

    If both are there, they differ in base_gfn or flags only. `lost`: gfn ranges, where readers find
    them, whose marks the backend loses with this call and the Memslots keeps. `renews`: the log
    that the slot keeps must begin anew.
    """

    before: Slot | None
    after: Slot | None
    lost: tuple[Range, ...] = ()
    renews: bool = False

    @property
    def slot(self) -> Slot:
        """The slot after the call, or before it if the call deletes it."""
        slot = self.after or self.before
        assert slot is not None
        return slot

    @property
    def change(self) -> Change:
        """What the call does to the slot."""
        if self.before is None:
            return Change.CREATE
        if self.after is None:
            return Change.DELETE
        return Change.FLAGS_ONLY if self.before.base_gfn == self.after.base_gfn else Change.MOVE

    def loses_log(self) -> bool:
        """Returns whether the backend has a dirty log before the call and not after it."""
        logs = self.before is not None and bool(self.before.flags & _LOG)
        return logs and not (self.after is not None and self.after.flags & _LOG)


class Goal(NamedTuple):
    """A slot that must be there at the end. Its id is a proposal if `any_id` is set."""

    slot: Slot
    any_id: bool = False


class Ids:
    """The ids of an address space that a new slot may get."""

    def __init__(self, max_slots: int, is_taken: Callable[[int], bool]) -> None:
        self._max_slots = max_slots
        self._is_taken = is_taken  # taken by a slot that is there at the beginning
        self._beyond = 0  # no id below it is free, except those in _free
        self._free: list[int] = []
        self._reserved: set[int] = set()  # for a slot that must have this id

    def reserve(self, id: int) -> None:
        """Keeps a free id for a slot that must have it."""
        self._reserved.add(id)

    def give_back(self, id: int) -> None:
        """Makes the id of a deleted slot free again, unless it is reserved."""
        if id not in self._reserved:
            heappush(self._free, id)

    def take(self) -> int | None:
        """Takes the lowest free id. Returns None if there is none."""
        while self._beyond < self._max_slots and (
            self._beyond in self._reserved or self._is_taken(self._beyond)
        ):
            self._beyond += 1
        if self._free and self._free[0] < self._beyond:
            return heappop(self._free)
        if self._beyond == self._max_slots:
            return None
        self._beyond += 1
        return self._beyond - 1


class Surroundings(NamedTuple):
    """What the planner needs to know of the slots that do not change."""

    #: By as_id and npages: the base gfn of a range of npages pages for a slot that steps aside, or
    #: None. No slot is in that range before or after.
    aside: Callable[[int, int], int | None]
    #: By as_id. Needed if there are goals with `any_id`.
    ids: dict[int, Ids]
    #: Gfn ranges that should stay present all the time, if possible.
    keep: Sequence[Range] = ()


def same_memory(old: Slot, new: Slot) -> bool:
    """Returns whether a call can turn one slot into the other, apart from their ids (rule 5)."""
    return (
        (old.userspace_addr, old.npages) == (new.userspace_addr, new.npages)
        and not (old.flags ^ new.flags) & Flags.READONLY
        and not (old.flags | new.flags) & Flags.GUEST_MEMFD  # rule G5
    )  # fmt: skip


def with_flags(slot: Slot, flags: int, base_gfn: int | None = None) -> Slot:
    """Returns the slot with other flags and, if given, another place."""
    base = slot.base_gfn if base_gfn is None else base_gfn
    return Slot(slot.id, slot.as_id, base, slot.npages, slot.userspace_addr, flags)


def with_id(slot: Slot, id: int) -> Slot:
    """Returns the slot with another id."""
    if slot.id == id:
        return slot
    return Slot(
        id,
        slot.as_id,
        slot.base_gfn,
        slot.npages,
        slot.userspace_addr,
        slot.flags,
        slot.guest_memfd,
        slot.guest_memfd_offset,
    )


def _key(slot: Slot) -> Key:
    return slot.as_id, slot.id


def _memory(slot: Slot) -> tuple[int, int, int, int]:
    """Returns a key. Slots with the same key can become each other, apart from their ids."""
    return slot.as_id, slot.userspace_addr, slot.npages, int(slot.flags & Flags.READONLY)


def _common(a: Slot, b: Slot) -> Range:
    """Returns the pages that two slots share. The end is above the start if there are any."""
    return max(a.base_gfn, b.base_gfn), min(a.end_gfn, b.end_gfn)


class _ByGfn:
    """Slots that do not overlap, to be found by page."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._spaces: dict[int, tuple[list[int], list[Slot]]] = {}
        for slot in sorted(slots, key=lambda slot: slot.base_gfn):
            bases, there = self._spaces.setdefault(slot.as_id, ([], []))
            bases.append(slot.base_gfn)
            there.append(slot)

    def overlapping(self, slot: Slot) -> Iterator[Slot]:
        bases, there = self._spaces.get(slot.as_id, ([], []))
        i = bisect_right(bases, slot.base_gfn)
        if i and there[i - 1].end_gfn > slot.base_gfn:
            i -= 1
        while i < len(there) and bases[i] < slot.end_gfn:
            yield there[i]
            i += 1


class _Matches:
    """Which slot becomes which. Slots without a partner are deleted, goals without one created."""

    def __init__(self, olds: Sequence[Slot], goals: Sequence[Goal]) -> None:
        #: (before, after), in the same place: only flags can differ.
        self.in_place: list[tuple[Slot, Slot]] = []
        #: (before, after), to another place.
        self.moves: list[tuple[Slot, Slot]] = []
        self._groups: list[tuple[list[Slot], list[Slot]]] = []
        given = {_key(goal.slot): goal.slot for goal in goals if not goal.any_id}
        by_memory: dict[tuple[int, int, int, int], tuple[list[Slot], list[Slot]]] = {}
        for old in olds:
            new = given.get(_key(old))
            if new is None and not old.flags & Flags.GUEST_MEMFD:
                by_memory.setdefault(_memory(old), ([], []))[0].append(old)
            elif new is not None and same_memory(old, new):
                self._pair(old, new)
        for goal in goals:
            plain = goal.any_id and not goal.slot.flags & Flags.GUEST_MEMFD
            group = by_memory.get(_memory(goal.slot)) if plain else None
            if group is not None:
                group[1].append(goal.slot)
        for slots, places in by_memory.values():
            self._match_places(slots, places)

    def _pair(self, old: Slot, new: Slot) -> None:
        same_place = old.base_gfn == new.base_gfn
        (self.in_place if same_place else self.moves).append((old, with_id(new, old.id)))

    def _match_places(self, slots: list[Slot], places: list[Slot]) -> None:
        """Pairs slots with places. Slots in place stay: no other way takes fewer calls."""
        there = {slot.base_gfn: slot for slot in slots}
        away = []
        for place in places:
            old = there.pop(place.base_gfn, None)
            if old is None:
                away.append(place)
            else:
                self._pair(old, place)
        if not away or not there:
            return
        left = sorted(there.values(), key=lambda slot: slot.base_gfn)
        if len(left) == len(away) == 1:
            self._pair(left[0], away[0])
        else:
            self._groups.append((left, sorted(away, key=lambda slot: slot.base_gfn)))

    def ways(self) -> Iterator[list[tuple[Slot, Slot]]]:
        """Yields the moves of each way to compare; all ways have equally many moves."""
        groups = self._groups
        moves = len(self.moves) + sum(min(map(len, group)) for group in groups)
        most = min(_MOST_WAYS, _MOST_MOVES // max(moves, 1))
        if prod(perm(max(map(len, g)), min(map(len, g))) for g in groups) > max(most, 1):
            yield self.moves + [pair for group in groups for pair in _in_order(*group)]
            return
        for way in product(*(_all_pairings(*group) for group in groups)):
            yield self.moves + [(old, with_id(new, old.id)) for pairs in way for old, new in pairs]


def _all_pairings(slots: list[Slot], places: list[Slot]) -> list[list[tuple[Slot, Slot]]]:
    if len(slots) <= len(places):
        chosen = permutations(places, len(slots))
        return [list(zip(slots, way, strict=True)) for way in chosen]
    chosen = permutations(slots, len(places))
    return [list(zip(way, places, strict=True)) for way in chosen]


def _in_order(slots: list[Slot], places: list[Slot]) -> list[tuple[Slot, Slot]]:
    """Pairs slots with places in gfn order, first those that stay on some of their pages."""
    pairs = []
    where = _ByGfn(places)
    taken: set[int] = set()
    rest = []
    for slot in slots:
        near = [place for place in where.overlapping(slot) if place.base_gfn not in taken]
        if near:
            best = max(near, key=lambda place: _common(slot, place)[1] - _common(slot, place)[0])
            taken.add(best.base_gfn)
            pairs.append((slot, best))
        else:
            rest.append(slot)
    others = (place for place in places if place.base_gfn not in taken)
    pairs += zip(rest, others, strict=False)  # what is left on either side has no partner
    return [(old, with_id(new, old.id)) for old, new in pairs]


class _Way:
    """One way to pair slots and places: which slots wait, which step aside, and the cost."""

    def __init__(self, moves: list[tuple[Slot, Slot]], keep: Sequence[Range]) -> None:
        self.moves = moves
        number = {_key(old): i for i, (old, _) in enumerate(moves)}
        olds = _ByGfn(old for old, _ in moves)
        waits: list[list[int]] = []
        cost = []
        for old, new in moves:
            waits.append(
                [number[_key(other)] for other in olds.overlapping(new) if other is not old]
            )
            cost.append(_CALL + self._pages(old, new, keep))
        #: The numbers of the moves whose slots step aside.
        self.aside = least_breaks(waits, cost)
        stay = sum(cost) - _CALL * len(cost)  # the pages that moves could keep at best
        #: Lower is better. The pages that a move keeps are a gain. A slot that steps aside keeps
        #: none.
        self.cost = sum(cost[i] for i in self.aside) - stay

    @staticmethod
    def _pages(old: Slot, new: Slot, keep: Sequence[Range]) -> int:
        """Returns the cost of stepping aside: the pages that the slot has both before and after."""
        first, end = _common(old, new)
        if end <= first:
            return 0
        kept = sum(max(0, min(end, e) - max(first, s)) for s, e in keep)
        return (end - first) + kept * _KEPT_PAGE


class _Order:
    """Puts the calls in order: nothing overlaps, and deletions come as late as they can."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.calls: list[Call] = []
        self.now: dict[Key, Slot] = {}  # the slots that change, where they are now
        self.leaving: dict[Key, None] = {}  # slots to delete, in order
        self.aside: deque[Key] = deque()  # slots that may have to step aside
        self.goals: list[Slot | None] = []  # slots to put in place; None: done
        self.who: list[Key | None] = []  # [i]: the slot for goal i; None: any id will do
        self.in_the_way: list[set[Key]] = []  # [i]: slots in the way of goal i
        self.staying: list[int] = []  # [i]: how many of these will not be deleted anyway
        self.waiting: dict[Key, list[int]] = {}  # goals, by the slot in their way
        self.ready: deque[int] = deque()  # goals with nothing in their way
        self.cleared: deque[int] = deque()  # goals with only slots to delete in their way
        self.lost: dict[Key, tuple[Range, ...]] = {}
        self.renewed: set[Key] = set()

    def run(self) -> None:
        left = len(self.goals)
        while left:
            if self.ready:
                left -= self._put(self.ready.popleft())
            elif self.cleared:
                i = self.cleared.popleft()
                for key in sorted(self.in_the_way[i]):
                    self._delete(key)
            else:
                self._step_aside(self.aside.popleft())
        for key in list(self.leaving):
            self._delete(key)

    def add_goal(self, slot: Slot, who: Key | None, in_the_way: Iterable[Key]) -> None:
        i = len(self.goals)
        others = {key for key in in_the_way if key != who}
        if who in self.leaving:
            others.add(who)  # its id must be free first
        self.goals.append(slot)
        self.who.append(who)
        self.in_the_way.append(others)
        self.staying.append(sum(key not in self.leaving for key in others))
        for key in others:
            self.waiting.setdefault(key, []).append(i)
        self._look_at(i)

    def _look_at(self, i: int) -> None:
        if not self.in_the_way[i]:
            self.ready.append(i)
        elif not self.staying[i]:
            self.cleared.append(i)

    def _put(self, i: int) -> bool:
        goal, who = self.goals[i], self.who[i]
        assert goal is not None
        if who is None:
            id = self.around.ids[goal.as_id].take()
            if id is None:
                # All ids are in use. One has to be given back first, then this is tried again.
                self._delete(self._spare(goal.as_id))
                self.ready.appendleft(i)
                return False
            goal = with_id(goal, id)
            who = _key(goal)
        before = self.now.get(who)
        self.goals[i] = None
        self.now[who] = goal
        renews = who in self.renewed and before is not None
        lost = self.lost.pop(who, ()) if before is not None else ()
        self.calls.append(Call(before, goal, lost, renews))
        if before is not None:
            self._left(who, True)
        return True

    def _spare(self, as_id: int) -> Key:
        """Returns a slot to delete that no goal waits for, or else the first slot to delete."""
        found = [key for key in self.leaving if key[0] == as_id and not self.waiting.get(key)]
        return found[0] if found else next(key for key in self.leaving if key[0] == as_id)

    def _delete(self, key: Key) -> None:
        del self.leaving[key]
        self.calls.append(Call(self.now.pop(key), None, self.lost.pop(key, ())))
        if key[0] in self.around.ids:
            self.around.ids[key[0]].give_back(key[1])
        self._left(key, False)

    def _step_aside(self, key: Key) -> None:
        """Moves a slot out of the way for a moment.

        A move keeps the dirty log, and no guest looks at the place it goes to. If there is no room,
        the slot is deleted and made anew.
        """
        slot = self.now[key]
        if not self.waiting.get(key):
            return
        base = self.around.aside(slot.as_id, slot.npages)
        if base is None:
            lost = ((slot.base_gfn, slot.end_gfn),) if slot.flags & _LOG else ()
            self.lost.pop(key, None)
            self.calls.append(Call(slot, None, lost))
            del self.now[key]
        else:
            there = with_flags(slot, slot.flags, base)
            self.calls.append(Call(slot, there, self.lost.pop(key, ()), key in self.renewed))
            self.renewed.discard(key)
            self.now[key] = there
        self._left(key, True)

    def _left(self, key: Key, stayed: bool) -> None:
        """Records that the slot left its place: other slots may fit now."""
        for i in self.waiting.pop(key, ()):
            self.in_the_way[i].discard(key)
            self.staying[i] -= stayed
            if stayed or not self.in_the_way[i]:
                self._look_at(i)


def least_calls(
    olds: Sequence[Slot],
    goals: Sequence[Goal],
    around: Surroundings,
    renewed: Iterable[Key] = (),
) -> list[Call]:
    """Returns the calls from some slots to others: fewest calls, then fewest pages absent.

    This holds within the bounds that the head of this file names.
    `olds` and `goals` are the slots that change: a slot in both needs no call and may be left out.
    `renewed`: the slots whose dirty logs begin anew. O(k log k) for k slots, and what cycles.py and
    `_MOST_WAYS` allow.
    """
    matches = _Matches(olds, goals)
    way = min(
        (_Way(moves, around.keep) for moves in matches.ways()),
        key=lambda way: way.cost,
    )
    order = _Order(around)
    order.renewed = set(renewed)
    order.now = {_key(old): old for old in olds}
    becomes = {_key(old): new for old, new in [*matches.in_place, *way.moves]}
    order.leaving = dict.fromkeys(key for key in order.now if key not in becomes)
    order.aside = deque(_key(way.moves[i][0]) for i in way.aside)
    made = _unmatched(goals, becomes)
    moving = [becomes[_key(old)] for old, _ in way.moves]
    order.lost = _lost_marks(order, [*moving, *(goal.slot for goal in made)], becomes)
    last: list[Call] = []
    for old, new in matches.in_place:
        if old.flags != new.flags:
            # A log begins as early as possible and ends as late as possible.
            call = Call(old, new)
            (order.calls if new.flags & _LOG else last).append(call)
    there = _ByGfn(order.now.values())
    for goal in made:
        if not goal.any_id and goal.slot.as_id in around.ids:
            around.ids[goal.slot.as_id].reserve(goal.slot.id)
    for new in moving:
        order.add_goal(new, _key(new), map(_key, there.overlapping(new)))
    for goal in made:
        who = None if goal.any_id else _key(goal.slot)
        others = [*there.overlapping(goal.slot), *_of_same_file(goal.slot, order.now.values())]
        order.add_goal(goal.slot, who, map(_key, others))
    order.run()
    return order.calls + last


def _of_same_file(new: Slot, olds: Iterable[Slot]) -> Iterator[Slot]:
    """Yields the slots whose guest_memfd range meets the range of a new slot."""
    if new.guest_memfd is not None:
        for old in olds:
            if old.guest_memfd is not None and ranges_meet(old, new):
                yield old


def _unmatched(goals: Sequence[Goal], becomes: dict[Key, Slot]) -> list[Goal]:
    """Returns the goals that no slot becomes. Goals do not overlap, so the first page names one."""
    matched = {(new.as_id, new.base_gfn) for new in becomes.values()}
    return [goal for goal in goals if (goal.slot.as_id, goal.slot.base_gfn) not in matched]


def _lost_marks(
    order: _Order, places: Iterable[Slot], becomes: dict[Key, Slot]
) -> dict[Key, tuple[Range, ...]]:
    """Returns, by slot, the pages whose marks the backend loses and the Memslots keeps (T1).

    These pages log before and after, at the same place on the same memory, but in another slot.
    """
    where = _ByGfn(places)
    lost = {}
    for key, old in order.now.items():
        if not old.flags & _LOG or (key in becomes and becomes[key].base_gfn == old.base_gfn):
            continue
        ranges = []
        for new in where.overlapping(old):
            first, end = _common(old, new)
            if new.flags & _LOG and old.gfn_to_hva(first) == new.gfn_to_hva(first):
                ranges.append((first, end))
        if ranges:
            lost[key] = tuple(ranges)
    return lost


class Aside:
    """Where slots of one address space can step aside: pages in no slot before or after."""

    def __init__(self, *readers: AddressSpace | MemoryMap, max_gfn: int) -> None:
        self._readers = readers
        self._from = 0  # below it no hole is left
        # All pages from here on are given away. It begins at the end of guest memory, where no
        # guest looks.
        self._top = max_gfn + 1

    def __call__(self, npages: int) -> int | None:
        """Returns the base gfn of npages pages. No other slot gets them."""
        top = self._top - npages
        if top >= 0 and self._is_free(top, self._top):
            self._top = top
            return top
        base = self._hole(npages)
        if base is not None:
            self._from = base + npages
        return base

    def _is_free(self, base: int, end: int) -> bool:
        return not any(reader.in_gfn_range(base, end) for reader in self._readers)

    def _hole(self, npages: int) -> int | None:
        """Returns the lowest base gfn that is free in all readers, below `_top`."""
        base: int | None = self._from
        last = None
        while base is not None and base != last:
            last = base
            for reader in self._readers:
                if base is not None:
                    base = reader.find_hole(npages, base, max(base, self._top))
        return base


def calls_of_steps(vm: Memslots, steps: Iterable[Step]) -> list[Call]:
    """Returns the calls that make of a Memslots what a transaction's steps made of it.

    `vm` holds the slots from before. Only the net change is made: slots that were created and
    deleted, or moved there and back, take no call.
    """
    net: dict[Key, tuple[Slot | None, Slot | None, bool]] = {}
    for _, old, new, _ in steps:
        slot = new or old
        assert slot is not None
        first, _, recreated = net.get(_key(slot), (old, None, False))
        net[_key(slot)] = first, new, recreated or (old is None and first is not None)
    changed = {key: what for key, what in net.items() if what[0] != what[1] or what[2]}
    goals = [Goal(new) for _, new, _ in changed.values() if new is not None]
    places: dict[int, Aside] = {}

    def aside(as_id: int, npages: int) -> int | None:
        if as_id not in places:
            wanted = MemoryMap([goal.slot for goal in goals if goal.slot.as_id == as_id], as_id)
            places[as_id] = Aside(vm.address_space(as_id), wanted, max_gfn=vm.max_gfn)
        return places[as_id](npages)

    renewed = [key for key, (_, _, recreated) in changed.items() if recreated]
    olds = [old for old, _, _ in changed.values() if old is not None]
    return least_calls(olds, goals, Surroundings(aside, {}), renewed)
