"""Tests dirty logs as runs of pages, and marks of ranges of pages."""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import Any

import pytest
from dirtyruns import HVA, LIMITS, LOG, MODES, READONLY, check, fresh, machine
from hypothesis import given
from hypothesis import strategies as st
from model import Model, unchanged
from smallmachine import MAX_GFN, MAX_SLOTS
from strategies import good_as_ids, steps

from memslots import InvalidRegionError, MemslotError, Memslots
from memslots.dirty.runs import DirtyRun

# What a run is


@pytest.mark.parametrize("mode", MODES)
def test_nothing(mode: int) -> None:
    vm = machine(mode)
    check(vm)
    vm.create(0, 0, 70, HVA)  # does not log
    vm.mark_dirty_range(0, 70)
    check(vm)
    vm.set_flags(0, LOG)
    check(vm, *[(0, 0, 70)] * (mode == 3))


def test_what_a_run_is() -> None:
    vm = fresh(0, 70)
    vm.mark_dirty_range(3, 5)
    (run,) = vm.take_dirty_runs()
    assert isinstance(run, DirtyRun)
    assert (run.as_id, run.start_gfn, run.end_gfn) == (0, 3, 5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("npages", [1, 2, 63, 64, 65, 127, 128, 129, 130])
def test_ends_of_a_slot(npages: int, mode: int) -> None:
    vm = fresh(mode, npages)
    vm.mark_dirty_range(0, npages)
    check(vm, (0, 0, npages))
    vm.mark_dirty(npages - 1)
    check(vm, (0, npages - 1, npages))
    vm.mark_dirty_range(0, npages - 1)  # the last page stays clean
    check(vm, *[(0, 0, npages - 1)] * (npages > 1))
    vm.mark_dirty_range(0, 1 << 60)
    check(vm, (0, 0, npages))


@pytest.mark.parametrize("size", [0, 8, 24])
def test_a_log_of_another_size(size: int) -> None:
    """It may come from a subclass. Reading beyond its end could end the process."""

    class Odd(Memslots):
        def get_dirty_log(self, *_: Any, **__: Any) -> bytearray:
            return bytearray(size)

    vm = Odd()
    vm.create(0, 0, 128, HVA, LOG)
    with pytest.raises(ValueError, match=f"get_dirty_log returned {size} bytes for slot 0"):
        vm.take_dirty_runs()


@pytest.mark.parametrize("mode", MODES)
def test_word_borders(mode: int) -> None:
    """Tests every single run of a slot of 130 pages."""
    vm = fresh(mode, 130)
    for start in range(130):
        for end in range(start + 1, 131):
            vm.mark_dirty_range(start, end)
            assert vm.take_dirty_runs() == [(0, start, end)]
    check(vm)


def test_every_second_page() -> None:
    vm = fresh(0, 130)
    for odd in (0, 1):
        vm.mark_dirty_many(array("Q", range(odd, 130, 2)))
        check(vm, *[(0, gfn, gfn + 1) for gfn in range(odd, 130, 2)])


@pytest.mark.parametrize("mode", MODES)
def test_adjacent_slots_join_and_holes_do_not(mode: int) -> None:
    vm = machine(mode)
    for id, (base, npages) in enumerate([(0, 64), (64, 1), (65, 70), (136, 5), (200, 64)]):
        # Neither host addresses nor ids are in gfn order.
        vm.create(40 - id, base, npages, HVA - (id << 30), LOG)
    vm.take_dirty_runs()
    vm.mark_dirty_range(0, 300)
    check(vm, (0, 0, 135), (0, 136, 141), (0, 200, 264))
    vm.mark_dirty_range(63, 66)
    check(vm, (0, 63, 66))
    vm.mark_dirty_range(130, 137)
    check(vm, (0, 130, 135), (0, 136, 137))
    vm.mark_dirty(64)
    vm.mark_dirty(134)
    vm.mark_dirty(136)
    check(vm, (0, 64, 65), (0, 134, 135), (0, 136, 137))


def test_what_does_not_log_is_a_hole() -> None:
    vm = machine()
    for id, flags in enumerate([LOG, 0, LOG, LOG | READONLY, LOG]):
        vm.create(id, 10 * id, 10, HVA, flags)
    vm.mark_dirty_range(0, 50)
    check(vm, (0, 0, 10), (0, 20, 30), (0, 40, 50))


@pytest.mark.parametrize("mode", MODES)
def test_address_spaces(mode: int) -> None:
    """The last run of a space and the first of the next one do not join, wherever they are."""
    vm = machine(mode)
    vm.create(0, 0, 10, HVA, LOG)
    vm.create(0, 10, 10, HVA, LOG, as_id=1)
    vm.create(1, 0, 5, HVA, LOG, as_id=1)
    vm.take_dirty_runs()
    vm.mark_dirty_range(0, 30)
    check(vm, (0, 0, 10))
    vm.mark_dirty_range(0, 30)
    vm.mark_dirty_range(0, 30, as_id=1)
    check(vm, (0, 0, 10), (1, 0, 5), (1, 10, 20))
    vm.mark_dirty_range(4, 11, 1)
    check(vm, (1, 4, 5), (1, 10, 11))


def test_aliases_have_marks_of_their_own() -> None:
    vm = machine()
    vm.create(0, 0, 10, HVA, LOG)
    vm.create(1, 100, 10, HVA, LOG)
    vm.mark_dirty_range(2, 4)
    vm.mark_dirty_range(107, 120)
    check(vm, (0, 2, 4), (0, 107, 110))


def test_readonly_slots_that_begin_marked() -> None:
    """Mode 3 marks them at the start; no write marks them."""
    vm = machine(3)
    vm.create(0, 0, 70, HVA, LOG | READONLY)
    vm.mark_dirty_range(0, 70)
    check(vm, (0, 0, 70))
    vm.mark_dirty_range(0, 70)
    check(vm)


def test_the_end_of_guest_memory() -> None:
    """Tests the last page that rule 2 allows, in a slot with many pages."""
    vm = Memslots(max_gfn=(1 << 52) - 1)
    end = (1 << 52) - 1
    base = end - (1 << 24)
    vm.create(0, base, end - base, HVA, LOG)
    vm.mark_dirty_range(end - 1, (1 << 64) - 1)
    check(vm, (0, end - 1, end))
    vm.mark_dirty_range(0, (1 << 64) - 1)
    check(vm, (0, base, end))


# Arguments of mark_dirty_range


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((5, 4), ValueError),
        ((1 << 63, 0), ValueError),
        (("0", 4), TypeError),
        ((0, 4.0), TypeError),
        ((None, 4), TypeError),
        ((0, None), TypeError),
        ((0, 4, "0"), TypeError),
        ((-1, 4), OverflowError),
        ((0, 1 << 64), OverflowError),
        ((0, 4, -1), OverflowError),
        ((0, 4, 1 << 32), OverflowError),
        ((0, 4, 2), InvalidRegionError),
        ((0,), TypeError),
        ((), TypeError),
    ],
)
def test_wrong_ranges(args: tuple[Any, ...], error: type[Exception]) -> None:
    vm = fresh(0, 70)
    with unchanged(vm), pytest.raises(error):
        vm.mark_dirty_range(*args)


