"""Slots of guest_memfds, in cases that no kernel answered: transactions, cuts, plans, maps."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import random
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atline import AtLine
from memfdmodel import BAD, FOREIGN, MemfdModel
from model import Model

from memslots import (
    BusyError,
    Change,
    Flags,
    GuestMemfd,
    InvalidRegionError,
    MemoryMap,
    MemslotError,
    Memslots,
    OverlapError,
    SetRegion2,
    Slot,
    plan,
)
from memslots.values.guestmemfd import Bindings

PAGE = 4096
PRIVATE = Flags.GUEST_MEMFD
FILE_PAGES = 64


@pytest.fixture
def memfd() -> GuestMemfd:
    return GuestMemfd(FILE_PAGES * PAGE)


@pytest.fixture
def vm(memfd: GuestMemfd) -> Memslots:
    """Slot 0: pages 0-15, the file's first 16. Slot 1: 16-31, plain. Slot 2: 32-47, 16 from 32."""
    vm = Memslots()
    vm.set_region2(0, PRIVATE, 0, 16 * PAGE, 0, memfd, 0)
    vm.create(1, 16, 16, 0x10000)
    vm.set_region2(2, PRIVATE, 32 * PAGE, 16 * PAGE, 0, memfd, 32 * PAGE)
    return vm


def test_what_a_slot_says(vm: Memslots, memfd: GuestMemfd) -> None:
    slot = vm.get(2)
    assert slot is not None
    assert (slot.guest_memfd, slot.guest_memfd_offset) == (memfd, 32 * PAGE)
    assert slot.flags == PRIVATE
    assert slot == Slot(2, 0, 32, 16, 0, PRIVATE, memfd, 32 * PAGE)
    assert slot != Slot(2, 0, 32, 16, 0, PRIVATE, memfd, 33 * PAGE)
    assert slot != Slot(2, 0, 32, 16, 0, PRIVATE, GuestMemfd(FILE_PAGES * PAGE), 32 * PAGE)
    assert f"guest_memfd={memfd!r}, guest_memfd_offset=0x20000)" in repr(slot)
    plain = vm.get(1)
    assert plain is not None
    assert (plain.guest_memfd, plain.guest_memfd_offset) == (None, 0)


@pytest.mark.parametrize(
    ("flags", "given", "offset", "error"),
    [
        (PRIVATE, None, 0, InvalidRegionError),
        (PRIVATE, 3, 0, TypeError),
        (0, GuestMemfd(PAGE), 0, InvalidRegionError),
        (0, None, PAGE, InvalidRegionError),
        (PRIVATE | Flags.READONLY, GuestMemfd(PAGE), 0, InvalidRegionError),
        (PRIVATE, GuestMemfd(PAGE), 1, InvalidRegionError),
        (PRIVATE, GuestMemfd(PAGE), (1 << 64) - PAGE, InvalidRegionError),
        (8, None, 0, InvalidRegionError),
    ],
)
def test_slots_that_cannot_be(
    flags: int, given: object, offset: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Slot(0, 0, 0, 1, 0, flags, given, offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, PAGE + 1, 1 << 63, (1 << 64) - PAGE])
def test_sizes_that_no_file_has(size: int) -> None:
    with pytest.raises(InvalidRegionError) as caught:
        GuestMemfd(size)
    assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, "G12")


def refused(change: Callable[[], object], number: int, rule: object) -> None:
    with pytest.raises(MemslotError) as caught:
        change()
    assert (caught.value.errno, caught.value.rule) == (number, rule), caught.value


