"""Tests dirty logs: marks, reads and clears, in the three modes of manual_dirty_log."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from model import pages_of, to_bitmap, unchanged

from memslots import Flags, InvalidRegionError, MemslotError, Memslots, NoSuchSlotError
from memslots.dirty.logs import take_over_log

HVA = 0x7000_0000_0000
LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
BASE, NPAGES = 0x100, 200


def words(*pages: int, npages: int = NPAGES) -> bytearray:
    return to_bitmap(set(pages), npages)


def machine(cls: type[Memslots], manual_dirty_log: int = 0, npages: int = NPAGES) -> Memslots:
    """Returns a machine with slot 1, logging, of npages pages at 0x100, and slot 2, not logging."""
    vm = cls(64, address_spaces=2, max_gfn=0xFFFF, manual_dirty_log=manual_dirty_log)
    vm.create(1, BASE, npages, HVA, LOG)
    vm.create(2, 0x1000, 4, HVA)
    return vm


@pytest.fixture
def logging() -> Iterator[Memslots]:
    vm = machine(Memslots)
    yield vm
    vm.check()


@pytest.mark.parametrize("npages", [1, 63, 64, 65, 127, 128, 129, 1000])
def test_size_and_bits(npages: int) -> None:
    vm = machine(Memslots, npages=npages)
    for page in {0, npages // 2, npages - 1}:
        vm.mark_dirty(BASE + page)
    log = vm.get_dirty_log(1)
    assert isinstance(log, bytearray)
    assert len(log) == (npages + 63) // 64 * 8
    assert pages_of(log) == {0, npages // 2, npages - 1}


def test_words_are_little_endian(logging: Memslots) -> None:
    logging.mark_dirty(BASE)
    logging.mark_dirty(BASE + 9)
    logging.mark_dirty(BASE + 64)
    assert logging.get_dirty_log(1) == b"\1\2" + bytes(6) + b"\1" + bytes(23)


def test_the_log_is_the_callers_own(logging: Memslots) -> None:
    logging.mark_dirty(BASE)
    log = logging.get_dirty_log(1)
    logging.mark_dirty(BASE + 1)
    log[0] = 0xFF
    assert logging.get_dirty_log(1) == words(1)


def test_marks_that_do_nothing(logging: Memslots) -> None:
    logging.create(3, 0x2000, 4, HVA, READONLY)
    logging.create(4, 0x3000, 4, HVA, READONLY | LOG)
    with unchanged(logging):
        for gfn in (0, BASE - 1, BASE + NPAGES, 0x1000, 0x2001, 0x3001, 2**52, 2**64 - 1):
            logging.mark_dirty(gfn)
            logging.mark_dirty_many(array("Q", [gfn, gfn]))
        logging.mark_dirty(BASE, as_id=1)
        logging.mark_dirty_many(array("Q", [BASE]), as_id=1)
        logging.mark_dirty_many(array("Q"))
    assert logging.get_dirty_log(4) == bytes(8)


def test_many(logging: Memslots) -> None:
    logging.mark_dirty_many(array("Q", [BASE, BASE + 199, BASE, 0x1000, 0, BASE + 64]))
    assert logging.get_dirty_log(1) == words(0, 64, 199)
    every = array("Q", range(BASE, BASE + NPAGES))
    logging.mark_dirty_many(every * 100)
    assert logging.get_dirty_log(1) == words(*range(NPAGES))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([BASE], TypeError),
        (array("q", [BASE]), TypeError),
        (b"12345678", TypeError),
        (None, TypeError),
        (memoryview(array("Q", [BASE] * 4))[::2], ValueError),
    ],
)
def test_many_of_a_wrong_kind(logging: Memslots, wrong: Any, error: type[Exception]) -> None:
    with unchanged(logging), pytest.raises(error):
        logging.mark_dirty_many(wrong)


def test_address_spaces(logging: Memslots) -> None:
    logging.create(1, BASE, 4, HVA, LOG, as_id=1)
    logging.mark_dirty(BASE + 1)
    logging.mark_dirty(BASE + 2, as_id=1)
    logging.mark_dirty_many(array("Q", [BASE + 3]), as_id=1)
    assert logging.get_dirty_log(1, as_id=1) == words(2, 3, npages=4)
    assert logging.get_dirty_log(1) == words(1)
    logging.mark_dirty(BASE, as_id=1)
    logging.clear_dirty_log(1, 0, 4, b"\xff" * 8, as_id=1)
    assert logging.get_dirty_log(1, as_id=1) == bytes(8)


# The three modes


@pytest.mark.parametrize(("mode", "left"), [(0, ()), (1, (5, 70)), (3, (5, 70))])
def test_whether_get_clears(mode: int, left: tuple[int]) -> None:
    vm = machine(Memslots, mode)
    vm.clear_dirty_log(1, 0, NPAGES, b"\xff" * 32)
    vm.mark_dirty(BASE + 5)
    vm.mark_dirty(BASE + 70)
    assert vm.get_dirty_log(1) == words(5, 70)
    assert vm.get_dirty_log(1) == words(*left)


@pytest.mark.parametrize(("mode", "at_first"), [(0, 0), (1, 0), (3, NPAGES)])
def test_a_new_log(mode: int, at_first: int) -> None:
    """Tests the log of a new slot, and of one that begins to log; bits past npages are 0."""
    vm = machine(Memslots, mode)
    assert vm.get_dirty_log(1) == words(*range(at_first))
    vm.set_flags(1, 0)
    vm.set_flags(1, LOG)
    assert vm.get_dirty_log(1) == words(*range(at_first))
    vm.set_region(2, LOG, 0x2000000, 0x4000, HVA)  # a move turns the log on
    assert vm.get_dirty_log(2) == words(*range(min(at_first, 4)), npages=4)
    vm.create(3, 0x3000, 4, HVA, LOG | READONLY)
    assert vm.get_dirty_log(3) == words(*range(min(at_first, 4)), npages=4)
    vm.check()


def test_clear_works_in_mode_0_too(logging: Memslots) -> None:
    logging.mark_dirty_many(array("Q", range(BASE, BASE + 8)))
    logging.clear_dirty_log(1, 0, 64, b"\x0f" + bytes(7))
    assert logging.get_dirty_log(1) == words(4, 5, 6, 7)


# Changes of the slot, and its log


def test_a_move_keeps_the_log(logging: Memslots) -> None:
    logging.mark_dirty(BASE + 70)
    logging.move(1, 0x2000)
    logging.mark_dirty(BASE + 71)
    logging.mark_dirty(0x2000 + 72)
    assert logging.get_dirty_log(1) == words(70, 72)


def test_turning_logging_off_drops_the_log(logging: Memslots) -> None:
    logging.mark_dirty(BASE)
    logging.set_flags(1, 0)
    with pytest.raises(NoSuchSlotError):
        logging.get_dirty_log(1)
    logging.mark_dirty(BASE + 1)
    logging.set_flags(1, LOG)
    assert logging.get_dirty_log(1) == words()


def test_turning_logging_off_in_a_move(logging: Memslots) -> None:
    logging.mark_dirty(BASE)
    logging.set_region(1, 0, 0x2000000, NPAGES << 12, HVA)
    with pytest.raises(NoSuchSlotError):
        logging.get_dirty_log(1)


def test_delete_drops_the_log(logging: Memslots) -> None:
    logging.mark_dirty(BASE)
    logging.delete(1)
    logging.create(1, BASE, NPAGES, HVA, LOG)
    assert logging.get_dirty_log(1) == words()


def test_nothing_and_refusals_keep_the_log(logging: Memslots) -> None:
    logging.mark_dirty(BASE + 3)
    logging.set_flags(1, LOG)
    logging.set_region(1, LOG, BASE << 12, NPAGES << 12, HVA)
    for gfn in (0xFFFF, 0xFFFD - NPAGES + 4):
        with pytest.raises(InvalidRegionError):
            logging.move(1, gfn)
    with pytest.raises(MemslotError):
        logging.set_flags(1, READONLY)
    assert logging.get_dirty_log(1) == words(3)


def test_marks_made_while_a_change_is_refused_are_kept(logging: Memslots) -> None:
    class Refuse:
        def prepare(self, *args: object) -> None:
            logging.mark_dirty(BASE + 2)
            raise ValueError("no")

    logging.mark_dirty(BASE + 1)
    with logging.subscribe(Refuse()):
        with pytest.raises(ValueError, match="no"):
            logging.set_flags(1, 0)
        logging.mark_dirty(BASE + 3)
        with pytest.raises(ValueError, match="no"):
            logging.delete(1)
        logging.mark_dirty(BASE + 4)
    assert logging.get_dirty_log(1) == words(1, 2, 3, 4)


# clear_dirty_log's arguments


@pytest.mark.parametrize(
    ("first_page", "num_pages", "cleared"),
    [
        (0, 64, range(64)),
        (64, 64, range(64, 128)),
        (64, 128, range(64, 192)),
        (0, 192, range(192)),
        (0, 200, range(200)),
        (128, 72, range(128, 200)),
        (192, 8, range(192, 200)),
        (0, 0, range(0)),
        (64, 0, range(0)),
    ],
)
@pytest.mark.parametrize("mode", [0, 1, 3])
def test_clear(mode: int, first_page: int, num_pages: int, cleared: range) -> None:
    vm = machine(Memslots, mode)
    vm.mark_dirty_many(array("Q", range(BASE, BASE + NPAGES)))
    vm.clear_dirty_log(1, first_page, num_pages, b"\xff" * 40)
    vm.check()
    assert pages_of(vm.get_dirty_log(1)) == set(range(NPAGES)) - set(cleared)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: array("Q", b)])
def test_clear_takes_what_is_like_bytes(logging: Memslots, kind: Any) -> None:
    logging.mark_dirty_many(array("Q", [BASE, BASE + 1, BASE + 66]))
    logging.clear_dirty_log(1, 64, 64, kind(b"\x04" + bytes(7)))
    assert logging.get_dirty_log(1) == words(0, 1)
    logging.mark_dirty(BASE + 1)
    log = logging.get_dirty_log(1)
    logging.mark_dirty_many(array("Q", [BASE, BASE + 1]))
    logging.clear_dirty_log(1, 0, NPAGES, log)  # clears with a log as it was read
    assert logging.get_dirty_log(1) == words(0)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((1, 1, 64), errno.EINVAL),
        ((1, 32, 64), errno.EINVAL),
        ((1, 0, 63), errno.EINVAL),
        ((1, 0, 65), errno.EINVAL),
        ((1, 64, 137), errno.EINVAL),
        ((1, 0, 201), errno.EINVAL),
        ((1, 0, 256), errno.EINVAL),
        ((1, 192, 64), errno.EINVAL),
        ((1, 256, 0), errno.EINVAL),
        ((1, 256, 64), errno.EINVAL),
        ((1, 64, 2**32 - 64), errno.EINVAL),
        ((64, 0, 64), errno.EINVAL),
        ((0xFFFF, 0, 64), errno.EINVAL),
        ((2, 0, 4), errno.ENOENT),
        ((3, 0, 64), errno.ENOENT),
    ],
)
def test_clear_refuses(logging: Memslots, args: tuple[int, int, int], code: int) -> None:
    logging.mark_dirty_many(array("Q", range(BASE, BASE + NPAGES)))
    with unchanged(logging), pytest.raises(MemslotError) as caught:
        logging.clear_dirty_log(*args, b"\xff" * 40)
    assert caught.value.errno == code
    assert type(caught.value) is (InvalidRegionError if code == errno.EINVAL else NoSuchSlotError)
    assert f"slot {args[0]}" in str(caught.value)


@pytest.mark.parametrize("num_pages", [64, 192, 200])
def test_clear_with_too_few_bits(logging: Memslots, num_pages: int) -> None:
    logging.mark_dirty_many(array("Q", range(BASE, BASE + NPAGES)))
    enough = (num_pages + 63) // 64 * 8
    for size in (0, 8 * (num_pages // 64) - 8, enough - 1):
        with unchanged(logging), pytest.raises(InvalidRegionError):
            logging.clear_dirty_log(1, 0, num_pages, b"\xff" * size)
    logging.clear_dirty_log(1, 0, num_pages, b"\xff" * enough)
    assert pages_of(logging.get_dirty_log(1)) == set(range(num_pages, NPAGES))


def test_clear_of_wrong_types(logging: Memslots) -> None:
    for wrong in ("1" * 8, 8, None, [1] * 8):
        with unchanged(logging), pytest.raises(TypeError):
            logging.clear_dirty_log(1, 0, 64, wrong)  # type: ignore[arg-type]
    for first_page, num_pages in (("0", 64), (0, 64.0), (None, 64)):
        with unchanged(logging), pytest.raises(TypeError):
            logging.clear_dirty_log(1, first_page, num_pages, bytes(8))  # type: ignore[arg-type]
    for first, pages in ((-1, 64), (0, -1), (1 << 64, 64), (0, 1 << 64)):
        with unchanged(logging), pytest.raises(OverflowError):
            logging.clear_dirty_log(1, first, pages, bytes(8))


@pytest.mark.parametrize(
    ("id", "as_id", "code"),
    [
        (64, 0, errno.EINVAL),
        (2**32 - 1, 0, errno.EINVAL),
        (1, 2, errno.EINVAL),
        (2, 0, errno.ENOENT),
        (3, 0, errno.ENOENT),
        (1, 1, errno.ENOENT),
    ],
)
def test_get_refuses(logging: Memslots, id: int, as_id: int, code: int) -> None:
    with unchanged(logging), pytest.raises(MemslotError) as caught:
        logging.get_dirty_log(id, as_id=as_id)
    assert caught.value.errno == code
    assert type(caught.value) is (InvalidRegionError if code == errno.EINVAL else NoSuchSlotError)
    assert f"slot {id}" in str(caught.value)


def test_a_backends_log_of_no_slot() -> None:
    vm = Memslots()
    vm.create(0, 0, 4, HVA, LOG)
    vm.create(1, 4, 4, HVA)
    log = bytes(8)
    for id, as_id in ((0, 1), (0, 1000), (vm.max_slots, 0)):
        with pytest.raises(InvalidRegionError):
            take_over_log(vm, id, as_id, log)
    for id in (1, 2):
        with pytest.raises(NoSuchSlotError):
            take_over_log(vm, id, 0, log)
    assert not vm.take_dirty_runs()
