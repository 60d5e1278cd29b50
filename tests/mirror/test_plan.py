"""Tests plans: against all sequences of calls, replayed, and refused."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maps import maps, pages
from smallmaps import HOSTS, IDS, PAGES, SHAPES, Shape, least, overlap, shape_of

from memslots import (
    BusyError,
    Flags,
    InvalidRegionError,
    MemoryMap,
    Memslots,
    NoRoomError,
    NoWindowError,
    OverlapError,
    Plan,
    Slot,
    Window,
    plan,
)
from memslots.errors import WrongAnswerError
from memslots.mirror.planner import Goal

#: The number of pairs of small maps; `MEMSLOTS_PAIRS=100000 pytest ...` tries more.
PAIRS = int(os.environ.get("MEMSLOTS_PAIRS", "1500"))
SHARES = 10


def small_map(random: random.Random) -> MemoryMap:
    """Draws up to three slots of up to three pages, on two host ranges, with ids or without."""
    shapes: list[Shape] = []
    ids = random.sample(range(IDS), IDS)
    for shape in random.choices(SHAPES, k=random.randrange(7)):
        if len(shapes) < 3 and not any(overlap(shape, other) for other in shapes):
            shapes.append(shape)
    return MemoryMap(
        [
            (*shape, ids[i]) if random.randrange(2) else shape
            for i, shape in enumerate(shapes)
        ]
    )  # fmt: skip


def goals_of(m: MemoryMap) -> list[Goal]:
    items = m.__reduce__()[1][0]  # type: ignore[index]
    return [Goal(slot, not isinstance(item, Slot)) for slot, item in zip(m, items, strict=True)]


def window_pages(made: Plan) -> int:
    return sum(window.end_gfn - window.start_gfn for window in made.windows)


@pytest.mark.parametrize("share", range(SHARES))
def test_no_plan_has_fewer_calls_or_pages_absent(share: int) -> None:
    for seed in range(share, PAIRS, SHARES):
        source = random.Random(seed)
        now, wanted = small_map(source), small_map(source)
        made = plan(now, wanted, max_slots=IDS, max_gfn=PAGES - 1)
        made.check()
        start = frozenset((slot.id, shape_of(slot)) for slot in now)
        assert (len(made), window_pages(made)) == least(start, goals_of(wanted)), (seed, str(made))


@given(maps(), maps(), st.integers(0, 1))
def test_made_it_is_what_was_wanted(now: MemoryMap, wanted: MemoryMap, way: int) -> None:
    made = plan(now, wanted, max_gfn=60)
    made.check()
    assert (made.current, made.wanted) == (now, wanted)
    assert len(made) <= made.rebuild_calls == len(now) + len(wanted)
    assert pickle.loads(pickle.dumps(made)) == made
    vm = Memslots()
    for slot in now:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)
    if way:
        vm.apply(made)
    else:
        assert vm.become(wanted).current == now
    vm.check()
    assert vm.map() == wanted and pages(vm.map()) == pages(wanted)
    assert len(plan(vm, wanted)) == len(vm.become(wanted)) == 0


@given(maps(), maps())
def test_windows_are_what_is_absent(now: MemoryMap, wanted: MemoryMap) -> None:
    """Compares page by page, after each call."""
    made = plan(now, wanted, max_gfn=60)
    vm = Memslots(max_gfn=60)
    for slot in now:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)
    both = pages(now).keys() & pages(wanted).keys()
    for number, call in enumerate(made.calls):
        vm.set_region(*call)
        told = {
            gfn
            for start, end, first, last in made.windows
            if first <= number < last
            for gfn in range(start, end)
        }
        assert {gfn for gfn in both if vm.lookup(gfn) is None} == told
    assert vm.map() == wanted


def test_it_prints_as_a_table() -> None:
    now = MemoryMap([(0, 256, HOSTS[1] << 12)])
    wanted = MemoryMap([(0, 160, HOSTS[1] << 12), (192, 64, (HOSTS[1] << 12) + (192 << 12))])
    made = plan(now, wanted)
    assert str(made) == (
        "3 calls: 2 CREATE, 1 DELETE\n"
        "call          space  id      gpa       end     size          hva  flags\n"
        "   0  DELETE      0   0      0x0  0x100000    1 MiB  0x100000000  -\n"
        "   1  CREATE      0   0      0x0   0xa0000  640 KiB  0x100000000  -\n"
        "   2  CREATE      0   1  0xc0000  0x100000  256 KiB  0x1000c0000  -\n"
        "absent between calls 0 and 1: gpa [0x0, 0xa0000), 640 KiB\n"
        "absent between calls 0 and 2: gpa [0xc0000, 0x100000), 256 KiB"
    )
    assert made.windows == (Window(0, 160, 0, 1), Window(192, 256, 0, 2))
    assert made.calls[1] == (0, 0, 0, 160 << 12, HOSTS[1] << 12)
    assert str(plan(now, now)) == "no calls"


def test_limits_that_no_memslots_has() -> None:
    """They refuse nothing, and the check is made all the same."""
    now, wanted = MemoryMap([(0, 1, 0)]), MemoryMap([(5, 1, 0)])
    made = plan(now, wanted, max_slots=1 << 40, max_gfn=(1 << 64) - 1)
    assert (made.max_slots, made.max_gfn, len(made)) == (1 << 40, (1 << 64) - 1, 1)
    made.check()


def test_pages_to_be_kept() -> None:
    """Two slots trade places: one steps aside, and the one with the kept pages stays."""
    now = MemoryMap([(0, 4, 0), (4, 4, 1 << 30)])
    wanted = MemoryMap([(1, 4, 0), (5, 3, 1 << 30)])
    with pytest.raises(NoWindowError, match=r"gpa \[0x5000, 0x8000\), 12 KiB cannot be kept"):
        plan(now, wanted, keep=[(20, 30), (5, 9)])
    assert plan(now, wanted, keep=[(0, 4), (8, 1 << 40)]).windows
    vm = Memslots()
    vm.become(now)
    with pytest.raises(NoWindowError):
        vm.become(wanted, keep=[(0, 100)])
    assert vm.map() == now
    for keep, error in (
        ([(5, 4)], ValueError),
        ([(-1, 4)], OverflowError),
        ([5], TypeError),
        ([(5,)], TypeError),
    ):
        with pytest.raises(error):
            plan(now, wanted, keep=keep)  # type: ignore[arg-type]


def test_more_calls_where_they_spare_pages() -> None:
    # A circle of moves: the big slot keeps most of its pages if both other slots step aside.
    now = MemoryMap([(1, 8, 0), (0, 1, 1 << 30), (9, 1, 1 << 31)])
    wanted = MemoryMap([(1, 8, 0, 1), (9, 1, 1 << 30), (0, 1, 1 << 31)])
    made = plan(now, wanted, keep=[(1, 9)])
    made.check()
    assert all(window.end_gfn <= 1 or window.start_gfn >= 9 for window in made.windows)


def test_ids() -> None:
    now = MemoryMap([Slot(5, 0, 0, 1, 0), Slot(6, 0, 9, 1, 1 << 20)])
    # A slot that stays keeps its id; a new slot gets the lowest free id.
    made = plan(now, [(0, 1, 0, 1), (9, 1, 1 << 20), (20, 1, 1 << 21)])
    assert [(step.slot.id, step.before is None) for step in made.steps] == [(5, False), (0, True)]
    # Another slot is to have the id, so its present slot gives it up.
    made = plan(now, [(0, 1, 0), (9, 1, 1 << 20), (20, 1, 1 << 21, 0, 5)])
    made.check()
    assert len(made) == 3
    # All ids are in use: one is freed first.
    made = plan(now, [(0, 1, 1 << 22), (9, 1, 1 << 23)], max_slots=7)
    assert len(made) == 4
    full = MemoryMap([(i, 1, i << 20) for i in range(4)])
    made = plan(full, [(i + 10, 1, (i + 1) << 30) for i in range(4)], max_slots=4)
    made.check()
    assert len(made) == 8


def test_ids_above_16_bits() -> None:
    now = MemoryMap([Slot(70_000, 0, 0, 1, 0)])
    made = plan(now, MemoryMap(), max_slots=100_000)
    made.check()
    with pytest.raises(OverflowError):
        _ = made.calls
    vm = Memslots(100_000)
    vm.become(now)
    vm.apply(made)
    assert len(vm) == 0


WANTED = MemoryMap([(0, 1, 0), (5, 1, 0)])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: plan(MemoryMap(), WANTED, max_slots=1), NoRoomError, "2 slots are wanted"),
        (lambda: plan(MemoryMap(), [Slot(9, 0, 0, 1, 0)], max_slots=9), InvalidRegionError, "id"),
        (lambda: plan(MemoryMap(), WANTED, max_gfn=4), InvalidRegionError, "above max_gfn, 0x4"),
        (
            lambda: plan(MemoryMap(), MemoryMap([(0, 1, 0)], as_id=1)),
            InvalidRegionError,
            "wanted is of address space 1, current of 0",
        ),
        (lambda: plan(MemoryMap(), [(0, 2, 0), (1, 1, 0)]), OverlapError, "slots 0 and 1"),
        (lambda: plan(5, WANTED), TypeError, "current must be a Memslots or MemoryMap"),  # type: ignore[arg-type]
        (lambda: plan(MemoryMap(), 5), TypeError, "not iterable"),  # type: ignore[arg-type]
        (lambda: plan(MemoryMap(), WANTED, max_slots=-1), OverflowError, "max_slots"),
        (lambda: Memslots(1).become(WANTED), NoRoomError, "2 slots are wanted"),
        (lambda: Memslots(max_gfn=4).become(WANTED), InvalidRegionError, "max_gfn"),
        (
            lambda: Memslots().become(MemoryMap(as_id=3)),
            InvalidRegionError,
            "address space",
        ),
        (lambda: Memslots().become(WANTED, as_id=1), ValueError, "of address space 0, not 1"),
        (lambda: Memslots().apply(5), TypeError, "plan must be a Plan"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_a_plan_for_what_is_there_no_more() -> None:
    vm = Memslots()
    vm.create(0, 0, 4, 0)
    vm.create(1, 10, 4, 1 << 20)
    made = plan(vm, [(0, 4, 0, 1), (10, 4, 1 << 21), (20, 1, 1 << 22)])
    changes: list[Callable[[], object]] = [
        lambda: vm.set_flags(0, Flags.LOG_DIRTY_PAGES),
        lambda: vm.move(1, 11),
        lambda: vm.create(2, 50, 1, 0),
        lambda: vm.delete(1),
    ]
    for change in changes:
        kept = vm.map()
        change()
        there, generation = vm.map(), vm.generation
        with pytest.raises(InvalidRegionError, match="the plan was made for"):
            vm.apply(made)
        assert (vm.map(), vm.generation) == (there, generation)
        vm.become(kept)
    vm.create(2, 20, 1, 1 << 40)  # in the way
    with pytest.raises((OverlapError, InvalidRegionError)):
        vm.apply(made)
    vm.delete(2)
    vm.apply(made)
    assert vm.map() == made.wanted


def test_other_address_spaces() -> None:
    vm = Memslots(address_spaces=2)
    vm.create(0, 0, 4, 0)
    assert len(vm.become([(0, 4, 0)], as_id=1)) == 1
    assert [slot.as_id for slot in vm.address_space(1)] == [1] and len(vm) == 1
    made = plan(vm, MemoryMap([], as_id=1))
    made.check()
    assert made.calls == [(1 << 16, 0, 0, 0, 0)]
    vm.apply(made)
    assert len(vm) == 1 and len(vm.address_space(1)) == 0


@pytest.mark.parametrize("as_id", [16, 1 << 16, (1 << 32) - 1])
def test_an_address_space_that_no_memslots_has(as_id: int) -> None:
    last = MemoryMap([(0, 1, 0)], 15)
    plan(MemoryMap((), 15), last).check()
    made = plan(MemoryMap((), as_id), MemoryMap([(0, 1, 0)], as_id))
    with pytest.raises(ValueError, match=f"for address space {as_id}, .* at most 16, from 0 on"):
        made.check()


def test_host_addresses_beyond_four_levels() -> None:
    made = plan(MemoryMap(), [(0, 1, 1 << 56)])
    made.check()
    with pytest.raises(InvalidRegionError):
        Memslots().apply(made)


def test_marks_stay() -> None:
    vm = Memslots()
    vm.create(0, 0, 100, 0, 1)
    vm.mark_dirty_range(10, 20)
    vm.mark_dirty(99)
    vm.become([(0, 50, 0, 1), (50, 10, 1 << 30, 1), (60, 40, 60 << 12, 1)])
    assert [tuple(run) for run in vm.take_dirty_runs()] == [(0, 10, 20), (0, 99, 100)]


def test_within_a_transaction() -> None:
    vm = Memslots()
    with vm.transaction(), pytest.raises(BusyError):
        vm.become(WANTED)
    vm.become(WANTED)
    assert vm.map() == WANTED


def test_what_stays_is_not_touched() -> None:
    n = 20_000
    now = MemoryMap([(4 * i, 3, i << 20) for i in range(n)])
    wanted = now | MemoryMap([(4 * i, 3, (i + n) << 20, 1) for i in range(0, n, n // 10)])
    made = plan(now, wanted)
    assert len(made) == 20
    assert {step.slot.base_gfn for step in made.steps} == set(range(0, 4 * n, 4 * n // 10))
    made.check()


def test_a_plan_that_is_not_right() -> None:
    """`check` finds the fault; the plan is made by hand, because no planner makes one."""
    now = MemoryMap([(0, 256, HOSTS[1] << 12)])
    made = plan(now, now | MemoryMap([(160, 32, 1 << 40)]))
    made.check()
    window = made.windows[1]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"steps": made.steps[:-1], "windows": ()}, "do not result in the wanted map"),
        ({"windows": (Window(0, 160, 0, 2),)}, "is present before call 2"),
        ({"windows": (Window(0, 160, 1, 1),)}, "is present after call 1"),
        ({"windows": (window._replace(end_gfn=window.end_gfn + 64),)}, "is absent after call"),
    ]
    for changed, text in wrong:
        with pytest.raises(WrongAnswerError, match=text):
            replace(made, **changed).check()
    with pytest.raises((InvalidRegionError, OverlapError)):
        replace(made, steps=made.steps[1:], windows=()).check()
