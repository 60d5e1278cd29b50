"""Transactions: several changes that readers see all at once, or not at all."""

from __future__ import annotations

import gc
import threading
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model import state_of, unchanged

from memslots import (
    BusyError,
    Change,
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    OverlapError,
    Slot,
    Transaction,
)

HVA = 0x1000_0000_0000
LOG = Flags.LOG_DIRTY_PAGES


def four_slots() -> Memslots:
    """Slots 0 to 3 at gfn 0x00, 0x10, 0x20, 0x30, 16 pages each; 3 logs, its page 1 is marked."""
    vm = Memslots(address_spaces=2)
    for id in range(4):
        vm.create(id, 0x10 * id, 0x10, HVA + (id << 20), LOG if id == 3 else 0)
    vm.mark_dirty(0x31)
    return vm


@pytest.fixture
def vm() -> Memslots:
    return four_slots()


def places(vm: Memslots) -> dict[int, tuple[int, int]]:
    return {slot.id: (slot.base_gfn, slot.npages) for slot in vm}


# Legal as a whole, whatever their steps are on the way.


def test_two_slots_trade_places(vm: Memslots) -> None:
    with vm.transaction() as tx:
        assert tx.move(0, 0x10) == tx.get(0)
        tx.move(1, 0x00)
    assert places(vm) == {1: (0, 0x10), 0: (0x10, 0x10), 2: (0x20, 0x10), 3: (0x30, 0x10)}
    vm.check()


def test_three_slots_rotate(vm: Memslots) -> None:
    with vm.transaction() as tx:
        for id in range(3):
            tx.move(id, 0x10 * ((id + 1) % 3))
    assert [slot.id for slot in vm] == [2, 0, 1, 3]
    vm.check()


