"""A Memslots mirrored in a backend: both have the same slots, whatever is refused on the way."""

from __future__ import annotations

import copy
import errno
import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from backend import LIMITS, Backend, Interrupt, KernelSaysNo, Logless, agree, mirrored
from hypothesis import given, settings
from hypothesis import strategies as st
from model import plain, state_of, unchanged
from strategies import MAX_GFN, MAX_SLOTS, SPACES, marks, steps

from memslots import (
    BusyError,
    Change,
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    Slot,
)
from memslots.mirror.plan import Call, plan

LOG = Flags.LOG_DIRTY_PAGES


@pytest.fixture
def pair() -> Iterator[tuple[Memslots, Backend]]:
    vm, backend = mirrored()
    yield vm, backend
    agree(vm, backend)


# What a backend is


def test_no_backend() -> None:
    assert Memslots().backend is None
    assert Memslots(backend=None).backend is None


def test_a_backend_without_set_region() -> None:
    with pytest.raises(TypeError, match="a backend has set_region; 'object' has not"):
        Memslots(backend=object())  # type: ignore[call-overload]


def test_a_backend_that_has_slots() -> None:
    vm, backend = mirrored()
    assert vm.backend is backend
    vm.create(0, 0, 1, 0)
    with pytest.raises(ValueError, match="the backend has 1 slots already"):
        Memslots(backend=backend)


class Alarm(TimeoutError):
    """What a signal's handler raises: an OSError that no backend said."""


@pytest.mark.parametrize("name", ["create", "move", "set_flags", "delete"])
def test_a_handlers_error_is_no_refusal(pair: tuple[Memslots, Backend], name: str) -> None:
    """It comes when the backend has done what it was asked for."""
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    set_region = backend.set_region

    def interrupted(slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        set_region(slot, flags, gpa, size, hva)
        backend.set_region = set_region  # type: ignore[method-assign]
        raise Alarm

    backend.set_region = interrupted  # type: ignore[method-assign]
    with pytest.raises(Alarm):
        CHANGES[name](vm)
    agree(vm, backend)
    CHANGES[name](vm)


def test_interrupts_of_what_undoes(pair: tuple[Memslots, Backend]) -> None:
    """Whatever they leave undone is done before the next change."""
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    vm.create(1, 8, 4, 0)
    backend.refused, backend.how = {4, 5, 6, 7}, "early"
    for _ in range(2):
        with pytest.raises(Interrupt), vm.transaction() as tx:
            tx.create(2, 20, 1, 0)
            tx.delete(0)
            tx.move(1, 30)
    backend.refused = set()
    vm.create(3, 50, 1, 0)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EINVAL, errno.ETIMEDOUT])