def test_each_rule_is_named(vm: Memslots, memfd: GuestMemfd) -> None:
    def create(
        flags: int = 4, at: int = 100, npages: int = 1, file: Any = memfd, offset: int = 16
    ) -> Callable[[], object]:
        arguments = (5, flags, at * PAGE, npages * PAGE, 0, file, offset * PAGE)
        return lambda: vm.set_region2(*arguments)

    before = list(vm)
    elsewhere = GuestMemfd(PAGE)
    Memslots().set_region2(0, 4, 0, PAGE, 0, elsewhere)
    closed = GuestMemfd(PAGE)
    closed.close()
    refused(create(flags=6), errno.EINVAL, "G1")
    refused(lambda: vm.set_region(5, 4, 0, PAGE, 0), errno.EINVAL, 1)
    refused(lambda: vm.set_flags(1, 4), errno.EINVAL, 1)
    refused(lambda: vm.set_region2(5, 4, 0, PAGE, 0, memfd, 1), errno.EINVAL, "G2")
    refused(create(offset=(1 << 52) - 1), errno.EINVAL, "G2")
    refused(lambda: vm.set_region2(0, 4, 0, 16 * PAGE, 0, memfd, 0), errno.EINVAL, "G5")
    refused(lambda: vm.move(0, 100), errno.EINVAL, "G5")
    refused(lambda: vm.set_flags(0, 1), errno.EINVAL, "G5")
    refused(create(at=16), errno.EEXIST, 6)
    refused(create(file=None), errno.EBADF, "G7")
    refused(create(file=-1), errno.EBADF, "G7")
    refused(create(file=1 << 20), errno.EBADF, "G7")
    refused(create(file=closed), errno.EBADF, "G7")
    refused(create(file=elsewhere, offset=0), errno.EINVAL, "G7")
    refused(create(offset=FILE_PAGES), errno.EINVAL, "G7")
    refused(create(offset=15), errno.EINVAL, "G7")
    refused(create(npages=17), errno.EINVAL, "G7")
    refused(create(at=1 << 40), errno.EINVAL, 7)
    with Path(os.devnull).open() as plain:
        refused(create(file=plain.fileno()), errno.EINVAL, "G7")
    for file in (1.5, "3"):
        with pytest.raises(TypeError):
            create(file=file)()
    assert list(vm) == before
    assert create(npages=16)() is Change.CREATE
    vm.check()


def test_a_deletion_may_name_the_file(vm: Memslots, memfd: GuestMemfd) -> None:
    assert vm.set_region2(0, PRIVATE, 0, 0, 0, memfd, 0) is Change.DELETE
    assert vm.set_region2(2, PRIVATE, 0, 0, 0, memfd, 32 * PAGE) is Change.DELETE
    assert [slot.id for slot in vm] == [1]


def test_the_file_is_not_looked_at_without_the_flag() -> None:
    vm = Memslots()
    assert vm.set_region2(0, 0, 0, PAGE, 0x1000, "nothing", "nowhere") is Change.CREATE  # type: ignore[arg-type]
    assert vm.set_region2(0, 1, 0, PAGE, 0x1000) is Change.FLAGS_ONLY
    assert vm.set_region2(0, 0, PAGE, PAGE, 0x1000, -1, 7) is Change.MOVE
    assert vm.set_region2(0, 0, 0, 0, 0) is Change.DELETE


def test_closing(vm: Memslots, memfd: GuestMemfd) -> None:
    """G10: the last descriptor counts. The slots stay, in the way, and can only be deleted."""
    other = memfd.dup()
    assert (other == memfd, other.size) == (False, memfd.size)
    memfd.close()
    memfd.close()
    assert (memfd.closed, other.closed) == (True, False)
    refused(lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, other, 0), errno.EINVAL, "G7")
    with other:
        assert vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, other, 16 * PAGE) is Change.CREATE
    refused(lambda: vm.set_region2(6, 4, 101 * PAGE, PAGE, 0, other, 17 * PAGE), errno.EBADF, "G7")
    with pytest.raises(ValueError, match=r"use os.dup for those"):
        other.dup()
    assert vm.get(5) is not None
    with pytest.raises(OverlapError):
        vm.create(6, 100, 1, 0x1000)
    vm.delete(5)
    vm.delete(0)
    vm.check()


