"""Tests the dirty logs of a backend."""

from __future__ import annotations

import errno

import pytest
from backend import Backend, Limited, mirrored
from smallmachine import MAX_SLOTS

from memslots import (
    Flags,
    InvalidRegionError,
    Memslots,
    NoSuchSlotError,
    Slot,
)

LOG = Flags.LOG_DIRTY_PAGES

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
    """The log has another length, or marks a page that the slot does not have."""
    vm, backend = pair
    vm.create(0, 0, 4, 0, LOG)
    vm.mark_dirty(1)
    backend.get_dirty_log = lambda slot, as_id: log  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="slot 0"):
        vm.get_dirty_log(0)
    backend.get_dirty_log = lambda slot, as_id: bytes(8)  # type: ignore[method-assign]
    # It is unknown which marks the first log had.
    assert vm.get_dirty_log(0)[0] == 0b1111


def test_a_log_read_in_the_middle_of_a_change(pair: tuple[Memslots, Backend]) -> None:
    """The slot is about to go: this is the last moment to ask what was written."""
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
