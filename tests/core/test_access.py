"""Tests memslots.core.access alone: the spans of an access, its obstacles, and its marks."""

from __future__ import annotations

import ctypes
import mmap
from functools import partial
from typing import Any

import pytest
from allocations import each_failure
from model import pages_of

from memslots import Flags, Memslots

pytestmark = pytest.mark.usefixtures("no_garbage")

PAGE = 0x1000
HVA = 0x7000_0000_0000
LOG = Flags.LOG_DIRTY_PAGES


@pytest.fixture(scope="module")
def driver(drivers: Any) -> Any:
    return drivers("access")


def row(count: int, flags: int = 0) -> Memslots:
    """Returns adjacent slots of two pages, id n at gfn 2n, in reverse order in host memory."""
    vm = Memslots(max_gfn=(1 << 52) - 1)
    for id in range(count):
        vm.create(id, 2 * id, 2, HVA - 2 * id * PAGE, flags)
    return vm


def dirty(vm: Memslots, id: int) -> set[int]:
    return pages_of(vm.get_dirty_log(id))


@pytest.mark.parametrize("kind", ["read", "write", "restore"])
def test_one_span(driver: Any, kind: str) -> None:
    vm = row(3)
    for offset, size in ((0, 1), (0, 2 * PAGE), (1, 2 * PAGE - 1), (2 * PAGE - 1, 1), (5, 8)):
        access = driver.Access(vm, 2 * PAGE + offset, size, kind)
        assert access.spans == [(2 * PAGE + offset, HVA - 2 * PAGE + offset, size, 1, False)]
        assert access.is_few


@pytest.mark.parametrize("count", range(1, 12))
def test_many_spans(driver: Any, count: int) -> None:
    vm = row(20)
    access = driver.Access(vm, 2 * PAGE - 3, 2 * PAGE * (count - 1) + 4, "read")
    gpas, _, sizes, ids, _ = zip(*access.spans, strict=True)
    assert ids == tuple(range(count + 1))
    assert sizes == (3, *[2 * PAGE] * (count - 1), 1)
    assert gpas == (2 * PAGE - 3, *range(2 * PAGE, 2 * PAGE * (count + 1), 2 * PAGE))
    for gpa, hva, _, _, _ in access.spans:
        assert hva == vm.gpa_to_hva(gpa)
    assert access.is_few == (count + 1 <= driver.FEW)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_split(driver: Any, drivers: Any, count: int) -> None:
    vm = row(20)
    alloc = drivers("alloc")
    live = alloc.live()
    for n in range(count):
        access = driver.Access(vm, 3, 2 * PAGE * count - 6, "read")
        spans = access.spans
        gpa, hva, size, *slot = spans[n]
        parts = [(gpa, hva, 5, *slot), (gpa + 5, hva + 5, size - 5, *slot)]
        if count >= driver.FEW:

            def unharmed(access: Any = access, spans: object = spans) -> None:
                assert access.spans == spans

            assert each_failure(alloc, partial(access.split, n, 5), unharmed) == 1
        else:
            access.split(n, 5)
        assert access.spans == [*spans[:n], *parts, *spans[n + 1 :]]
        assert access.is_few == (count < driver.FEW)
        del access
        if count >= driver.FEW:
            del unharmed
    assert alloc.live() == live


@pytest.mark.parametrize("before", range(8))
def test_a_hole(driver: Any, before: int) -> None:
    vm = row(before)
    vm.create(100, 2 * before + 1, 1, HVA)
    for gpa in {0, max(2 * before * PAGE - 1, 0)}:
        for size in (2 * before * PAGE - gpa + 1, 1 << 40, 1 << 63):
            with pytest.raises(driver.Bad) as caught:
                driver.Access(vm, gpa, size, "read")
            assert caught.value.args == (2 * before * PAGE,)


@pytest.mark.parametrize("before", range(8))
def test_readonly_is_in_the_way_of_writes_alone(driver: Any, before: int) -> None:
    vm = row(before)
    vm.create(100, 2 * before, 2, HVA, Flags.READONLY)
    size = (2 * before + 1) * PAGE
    with pytest.raises(driver.Bad) as caught:
        driver.Access(vm, 1, size, "write")
    assert caught.value.args == (max(1, 2 * before * PAGE),)
    for kind in ("read", "restore"):
        spans = driver.Access(vm, 1, size, kind).spans
        assert [span[4] for span in spans] == [False] * before + [True]


@pytest.mark.parametrize("kind", ["read", "write", "restore"])
def test_a_slot_that_is_about_to_go(driver: Any, kind: str) -> None:
    vm = row(2)
    bad: list[int] = []

    class Listener:
        def invalidate(self, slot: object) -> None:
            with pytest.raises(driver.Bad) as caught:
                driver.Access(vm, 1, 3 * PAGE, kind)
            bad.append(caught.value.args[0])

    with vm.subscribe(Listener()):
        vm.move(1, 0x100)
    assert bad == [2 * PAGE]


def test_the_end_of_guest_memory(driver: Any) -> None:
    vm = Memslots(max_gfn=(1 << 52) - 1)
    # The end of the last possible page does not fit 64 bits: rule 2.
    vm.create(0, (1 << 52) - 3, 2, HVA)
    end = (1 << 64) - PAGE
    assert driver.Access(vm, end - 1, 1, "read").spans[0][:3] == (end - 1, HVA + 0x1FFF, 1)
    with pytest.raises(driver.Bad) as caught:
        driver.Access(vm, end - 1, PAGE + 1, "read")
    assert caught.value.args == (end,)


