"""Tests which calls listeners get for a change, and how they refuse it."""

from __future__ import annotations

import sys
import threading
import traceback
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from listening import FRESH, HVA, Recorder
from model import unchanged

from memslots import (
    BAD_HVA,
    BusyError,
    Change,
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NotMappedError,
    Slot,
)

OLD = Slot(1, 0, 0x10, 4, HVA, 1)
MOVED = Slot(1, 0, 0x20, 4, HVA, 1)
QUIET = Slot(1, 0, 0x10, 4, HVA, 0)

CHANGES: dict[Change, tuple[Callable[[Memslots], Slot], Slot | None, Slot | None]] = {
    Change.CREATE: (lambda vm: vm.create(2, 0x30, 1, HVA), None, FRESH),
    Change.DELETE: (lambda vm: vm.delete(1), OLD, None),
    Change.MOVE: (lambda vm: vm.move(1, 0x20), OLD, MOVED),
    Change.FLAGS_ONLY: (lambda vm: vm.set_flags(1, 0), OLD, QUIET),
}
TWICE = (Change.DELETE, Change.MOVE)


@pytest.mark.parametrize("change", CHANGES)
def test_order_and_arguments(used: Memslots, change: Change, log: list[Any]) -> None:
    call, old, new = CHANGES[change]
    used.subscribe(Recorder(log, "a "))
    used.subscribe(Recorder(log, "b "))
    call(used)
    want: list[tuple[Any, ...]] = [(f"{who} invalidate", old) for who in "ab" if change in TWICE]
    want += [(f"{who} prepare", change, old, new) for who in "ab"]
    want += [(f"{who} commit", change, old, new) for who in "ab"]
    assert log == want
    told = [arg for _, *args in log for arg in args if isinstance(arg, Slot)]
    assert not any(slot.flags & Flags.INVALID for slot in told)


def test_the_kvm_call_tells_the_same(used: Memslots, log: list[Any]) -> None:
    used.subscribe(Recorder(log))
    used.set_region(1, 0, 0x20000, 0x4000, HVA)  # a move that also changes the flags
    new = Slot(1, 0, 0x20, 4, HVA)
    assert log == [
        ("invalidate", OLD),
        ("prepare", Change.MOVE, OLD, new),
        ("commit", Change.MOVE, OLD, new),
    ]


def test_nothing_calls_no_one(used: Memslots, log: list[Any]) -> None:
    used.subscribe(Recorder(log))
    assert used.set_region(1, 1, 0x10000, 0x4000, HVA) is Change.NONE
    used.move(1, 0x10)
    used.set_flags(1, 1)
    for args in ((1, 4, 0, 0, 0), (1, 0, 0, 1, 0), (2, 0, 0x10000, 0x1000, HVA)):
        with pytest.raises(MemslotError):
            used.set_region(*args)
    assert log == []


def test_missing_methods_are_skipped(used: Memslots, log: list[Any]) -> None:
    class OnlyInvalidate:
        def invalidate(self, slot: Slot) -> None:
            log.append(slot)

    class OnlyCommit:
        def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            log.append(change)

    used.subscribe(OnlyInvalidate())
    used.subscribe(OnlyCommit())
    used.create(2, 0x30, 1, HVA)
    used.delete(2)
    assert log == [Change.CREATE, FRESH, Change.DELETE]


@pytest.mark.parametrize("wrong", [None, 3, "prepare", object(), print])
def test_not_a_listener(vm: Memslots, wrong: Any) -> None:
    with pytest.raises(TypeError):
        vm.subscribe(wrong)