def test_ranges_without_pages() -> None:
    vm = fresh(0, 70)
    with unchanged(vm):
        for gfn in (0, 3, 69, 70, 1 << 52, (1 << 64) - 1):
            vm.mark_dirty_range(gfn, gfn)
        vm.mark_dirty_range(70, 1 << 52)
    vm.mark_dirty_range(start=True, end=2, as_id=False)
    check(vm, (0, 1, 2))


# Any layout, compared with the dull model


@given(
    body=st.lists(
        st.one_of(
            steps,
            st.tuples(
                st.just("mark_dirty_range"),
                st.integers(0, MAX_GFN + 1),
                st.integers(0, 130),
                good_as_ids,
            ),
            st.tuples(st.just("take_dirty_runs")),
        ),
        max_size=40,
    ),
    mode=st.sampled_from(MODES),
)
def test_any_changes_and_marks(body: list[tuple[str, *tuple[int, ...]]], mode: int) -> None:
    vm = Memslots(MAX_SLOTS, manual_dirty_log=mode, **LIMITS)
    model = Model(MAX_SLOTS, manual_dirty_log=mode, **LIMITS)
    for verb, *args in [*body, ("take_dirty_runs",)]:
        if verb == "mark_dirty_range":
            args[1] += args[0]
        expected = getattr(model, verb)(*args)
        if verb == "take_dirty_runs":
            check(vm, *expected)
        else:
            with suppress(MemslotError):
                getattr(vm, verb)(*args)


@given(
    slots=st.lists(
        st.tuples(
            st.integers(0, 3),  # pages of the hole before the slot
            st.one_of(st.integers(1, 130), st.sampled_from([63, 64, 65, 127, 128, 129])),
            st.sampled_from([LOG, LOG, LOG, 0, LOG | READONLY]),
            st.integers(0, 1),
        ),
        max_size=8,
    ),
    ranges=st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 200), st.integers(0, 1)), max_size=12
    ),
    mode=st.sampled_from(MODES),
)
def test_any_layout(
    slots: list[tuple[int, int, int, int]], ranges: list[tuple[int, int, int]], mode: int
) -> None:
    vm = machine(mode)
    model = Model(64, address_spaces=2, max_gfn=0xFFFF, manual_dirty_log=mode)
    ends = [0, 0]
    for id, (hole, npages, flags, as_id) in enumerate(slots):
        base = ends[as_id] + hole
        ends[as_id] = base + npages
        for either in (vm, model):
            either.create(id, base, npages, HVA, flags, as_id)
    check(vm, *model.take_dirty_runs())
    for start, length, as_id in ranges:
        for either in (vm, model):
            either.mark_dirty_range(start, start + length, as_id)
    check(vm, *model.take_dirty_runs())