def test_no_memory_for_many_spans(driver: Any, drivers: Any) -> None:
    alloc = drivers("alloc")
    vm = row(20)
    live, asked = alloc.live(), alloc.asked()
    driver.Access(vm, 0, 2 * driver.FEW * PAGE, "read")
    assert alloc.asked() == asked
    alloc.fail_nth(1)
    with pytest.raises(MemoryError):
        driver.Access(vm, 0, 2 * driver.FEW * PAGE + 1, "read")
    alloc.fail_nth(0)
    access = driver.Access(vm, 0, 2 * driver.FEW * PAGE + 1, "read")
    assert alloc.live() == live + 1
    del access
    assert alloc.live() == live


def test_nothing_is_done_behind_the_last_span(driver: Any) -> None:
    memory = mmap.mmap(-1, PAGE)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    vm = Memslots()
    vm.create(0, 0, 1, hva)
    vm.create(1, 1, 1, 0, LOG)  # the system never maps this memory
    access = driver.Access(vm, 8, 16, "write")
    access.put_behind(driver.Access(vm, PAGE, 8, "write"))
    assert access.probe() is None
    assert access.write(b"abcdefgh" * 2) is None
    assert access.fill(ord("x")) is None
    out = bytearray(b"-" * 32)
    assert access.read(out) is None
    assert out == b"x" * 16 + b"-" * 16
    assert memory[:32] == bytes(8) + b"x" * 16 + bytes(8)
    access.mark()
    assert dirty(vm, 1) == set()
    two = driver.Access(vm, PAGE - 4, 8, "write")
    two.put_behind(driver.Access(vm, PAGE + 64, 8, "write"))
    assert two.meets(4, 1) is False
    assert two.meets(3, 1) is True
    assert two.meets(64, 8) is False


# Marks


@pytest.mark.parametrize(
    ("offset", "size", "pages"),
    [
        (0, 1, {0}),
        (PAGE - 1, 1, {0}),
        (PAGE - 1, 2, {0, 1}),
        (PAGE, PAGE, {1}),
        (PAGE, PAGE + 1, {1, 2}),
        (63 * PAGE, 2 * PAGE, {63, 64}),
        (69 * PAGE + 5, PAGE - 5, {69}),
    ],
)
def test_the_pages_that_were_written(driver: Any, offset: int, size: int, pages: set[int]) -> None:
    vm = Memslots()
    vm.create(0, 0x10, 70, HVA, LOG)
    driver.Access(vm, 0x10 * PAGE + offset, size, "write").mark()
    assert dirty(vm, 0) == pages


def test_marks_in_every_slot(driver: Any) -> None:
    vm = row(10, LOG)
    vm.set_flags(5, 0)
    driver.Access(vm, 3 * PAGE + 1, 13 * PAGE, "write").mark()
    assert [dirty(vm, id) for id in range(5)] == [set(), {1}, {0, 1}, {0, 1}, {0, 1}]
    assert [dirty(vm, id) for id in range(6, 10)] == [{0, 1}, {0, 1}, {0}, set()]


def test_marks_go_with_a_slot_that_moved(driver: Any) -> None:
    vm = row(3, LOG)
    access = driver.Access(vm, 3 * PAGE, 1, "write")
    vm.move(1, 0x100)
    vm.create(9, 2, 2, HVA + 0x100000, LOG)
    access.mark()
    assert [dirty(vm, id) for id in (0, 1, 2, 9)] == [set(), {1}, set(), set()]


def test_marks_find_the_parts_of_a_slot_that_was_split(driver: Any) -> None:
    vm = Memslots()
    vm.create(0, 0x10, 10, HVA, LOG)
    access = driver.Access(vm, 0x12 * PAGE, 5 * PAGE, "write")
    with vm.transaction() as tx:
        tx.delete(0)
        tx.create(0, 0x10, 3, HVA, LOG)
        tx.create(1, 0x13, 1, HVA + 3 * PAGE)
        tx.create(2, 0x14, 6, HVA + 4 * PAGE, LOG)
        tx.create(3, 0x40, 10, HVA + 20 * PAGE, LOG)
    access.mark()
    assert [dirty(vm, id) for id in (0, 2, 3)] == [{2}, {0, 1, 2}, set()]


def test_marks_find_the_slot_that_others_were_merged_into(driver: Any) -> None:
    vm = Memslots()
    vm.create(0, 0x10, 4, HVA, LOG)
    vm.create(1, 0x14, 4, HVA + 4 * PAGE, LOG)
    access = driver.Access(vm, 0x13 * PAGE, 2 * PAGE, "write")
    with vm.transaction() as tx:
        tx.delete(0)
        tx.delete(1)
        tx.create(1, 0x20, 8, HVA, LOG)
    access.mark()
    assert dirty(vm, 1) == {3, 4}


def test_no_marks_in_other_memory(driver: Any) -> None:
    """A slot with the same id and place may be another one by now, or READONLY."""
    vm = row(3, LOG)
    accesses = [driver.Access(vm, 2 * PAGE * id, 1, "restore") for id in range(3)]
    for id in range(3):
        vm.delete(id)
    vm.create(0, 0, 2, HVA + 0x100000, LOG)
    vm.create(1, 2, 2, HVA - 2 * PAGE, LOG | Flags.READONLY)
    for access in accesses:
        access.mark()
    assert [dirty(vm, id) for id in (0, 1)] == [set(), set()]