def test_a_handlers_error_is_no_refusal_to_undo(pair: tuple[Memslots, Backend], code: int) -> None:
    """Whatever errno it has: a backend says ENOENT or EINVAL for what was never made."""
    vm, backend = pair
    backend.refused, backend.how = {1}, "late"
    set_region = backend.set_region

    def interrupted(slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        if backend.calls:
            backend.set_region = set_region  # type: ignore[method-assign]
            raise OSError(code, "a handler's")
        set_region(slot, flags, gpa, size, hva)

    backend.set_region = interrupted  # type: ignore[method-assign]
    with pytest.raises(OSError, match="a handler's"):
        vm.create(0, 0, 4, 0)
    assert len(backend.slots) == 1  # and it is known that it is there
    vm.create(1, 0, 4, 0)


@pytest.mark.parametrize("error", [Alarm, Interrupt, ValueError])
def test_marks_that_a_backend_gave_up(
    pair: tuple[Memslots, Backend], error: type[BaseException]
) -> None:
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    backend.write(2)
    get_dirty_log = backend.get_dirty_log

    def interrupted(slot: int, as_id: int) -> bytes:
        get_dirty_log(slot, as_id)
        raise error

    backend.get_dirty_log = interrupted  # type: ignore[method-assign]
    with pytest.raises(error):
        vm.get_dirty_log(0)
    backend.get_dirty_log = get_dirty_log  # type: ignore[method-assign]
    assert vm.get_dirty_log(0)[0] == 0b1111


def test_one_backend_is_of_one_memslots() -> None:
    vm, backend = mirrored()
    with pytest.raises(ValueError, match="another Memslots' already"):
        Memslots(MAX_SLOTS, backend=backend, **LIMITS)
    del vm
    gc.collect()
    assert Memslots(MAX_SLOTS, backend=backend, **LIMITS).backend is backend

    class Slotted:
        __slots__ = ()

        def set_region(self, *call: int) -> None:
            pass

    assert Memslots(backend=Slotted()).backend is not None


def test_a_backend_that_keeps_the_memslots() -> None:
    kept: list[object] = []

    class Keeping(Backend):
        def keep(self, vm: Memslots) -> None:
            kept.append(vm)

    vm = Memslots(MAX_SLOTS, backend=Keeping(MAX_SLOTS), **LIMITS)
    assert kept == [vm]


class Limited:
    limits = {  # noqa: RUF012 (as a dictionary is the plainest of mappings)
        "max_slots": 7,
        "address_spaces": 2,
        "max_gfn": 0xFF,
        "max_hva": 1 << 30,
        "manual_dirty_log": 1,
    }

    def set_region(self, *call: int) -> None:
        pass


def test_limits_are_the_backends() -> None:
    vm = Memslots(backend=Limited())
    assert {name: getattr(vm, name) for name in Limited.limits} == Limited.limits
    smaller = {"max_slots": 3, "address_spaces": 1, "max_gfn": 0x7F, "max_hva": 1 << 20}
    vm = Memslots(backend=Limited(), **smaller)
    assert {name: getattr(vm, name) for name in smaller} == smaller


@pytest.mark.parametrize("name", ["max_slots", "address_spaces", "max_gfn", "max_hva"])
def test_limits_above_the_backends(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .* is above the backend's"):
        Memslots(backend=Limited(), **{name: Limited.limits[name] + 1})
    with pytest.raises(TypeError, match=name):
        Memslots(backend=Limited(), **{name: None})  # type: ignore[call-overload]


def test_the_backends_kind_of_dirty_log() -> None:
    with pytest.raises(ValueError, match="manual_dirty_log 0 is not the backend's, 1"):
        Memslots(manual_dirty_log=0, backend=Limited())
    with pytest.raises(ValueError, match="manual_dirty_log 3 is not the backend's, 1"):
        Memslots(manual_dirty_log=3, backend=Limited())


def test_ids_that_the_call_cannot_name() -> None:
    assert Memslots(1 << 16, backend=Backend()).max_slots == 1 << 16
    with pytest.raises(ValueError, match="at most 65536 with a backend"):
        Memslots((1 << 16) + 1, backend=Backend())


def test_a_copy_leaves_the_backend_behind(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 1, 0)
    twin = copy.copy(vm)
    assert twin.backend is None
    twin.delete(0)
    assert len(backend.calls) == 1


# One change


def test_each_change_is_one_call(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(1, 4, 2, 0x1000, LOG, as_id=1)
    vm.move(1, 8, as_id=1)
    vm.set_flags(1, 0, as_id=1)
    vm.set_flags(1, 0, as_id=1)  # nothing to be done
    vm.delete(1, as_id=1)
    number = 1 << 16 | 1
    assert backend.calls == [
        (number, 1, 0x4000, 0x2000, 0x1000),
        (number, 1, 0x8000, 0x2000, 0x1000),
        (number, 0, 0x8000, 0x2000, 0x1000),
        (number, 0, 0, 0, 0),
    ]


def test_the_backend_is_not_asked_what_a_rule_refuses(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 4, 0)
    for call in (
        lambda: vm.create(1, 2, 4, 0),
        lambda: vm.create(1, MAX_GFN, 4, 0),
        lambda: vm.move(0, MAX_GFN),
        lambda: vm.set_region(0, 8, 0, 0, 0),
    ):
        with pytest.raises(MemslotError):
            call()
    assert len(backend.calls) == 1


def test_the_backend_comes_last(pair: tuple[Memslots, Backend]) -> None:
    """After the listeners: one that refuses leaves the backend, and its dirty log, alone."""
    vm, backend = pair
    heard: list[int] = []

    class Listener:
        def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            heard.append(len(backend.calls))
            if change is Change.DELETE:
                raise RuntimeError

        def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            heard.append(len(backend.calls))

    vm.subscribe(Listener())
    vm.create(0, 0, 1, 0)
    with pytest.raises(RuntimeError), unchanged(vm, swaps=2):
        vm.delete(0)
    assert heard == [0, 1, 1]
    assert len(backend.calls) == 1


CHANGES: dict[str, Callable[[Memslots], object]] = {
    "create": lambda vm: vm.create(3, 30, 4, 0),
    "move": lambda vm: vm.move(0, 30),
    "set_flags": lambda vm: vm.set_flags(0, 0),
    "delete": lambda vm: vm.delete(0),
    "set_region": lambda vm: vm.set_region(0, 0, 30 << 12, 4 << 12, 0),
}


@pytest.mark.parametrize("how", ["", "early", "late"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_refused_change(pair: tuple[Memslots, Backend], name: str, how: str) -> None:
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    vm.mark_dirty(2)
    before = list(vm)
    backend.refused, backend.how = {2}, how
    with pytest.raises(Interrupt if how else KernelSaysNo):
        CHANGES[name](vm)
    assert list(vm) == before
    agree(vm, backend)
    if how:  # whether it was done is not known: so what was written meanwhile is not, either
        marked = {0, 1, 2, 3} if name in ("set_flags", "delete", "set_region") else {2}
    else:
        marked = {2}
    assert vm.get_dirty_log(0)[0] == sum(1 << page for page in marked)
    CHANGES[name](vm)


def test_a_change_from_inside_the_backend(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    set_region = backend.set_region

    def wrong(slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        assert vm.lookup(0) is None
        with pytest.raises(BusyError):
            vm.create(1, 1, 1, 0)
        set_region(slot, flags, gpa, size, hva)

    backend.set_region = wrong  # type: ignore[method-assign]
    vm.create(0, 0, 1, 0)


def test_a_backend_that_does_not_undo() -> None:
    """It is asked again before the next change, and until then no change is made."""
    vm, backend = mirrored()
    vm.create(0, 0, 4, 0)
    vm.create(1, 4, 4, 0)
    backend.refused = {4, 5, 6}
    with pytest.raises(KernelSaysNo) as caught, vm.transaction() as tx:
        tx.move(0, 20)
        tx.move(1, 30)
    assert "does not undo what it did before" in caught.value.__notes__[0]
    with pytest.raises(KernelSaysNo), unchanged(vm):
        vm.create(2, 40, 1, 0)
    vm.create(2, 40, 1, 0)
    agree(vm, backend)


# Transactions


def calls_of(vm: Memslots, backend: Backend, body: Callable[..., object]) -> list[tuple[int, ...]]:
    """(id, base gfn, pages) of each call of a transaction."""
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

    # First what has room, then the split, and last what goes without anything in its place.
    assert calls_of(vm, backend, body) == [(0, 0, 0), (0, 0, 5), (2, 5, 5), (3, 40, 5), (1, 0, 0)]


def test_two_slots_trade_places(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.create(1, 10, 10, 0x10000, LOG)
    backend.write(3)
    backend.write(14)

    def body(tx: Memslots) -> None:
        tx.move(0, 10)
        tx.move(1, 0)

    # By way of the end of guest memory, since a move keeps the dirty log.
    assert calls_of(vm, backend, body) == [(1, MAX_GFN - 9, 10), (0, 10, 10), (1, 0, 10)]
    assert vm.get_dirty_log(0)[0] == 1 << 3
    assert vm.get_dirty_log(1)[0] == 1 << 4


def test_two_slots_trade_places_where_there_is_no_room(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.create(1, 10, 10, 0x10000, LOG)
    vm.create(2, MAX_GFN, 1, 0)
    backend.write(3)
    backend.write(14)

    def body(tx: Memslots) -> None:
        tx.move(0, 10)
        tx.move(1, 0)

    assert calls_of(vm, backend, body) == [(1, 0, 0), (0, 10, 10), (1, 0, 10)]
    assert vm.get_dirty_log(0)[0] == 1 << 3
    # What the guest wrote to it is not known any more.
    assert int.from_bytes(vm.get_dirty_log(1), "little") == (1 << 10) - 1


def test_a_chain_of_moves_takes_one_call_each() -> None:
    """However the steps are ordered; and time in proportion to them."""
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


def test_a_log_that_begins_anew(pair: tuple[Memslots, Backend]) -> None:
    """Deleted and created as it was: the guest's memory need not go for that."""
    vm, backend = pair
    vm.create(0, 0, 10, 0, LOG)
    vm.mark_dirty(1)
    backend.write(3)

    def body(tx: Memslots) -> None:
        tx.delete(0)
        tx.create(0, 0, 10, 0, LOG)

    assert calls_of(vm, backend, body) == [(0, 0, 10), (0, 0, 10)]
    assert not any(vm.get_dirty_log(0))


def test_the_steps_of_a_plan(pair: tuple[Memslots, Backend]) -> None:
    vm, _ = pair
    old = vm.create(0, 0, 4, 0, LOG)
    new = Slot(0, 0, 8, 4, 0)
    assert plan(vm, []) == []
    assert plan(vm, [(Change.MOVE, old, new, old)]) == [Call(old, new)]
    assert Call(old, new).loses_log()
    assert Call(old, None).loses_log()
    assert not Call(new, old).loses_log()
    assert not Call(None, old).loses_log()


Steps = list[tuple[str, *tuple[int, ...]]]


@st.composite
def rearranged(draw: st.DrawFn) -> tuple[Steps, Steps]:
    """Slots side by side, and the steps that put them side by side in another order.

    Some of them go meanwhile, or become other memory.
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
    """The k-th call of a transaction is refused, for every k: then nothing has changed; and at
    last it goes through. `full`: there is no room to put slots out of the way.
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


# Dirty logs


def test_dirty_logs_are_one(pair: tuple[Memslots, Backend]) -> None:
    vm, backend = pair
    vm.create(0, 0, 70, 0, LOG)
    vm.mark_dirty(1)
    backend.write(2)
    backend.write(69)
    assert vm.get_dirty_log(0) == (0b110).to_bytes(8, "little") + (1 << 5).to_bytes(8, "little")
    assert not any(vm.get_dirty_log(0))
    assert not any(backend.get_dirty_log(0, 0))


@pytest.mark.parametrize("manual", [1, 3])
def test_dirty_logs_are_cleared_as_one(manual: int) -> None:
    vm, backend = mirrored(manual)
    vm.create(0, 0, 70, 0, LOG)
    full = (1 << 70) - 1
    ones = full.to_bytes(16, "little")
    if manual == 3:
        assert vm.get_dirty_log(0) == ones
        vm.clear_dirty_log(0, 0, 70, ones)
    vm.mark_dirty(1)
    backend.write(2)
    for _ in range(2):
        assert vm.get_dirty_log(0)[0] == 0b110
    vm.clear_dirty_log(0, 0, 64, ones)
    assert not any(vm.get_dirty_log(0))
    assert not any(backend.get_dirty_log(0, 0))
    with pytest.raises(InvalidRegionError, match="not a multiple of 64"):
        vm.clear_dirty_log(0, 0, 7, ones)


def test_errors_of_the_dirty_log(pair: tuple[Memslots, Backend]) -> None:
    vm, _ = pair
    vm.create(0, 0, 4, 0)
    for id, error in ((0, errno.ENOENT), (1, errno.ENOENT), (MAX_SLOTS, errno.EINVAL)):
        for call in (vm.get_dirty_log, lambda id: vm.clear_dirty_log(id, 0, 0, b"")):
            with pytest.raises((NoSuchSlotError, InvalidRegionError)) as caught:
                call(id)
            assert caught.value.errno == error


def test_a_backend_that_keeps_no_log() -> None:
    vm = Memslots(backend=Limited())
    vm.create(0, 0, 4, 0, LOG)
    vm.mark_dirty(1)
    assert vm.get_dirty_log(0)[0] == 2
    vm.clear_dirty_log(0, 0, 4, b"\xff" * 8)
    assert vm.get_dirty_log(0)[0] == 0


@pytest.mark.parametrize("log", [b"", bytes(16), b"\x10" + bytes(7)])
def test_a_log_that_cannot_be(pair: tuple[Memslots, Backend], log: bytes) -> None:
    """Of another length, or with a page that the slot does not have."""
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    vm.mark_dirty(1)
    backend.get_dirty_log = lambda slot, as_id: log  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="slot 0"):
        vm.get_dirty_log(0)
    backend.get_dirty_log = lambda slot, as_id: bytes(8)  # type: ignore[method-assign]
    # What it had taken, nobody knows.
    assert vm.get_dirty_log(0)[0] == 0b1111


def test_a_log_read_in_the_middle_of_a_change(pair: tuple[Memslots, Backend]) -> None:
    """A slot that is about to go: this is the last moment to ask what was written."""
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    backend.write(1)
    logs: list[int] = []

    class Listener:
        def invalidate(self, slot: Slot) -> None:
            logs.append(vm.get_dirty_log(slot.id)[0])

    vm.subscribe(Listener())
    vm.delete(0)
    assert logs == [2]