@pytest.mark.parametrize(
    ("change", "method"),
    [(change, "prepare") for change in CHANGES] + [(change, "invalidate") for change in TWICE],
)
@pytest.mark.parametrize("who", ["a ", "b ", "c "])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt("^C"), SystemExit(3)])
def test_refusals(
    used: Memslots, change: Change, who: str, method: str, error: BaseException, log: list[Any]
) -> None:
    def refuse(*args: object) -> None:
        raise error

    call, _, _ = CHANGES[change]
    for name in ("a ", "b ", "c "):
        used.subscribe(Recorder(log, name, **({method: refuse} if name == who else {})))
    swaps = 2 if change in TWICE else 0
    with unchanged(used, swaps=swaps), pytest.raises(type(error)) as caught:
        call(used)
    assert caught.value is error
    assert log[-1][0] == who + method
    asked = ["a ", "b ", "c "]
    asked = asked[: asked.index(who) + 1]
    assert [name for name, *_ in log if name.endswith(method)] == [name + method for name in asked]
    assert not any(name.endswith("commit") for name, *_ in log)
    assert used.lookup(0x10) is used[1]


def test_rule_7_is_asked_before_prepare(used: Memslots, log: list[Any]) -> None:
    used.subscribe(Recorder(log))
    with unchanged(used), pytest.raises(InvalidRegionError):
        used.create(2, 0x10000, 1, HVA)
    assert log == []
    with unchanged(used, swaps=2), pytest.raises(InvalidRegionError):
        used.move(1, 0xFFFD)
    assert log == [("invalidate", OLD)]


