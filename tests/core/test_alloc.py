"""Tests memslots.core.alloc: memory is zeroed and counted; an allocation can be made to fail."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.fixture
def alloc(drivers: Any) -> Any:
    return drivers("alloc")


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("size", [1, 8, 63, 64, 65, 1000, 1 << 20])
def test_memory_is_zeroed_and_counted(alloc: Any, lines: bool, size: int) -> None:
    live, asked = alloc.live(), alloc.asked()
    address, content = alloc.block(size, lines)
    assert content == bytes(size)
    assert not lines or address % 64 == 0
    assert (alloc.live(), alloc.asked()) == (live, asked + 1)


@pytest.mark.parametrize("lines", [False, True])
def test_the_named_allocation_fails_once(alloc: Any, lines: bool) -> None:
    live = alloc.live()
    alloc.fail_nth(3)
    assert [alloc.block(8, lines) is None for _ in range(5)] == [False, False, True, False, False]
    alloc.fail_nth(1)
    alloc.fail_nth(0)  # takes the failure back
    assert alloc.block(8, lines) is not None
    assert alloc.live() == live


def test_more_than_there_is_gives_nothing(alloc: Any) -> None:
    live = alloc.live()
    assert alloc.block(1 << 60, False) is None
    assert alloc.block(1 << 60, True) is None
    assert alloc.live() == live


def test_freeing_nothing_does_nothing(alloc: Any) -> None:
    live = alloc.live()
    alloc.free_null()
    assert alloc.live() == live
