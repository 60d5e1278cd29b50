"""Tests the planner's calls, against all sequences of calls."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from smallmaps import HOSTS, IDS, PAGES, Shape, State, is_reached, least, maps, shape_of, slots_of

from memslots import MemoryMap, Memslots, Slot
from memslots.mirror.planner import Aside, Call, Goal, Ids, Surroundings, least_calls
from memslots.values.records import deletion_arguments, region_arguments


def calls_for(olds: list[Slot], goals: list[Goal], keep: list[tuple[int, int]]) -> list[Call]:
    taken = {old.id for old in olds}
    aside = Aside(MemoryMap(olds), MemoryMap([g.slot for g in goals]), max_gfn=PAGES - 1)
    around = Surroundings(
        lambda _, npages: aside(npages), {0: Ids(IDS, lambda id: id in taken)}, keep
    )
    return least_calls(olds, goals, around)


def replay(olds: list[Slot], calls: list[Call]) -> State:
    """Returns the result of the calls, each allowed by the rules."""
    vm = Memslots(IDS, max_gfn=PAGES - 1)
    for old in olds:
        vm.set_region(*region_arguments(old))
    for call in calls:
        key = call.slot.id
        assert vm.address_space(0).get(key) == call.before
        if call.after is None:
            vm.set_region(*deletion_arguments(call.slot))
        else:
            vm.set_region(*region_arguments(call.after))
        vm.check()
    return frozenset((slot.id, shape_of(slot)) for slot in vm)


ORDERS = st.permutations(range(IDS))


@given(maps(), maps(), ORDERS, ORDERS, st.lists(st.booleans(), min_size=3, max_size=3))
def test_no_sequence_of_calls_is_shorter(
    now: list[Shape], wanted: list[Shape], ids: list[int], new_ids: list[int], any_id: list[bool]
) -> None:
    olds = slots_of(now, ids)
    goals = [
        Goal(slot, free) for slot, free in zip(slots_of(wanted, new_ids), any_id, strict=False)
    ]
    calls = calls_for(olds, goals, [])
    assert is_reached(replay(olds, calls), goals)
    start = frozenset((old.id, shape_of(old)) for old in olds)
    assert len(calls) == least(start, goals)[0]


def absent(olds: list[Slot], calls: list[Call]) -> set[int]:
    """Returns the pages that are absent after some call."""
    now = {old.id: old for old in olds}
    pages = set(range(PAGES))
    missing: set[int] = set()
    for call in calls:
        now.pop(call.slot.id, None)
        if call.after is not None:
            now[call.slot.id] = call.after
        missing |= pages - {
            gfn for slot in now.values() for gfn in range(slot.base_gfn, slot.end_gfn)
        }
    return missing


def test_which_slot_steps_aside_decides_what_is_absent() -> None:
    """Two slots, one of which has a page to keep: the other steps aside."""
    olds = [Slot(0, 0, 0, 3, 0), Slot(1, 0, 3, 1, HOSTS[1])]
    goals = [Goal(Slot(0, 0, 1, 3, 0)), Goal(Slot(1, 0, 0, 1, HOSTS[1]))]
    assert absent(olds, calls_for(olds, goals, [])).isdisjoint({1, 2})


def test_pages_to_be_kept_go_before_calls() -> None:
    """The slot that is in both circles would be the cheapest to step aside."""
    olds = [Slot(0, 0, 1, 3, 0), Slot(1, 0, 0, 1, HOSTS[1]), Slot(2, 0, 4, 1, 2 * HOSTS[1])]
    goals = [
        Goal(Slot(0, 0, 2, 3, 0)),
        Goal(Slot(1, 0, 0, 1, HOSTS[1])),
        Goal(Slot(2, 0, 1, 1, 2 * HOSTS[1])),
    ]
    for keep in ([], [(2, 4)]):
        calls = calls_for(olds, goals, keep)
        assert len(calls) == 3
        assert absent(olds, calls).isdisjoint({2, 3})


@pytest.mark.parametrize("free", [1, 3])
def test_ids_that_are_all_in_use(free: int) -> None:
    """A slot that goes anyway frees its id first."""
    olds = [Slot(id, 0, id, 1, 0x1000 * id) for id in range(IDS)]
    goal = Goal(Slot(9, 0, 4, 1, HOSTS[1]), any_id=True)
    taken = {old.id for old in olds}
    around = Surroundings(lambda *_: None, {0: Ids(IDS, lambda id: id in taken)})
    calls = least_calls([olds[free]], [goal], around)
    assert calls == [Call(olds[free], None), Call(None, Slot(free, 0, 4, 1, HOSTS[1]))]


@given(st.integers(1, 9), st.data())
def test_many_slots_on_the_same_memory(slots: int, data: st.DataObject) -> None:
    """There are too many to compare all orders: they keep their order, and none is in the way."""
    bases = st.lists(st.integers(0, 60), min_size=slots, max_size=slots, unique=True)
    now, then = (sorted(3 * base for base in data.draw(bases)) for _ in range(2))
    olds = [Slot(id, 0, base, 2, 0) for id, base in enumerate(now)]
    goals = [Goal(Slot(0, 0, base, 2, 0), True) for base in then]
    assume(not {*now} & {*then})
    around = Surroundings(lambda *_: None, {0: Ids(99, lambda id: id < slots)})
    assert len(least_calls(olds, goals, around)) == slots
