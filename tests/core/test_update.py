"""Tests memslots.core.update: the contents of both sets after every step of every change.

Also tests what a failed allocation leaves.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("no_garbage")

LOG = 1
Holds = tuple[str, int, bool] | None  # base_gfn, flags, INVALID


@pytest.fixture
def space(drivers: Any) -> Any:
    """Returns a space with slot 3 at gfn 0x10 and two neighbours."""
    space = drivers("update").Space(as_id=1, nspaces=2)
    for id, base in ((2, 0x00), (3, 0x10), (4, 0x30)):
        assert space.change(id, base, 8, 0x1000 * id) == "CREATE"
        space.check()
    return space


OLD: Holds = ("0x10", 0, False)
INVALID: Holds = ("0x10", 0, True)
MOVED: Holds = ("0x20", 0, False)
LOGGING: Holds = ("0x10", LOG, False)
AT = 7  # the generation before the change: space 1 of 2, three slots created


def test_create(space: Any) -> None:
    assert space.change(5, 0x40, 8, 0) == "CREATE"
    new = ("0x40", 0, False)
    assert space.steps == [
        ("before", None, None, AT, False),
        ("apply begin", new, None, AT, True),
        ("apply end", new, new, AT + 2, False),
    ]
    space.check()


def test_set_flags(space: Any) -> None:
    assert space.change(3, 0x10, 8, 0x3000, LOG) == "FLAGS_ONLY"
    assert space.steps == [
        ("before", OLD, OLD, AT, False),
        ("apply begin", LOGGING, OLD, AT, True),
        ("apply end", LOGGING, LOGGING, AT + 2, False),
    ]
    space.check()


def test_delete(space: Any) -> None:
    assert space.change(3, 0, 0, 0) == "DELETE"
    assert space.steps == [
        ("before", OLD, OLD, AT, False),
        ("invalidate begin", INVALID, OLD, AT, True),
        ("invalidate end", INVALID, OLD, AT + 2, False),
        ("apply begin", None, INVALID, AT + 2, True),
        ("apply end", None, None, AT + 4, False),
    ]
    space.check()


def test_move(space: Any) -> None:
    assert space.change(3, 0x20, 8, 0x3000) == "MOVE"
    assert space.steps == [
        ("before", OLD, OLD, AT, False),
        ("invalidate begin", INVALID, OLD, AT, True),
        ("invalidate end", INVALID, OLD, AT + 2, False),
        ("apply begin", MOVED, INVALID, AT + 2, True),
        ("apply end", MOVED, MOVED, AT + 4, False),
    ]
    space.check()


@pytest.mark.parametrize("move", [False, True])
def test_the_road_back(space: Any, move: bool) -> None:
    if move:
        assert space.change(3, 0x20, 8, 0x3000, refuse=True) == "MOVE"
    else:
        assert space.change(3, 0, 0, 0, refuse=True) == "DELETE"
    assert space.steps == [
        ("before", OLD, OLD, AT, False),
        ("invalidate begin", INVALID, OLD, AT, True),
        ("invalidate end", INVALID, OLD, AT + 2, False),
        ("revert begin", OLD, INVALID, AT + 2, True),
        ("revert end", OLD, OLD, AT + 4, False),
    ]
    space.check()


@pytest.mark.parametrize(
    ("id", "base", "flags"), [(5, 0x40, LOG), (3, 0x10, LOG)], ids=["create", "set_flags"]
)
def test_a_refusal_that_needs_no_road(space: Any, id: int, base: int, flags: int) -> None:
    space.change(id, base, 8, 0x3000, flags, refuse=True)
    assert [step[0] for step in space.steps] == ["before"]
    space.check()


def test_nothing_to_change(space: Any) -> None:
    assert space.change(3, 0x10, 8, 0x3000) == "NONE"
    assert space.steps == []


def test_last_used_never_points_out_of_its_set(space: Any) -> None:
    """S3 holds even if a reader puts the old slot into the set that is inactive by now.

    That reader came before the swap.
    """
    for which in ("active", "inactive"):
        assert space.find_in(which, 0x12) == 3
    assert space.last_used() == [3, 3]
    space.change(3, 0x20, 8, 0x3000)
    assert space.last_used() == [None, None]
    space.check()
    assert space.find_in("active", 0x12) is None
    assert space.find_in("active", 0x22) == 3
    assert space.find_in("active", 0x31) == 4
    space.change(3, 0, 0, 0)  # the deletion of another slot keeps last-used
    assert 4 in space.last_used()
    space.check()


CHANGES: dict[str, tuple[int, ...]] = {
    "create": (9, 0x80, 8, 0),
    "create logging": (9, 0x80, 8, 0, LOG),
    "move": (3, 0x20, 8, 0x3000),
    "move and log": (3, 0x20, 8, 0x3000, LOG),
    "log": (3, 0x10, 8, 0x3000, LOG),
    "delete": (3, 0, 0, 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_allocation_of_a_change_fails_in_turn(drivers: Any, space: Any, name: str) -> None:
    alloc = drivers("alloc")
    for id in (5, 6, 7):  # until one more slot makes the id tables grow
        space.change(id, 0x100 * id, 8, 0)
    live = alloc.live()
    before = alloc.asked()
    held = [space.find_in("active", gfn) for gfn in (0x12, 0x22, 0x82)]
    failed = 0
    while True:
        alloc.fail_nth(failed + 1)
        try:
            space.change(*CHANGES[name])
        except MemoryError:
            failed += 1
            assert alloc.live() == live
            space.check()
            assert [space.find_in("active", gfn) for gfn in (0x12, 0x22, 0x82)] == held
            continue
        finally:
            alloc.fail_nth(0)
        break
    # Every allocation of the change has failed once. Then the change succeeded.
    assert failed >= {"create": 1, "log": 2, "delete": 1}.get(name, 2)
    assert alloc.asked() - before >= failed + 1
    space.check()


@pytest.mark.parametrize("nth", [1, 2])
def test_no_memory_for_an_address_space(drivers: Any, nth: int) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    alloc.fail_nth(nth)
    try:
        with pytest.raises(MemoryError):
            for _ in range(2):
                drivers("update").Space()
    finally:
        alloc.fail_nth(0)
    assert alloc.live() == live
