"""Tests transactions in a backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest
from backend import LIMITS, Backend, Interrupt, KernelSaysNo, Logless, agree, mirrored
from hypothesis import given, settings
from hypothesis import strategies as st
from model import plain, state_of
from smallmachine import MAX_GFN, MAX_SLOTS, SPACES
from strategies import marks, steps

from memslots import (
    Change,
    Flags,
    MemslotError,
    Memslots,
    Slot,
)
from memslots.mirror.planner import Call, calls_of_steps

LOG = Flags.LOG_DIRTY_PAGES

# Transactions


def calls_of(vm: Memslots, backend: Backend, body: Callable[..., object]) -> list[tuple[int, ...]]:
    """Returns (id, base gfn, pages) of each call of a transaction."""
    begun = len(backend.calls)
    with vm.transaction() as tx:
        body(tx)
    agree(vm, backend)
    return [(slot, gpa >> 12, size >> 12) for slot, _, gpa, size, _ in backend.calls[begun:]]


def test_what_a_transaction_comes_to(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 4, 0)

    def body(tx: Memslots) -> None:
        tx.move(0, 20)
        tx.create(1, 0, 1, 0)
        tx.delete(1)
        tx.move(0, 0)
        tx.set_flags(0, LOG)

    assert calls_of(vm, backend, body) == [(0, 0, 4)]


def test_a_split_deletes_just_before_it_creates(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 10, 0)
    vm.create(1, 20, 10, 0x10000)

    def body(tx: Memslots) -> None:
        tx.delete(0)
        tx.delete(1)
        tx.create(0, 0, 5, 0)
        tx.create(2, 5, 5, 0x5000)
        tx.create(3, 40, 5, 0x5000)

    # First the call with room, then the split, last the delete that nothing replaces.
    assert calls_of(vm, backend, body) == [(3, 40, 5), (0, 0, 0), (0, 0, 5), (2, 5, 5), (1, 0, 0)]


def test_two_slots_trade_places(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.create(1, 10, 10, 0x10000, LOG)
    backend.write(3)
    backend.write(14)

    def body(tx: Memslots) -> None:
        tx.move(0, 10)
        tx.move(1, 0)

    # Through the end of guest memory, since a move keeps the dirty log.
    assert calls_of(vm, backend, body) == [(1, MAX_GFN - 9, 10), (0, 10, 10), (1, 0, 10)]
    assert vm.get_dirty_log(0)[0] == 1 << 3
    assert vm.get_dirty_log(1)[0] == 1 << 4


def test_two_slots_trade_places_where_there_is_no_room(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.create(1, 10, 10, 0x10000, LOG)
    vm.create(2, 20, MAX_GFN - 19, 0)
    backend.write(3)
    backend.write(14)

    def body(tx: Memslots) -> None:
        tx.move(0, 10)
        tx.move(1, 0)

    assert calls_of(vm, backend, body) == [(1, 0, 0), (0, 10, 10), (1, 0, 10)]
    assert vm.get_dirty_log(0)[0] == 1 << 3
    # The log was read before the slot went.
    assert int.from_bytes(vm.get_dirty_log(1), "little") == 1 << 4


def test_a_chain_of_moves_takes_one_call_each() -> None:
    """The order of the steps does not matter, and the time is proportional to their number."""
    count = 2000
    backend = Backend(count)
    vm = Memslots(count, backend=backend)
    for id in range(count):
        vm.create(id, id, 1, 0)
    backend.calls.clear()
    with vm.transaction() as tx:
        for id in range(count):
            tx.move(id, id + 1)
    assert len(backend.calls) == count
    vm.check()
    assert [plain(slot) for slot in vm] == backend.model.in_order(0)


def test_no_log_is_lost_that_the_backend_does_not_keep() -> None:
    backend = Logless(MAX_SLOTS, **LIMITS)
    vm = Memslots(MAX_SLOTS, backend=backend, **LIMITS)
    vm.create(0, 0, 10, 0, LOG)
    vm.create(1, 10, 10, 0x10000, LOG)
    vm.create(2, MAX_GFN, 1, 0)
    vm.mark_dirty(14)
    with vm.transaction() as tx:
        tx.move(0, 10)
        tx.move(1, 0)
    backend.agrees(vm)
    assert vm.get_dirty_log(1)[0] == 1 << 4


def test_deleted_and_created_as_it_was(pair: tuple[Memslots, Backend]) -> None:
    """The guest's memory stays present, and so do the marks (T1)."""
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.mark_dirty(1)
    backend.write(3)

    def body(tx: Memslots) -> None:
        tx.delete(0)
        tx.create(0, 0, 10, 0, LOG)

    assert calls_of(vm, backend, body) == []
    assert vm.get_dirty_log(0)[0] == 1 << 1 | 1 << 3


def test_deleted_and_created_elsewhere(pair: tuple[Memslots, Backend]) -> None:
    """A new log begins; the guest's memory stays present here, too."""
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.mark_dirty(1)
    backend.write(3)

    def body(tx: Memslots) -> None:
        tx.delete(0)
        tx.create(0, 20, 10, 0, LOG)

    assert calls_of(vm, backend, body) == [(0, 20, 10)]
    assert not any(vm.get_dirty_log(0))


