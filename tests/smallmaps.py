"""Maps so small that a test can try all sequences of calls from one to another."""

from __future__ import annotations

import heapq
from itertools import count

from hypothesis import strategies as st

from memslots import Slot
from memslots.mirror.planner import Goal

PAGES = 5
IDS = 4
HOSTS = (0, 0x10_0000)
FLAGS = (0, 1, 2)
SHAPES = [
    (base, npages, hva, flags)
    for npages in (1, 2, 3)
    for base in range(PAGES + 1 - npages)
    for hva in HOSTS
    for flags in FLAGS
]

Shape = tuple[int, int, int, int]
State = frozenset[tuple[int, Shape]]


def overlap(a: Shape, b: Shape) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def is_reached(state: State, goals: list[Goal]) -> bool:
    slots = dict(state)
    by_place = {shape: id for id, shape in slots.items()}
    return len(state) == len(goals) and all(
        shape_of(goal.slot) in by_place
        and (goal.any_id or by_place[shape_of(goal.slot)] == goal.slot.id)
        for goal in goals
    )


def shape_of(slot: Slot) -> Shape:
    return slot.base_gfn, slot.npages, slot.userspace_addr, int(slot.flags)


def at_least(state: State, goals: list[Goal]) -> int:
    """Returns a lower bound of calls: one call places one slot, and removes one."""
    wanted = {shape_of(goal.slot) for goal in goals}
    there = {shape for _, shape in state}
    return max(len(wanted - there), len(there - wanted))


def next_states(state: State) -> list[State]:
    """Returns the states that one call can reach, by the rules."""
    slots = dict(state)
    found = []
    for id in range(IDS):
        old = slots.get(id)
        rest = state - {(id, old)} if old is not None else state
        if old is not None:
            found.append(rest)
        for shape in SHAPES:
            if old is not None and (
                shape[1:3] != old[1:3] or (shape[3] ^ old[3]) & 2 or shape == old
            ):
                continue
            if not any(overlap(shape, other) for _, other in rest):
                found.append(rest | {(id, shape)})
    return found


def least(start: State, goals: list[Goal]) -> tuple[int, int]:
    """Returns the least number of calls, and then of pages that are kept but absent meanwhile.

    Tries all sequences of calls (A*). A page that goes twice counts twice.
    """
    kept = {page for _, shape in start for page in pages_of(shape)} & {
        page for goal in goals for page in pages_of(shape_of(goal.slot))
    }
    number = count()
    best = {start: (0, 0)}
    work = [((at_least(start, goals), 0), next(number), start)]
    while work:
        _, _, state = heapq.heappop(work)
        calls, lost = best[state]
        if is_reached(state, goals):
            return calls, lost
        for other in next_states(state):
            after = {page for _, shape in other - state for page in pages_of(shape)}
            gone = {page for _, shape in state - other for page in pages_of(shape)} - after
            cost = calls + 1, lost + len(gone & kept)
            if cost < best.get(other, (1 << 30, 0)):
                best[other] = cost
                estimate = cost[0] + at_least(other, goals), cost[1]
                heapq.heappush(work, (estimate, next(number), other))
    raise AssertionError("a map that cannot be reached")


def pages_of(shape: Shape) -> range:
    return range(shape[0], shape[0] + shape[1])


@st.composite
def maps(draw: st.DrawFn) -> list[Shape]:
    found: list[Shape] = []
    for shape in draw(st.lists(st.sampled_from(SHAPES), max_size=6)):
        if len(found) < 3 and not any(overlap(shape, other) for other in found):
            found.append(shape)
    return found


def slots_of(shapes: list[Shape], ids: list[int]) -> list[Slot]:
    return [Slot(id, 0, *shape) for id, shape in zip(ids, shapes, strict=False)]