def test_a_step_with_a_wrong_range_is_refused_at_once(memfd: GuestMemfd) -> None:
    """The transaction goes on without it."""
    vm = Memslots()
    with vm.transaction() as tx:
        arguments = (0, PRIVATE, 0, 16 * PAGE, 0, memfd, FILE_PAGES * PAGE)
        refused(partial(tx.set_region2, *arguments), errno.EINVAL, "G7")
        tx.create(1, 0, 1, 0)
    assert [slot.id for slot in vm] == [1]


def test_slots_of_a_closed_file_cannot_be_cut(memfd: GuestMemfd) -> None:
    """They could be neither made anew nor put back. The transaction goes on."""
    vm = Memslots()
    vm.set_region2(0, PRIVATE, 0, 16 * PAGE, 0, memfd, 0)
    vm.set_region2(1, PRIVATE, 16 * PAGE, 16 * PAGE, 16 * PAGE, memfd, 16 * PAGE)
    before = list(vm)
    memfd.close()
    calls: list[Callable[[Any], object]] = [
        lambda to: to.split(0, 4),
        lambda to: to.merge(0, 1),
        lambda to: to.unmap(0, 4),
    ]
    with vm.transaction() as tx:
        for call in calls:
            refused(partial(call, tx), errno.EBADF, "G7")
            assert tx.in_gfn_range(0, 32) == before
        tx.create(5, 100, 1, 0x1000)
    for call in calls:
        refused(partial(call, vm), errno.EBADF, "G7")
    assert len(vm) == 3
    vm.unmap(0, 32)
    assert [slot.id for slot in vm] == [5]


@pytest.mark.parametrize("bases", [(0, 16, 32), (32, 16, 0), (16, 0, 32)])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_where_one_descriptor_is_closed(
    bases: tuple[int, int, int], copied: Callable[[Memslots], Memslots], memfd: GuestMemfd
) -> None:
    """The others of the file are open, so its bindings stay, those of the closed one too."""
    vm, other = Memslots(), memfd.dup()
    for id, (base, of) in enumerate(zip(bases, (memfd, other, other), strict=True)):
        vm.set_region2(id, PRIVATE, base * PAGE, 16 * PAGE, 0, of, (48 - 16 * id) * PAGE)
    memfd.close()
    for each in (vm, copied(vm)):
        each.check()
        slots = [each[id] for id in range(3)]
        assert [slot.base_gfn for slot in slots] == list(bases)
        assert [slot.guest_memfd_offset >> 12 for slot in slots] == [48, 32, 16]
        files = [slot.guest_memfd for slot in slots]
        assert [file is None or file.closed for file in files] == [True, False, False]
        again = files[1]
        for offset in (16, 32, 48):
            arguments = (9, PRIVATE, 100 * PAGE, 16 * PAGE, 0, again, offset * PAGE)
            refused(partial(each.set_region2, *arguments), errno.EINVAL, "G7")
        assert each.set_region2(9, PRIVATE, 100 * PAGE, 16 * PAGE, 0, again, 0) is Change.CREATE


def test_closing_by_two_threads_at_a_time(vm: Memslots, memfd: GuestMemfd) -> None:
    """Wherever the second thread comes in between, only one descriptor is closed."""
    for number in count(1):
        other = memfd.dup()
        with (
            ThreadPoolExecutor(1) as pool,
            AtLine(number, lambda: pool.submit(other.close).result(), GuestMemfd.close) as at,  # noqa: B023
        ):
            other.close()
        assert (memfd.closed, other.closed) == (False, True)
        # The file is still open, so its ranges are still bound.
        refused(lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 0), errno.EINVAL, "G7")
        if at.lines < number:
            break
    assert number > 2


