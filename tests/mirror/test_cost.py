"""The cost of planning the calls of a transaction, in lines run and not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from backend import Backend

from memslots import Memslots
from memslots.mirror import planner

HVA = 0x1000_0000
Steps = Callable[[Memslots, int], None]


def lines_of(work: Callable[[], object]) -> int:
    """Returns how many lines of planner.py run."""
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename == planner.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def fill(vm: Memslots, slots: int) -> None:
    for id in range(slots):
        vm.create(id, 4 * id, 4, HVA + 0x4000 * id)


def create(vm: Memslots, slots: int) -> None:
    with vm.transaction() as tx:
        for id in range(slots, 2 * slots):
            tx.create(id, 4 * id, 4, HVA)


def trade(vm: Memslots, slots: int) -> None:
    with vm.transaction() as tx:
        for id in range(0, slots, 2):
            tx.move(id, 4 * (id + 1))
            tx.move(id + 1, 4 * id)


def rotate(vm: Memslots, slots: int) -> None:
    with vm.transaction() as tx:
        for id in range(slots):
            tx.move(id, 4 * ((id + 1) % slots))


def delete_one_and_rotate_the_rest(vm: Memslots, slots: int) -> None:
    with vm.transaction() as tx:
        tx.delete(0)
        for id in range(1, slots):
            tx.move(id, 4 * (id % (slots - 1) + 1))


def trade_where_there_is_no_room(vm: Memslots, slots: int) -> None:
    trade(vm, slots)


@pytest.mark.parametrize(
    "steps",
    [create, trade, rotate, delete_one_and_rotate_the_rest, trade_where_there_is_no_room],
    ids=lambda steps: steps.__name__,
)
def test_k_steps_take_k_log_k(steps: Steps) -> None:
    lines = []
    for slots in (200, 800):
        most = 4 * slots - 1 if steps is trade_where_there_is_no_room else 1 << 20
        vm = Memslots(2 * slots, max_gfn=most, backend=Backend(2 * slots, max_gfn=most))
        fill(vm, slots)
        lines.append(lines_of(lambda vm=vm, slots=slots: steps(vm, slots)))  # type: ignore[misc]
        vm.check()
    assert lines[0] > 200
    assert lines[1] < 5 * lines[0]  # a quadratic cost would be 16 times