def test_a_slot_is_split_in_three(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.create(7, 0x14, 4, HVA)  # over slot 1, which goes a step later
        was = tx.delete(1)
        tx.create(1, 0x10, 4, was.userspace_addr)
        tx.create(8, 0x18, 8, was.userspace_addr + 0x8000, Flags.READONLY)
    assert places(vm) == {
        0: (0, 0x10),
        1: (0x10, 4),
        7: (0x14, 4),
        8: (0x18, 8),
        2: (0x20, 0x10),
        3: (0x30, 0x10),
    }
    vm.check()


def test_a_slot_is_resized_and_gets_another_host_address(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.delete(1)
        tx.create(1, 0x12, 2, HVA + 0x7000)
    assert vm[1] == Slot(1, 0, 0x12, 2, HVA + 0x7000)
    assert [entry[0].id for entry in vm.in_hva_range(HVA + 0x7000, HVA + 0x7001)] == [0, 1]
    assert vm.nr_pages == 0x32
    vm.check()


def test_both_address_spaces(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.delete(0)
        tx.set_region(1 << 16 | 5, 0, 0x5000, 0x1000, HVA)
        assert tx.lookup(5, as_id=1) == tx.get(5, as_id=1)
        assert tx.get(5) is None
    assert (vm.generation, vm.address_space(1).generation) == (8 + 2, 1 + 2)
    assert vm.address_space(1).lookup(5) is not None
    assert vm.lookup(5) is None
    vm.check()


# What the rules say of the whole and of the steps.


def test_an_overlap_at_the_end_is_refused(vm: Memslots) -> None:
    with unchanged(vm), pytest.raises(OverlapError) as caught, vm.transaction() as tx:
        tx.delete(3)
        tx.move(0, 0x18)
    assert caught.value.rule == 6
    assert {caught.value.existing.id, caught.value.requested.id} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (lambda tx: tx.create(0, 0x90, 1, HVA), InvalidRegionError),
        (lambda tx: tx.create(9, 0x90, 0, HVA), InvalidRegionError),
        (lambda tx: tx.create(9, 1 << 40, 1, HVA), InvalidRegionError),
        (lambda tx: tx.create(9, 0x90, 1, HVA + 1), InvalidRegionError),
        (lambda tx: tx.set_region(0, 0, 0, 0x20000, HVA), InvalidRegionError),
        (lambda tx: tx.set_flags(0, Flags.READONLY), InvalidRegionError),
        (lambda tx: tx.move(0, 1 << 41), InvalidRegionError),
        (lambda tx: tx.delete(9), NoSuchSlotError),
        (lambda tx: tx.move(0, "1"), TypeError),
        (lambda tx: tx.move(0, -1), OverflowError),
    ],
)
def test_a_step_that_breaks_a_rule_is_as_if_not_made(
    vm: Memslots, step: Callable[[Transaction], object], error: type[Exception]
) -> None:
    with vm.transaction() as tx:
        tx.move(1, 0x50)
        with pytest.raises(error):
            step(tx)
        tx.move(2, 0x10)
    assert places(vm) == {0: (0, 0x10), 2: (0x10, 0x10), 3: (0x30, 0x10), 1: (0x50, 0x10)}
    vm.check()


def test_an_exception_in_the_body_changes_nothing(vm: Memslots) -> None:
    with unchanged(vm), pytest.raises(ZeroDivisionError), vm.transaction() as tx:
        tx.delete(3)
        tx.create(9, 0x30, 8, HVA, LOG)
        tx.move(0, 0x80)
        tx.set_flags(0, LOG)
        tx.delete(0)
        raise ZeroDivisionError


def test_nothing_at_all_and_nothing_in_the_end(vm: Memslots) -> None:
    before = state_of(vm)
    with vm.transaction():
        pass
    with vm.transaction() as tx:
        assert tx.set_region(0, 0, 0, 0x10000, HVA) is Change.NONE
        tx.create(9, 0x90, 1, HVA)
        tx.delete(9)
        tx.create(9, 0x91, 2, HVA)
        tx.delete(9)
    assert vm.get(9) is None
    after = state_of(vm)
    assert (before, after) == (after, before)
    vm.check()


# What readers see.


def test_readers_see_nothing_before_the_end(vm: Memslots) -> None:
    vcpu = vm.vcpu()
    gfns = array("Q", range(0x40))
    before = vm.lookup_many(gfns)
    slots = list(vm)
    generation = vm.generation
    with vm.transaction() as tx:
        tx.delete(0)
        tx.move(1, 0x00)
        tx.create(0, 0x10, 4, HVA)
        assert tx.lookup(0x02) is tx.get(1)
        assert tx.lookup(0x14) is None
        for face in (vm, vcpu, vm.address_space(0)):
            assert list(face) == slots
            assert face.lookup_many(gfns) == before
            assert face.lookup(0x02) is slots[0]
            assert face.generation == generation
    assert vm.generation == generation + 2  # one swap, in one of two address spaces
    assert vcpu.lookup(0x02) is vm[1]
    assert vm.lookup(0x14) is None
    assert vm.lookup(0x13) is vm[0]


def test_lookup_where_slots_lie_over_one_another(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.create(8, 0x12, 2, HVA)
        tx.create(9, 0x16, 2, HVA)
        found = [tx.lookup(gfn) for gfn in range(0x10, 0x20)]
        ids = [slot.id for slot in found if slot is not None]
        assert ids == [1, 1, 8, 8, 1, 1, 9, 9, *[1] * 8]
        tx.delete(8)
        tx.delete(9)
    vm.check()


def test_lookup_of_a_slot_under_many_others(vm: Memslots) -> None:
    with vm.transaction() as tx:
        tx.create(9, 0x00, 0x50, HVA)
        found = [tx.lookup(gfn) for gfn in (0x00, 0x10, 0x3F, 0x40, 0x4F, 0x50)]
        ids = [None if slot is None else slot.id for slot in found]
        assert ids[1:] == [1, 3, 9, 9, None]
        assert ids[0] in (0, 9)  # both begin there
        tx.delete(9)
    vm.check()


def test_dirty_logs_go_with_their_slots(vm: Memslots) -> None:
    marked = bytes([2, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
        tx.set_flags(3, 0)
        tx.set_flags(3, LOG)
        raise ZeroDivisionError
    with vm.transaction() as tx:
        tx.move(3, 0x60)
        tx.move(3, 0x70)
        vm.mark_dirty(0x32)  # readers still find it there
        tx.set_flags(1, LOG)
    assert vm.get_dirty_log(3) == bytes([6, 0, 0, 0, 0, 0, 0, 0])
    vm.mark_dirty(0x71)
    with vm.transaction() as tx:
        tx.delete(3)
        tx.create(3, 0x70, 0x10, HVA, LOG)  # another slot: a new log
    assert vm.get_dirty_log(3) == bytes(8)
    vm.mark_dirty(0x71)
    with vm.transaction() as tx:
        tx.set_flags(3, 0)
        tx.set_flags(3, LOG)  # off and on again: a new log too
        tx.set_flags(1, 0)
    assert vm.get_dirty_log(3) == bytes(8)
    vm.mark_dirty(0x71)
    assert vm.get_dirty_log(3) == marked
    vm.check()


# Listeners.


class Witness:
    """Writes down what it is told, with what readers find at gfn 0 at that moment; may refuse."""

    def __init__(self, vm: Memslots, refuse: tuple[str, int] | None = None) -> None:
        self.vm = vm
        self.heard: list[tuple[Any, ...]] = []
        self.refuse = refuse

    def hear(self, what: str, *rest: object) -> None:
        found = self.vm.lookup(0)
        self.heard.append((what, *rest, None if found is None else found.id))
        count = sum(entry[0] == what for entry in self.heard)
        if self.refuse == (what, count):
            raise ZeroDivisionError
        with pytest.raises(BusyError):
            self.vm.delete(0)
        with pytest.raises(BusyError):
            self.vm.transaction().__enter__()

    def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        self.hear("prepare", change, old, new)

    def invalidate(self, slot: Slot) -> None:
        self.hear("invalidate", slot)

    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        self.hear("commit", change, old, new)


def test_listeners_hear_of_every_step_in_order(vm: Memslots) -> None:
    witness = Witness(vm)
    s0, s1 = vm[0], vm[1]
    with vm.subscribe(witness), vm.transaction() as tx:
        tx.delete(0)
        m1 = tx.move(1, 0x00)
        n0 = tx.create(0, 0x10, 8, HVA)
        f0 = tx.set_flags(0, LOG)
        m0 = tx.move(0, 0x18)  # readers have never seen it where it was: no invalidate
        assert witness.heard == []
    steps = [
        (Change.DELETE, s0, None),
        (Change.MOVE, s1, m1),
        (Change.CREATE, None, n0),
        (Change.FLAGS_ONLY, n0, f0),
        (Change.MOVE, f0, m0),
    ]
    assert witness.heard == [
        ("invalidate", s0, 0),
        ("invalidate", s1, 0),
        *[("prepare", *step, 0) for step in steps],
        *[("commit", *step, 1) for step in steps],
    ]


def test_invalidate_is_told_of_each_slot_that_readers_find(vm: Memslots) -> None:
    """Once, as they find it, however many steps it takes until it goes; new ones they do not."""
    witness = Witness(vm)
    s0, s1, s2 = vm[0], vm[1], vm[2]
    with vm.subscribe(witness), vm.transaction() as tx:
        tx.set_flags(0, LOG)
        tx.set_flags(1, LOG)
        tx.delete(1)
        tx.move(0, 0x80)
        tx.create(1, 0x10, 0x10, HVA)
        tx.delete(1)
        tx.move(2, 0x90)
        tx.move(2, 0x20)
    told = [entry for entry in witness.heard if entry[0] == "invalidate"]
    assert told == [("invalidate", s1, 0), ("invalidate", s0, 0), ("invalidate", s2, 0)]
    vm.check()


@pytest.mark.parametrize(
    "refuse", [("invalidate", 1), ("invalidate", 2), ("prepare", 1), ("prepare", 3)]
)
def test_a_refusal_changes_nothing(vm: Memslots, refuse: tuple[str, int]) -> None:
    with (
        vm.subscribe(Witness(vm, refuse)),
        unchanged(vm),
        pytest.raises(ZeroDivisionError),
        vm.transaction() as tx,
    ):
        tx.delete(0)
        tx.move(1, 0x00)
        tx.create(0, 0x10, 8, HVA)
    vm.delete(0)  # the lock was given back
    vm.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_in_commit_stops_nobody(vm: Memslots) -> None:
    first, second = Witness(vm, ("commit", 1)), Witness(vm)
    with vm.subscribe(first), vm.subscribe(second), vm.transaction() as tx:
        tx.delete(0)
        tx.delete(1)
    assert [entry[0] for entry in first.heard] == [entry[0] for entry in second.heard]
    assert vm.get(0) is None
    gc.collect()


def test_an_interrupt_in_commit_comes_out_when_all_is_done(vm: Memslots) -> None:
    class Interrupted:
        count = 0

        def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            self.count += 1
            raise KeyboardInterrupt

    listener = Interrupted()
    with vm.subscribe(listener), pytest.raises(KeyboardInterrupt), vm.transaction() as tx:
        tx.delete(0)
        tx.delete(1)
    assert listener.count == 2
    assert [slot.id for slot in vm] == [2, 3]
    vm.check()


# Its beginning and end.


def test_it_is_used_once_and_when_open(vm: Memslots) -> None:
    tx = vm.transaction()
    with pytest.raises(RuntimeError, match="not open"):
        tx.delete(0)
    with tx:
        pass
    for call in (lambda: tx.delete(0), lambda: tx.lookup(0), lambda: tx.get(0), tx.__enter__):
        with pytest.raises(RuntimeError):
            call()
    with pytest.raises(RuntimeError):
        tx.__exit__(None, None, None)
    with pytest.raises(TypeError):
        Transaction.__new__(Transaction).__enter__()
    assert len(vm) == 4


def test_no_other_change_from_its_thread(vm: Memslots) -> None:
    with vm.transaction() as tx:
        calls: list[Callable[[], object]] = [
            lambda: vm.delete(0),
            vm.check,
            lambda: vm.transaction().__enter__(),
        ]
        for call in calls:
            with pytest.raises(BusyError):
                call()
        tx.delete(0)
    assert vm.get(0) is None


def test_other_threads_wait_and_cannot_meddle(vm: Memslots) -> None:
    done: list[object] = []

    def meddle(tx: Transaction) -> None:
        for call in (lambda: tx.delete(1), lambda: tx.__exit__(None, None, None)):
            try:
                call()
            except RuntimeError as error:
                done.append(type(error))
        done.append(vm.delete(2).id)  # waits for the end

    with vm.transaction() as tx:
        thread = threading.Thread(target=meddle, args=(tx,))
        thread.start()
        while len(done) < 2:
            thread.join(0.001)
        tx.delete(0)
        thread.join(0.05)
        assert done == [RuntimeError, RuntimeError]
    thread.join()
    assert done[2:] == [2]
    assert [slot.id for slot in vm] == [1, 3]


def test_one_that_is_dropped_while_open_is_rolled_back(vm: Memslots) -> None:
    with unchanged(vm):
        tx = vm.transaction().__enter__()
        tx.delete(0)
        del tx
        gc.collect()
    vm.delete(0)
    vm.check()


def test_it_keeps_its_memslots_alive() -> None:
    with Memslots().transaction() as tx:
        tx.create(0, 0, 1, HVA)
        gc.collect()
        assert tx.lookup(0) is not None


@pytest.mark.parametrize("slots", [3, 60])
def test_many_ids(slots: int) -> None:
    """Id tables that grow and shrink, in the set that is changed first and in the other."""
    vm = Memslots()
    for _ in range(3):
        with vm.transaction() as tx:
            for id in range(slots):
                tx.create(id, 2 * id, 2, HVA)
        vm.check()
        with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
            for id in range(slots):
                tx.delete(id)
            for id in range(slots, 3 * slots):
                tx.create(id, 2 * id, 1, HVA)
            raise ZeroDivisionError
        vm.check()
        assert len(vm) == slots
        with vm.transaction() as tx:
            for id in range(slots):
                tx.delete(id)
        vm.check()
        assert len(vm) == 0


# Python code that runs in the middle of it.


class Meddler:
    """Garbage whose finalizer deletes slot 3, in a transaction and outside of it."""

    def __init__(self, vm: Memslots, tx: Transaction, log: list[object]) -> None:
        self.me = self
        self.vm = vm
        self.tx = tx
        self.log = log

    def __del__(self) -> None:
        for call in (self.tx.delete, self.vm.delete):
            try:
                call(3)
                self.log.append("done")
            except (BusyError, RuntimeError) as error:
                self.log.append(type(error))


MEDDLED: list[Callable[[Transaction], object]] = [
    lambda tx: tx.create(9, 0x90, 1, HVA, LOG),
    lambda tx: tx.set_region(9, 0, 0x90000, 0x1000, HVA),
    lambda tx: tx.move(0, 0x90),
    lambda tx: tx.set_flags(0, LOG),
    lambda tx: tx.delete(0),
    lambda tx: tx.lookup(0),
    lambda tx: tx.get(0),
]


class Collects:
    """A listener that runs the collector, for those Pythons that do not while C code is running."""

    def prepare(self, *args: object) -> None:
        gc.collect()


@pytest.mark.parametrize("at_end", [False, True])
def test_a_finalizer_in_the_middle_of_a_step_or_of_the_end(at_end: bool) -> None:
    """Wherever the collector runs it: what it is refused it does not harm, and it never hangs."""
    thresholds = gc.get_threshold()
    logs: list[list[object]] = []
    gc.collect()
    gc.freeze()  # quick: what other tests left is not looked at again and again
    try:
        for threshold in range(1, 10):
            for step in MEDDLED:
                vm = four_slots()
                vm.subscribe(Collects())
                logs.append([])
                gc.collect()
                with vm.transaction() as tx:
                    gc.disable()
                    Meddler(vm, tx, logs[-1])
                    gc.set_threshold(threshold, 1, 1)
                    if not at_end:
                        gc.enable()
                    step(tx)
                    gc.enable()
                gc.set_threshold(*thresholds)
                gc.collect()
                assert len(logs[-1]) == 2
                assert logs[-1].count("done") == (vm.get(3) is None)
                with pytest.raises(ZeroDivisionError), four_slots().transaction() as alone:
                    step(alone)
                    want = {id: alone.get(id) for id in (0, 1, 2, 9)}
                    raise ZeroDivisionError
                assert {id: vm.get(id) for id in want} == want
                vm.check()
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
        gc.unfreeze()
    assert [BusyError, BusyError] in logs


# Against a dict.

ids = st.integers(0, 4)
gfns = st.integers(0, 11)
steps = st.one_of(
    st.tuples(st.just("create"), ids, gfns, st.integers(1, 4), st.sampled_from([0, LOG])),
    st.tuples(st.just("move"), ids, gfns),
    st.tuples(st.just("delete"), ids),
    st.tuples(st.just("set_flags"), ids, st.sampled_from([0, LOG])),
)


def step(model: dict[int, tuple[int, int, int]], call: tuple[Any, ...]) -> bool:
    """Does a step on a dict of (base_gfn, npages, flags), overlaps or not; whether it may be."""
    verb, id, *rest = call
    if (verb == "create") == (id in model):
        return False
    if verb == "create":
        model[id] = (rest[0], rest[1], int(rest[2]))
    elif verb == "delete":
        del model[id]
    elif verb == "move":
        model[id] = (rest[0], *model[id][1:])
    else:
        model[id] = (*model[id][:2], int(rest[0]))
    return True


def disjoint(model: dict[int, tuple[int, int, int]]) -> bool:
    held = [gfn for base, npages, _ in model.values() for gfn in range(base, base + npages)]
    return len(held) == len(set(held))


@given(st.lists(st.tuples(st.lists(steps, max_size=8), st.booleans()), max_size=8))
def test_any_transactions_against_a_dict(transactions: list[tuple[list[Any], bool]]) -> None:
    vm = Memslots(max_slots=5)
    model: dict[int, tuple[int, int, int]] = {}
    for calls, give_up in transactions:
        trial = dict(model)
        before = state_of(vm)
        seen = list(vm), vm.generation
        try:
            with vm.transaction() as tx:
                for call in calls:
                    verb, id, *rest = call
                    if verb == "create":
                        rest.insert(2, HVA + 0x10000 * id)
                    try:
                        getattr(tx, verb)(id, *rest)
                    except MemslotError:
                        assert not step(trial, call)
                    else:
                        assert step(trial, call)
                    assert {id: slot.flags for id in trial if (slot := tx.get(id))} == {
                        id: entry[2] for id, entry in trial.items()
                    }
                    for gfn in range(16):
                        slot = tx.lookup(gfn)
                        holders = [
                            id for id, (base, n, _) in trial.items() if base <= gfn < base + n
                        ]
                        assert (slot.id in holders) if slot is not None else not holders
                    assert (list(vm), vm.generation) == seen
                if give_up:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert state_of(vm) == before
        except OverlapError:
            assert not disjoint(trial)
            assert state_of(vm) == before
        else:
            assert disjoint(trial)
            model = trial
        vm.check()
        assert {s.id: (s.base_gfn, s.npages, int(s.flags)) for s in vm} == model
        assert [s.base_gfn for s in vm] == sorted(base for base, _, _ in model.values())
        assert [vm.lookup(gfn) for gfn in range(16)] == [
            next((s for s in vm if gfn in s), None) for gfn in range(16)
        ]


def test_who_comes_or_goes_in_the_body(vm: Memslots) -> None:
    """The first hears of nothing any more, the last of the next change."""
    heard: list[str] = []

    class Hears:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, change: Change, old: object, new: object) -> None:
            heard.append(f"{self.name} {change.name}")

    goes = vm.subscribe(Hears("goes"))
    stays = vm.subscribe(Hears("stays"))
    with vm.transaction() as tx:
        tx.create(50, 0x800, 1, 0)
        goes.close()
        comes = vm.subscribe(Hears("comes"))
        tx.set_flags(50, Flags.LOG_DIRTY_PAGES)
    assert heard == ["stays CREATE", "stays FLAGS_ONLY"]
    heard.clear()
    stays.close()
    with vm.transaction() as tx:
        tx.delete(50)
    assert heard == ["comes DELETE"]
    comes.close()
    with vm.transaction() as tx:
        tx.create(50, 0x800, 1, 0)
        late = vm.subscribe(Hears("late"))
    assert heard == ["comes DELETE"]
    late.close()


HOST = 0x7F00_0000_0000


def test_slots_at_one_host_address_after_a_rollback() -> None:
    """The sets may have them in another order; what comes later finds its place in both."""
    vm = Memslots()
    vm.create(0, 0x000, 16, HOST)
    vm.create(1, 0x100, 16, HOST)
    with pytest.raises(KeyError), vm.transaction() as tx:
        tx.delete(0)
        raise KeyError
    vm.check()
    vm.create(2, 0x200, 16, HOST + 0x10_0000)
    vm.check()
    for flags in (1, 0):
        assert {slot.id for slot, _, _ in vm.in_hva_range(HOST, HOST + 0x1000)} == {0, 1}
        (above,) = vm.in_hva_range(HOST + 0x10_0000, HOST + 0x10_1000)
        assert above == (vm[2], 0x200, 0x201)
        vm.set_flags(1, flags)
        vm.check()


def test_slots_at_one_host_address_after_a_commit() -> None:
    vm = Memslots()
    with vm.transaction() as tx:
        tx.create(5, 0x500, 16, HOST)
        tx.create(6, 0x600, 16, HOST)
        tx.delete(5)
        tx.create(5, 0x500, 16, HOST)
    vm.check()
    vm.create(7, 0x700, 16, HOST + 0x10_0000)
    vm.move(7, 0x400)
    vm.create(8, 0x800, 16, HOST)
    vm.check()