def test_a_descriptor_that_is_closed_while_it_is_duplicated() -> None:
    """Wherever the close comes in between: the file is open with bound ranges, or dup refuses."""
    for number in count(1):
        vm, file = Memslots(), GuestMemfd(FILE_PAGES * PAGE)
        vm.set_region2(0, PRIVATE, 0, PAGE, 0, file, 0)
        with AtLine(number, file.close, GuestMemfd.dup, GuestMemfd._begin) as at:
            try:
                other = file.dup()
            except ValueError:
                continue
        with pytest.raises(InvalidRegionError, match="rule G7"):
            vm.set_region2(5, 4, 16 * PAGE, PAGE, 0, other, 0)
        if at.lines < number:
            break
    assert number > 5


def test_no_step_begins_within_a_step(vm: Memslots, memfd: GuestMemfd) -> None:
    """Python code that runs while a transaction's step checks a file cannot use the transaction."""

    def meddle() -> None:
        with pytest.raises(BusyError, match="a change"):
            tx.delete(1)

    with vm.transaction() as tx, AtLine(1, meddle, Bindings.check) as at:
        tx.set_region2(5, PRIVATE, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE)
    assert at.lines > 1
    assert [slot.id for slot in vm] == [0, 1, 2, 5]


def test_a_descriptor_is_an_integer(vm: Memslots) -> None:
    """An object whose == does not return a bool is none."""
    with pytest.raises(TypeError, match="guest_memfd must be an integer, not 'ndarray'"):
        vm.set_region2(5, 4, 0, PAGE, 0, np.arange(3), 0)
    refused(lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, -1, 0), errno.EBADF, "G7")


def test_an_argument_is_asked_once_for_its_number() -> None:
    class Flag:
        asked = 0

        def __index__(self) -> int:
            self.asked += 1
            return 0 if self.asked == 1 else 1

    flags = Flag()
    vm = Memslots()
    vm.set_region2(0, flags, 0, PAGE, 0x1000)
    assert (vm[0].flags, flags.asked) == (0, 1)


def test_a_file_lasts_as_long_as_a_slot_has_it() -> None:
    vm = Memslots()
    vm.set_region2(0, 4, 0, PAGE, 0, GuestMemfd(PAGE))
    gc.collect()
    slot = vm.get(0)
    assert slot is not None and slot.guest_memfd is not None and not slot.guest_memfd.closed
    gone = weakref.ref(slot.guest_memfd)
    vm.delete(0)
    vm.set_region2(1, 4, PAGE, PAGE, 0, GuestMemfd(PAGE))
    kept = pickle.loads(pickle.dumps(slot)).guest_memfd
    assert (kept.size, kept.closed, gone()) == (PAGE, False, slot.guest_memfd)
    del slot
    gc.collect()
    assert gone() is None


def test_a_listener_that_refuses(vm: Memslots, memfd: GuestMemfd) -> None:
    class No:
        def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            raise PermissionError

    with vm.subscribe(No()):
        for change in (
            lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE),
            lambda: vm.delete(0),
        ):
            with pytest.raises(PermissionError):
                change()
    refused(lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 0), errno.EINVAL, "G7")
    assert vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE) is Change.CREATE
    vm.check()


def test_a_listener_that_closes_the_file(vm: Memslots, memfd: GuestMemfd) -> None:
    class Closes:
        def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            memfd.close()

    before = list(vm)
    with vm.subscribe(Closes()):
        refused(
            lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE), errno.EBADF, "G7"
        )
    assert list(vm) == before
    vm.check()


def test_a_listener_that_binds_the_file_elsewhere(vm: Memslots) -> None:
    """The file then belongs to the other Memslots."""
    file, other = GuestMemfd(PAGE), Memslots()

    class Binds:
        def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
            other.set_region2(0, PRIVATE, 0, PAGE, 0, file, 0)

    before = list(vm)
    with vm.subscribe(Binds()):
        refused(lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, file, 0), errno.EINVAL, "G7")
    assert list(vm) == before
    other.delete(0)
    assert other.set_region2(0, PRIVATE, 0, PAGE, 0, file, 0) is Change.CREATE
    vm.check()


