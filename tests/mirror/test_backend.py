"""Tests backends, and single changes mirrored in one."""

from __future__ import annotations

import copy
import errno
import gc
from collections.abc import Callable

import pytest
from backend import LIMITS, Backend, Interrupt, KernelSaysNo, Limited, agree, mirrored
from model import unchanged
from smallmachine import MAX_GFN, MAX_SLOTS

from memslots import (
    BusyError,
    Change,
    Flags,
    MemslotError,
    Memslots,
    Slot,
)

LOG = Flags.LOG_DIRTY_PAGES

# Backends


def test_no_backend() -> None:
    assert Memslots().backend is None
    assert Memslots(backend=None).backend is None


def test_a_backend_without_set_region() -> None:
    with pytest.raises(TypeError, match="a backend must have set_region; 'object' has none"):
        Memslots(backend=object())  # type: ignore[call-overload]


def test_a_backend_that_has_slots() -> None:
    vm, backend = mirrored()
    assert vm.backend is backend
    vm.create(0, 0, 1, 0)
    with pytest.raises(ValueError, match="must have no slots, not 1"):
        Memslots(backend=backend)


class Alarm(TimeoutError):
    """The error of a signal's handler: an OSError that no backend raised."""


@pytest.mark.parametrize("name", ["create", "move", "set_flags", "delete"])
def test_a_handlers_error_is_no_refusal(pair: tuple[Memslots, Backend], name: str) -> None:
    """The error comes when the backend has made the call."""
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
    """Any step that they leave undone is undone before the next change."""
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
    """The errno does not matter: a backend says ENOENT or EINVAL for a slot that was never made."""
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
    assert len(backend.slots) == 1  # the Memslots knows that the backend has it
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
    with pytest.raises(ValueError, match="belongs to another Memslots already"):
        Memslots(MAX_SLOTS, backend=backend, **LIMITS)
    del vm
    gc.collect()
    assert Memslots(MAX_SLOTS, backend=backend, **LIMITS).backend is backend

    class Slotted:
        __slots__ = ()

        def set_region(self, *call: int) -> None:
            pass

    assert Memslots(backend=Slotted()).backend is not None


def test_backends_that_are_equal_are_two() -> None:
    class Equal:
        def set_region(self, *call: int) -> None:
            pass

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        __hash__ = None  # type: ignore[assignment]

    one, other = Equal(), Equal()
    first, second = Memslots(backend=one), Memslots(backend=other)
    assert first.backend is one
    assert second.backend is other
    with pytest.raises(ValueError, match="belongs to another Memslots already"):
        Memslots(backend=one)
    del first
    assert Memslots(backend=one).backend is one


def test_a_backend_that_keeps_the_memslots() -> None:
    kept: list[object] = []

    class Keeping(Backend):
        def keep(self, vm: Memslots) -> None:
            kept.append(vm)

    vm = Memslots(MAX_SLOTS, backend=Keeping(MAX_SLOTS), **LIMITS)
    assert kept == [vm]


def test_limits_are_the_backends() -> None:
    vm = Memslots(backend=Limited())
    assert {name: getattr(vm, name) for name in Limited.limits} == Limited.limits
    smaller = {"max_slots": 3, "address_spaces": 1, "max_gfn": 0x7F, "max_hva": 1 << 20}
    vm = Memslots(backend=Limited(), **smaller)
    assert {name: getattr(vm, name) for name in smaller} == smaller


@pytest.mark.parametrize("name", ["max_slots", "address_spaces", "max_gfn", "max_hva"])
def test_limits_above_the_backends(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at most the backend's"):
        Memslots(backend=Limited(), **{name: Limited.limits[name] + 1})
    with pytest.raises(TypeError, match=name):
        Memslots(backend=Limited(), **{name: None})  # type: ignore[call-overload]


def test_the_backends_kind_of_dirty_log() -> None:
    with pytest.raises(ValueError, match="manual_dirty_log must be the backend's, 1, not 0"):
        Memslots(manual_dirty_log=0, backend=Limited())
    with pytest.raises(ValueError, match="manual_dirty_log must be the backend's, 1, not 3"):
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
    vm.set_flags(1, 0, as_id=1)  # nothing differs
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
    """A listener that refuses leaves the backend, and its dirty log, untouched."""
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
    if how:  # unknown whether the call was made, so the writes meanwhile are unknown
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
    """It is asked again before the next change; until it succeeds, no change is made."""
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