def test_marks_of_a_split_are_not_lost(pair: tuple[Memslots, Backend]) -> None:
    """The backend loses its log with the slot, so the log is read before."""
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    backend.write(3)
    with vm.transaction() as tx:
        tx.delete(0)
        tx.create(0, 0, 4, 0, LOG)
        tx.create(1, 4, 3, 4 << 12, 0)
        tx.create(2, 7, 2, 7 << 12, LOG)
        tx.create(3, 9, 1, 0x100000, LOG)
    backend.agrees(vm)
    assert vm.take_dirty_runs() == [(0, 3, 4)]


@pytest.mark.parametrize("runs", [[7, 7], [7, 8], [None, 8]])
def test_marks_of_a_guest_that_runs_are_not_lost(
    pair: tuple[Memslots, Backend], runs: list[int | None]
) -> None:
    """A write after its log was read is unknown, so all pages are marked."""
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    backend.write(3)
    backend.runs = lambda: runs.pop(0)  # type: ignore[attr-defined]
    every = runs[0] != runs[1]
    with vm.transaction() as tx:
        tx.delete(0)
        tx.create(1, 0, 4, 0, LOG)
        runs += runs[-1:] * 2
    backend.agrees(vm)
    assert vm.take_dirty_runs() == [(0, 0, 4) if every else (0, 3, 4)]


def test_marks_under_an_alias_are_not_lost(pair: tuple[Memslots, Backend]) -> None:
    """The backend's log goes with the slot that moves; another slot takes its place."""
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    backend.write(2)
    with vm.transaction() as tx:
        tx.move(0, 20)
        tx.create(1, 0, 4, 0, LOG)
    backend.agrees(vm)
    assert vm.take_dirty_runs() == [(0, 2, 3), (0, 22, 23)]


def test_the_steps_of_a_plan(pair: tuple[Memslots, Backend]) -> None:
    vm, _ = pair
    old = vm.create(0, 0, 4, 0, LOG)
    new = Slot(0, 0, 8, 4, 0)
    assert calls_of_steps(vm, []) == []
    assert calls_of_steps(vm, [(Change.MOVE, old, new, old)]) == [Call(old, new)]
    assert Call(old, new).loses_log()
    assert Call(old, None).loses_log()
    assert not Call(new, old).loses_log()
    assert not Call(None, old).loses_log()


Steps = list[tuple[str, *tuple[int, ...]]]


@st.composite
def rearranged(draw: st.DrawFn) -> tuple[Steps, Steps]:
    """Returns adjacent slots, and the steps that put them next to each other in another order.

    Some of them are deleted meanwhile, or get other memory.
    """
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=MAX_SLOTS - 1))
    made: Steps = []
    end = 0
    for id, size in enumerate(sizes):
        made.append(("create", id, end, size, id << 16, draw(st.sampled_from([0, 1]))))
        end += size
    body: Steps = []
    end = 0
    for id in draw(st.permutations(range(len(sizes)))):
        how = draw(st.sampled_from(["move", "move", "move", "delete", "create"]))
        if how != "move":
            body.append(("delete", id))
        if how == "move":
            body.append(("move", id, end))
        elif how == "create":
            body.append(("create", id, end, sizes[id], id << 20, 1))
        if how != "delete":
            end += sizes[id]
    return made, body


@settings(max_examples=600)
@given(
    before_and_body=st.one_of(
        st.tuples(st.lists(steps, max_size=12), st.lists(steps, max_size=10)), rearranged()
    ),
    full=st.booleans(),
    manual=st.sampled_from([0, 1, 3]),
    writes=marks,
    how=st.sampled_from(["", "early", "late"]),
)
def test_the_backend_refuses_at_each_call(
    before_and_body: tuple[Steps, Steps],
    full: bool,
    manual: int,
    writes: list[int],
    how: str,
) -> None:
    """The backend refuses the k-th call of a transaction, for every k. Then nothing has changed.

    Without a refusal the transaction succeeds. `full`: there is no room to move slots aside.
    """
    before, body = before_and_body
    vm, backend = mirrored(manual)
    if full:
        for as_id in range(SPACES):
            vm.create(MAX_SLOTS - 1, MAX_GFN, 1, 0, as_id=as_id)
    for verb, *args in before:
        with suppress(MemslotError):
            getattr(vm, verb)(*args)
        agree(vm, backend)
    for gfn in writes:
        backend.write(gfn)
    written = {
        (slot.as_id, slot.id): backend.model.logs[slot.as_id][slot.id].copy()
        for as_id in range(SPACES)
        for slot in vm.address_space(as_id)
        if slot.flags & LOG
    }
    was = state_of(vm)
    for number in itertools.count(len(backend.calls) + 1):
        backend.refused, backend.how = {number}, how
        begun = len(backend.calls)
        try:
            with vm.transaction() as tx:
                for verb, *args in body:
                    with suppress(MemslotError):
                        getattr(vm if verb == "mark_dirty" else tx, verb)(*args)
        except (KernelSaysNo, Interrupt):
            agree(vm, backend)
            now = state_of(vm)
            assert [(s.slots, s.generation) for s in now] == [(s.slots, s.generation) for s in was]
            for (as_id, id), pages in written.items():
                ours = now[as_id].logs[id] | backend.model.logs[as_id][id]
                assert pages <= ours, "a mark was lost"
        except MemslotError:  # slots overlap at the end
            assert len(backend.calls) == begun
            break
        else:
            break
        del backend.calls[begun:]  # the next try begins where this one began
    agree(vm, backend)