def test_a_create_works_out_its_binding_once(
    vm: Memslots, memfd: GuestMemfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is O(k) for k slots of the file."""
    calls = []
    change = Bindings.change

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return change(*arguments)

    monkeypatch.setattr(Bindings, "change", counting)
    vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE)
    assert len(calls) == 1


class TestTransaction:
    def test_ranges_change_places(self, vm: Memslots, memfd: GuestMemfd) -> None:
        with vm.transaction() as tx:
            tx.delete(0)
            tx.delete(2)
            tx.set_region2(0, 4, 0, 16 * PAGE, 0, memfd, 32 * PAGE)
            tx.set_region2(2, 4, 32 * PAGE, 16 * PAGE, 0, memfd, 0)
        assert [slot.guest_memfd_offset for slot in vm] == [32 * PAGE, 0, 0]
        refused(lambda: vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 32 * PAGE), 22, "G7")
        vm.check()

    def test_meanwhile_they_may_meet(self, vm: Memslots, memfd: GuestMemfd) -> None:
        with vm.transaction() as tx:
            tx.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 0)
            tx.delete(0)
        slot = vm.get(5)
        assert slot is not None and slot.guest_memfd_offset == 0

    def test_at_the_end_they_must_not(self, vm: Memslots, memfd: GuestMemfd) -> None:
        before = list(vm)

        def of_a_slot() -> None:
            with vm.transaction() as tx:
                tx.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 0)

        def of_each_other() -> None:
            with vm.transaction() as tx:
                tx.set_region2(5, 4, 100 * PAGE, 2 * PAGE, 0, memfd, 16 * PAGE)
                tx.set_region2(6, 4, 102 * PAGE, 2 * PAGE, 0, memfd, 17 * PAGE)

        refused(of_a_slot, errno.EINVAL, "G7")
        refused(of_each_other, errno.EINVAL, "G7")
        assert list(vm) == before
        vm.check()

    def test_what_is_left_by_an_exception(self, vm: Memslots, memfd: GuestMemfd) -> None:
        with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
            tx.delete(0)
            tx.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE)
            raise ZeroDivisionError
        assert vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, memfd, 16 * PAGE) is Change.CREATE
        refused(lambda: vm.set_region2(6, 4, 101 * PAGE, PAGE, 0, memfd, 0), 22, "G7")
        vm.check()


class TestCuts:
    def test_unmap(self, vm: Memslots, memfd: GuestMemfd) -> None:
        vm.unmap(4, 12)
        parts = [slot for slot in vm if slot.end_gfn <= 16]
        assert [(s.base_gfn, s.npages, s.guest_memfd_offset) for s in parts] == [
            (0, 4, 0),
            (12, 4, 12 * PAGE),
        ]
        assert vm.set_region2(9, 4, 4 * PAGE, 8 * PAGE, 0, memfd, 4 * PAGE) is Change.CREATE
        vm.check()

    def test_split_and_merge(self, vm: Memslots) -> None:
        first, second = vm.split(2, 40)
        assert (first.guest_memfd_offset, second.guest_memfd_offset) == (32 * PAGE, 40 * PAGE)
        # The slot's host addresses begin at 0, so those of the second part begin at 8 pages.
        assert second.userspace_addr == 8 * PAGE
        merged = vm.merge(first.id, second.id)
        assert (merged.npages, merged.guest_memfd_offset) == (16, 32 * PAGE)
        vm.check()

    def test_what_does_not_go_on_in_the_file(self, memfd: GuestMemfd) -> None:
        vm = Memslots()
        vm.set_region2(0, 4, 0, PAGE, 0, memfd, 0)
        vm.set_region2(1, 4, PAGE, PAGE, PAGE, memfd, 2 * PAGE)
        with pytest.raises(InvalidRegionError, match="not adjacent in one guest_memfd"):
            vm.merge(0, 1)

    def test_protect(self, vm: Memslots) -> None:
        refused(lambda: vm.protect(0, 20, Flags.READONLY), errno.EINVAL, "G5")


class TestMaps:
    def test_a_map_says_it_all(self, vm: Memslots, memfd: GuestMemfd) -> None:
        map = vm.map()
        assert list(map) == list(vm)
        assert map == MemoryMap(list(vm))
        vm.delete(0)
        assert map[0].guest_memfd is memfd
        assert map != vm.map()

    def test_maps_that_differ_in_the_file_alone(self, memfd: GuestMemfd) -> None:
        def of(offset: int) -> MemoryMap:
            return MemoryMap([Slot(0, 0, 0, 1, 0, PRIVATE, memfd, offset * PAGE)])

        assert of(1) != of(2)
        assert of(1) == of(1)
        assert len(plan(of(1), of(2)).calls) == 2
        assert plan(of(1), of(1)).calls == []

    def test_sums_and_differences(self, vm: Memslots, memfd: GuestMemfd) -> None:
        hole = MemoryMap([(4, 8, 0x100000)])
        left = vm.map() - hole
        assert [(s.base_gfn, s.guest_memfd_offset) for s in left if s.guest_memfd] == [
            (0, 0),
            (12, 12 * PAGE),
            (32, 32 * PAGE),
        ]
        assert [s.guest_memfd for s in vm.map() | hole][:3] == [memfd, None, memfd]
        both = vm.map() & hole
        assert [(s.base_gfn, s.npages, s.guest_memfd_offset) for s in both] == [(4, 8, 4 * PAGE)]
        over = MemoryMap([Slot(7, 0, 0, 4, 0, PRIVATE, GuestMemfd(PAGE * 4), 0)])
        assert [s.guest_memfd_offset for s in vm.map() | over] == [0, 4 * PAGE, 0, 32 * PAGE]

    def test_a_memslots_of_a_map(self, vm: Memslots) -> None:
        map = vm.map()
        with pytest.raises(InvalidRegionError, match="another Memslots"):
            Memslots(map)
        copied = pickle.loads(pickle.dumps(map))
        made = Memslots(copied)
        assert list(made) == list(copied)
        made.check()

    def test_json(self, vm: Memslots) -> None:
        map = vm.map()
        read = MemoryMap.from_json(map.to_json())
        assert read.to_json() == map.to_json()
        assert len({slot.guest_memfd for slot in read} - {None}) == 1
        with pytest.raises(InvalidRegionError, match="guest_memfd_offset is not a whole number"):
            MemoryMap.from_json(map.to_json().replace("memfd_offset", "memfd_place"))

    @pytest.mark.parametrize(
        "how", [copy.copy, copy.deepcopy, lambda vm: pickle.loads(pickle.dumps(vm))]
    )
    def test_copies_have_files_of_their_own(
        self, vm: Memslots, memfd: GuestMemfd, how: Callable[[Memslots], Memslots]
    ) -> None:
        gone = GuestMemfd(PAGE)
        vm.set_region2(5, 4, 100 * PAGE, PAGE, 0, gone)
        vm.set_region2(6, 4, 101 * PAGE, PAGE, 0, GuestMemfd(4 * PAGE), 3 * PAGE)
        gone.close()
        other = how(vm)
        other.check()
        shape = [(s.id, s.base_gfn, s.npages, s.flags, s.guest_memfd_offset) for s in vm]
        assert [(s.id, s.base_gfn, s.npages, s.flags, s.guest_memfd_offset) for s in other] == shape
        files = {s.id: s.guest_memfd for s in other if s.guest_memfd is not None}
        assert files[0] is files[2] is not memfd
        assert {id: file.closed for id, file in files.items()} == {
            0: False,
            2: False,
            5: True,
            6: False,
        }
        refused(lambda: other.move(5, 300), errno.EINVAL, "G5")
        refused(
            lambda: other.set_region2(9, 4, 200 * PAGE, PAGE, 0, files[0], 0), errno.EINVAL, "G7"
        )

    def test_pickles(self, vm: Memslots) -> None:
        other = pickle.loads(pickle.dumps(vm))
        other.check()
        files = {slot.guest_memfd for slot in other} - {None}
        assert len(files) == 1
        assert [s.guest_memfd_offset for s in other] == [s.guest_memfd_offset for s in vm]
        refused(
            lambda: other.set_region2(5, 4, 100 * PAGE, PAGE, 0, files.pop(), 0),
            errno.EINVAL,
            "G7",
        )
        slot = vm.get(0)
        assert copy.copy(slot) is slot


class TestPlans:
    def test_no_move(self, vm: Memslots, memfd: GuestMemfd) -> None:
        wanted = [Slot(0, 0, 64, 16, 0, PRIVATE, memfd, 0), *list(vm)[1:]]
        made = vm.become(wanted)
        assert made.calls == [
            (0, 0, 0, 0, 0),
            SetRegion2(0, 4, 64 * PAGE, 16 * PAGE, 0, memfd, 0),
        ]
        assert {slot.id: slot.base_gfn for slot in vm}[0] == 64
        made.check()
        vm.check()

    def test_a_range_is_free_before_another_gets_it(self, vm: Memslots, memfd: GuestMemfd) -> None:
        """Slot 3 gets the file's pages of slot 0, in a distant place."""
        wanted = [*list(vm)[1:], Slot(3, 0, 100, 16, 0, PRIVATE, memfd, 0)]
        made = plan(vm.map(), MemoryMap(wanted))
        assert [call.memory_size for call in made.calls] == [0, 16 * PAGE]
        made.check()

    def test_every_call_is_one_that_kvm_takes(self, memfd: GuestMemfd) -> None:
        choose = random.Random(5)

        def some() -> MemoryMap:
            slots: list[Slot] = []
            free = list(range(0, FILE_PAGES, 4))
            choose.shuffle(free)
            for base in range(0, 40, 4):
                match choose.randrange(3):
                    case 0:
                        slots.append(Slot(len(slots), 0, base, 4, base << 12))
                    case 1:
                        place = free.pop() * PAGE
                        slots.append(Slot(len(slots), 0, base, 4, 0, PRIVATE, memfd, place))
            return MemoryMap(slots)

        vm = Memslots()
        for _ in range(100):
            wanted = some()
            made = plan(vm.map(), wanted)
            made.check()
            for call in made.calls:
                if isinstance(call, SetRegion2):
                    assert vm.set_region2(*call) in (Change.CREATE, Change.DELETE)
                else:
                    vm.set_region(*call)
                vm.check()
            assert vm.map() == wanted


def test_random_calls_as_the_model_answers() -> None:
    """Adds to the recorded answers: several ranges of few pages, with another seed in each run."""
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    vm, model = Memslots(max_slots=8), MemfdModel(Model(max_slots=8))
    foreign = GuestMemfd(8 * PAGE)
    elsewhere = Memslots()
    elsewhere.set_region2(0, 4, 0, PAGE, 0, foreign)
    files: dict[int | str, GuestMemfd | int] = {FOREIGN: foreign, BAD: -1}
    for number in range(3000):
        if choose.random() < 0.02 or len(files) < 4:
            if len(files) == 6:
                gone = choose.choice([name for name in files if isinstance(name, int)])
                memfd = files.pop(gone)
                assert isinstance(memfd, GuestMemfd)
                memfd.close()
                model.close(gone)
            files[number] = GuestMemfd(8 * PAGE)
            model.create(number, 8 * PAGE, 0)
        name = choose.choice(list(files))
        flags = choose.choice([4, 4, 4, 4, 0, 0, 1, 2, 5, 12])
        size = choose.choice([0, 0, 1, 1, 2, 3]) * PAGE
        region = (choose.randrange(9), flags, choose.randrange(12) * PAGE, size, 0)
        offset = choose.randrange(9) * PAGE
        want = model.set_region2(*region, name, offset)
        try:
            vm.set_region2(*region, files[name], offset)
            got = 0
        except MemslotError as error:
            assert error.errno is not None
            got = -error.errno
        assert got == want, f"seed {seed}, call {number}"
        vm.check()