def test_an_error_in_commit_does_not_undo(
    used: Memslots, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("too late")

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    used.subscribe(Recorder(log, "a ", commit=fail))
    used.subscribe(Recorder(log, "b "))
    for change, (call, _, _) in CHANGES.items():
        if change is not Change.DELETE:
            call(used)
    used.delete(1)
    used.check()
    assert list(used) == [FRESH]
    assert len(unraisable) == 4
    assert all(str(info.exc_value) == "too late" for info in unraisable)
    assert [name for name, *_ in log if "commit" in name] == ["a commit", "b commit"] * 4


def test_an_error_in_commit_is_reported_as_it_is(
    used: Memslots, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Exception):
        pass

    def fail(*args: object) -> None:
        raise error

    error = Odd("too late")
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    listener = Recorder([], commit=fail)
    used.subscribe(listener)
    used.delete(1)
    (info,) = unraisable
    assert (info.exc_type, info.exc_value, info.object) == (Odd, error, listener.commit)
    assert info.exc_traceback is error.__traceback__
    names = [frame.name for frame in traceback.extract_tb(info.exc_traceback)]
    assert names[-3:] == ["commit", "_note", "fail"]


@pytest.mark.parametrize("whose", [0, 1])
def test_a_commit_that_takes_a_subscription_apart(
    used: Memslots, whose: int, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes its own or the next one: the change is done, and all other listeners are called."""

    def take_apart(*args: object) -> None:
        subscriptions[whose].close()
        with pytest.raises(AttributeError):
            del subscriptions[whose].commit
        raise ValueError("on purpose")

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    subscriptions: list[Any] = [
        used.subscribe(Recorder(log, "a ", commit=take_apart)),
        used.subscribe(Recorder(log, "b ")),
        used.subscribe(Recorder(log, "c ")),
    ]
    assert used.create(2, 0x30, 1, HVA) is used[2]
    told = [name for name, *_ in log if name.endswith("commit") and name != "b commit"]
    assert told == ["a commit", "c commit"]
    assert ValueError in [info.exc_type for info in unraisable]
    used.check()


@pytest.mark.parametrize("change", TWICE)
@pytest.mark.parametrize("method", ["invalidate", "prepare"])
def test_what_is_seen_before_a_slot_goes(
    used: Memslots, change: Change, method: str, log: list[Any]
) -> None:
    used.create(3, 0x40, 1, HVA)
    vcpu, space = used.vcpu(), used.address_space(0)
    old, generation = used[1], used.generation
    invalid = Slot(1, 0, 0x10, 4, HVA, Flags.LOG_DIRTY_PAGES | Flags.INVALID)
    vcpu.lookup(0x10)

    def look(*args: object) -> None:
        for face in (used, space, vcpu):
            assert face.lookup(0x13) == invalid
            assert face[1] == invalid
            assert [slot.id for slot in face] == [1, 3]
            assert invalid in face
            assert old not in face
            with pytest.raises(NotMappedError):
                face.gpa_to_hva(0x10000)
            assert face.gpa_to_hva(0x40008) == HVA + 8
            assert list(face.lookup_many(array("Q", [0x13, 0x40, 0x20]))) == [1, 3, -1]
            assert list(face.translate(array("Q", [0x10000, 0x40000]))) == [BAD_HVA, HVA]
            assert face.generation == generation + 2
        log.append("looked")

    used.subscribe(Recorder([], **{method: look}))
    CHANGES[change][0](used)
    assert log == ["looked"]
    assert vcpu.lookup(0x10) is None
    assert used.generation == generation + 4


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_seen_at_the_other_times(used: Memslots, change: Change, log: list[Any]) -> None:
    call, old, new = CHANGES[change]
    before, generation = list(used), used.generation
    rest = [slot for slot in before if old is None or slot.id != old.id]

    def prepare(*args: object) -> None:
        if change not in TWICE:
            assert list(used) == before
            assert used.generation == generation

    def commit(*args: object) -> None:
        assert list(used) == rest + ([new] if new else [])
        assert used.generation == generation + (4 if change in TWICE else 2)
        log.append("looked")

    used.subscribe(Recorder([], prepare=prepare, commit=commit))
    call(used)
    assert log == ["looked"]


@pytest.mark.parametrize("method", ["prepare", "invalidate", "commit"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_from_inside_are_refused(
    used: Memslots, change: Change, method: str, log: list[Any]
) -> None:
    changes: list[Callable[[], object]] = [
        lambda: used.set_region(5, 0, 0, 4096, HVA),
        lambda: used.set_region(1 << 16 | 5, 0, 0, 4096, HVA),
        lambda: used.create(5, 0, 1, HVA),
        lambda: used.create(5, 0, 1, HVA, as_id=1),
        lambda: used.move(1, 0x50),
        lambda: used.set_flags(1, 0),
        lambda: used.delete(1),
    ]

    def act(*args: object) -> None:
        for inner in changes:
            with pytest.raises(BusyError) as caught:
                inner()
            assert caught.value.errno == 16
            log.append("busy")

    used.subscribe(Recorder([], **{method: act}))
    CHANGES[change][0](used)
    called = method != "invalidate" or change in TWICE
    assert log == ["busy"] * (len(changes) if called else 0)
    used.set_region(5, 0, 0, 4096, HVA)  # and the lock is free again


def test_changes_of_another_thread_wait(used: Memslots, log: list[Any]) -> None:
    """They do not come from the listener, whichever thread started them."""
    threads: list[threading.Thread] = []

    def change() -> None:
        used.create(5, 0, 1, HVA)
        log.append("theirs")

    def prepare(*args: object) -> None:
        if not threads:
            threads.append(threading.Thread(target=change))
            threads[0].start()
            threads[0].join(0.05)
            assert used.get(5) is None
            log.append("inside")

    used.subscribe(Recorder([], prepare=prepare))
    used.delete(1)
    threads[0].join()
    assert log == ["inside", "theirs"]
    assert [slot.id for slot in used] == [5]


def test_another_machine_may_be_changed_from_inside(used: Memslots, log: list[Any]) -> None:
    """The listener mirrors every change."""
    mirror = type(used)(64)

    def follow(change: Change, old: Slot | None, new: Slot | None) -> None:
        if new is None:
            assert old is not None
            mirror.delete(old.id)
        else:
            region = (new.guest_phys_addr, new.memory_size, new.userspace_addr)
            mirror.set_region(new.id, new.flags, *region)

    used.subscribe(Recorder(log, commit=follow))
    used.create(2, 0x30, 1, HVA)
    used.move(2, 0x40)
    used.create(3, 0x50, 1, HVA)
    used.delete(2)
    mirror.check()
    assert list(mirror) == [used[3]]
