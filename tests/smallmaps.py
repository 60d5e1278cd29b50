"""Maps so small that a test can try all sequences of calls from one to another."""

from __future__ import annotations

import heapq
from functools import reduce
from itertools import count
from operator import or_

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


def at_least(state: State, wanted: set[Shape]) -> int:
    """Returns a lower bound of calls: one call places one slot, and removes one."""
    right = 0  # no two slots of a state have the same shape: they would overlap
    for _, shape in state:
        if shape in wanted:
            right += 1
    return max(len(wanted), len(state)) - right


# The pages of each shape, a bit for each, and what a call can make of a slot of that shape.
BITS = {shape: ((1 << shape[1]) - 1) << shape[0] for shape in SHAPES}
BECOMES = {
    old: [
        shape
        for shape in SHAPES
        if shape[1:3] == old[1:3] and not (shape[3] ^ old[3]) & 2 and shape != old
    ]
    for old in SHAPES
}


def next_states(state: State) -> list[tuple[State, int]]:
    """Returns the states that one call can reach, by the rules, and the pages that each loses."""
    slots = dict(state)
    taken = reduce(or_, map(BITS.__getitem__, slots.values()), 0)
    found = []
    for id in range(IDS):
        old = slots.get(id)
        rest, before, shapes = state, 0, SHAPES
        if old is not None:
            rest, before, shapes = state - {(id, old)}, BITS[old], BECOMES[old]
            found.append((rest, before))
        found += [
            (rest | {(id, shape)}, before & ~BITS[shape])
            for shape in shapes
            if not BITS[shape] & taken & ~before
        ]
    return found


def least(start: State, goals: list[Goal]) -> tuple[int, int]:
    """Returns the least number of calls, and then of pages that are kept but absent meanwhile.

    Tries all sequences of calls (A*). A page that goes twice counts twice.
    """
    present = reduce(or_, (BITS[shape] for _, shape in start), 0)
    kept = present & reduce(or_, (BITS[shape_of(goal.slot)] for goal in goals), 0)
    wanted = {shape_of(goal.slot) for goal in goals}
    number = count()
    best = {start: (0, 0)}
    work = [((at_least(start, wanted), 0), next(number), start)]
    while work:
        _, _, state = heapq.heappop(work)
        calls, lost = best[state]
        if is_reached(state, goals):
            return calls, lost
        for other, gone in next_states(state):
            cost = calls + 1, lost + (gone & kept).bit_count()
            if cost < best.get(other, (1 << 30, 0)):
                best[other] = cost
                estimate = cost[0] + at_least(other, wanted), cost[1]
                heapq.heappush(work, (estimate, next(number), other))
    raise AssertionError("a map that cannot be reached")


@st.composite
def maps(draw: st.DrawFn) -> list[Shape]:
    found: list[Shape] = []
    for shape in draw(st.lists(st.sampled_from(SHAPES), max_size=6)):
        if len(found) < 3 and not any(overlap(shape, other) for other in found):
            found.append(shape)
    return found


def slots_of(shapes: list[Shape], ids: list[int]) -> list[Slot]:
    return [Slot(id, 0, *shape) for id, shape in zip(ids, shapes, strict=False)]
