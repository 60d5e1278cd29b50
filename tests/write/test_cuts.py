"""Tests unmap, protect, split and merge, against a model that holds pages, not slots."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from allocations import each_failure
from backend import Backend, agree
from hypothesis import given
from hypothesis import strategies as st
from maps import Pages, maps, pages
from model import state_of

from memslots import (
    Flags,
    InvalidRegionError,
    MemoryMap,
    MemslotError,
    Memslots,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    Slot,
    Transaction,
)
from memslots.write import cuts

Cutter = Memslots | Transaction
LOG = Flags.LOG_DIRTY_PAGES


class PageModel:
    """The memory of each page, and which pages are marked."""

    def __init__(self, m: MemoryMap) -> None:
        self.pages: Pages = pages(m)
        self.marks: set[int] = set()

    def mark(self, gfn: int) -> None:
        if self.pages.get(gfn, (0, 0))[1] == LOG:
            self.marks.add(gfn)

    def unmap(self, start: int, end: int) -> None:
        self.put(start, end, {})

    def protect(self, start: int, end: int, flags: int) -> bool:
        if not all(gfn in self.pages for gfn in range(start, end)):
            return False
        self.put(start, end, {gfn: (self.pages[gfn][0], flags) for gfn in range(start, end)})
        return True

    def put(self, start: int, end: int, new: Pages) -> None:
        for gfn in range(start, end):
            self.pages.pop(gfn, None)
        self.pages.update(new)

    def forget(self, before: Pages) -> None:
        """Forgets marks by T1: a page that logs before and after a change keeps its mark."""
        self.marks = {
            gfn
            for gfn in self.marks
            if gfn in self.pages
            and self.pages[gfn][1] & 1
            and self.pages[gfn][0] == before[gfn][0]
        }  # fmt: skip


def cut(target: Cutter, model: PageModel, data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(["unmap", "protect", "protect", "split", "merge"]))
    slots = sorted(slot_list(target), key=lambda slot: slot.base_gfn)
    if verb in ("unmap", "protect"):
        start = data.draw(st.integers(0, 60))
        end = start + data.draw(st.integers(0, 20))
        if verb == "unmap":
            target.unmap(start, end)
            model.unmap(start, end)
            return
        flags = data.draw(st.integers(0, 3))
        try:
            target.protect(start, end, flags)
        except NotMappedError:
            assert not model.protect(start, end, flags)
        else:
            assert model.protect(start, end, flags)
    elif verb == "split" and slots:
        slot = data.draw(st.sampled_from(slots))
        gfn = data.draw(st.integers(slot.base_gfn, slot.end_gfn))
        id = data.draw(st.sampled_from([None, 100]))
        if not slot.base_gfn < gfn < slot.end_gfn or (id and target.get(id)):
            with pytest.raises(InvalidRegionError):
                target.split(slot.id, gfn, id)
            return
        one, two = target.split(slot.id, gfn, id)
        assert (one.id, two.id) == (slot.id, id or two.id)
        assert (one.base_gfn, one.end_gfn, two.end_gfn) == (slot.base_gfn, gfn, slot.end_gfn)
    elif verb == "merge" and len(slots) > 1:
        i = data.draw(st.integers(0, len(slots) - 2))
        one, two = slots[i : i + 2]
        if data.draw(st.booleans()):
            one, two = two, one
        try:
            merged = target.merge(one.id, two.id)
        except InvalidRegionError:
            return
        assert merged.id == one.id and merged.npages == one.npages + two.npages


def slot_list(target: Cutter) -> list[Slot]:
    return target.in_gfn_range(0, 1 << 40)


def begin(m: MemoryMap, vm: Memslots) -> None:
    for slot in m:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)


@given(maps(), st.data(), st.booleans())
def test_page_by_page(m: MemoryMap, data: st.DataObject, mirrored: bool) -> None:
    limits = {"max_gfn": (1 << 20) - 1}
    backend = Backend(200, **limits) if mirrored else None
    vm = Memslots(200, backend=backend, **limits)
    begin(m, vm)
    model = PageModel(m)
    for _ in range(data.draw(st.integers(1, 6))):
        for gfn in data.draw(st.lists(st.integers(0, 50), max_size=4)):
            vm.mark_dirty(gfn)
            model.mark(gfn)
        before = dict(model.pages)
        if data.draw(st.booleans()):
            with vm.transaction() as tx:
                for _ in range(data.draw(st.integers(1, 3))):
                    cut(tx, model, data)
        else:
            cut(vm, model, data)
        model.forget(before)
        vm.check()
        assert pages(vm.map()) == model.pages
        if backend is not None:
            agree(vm, backend)
    taken = {gfn for run in vm.take_dirty_runs() for gfn in range(run.start_gfn, run.end_gfn)}
    assert taken == model.marks


def test_what_keeps_which_id() -> None:
    vm = Memslots()
    vm.create(5, 0, 100, 0, LOG)
    vm.unmap(20, 30)
    vm.protect(40, 50, LOG | Flags.READONLY)
    vm.unmap(0, 10)
    assert [(slot.id, slot.base_gfn, slot.end_gfn) for slot in vm] == [
        (5, 10, 20),
        (0, 30, 40),
        (1, 40, 50),
        (2, 50, 100),
    ]
    same = vm.map()
    vm.protect(10, 20, LOG)  # the flags are the same: no slot is made anew
    vm.unmap(0, 10)
    vm.unmap(7, 7)
    vm.protect(7, 7, 0)
    assert vm.map() == same and vm.generation == same.generation


def test_flags_alone_are_changed_in_place() -> None:
    told = []

    class Listener:
        def commit(self, change: Any, old: Any, new: Any) -> None:
            told.append(change.name)

    vm = Memslots()
    vm.create(0, 0, 100, 0)
    vm.create(1, 100, 100, 1 << 30)
    vm.subscribe(Listener())
    vm.protect(0, 200, LOG)
    assert told == ["FLAGS_ONLY", "FLAGS_ONLY"]
    vm.protect(0, 100, Flags.READONLY)
    assert told[2:] == ["DELETE", "CREATE"]


def small() -> Memslots:
    """Returns a Memslots with all ids in use."""
    vm = Memslots(max_slots=2)
    vm.create(0, 0, 100, 0, LOG)
    vm.create(1, 100, 100, 100 << 12, LOG)
    vm.mark_dirty_range(10, 20)
    return vm


WRONG: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda to: to.unmap(5, 4), ValueError, "ends before it starts"),
    (lambda to: to.unmap(-1, 4), OverflowError, "start"),
    (lambda to: to.unmap(10, 20), NoRoomError, "no free id"),
    (lambda to: to.unmap(0, 4, as_id=1), InvalidRegionError, "address space"),
    (lambda to: to.protect(150, 201, 0), NotMappedError, "gfn 0xc8"),
    (lambda to: to.protect(50, 150, 2), NoRoomError, "no free id"),
    (lambda to: to.protect(0, 200, 4), InvalidRegionError, "unknown flags 0x4"),
    (lambda to: to.protect(0, 200, 1 << 16), InvalidRegionError, "unknown flags"),
    (lambda to: to.split(0, 50), NoRoomError, "no free id"),
    (lambda to: to.split(0, 0), InvalidRegionError, "cannot be split at gfn 0x0"),
    (lambda to: to.split(0, 100), InvalidRegionError, "cannot be split at gfn 0x64"),
    (lambda to: to.split(7, 100), NoSuchSlotError, "no slot 7"),
    (lambda to: to.merge(0, 7), NoSuchSlotError, "no slot 7"),
    (lambda to: to.split("a", 5), TypeError, "^slot must be an integer"),
    (lambda to: to.merge(-1, 0), OverflowError, "^first must not be negative"),
    (lambda to: to.merge(0, 1 << 40), OverflowError, "^second does not fit its 32 bits"),
    (lambda to: to.merge(0, 0), InvalidRegionError, "not adjacent in guest memory"),
]


@pytest.mark.parametrize(("call", "error", "text"), WRONG)
def test_what_is_wrong_changes_nothing(
    call: Callable[[Any], object], error: type[Exception], text: str
) -> None:
    vm = small()
    before = state_of(vm)
    with pytest.raises(error, match=text):
        call(vm)
    assert state_of(vm) == before
    with vm.transaction() as tx:
        with pytest.raises(error, match=text):
            call(tx)
        assert slot_list(tx) == list(vm)
    assert state_of(vm) == before
    vm.check()


def test_ids_that_cannot_be() -> None:
    vm = Memslots(max_slots=3)
    vm.create(0, 0, 100, 0)
    vm.create(1, 200, 100, 0)
    for id in (0, 1, 3):
        with pytest.raises(InvalidRegionError):
            vm.split(0, 50, id)
    assert len(vm) == 2


class Changing:
    """A number that changes the slots when it is asked for."""

    def __init__(self, value: int, change: Callable[[], object]) -> None:
        self.value = value
        self.change = change

    def __index__(self) -> int:
        self.change()
        return self.value


@pytest.mark.parametrize(
    "call",
    [
        lambda tx, number: tx.split(0, number(4)),
        lambda tx, number: tx.split(0, 4, number(7)),
        lambda tx, number: tx.split(0, 4, None, number(0)),
        lambda tx, number: tx.merge(0, number(1)),
        lambda tx, number: tx.merge(0, 1, number(0)),
        lambda tx, number: tx.protect(0, 4, number(1)),
        lambda tx, number: tx.protect(0, 4, 1, number(0)),
        lambda tx, number: tx.unmap(0, number(4)),
        lambda tx, number: tx.unmap(0, 4, number(0)),
    ],
)
def test_an_argument_that_changes_the_slots(
    call: Callable[[Transaction, Callable[[int], Changing]], object],
) -> None:
    """The slots are looked up after all arguments were asked for their numbers."""
    vm = Memslots()
    vm.create(0, 0, 8, 0)
    vm.create(1, 8, 8, 8 << 12)
    with vm.transaction() as tx:

        def change() -> None:
            if tx.get(0) == vm[0]:
                tx.delete(0)
                tx.create(0, 0x100, 8, 1 << 30)

        with suppress(InvalidRegionError, NotMappedError):
            call(tx, lambda value: Changing(value, change))
        there = tx.in_gfn_range(0, 1 << 40)
        assert [slot.base_gfn for slot in there] == [8, 0x100]
    vm.check()


def test_what_cannot_be_merged() -> None:
    vm = Memslots()
    most = (1 << 31) - 1
    vm.create(0, 0, 10, 0)
    vm.create(1, 10, 10, 10 << 12, LOG)  # flags
    vm.create(2, 20, 10, 21 << 12, LOG)  # host memory
    vm.create(3, 31, 10, 31 << 12, LOG)  # a hole
    vm.create(4, 1 << 32, most, 0)
    vm.create(5, (1 << 32) + most, 1, most << 12)
    for first, second, why in (
        (0, 1, "flags are different"),
        (2, 1, "not adjacent in host memory"),
        (2, 3, "not adjacent in guest memory"),
        (5, 4, "at most 2147483647 pages"),
    ):
        with pytest.raises(InvalidRegionError, match=why):
            vm.merge(first, second)
    vm.check()


def test_no_memory(drivers: Any) -> None:
    vm = Memslots()
    vm.create(0, 0, 100, 0, LOG)
    vm.mark_dirty_range(10, 40)
    uses: list[Callable[[Cutter], object]] = [
        lambda to: to.unmap(20, 30),
        lambda to: to.protect(5, 15, 2),
        lambda to: to.split(0, 2),
        lambda to: to.merge(0, 4),
    ]
    for use in uses:
        before = state_of(vm)

        def unharmed(before: object = before) -> None:
            assert state_of(vm) == before
            vm.check()

        assert each_failure(drivers("alloc"), lambda use=use: use(vm), unharmed) > 0  # type: ignore[misc]


def test_no_memory_in_a_transaction_that_goes_on(drivers: Any) -> None:
    alloc = drivers("alloc")
    for nth in range(1, 30):
        vm = Memslots()
        vm.create(0, 0, 100, 0, LOG)
        vm.mark_dirty_range(10, 40)
        with vm.transaction() as tx:
            tx.create(9, 1000, 1, 0)
            kept = slot_list(tx)
            alloc.fail_nth(nth)
            try:
                tx.protect(20, 30, 2)
            except MemoryError:
                assert slot_list(tx) == kept
            else:
                break
            finally:
                alloc.fail_nth(0)
        vm.check()
        assert list(vm) == kept
        assert [run[1:] for run in vm.take_dirty_runs()] == [(10, 40)]
    assert nth > 5


def test_what_cannot_be_undone_can_only_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = Memslots()
    vm.create(0, 0, 100, 0)
    step = cuts._AllOrNothing._step
    made = []

    def failing(self: Any, old: Slot | None, new: Slot | None) -> Slot:
        made.append((old, new))
        if len(made) > 1:
            raise MemoryError
        return step(self, old, new)

    monkeypatch.setattr(cuts._AllOrNothing, "_step", failing)
    before = state_of(vm)
    with (
        pytest.raises(RuntimeError, match="a step was left unfinished"),
        vm.transaction() as tx,
    ):
        with pytest.raises(MemoryError):
            tx.unmap(10, 20)
        with pytest.raises(RuntimeError, match="the body can only be left"):
            tx.get(0)
    assert state_of(vm) == before
    made.clear()
    with pytest.raises(MemoryError), vm.transaction() as tx:
        tx.unmap(10, 20)
    assert state_of(vm) == before
    made.clear()
    with pytest.raises(MemoryError):
        vm.unmap(10, 20)
    assert state_of(vm) == before
    vm.check()


def test_where_slots_overlap_for_the_moment() -> None:
    vm = Memslots()
    for id in range(4):
        vm.create(id, 100 * id, 50, id << 30)
    with vm.transaction() as tx:
        tx.move(0, 110)
        tx.create(9, 90, 300, 1 << 40)
        assert [slot.id for slot in tx.in_gfn_range(120, 121)] == [9, 1, 0]
        assert [slot.id for slot in tx.in_gfn_range(0, 1000)] == [9, 1, 0, 2, 3]
        assert tx.in_gfn_range(0, 90) == tx.in_gfn_range(5, 5) == []
        assert [slot.id for slot in tx.in_gfn_range(340, 1 << 63)] == [9, 3]
        tx.unmap(100, 1000)
        assert [(slot.id, slot.end_gfn) for slot in slot_list(tx)] == [(9, 100)]
        with pytest.raises(ValueError, match="ends before"):
            tx.in_gfn_range(5, 4)
    assert len(vm) == 1
    with pytest.raises(OverlapError), vm.transaction() as tx:
        tx.create(0, 0, 100, 0)
        tx.unmap(0, 10)
    assert [slot.end_gfn for slot in vm] == [100]


def test_in_a_listener_it_is_refused() -> None:
    errors: list[MemslotError] = []

    class Listener:
        def prepare(self, change: Any, old: Any, new: Any) -> None:
            try:
                vm.unmap(0, 1)
            except MemslotError as error:
                errors.append(error)

    vm = Memslots()
    vm.subscribe(Listener())
    vm.create(0, 0, 100, 0)
    vm.unmap(5, 6)
    assert [type(error).__name__ for error in errors] == ["BusyError"] * 4
