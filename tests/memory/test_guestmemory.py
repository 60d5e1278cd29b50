"""GuestMemory: slots on host memory, every kind of access, what refuses it, and where it marks."""

from __future__ import annotations

import copy
import gc
import itertools
import mmap
import os
import pickle
import random
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from backend import Backend as MirrorBackend
from backend import Interrupt, agree, mirrored
from fresh import run_fresh
from model import pages_of, unchanged

from memslots import (
    Backing,
    BusyError,
    Flags,
    GuestMemory,
    InvalidRegionError,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    Slot,
)
from memslots.memory.backing import address_of

PAGE = 0x1000
LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
LONG = (256 << 10) + 1  # bytes: a copy that lets the GIL go
TOP = 1 << 64


@pytest.fixture
def vm() -> Iterator[Memslots]:
    vm = Memslots(64, address_spaces=2, max_gfn=(1 << 52) - 1)
    yield vm
    vm.check()


@pytest.fixture
def mem(vm: Memslots) -> GuestMemory:
    return GuestMemory(vm)


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def filled(pages: int, seed: int = 1) -> Backing:
    backing = Backing.anonymous(pages * PAGE)
    memoryview(backing)[:] = pattern(pages * PAGE, seed)
    return backing


def dirty(vm: Memslots, id: int, as_id: int = 0) -> set[int]:
    return pages_of(vm.get_dirty_log(id, as_id))


def known(mem: GuestMemory) -> list[Backing]:
    return list(mem.backings)


def row(mem: GuestMemory, count: int, flags: int = 0) -> Backing:
    """Slots of one page side by side from gpa 0 on; in host memory the other way round."""
    backing = filled(count)
    for id in range(count):
        mem.place(id, id * PAGE, backing, (count - 1 - id) * PAGE, PAGE, flags)
    return backing


# Placing


def test_place(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(4)
    assert known(mem) == []
    slot = mem.place(3, 5 * PAGE, backing)
    assert slot is vm[3]
    assert slot == Slot(3, 0, 5, 4, backing.hva)
    assert known(mem) == [backing]
    assert mem.read(5 * PAGE, 4 * PAGE) == bytes(backing)
    part = mem.place(4, 0, backing, offset=PAGE, size=2 * PAGE, flags=LOG | READONLY)
    assert part == Slot(4, 0, 0, 2, backing.hva + PAGE, LOG | READONLY)
    assert mem.place(5, 2 * PAGE, backing, 3 * PAGE).memory_size == PAGE
    assert known(mem) == [backing]
    assert (mem.vm, mem.as_id) == (vm, 0)
    assert repr(mem) == "<GuestMemory of address space 0: 3 slots, 1 backings>"


def test_backings_are_told_by_host_address(mem: GuestMemory) -> None:
    made = [Backing.anonymous(PAGE) for _ in range(20)]
    for id, backing in enumerate(made):
        mem.place(id, id * PAGE, backing)
    assert mem.backings == tuple(sorted(made, key=lambda backing: backing.hva))
    for id, backing in enumerate(made):
        mem.write(id * PAGE, bytes([id]))
        assert bytes(backing)[0] == id


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"gpa": 0x1001}, InvalidRegionError, "gpa 0x1001.* must be multiples"),
        ({"offset": 1}, InvalidRegionError, "offset 0x1 and size 0x3fff must be multiples"),
        ({"size": 1}, InvalidRegionError, "size 0x1 must be multiples"),
        ({"size": 0}, InvalidRegionError, "npages|pages"),
        ({"offset": 4 * PAGE}, InvalidRegionError, "npages|pages"),
        ({"offset": 5 * PAGE}, InvalidRegionError, r"\[0x5000, 0x5000\) is not all in <Backing"),
        ({"size": 5 * PAGE}, InvalidRegionError, r"\[0x0, 0x5000\) is not all in <Backing"),
        ({"offset": PAGE, "size": 4 * PAGE}, InvalidRegionError, r"\[0x1000, 0x5000\) is not"),
        ({"offset": PAGE, "size": TOP - PAGE}, InvalidRegionError, r"0x10000000000000000\) is not"),
        ({"offset": TOP - PAGE}, InvalidRegionError, "0xfffffffffffff000"),
        ({"slot": 64}, InvalidRegionError, "slot|id"),
        ({"slot": 0}, InvalidRegionError, "slot 0|Slot"),
        ({"gpa": 8 * PAGE}, OverlapError, "overlap|in the way|0x8"),
        ({"gpa": TOP - 4 * PAGE}, InvalidRegionError, "wrap|64"),
        ({"flags": 4}, InvalidRegionError, "flag"),
        ({"flags": 1 << 32}, OverflowError, "flags"),
        ({"flags": "1"}, TypeError, "flags must be an integer"),
        ({"slot": -1}, OverflowError, "slot"),
        ({"gpa": -PAGE}, OverflowError, "gpa"),
        ({"gpa": 0.0}, TypeError, "gpa must be an integer"),
        ({"backing": b"0" * PAGE}, TypeError, "backing must be a Backing, not 'bytes'"),
        ({"backing": None}, TypeError, "backing must be a Backing"),
    ],
)
def test_a_place_that_cannot_be(
    vm: Memslots,
    mem: GuestMemory,
    arguments: dict[str, object],
    error: type[Exception],
    what: str,
) -> None:
    there = filled(1)
    mem.place(0, 9 * PAGE, there)
    given = {"slot": 1, "gpa": 0, "backing": Backing.anonymous(4 * PAGE), **arguments}
    with unchanged(vm), pytest.raises(error, match=what):
        mem.place(**given)  # type: ignore[arg-type]
    assert known(mem) == [there]


def test_a_failed_place_keeps_what_is_in_use(mem: GuestMemory) -> None:
    backing = filled(2)
    mem.place(0, 0, backing)
    with pytest.raises(OverlapError):
        mem.place(1, PAGE, backing)
    assert known(mem) == [backing]
    assert mem.read(0, 1) == bytes(backing)[:1]


def test_memory_that_cannot_be_written_is_for_readonly_slots(
    vm: Memslots, mem: GuestMemory, tmp_path: Path
) -> None:
    (tmp_path / "rom").write_bytes(pattern(PAGE))
    rom = Backing.file(tmp_path / "rom", readonly=True)
    with unchanged(vm), pytest.raises(InvalidRegionError, match="slot on it must be READONLY"):
        mem.place(0, 0, rom, flags=LOG)
    assert known(mem) == []
    mem.place(0, 0, rom, flags=READONLY)
    assert mem.read(0, PAGE) == pattern(PAGE)
    # A slot that was made past `place`, and lets the guest try.
    vm.create(1, 1, 1, rom.hva)
    with pytest.raises(ReadOnlyError, match=r"gpa 0x1005 .*host memory cannot be written"):
        mem.write(PAGE + 5, b"x")
    assert mem.read(PAGE, PAGE) == pattern(PAGE)
    assert mem.view(PAGE, 1).readonly


def test_all_of_a_memslots_know_the_same_memory(vm: Memslots, mem: GuestMemory) -> None:
    """And none is left behind by those that are gone."""
    backing = filled(2)
    mem.place(0, 0, backing)
    for _ in range(3):
        other = GuestMemory(vm)
        assert other.backings == (backing,)
        assert other.read(PAGE, PAGE) == bytes(backing)[PAGE:]
    other.add(spare := filled(1))
    assert set(mem.backings) == {backing, spare}
    assert set(mem.address_space(1).backings) == {backing, spare}
    del other, mem
    assert set(GuestMemory(vm).backings) == {backing, spare}


def test_memory_stays_while_a_backend_owes_to_undo_a_slot() -> None:
    vm, backend = mirrored()
    mem = GuestMemory(vm)
    memory = filled(1)
    backend.refused, backend.how = {1, 2}, "late"
    with pytest.raises(Interrupt):
        mem.place(0, 0, memory)
    assert len(vm) == 0
    assert known(mem) == [memory]
    backend.refused = set()
    vm.create(1, 0x20, 1, 0)
    backend.agrees(vm)
    mem.remove(memory)
    assert known(mem) == []


def test_a_listener_refuses_a_place(vm: Memslots, mem: GuestMemory) -> None:
    class Listener:
        def prepare(self, *args: object) -> None:
            raise ZeroDivisionError

    with vm.subscribe(Listener()), pytest.raises(ZeroDivisionError):
        mem.place(0, 0, filled(1))
    assert known(mem) == []


def test_add_and_remove(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(2)
    vm.create(0, 0, 1, backing.hva)
    with pytest.raises(NotMappedError, match=r"gpa 0x10 is in .*host memory is not known"):
        mem.read(16, 1)
    mem.remove(backing)  # which is not known
    mem.add(backing)
    mem.add(backing)
    assert known(mem) == [backing]
    assert mem.read(16, 1) == bytes(backing)[16:17]
    with pytest.raises(BusyError, match="slots are on <Backing"):
        mem.remove(backing)
    vm.create(0, 0, 1, backing.hva + PAGE, as_id=1)
    vm.delete(0)
    with pytest.raises(BusyError):  # of any address space
        mem.remove(backing)
    vm.delete(0, as_id=1)
    assert known(mem) == []
    mem.add(backing)
    mem.remove(backing)
    mem.remove(backing)
    assert known(mem) == []
    for method in (mem.add, mem.remove):
        with pytest.raises(TypeError, match="backing must be a Backing"):
            method(b"")  # type: ignore[arg-type]


def test_host_memory_is_known_once(vm: Memslots, mem: GuestMemory) -> None:
    memory = memoryview(mmap.mmap(-1, 4 * PAGE))
    middle = Backing(memory[PAGE : 3 * PAGE])
    mem.add(middle)
    for part in (memory, memory[: 2 * PAGE], memory[2 * PAGE :], memory[PAGE : 3 * PAGE]):
        for call in (mem.add, lambda backing: mem.place(0, 0, backing)):
            with unchanged(vm), pytest.raises(ValueError, match="shares memory with"):
                call(Backing(part))
    mem.add(Backing(memory[:PAGE]))
    mem.add(Backing(memory[3 * PAGE :]))
    assert len(mem.backings) == 3


def test_the_last_slot_that_goes_lets_the_memory_go(vm: Memslots, mem: GuestMemory) -> None:
    backing, smm = filled(3), mem.address_space(1)
    mem.place(0, 0, backing, 0, PAGE)
    mem.place(1, PAGE, backing, 2 * PAGE, PAGE)
    smm.place(0, 0, backing)
    vm.delete(0)
    vm.delete(1)
    assert known(mem) == known(smm) == [backing]
    vm.set_region(1 << 16, 0, 0, 0, 0)
    assert known(mem) == known(smm) == []


def test_a_slot_that_begins_before_the_memory_counts(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(2)
    mem.add(backing)
    vm.create(0, 0, 2, backing.hva - PAGE)
    with pytest.raises(BusyError):
        mem.remove(backing)
    vm.delete(0)
    assert known(mem) == []


class Meddling(Memslots):
    """Something else happens, as from another thread, in the middle of what is asked of it."""

    __slots__ = ("at",)
    at: dict[str, list[Callable[[], object]]]

    def meddle(self, name: str) -> None:
        waiting = getattr(self, "at", {}).get(name)
        if waiting:
            waiting.pop()()

    def create(self, *args: int) -> Slot:  # type: ignore[override]
        self.meddle("before")
        made = super().create(*args)
        self.meddle("after")
        return made


def test_a_slot_that_is_deleted_while_it_is_placed() -> None:
    vm = Meddling(address_spaces=2)
    mem = GuestMemory(vm)
    vm.at = {"after": [lambda: vm.delete(0)]}
    mem.place(0, 0, filled(1))
    assert known(mem) == []
    backing = filled(2)
    mem.place(0, 0, backing, 0, PAGE)
    vm.at = {"before": [lambda: vm.delete(0)]}
    mem.place(1, 0, backing, PAGE)
    assert known(mem) == [backing]
    assert mem.read(0, PAGE) == bytes(backing)[PAGE:]


def test_memory_is_let_go_beside_threads_that_place_slots_on_it() -> None:
    """Whoever has placed a slot can read it, whatever others let go of meanwhile."""
    backing = filled(3)
    vm = Memslots()
    mem = GuestMemory(vm)
    start = threading.Barrier(3)
    stop = threading.Event()

    def place(id: int) -> int:
        start.wait()
        for times in itertools.count(1):
            mem.place(id, id * PAGE, backing, id * PAGE, PAGE)
            assert mem.read(id * PAGE, PAGE) == bytes(backing)[id * PAGE : (id + 1) * PAGE]
            vm.delete(id)
            if stop.is_set():
                return times
        raise AssertionError

    def let_go() -> int:
        start.wait()
        for times in itertools.count(1):
            with suppress(BusyError):
                mem.remove(backing)
            if stop.is_set():
                return times
        raise AssertionError

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(place, 0), pool.submit(place, 1), pool.submit(let_go)]
            wait(work, timeout=0.3, return_when=FIRST_EXCEPTION)
            stop.set()
            assert all(each.result() > 10 for each in work)
    finally:
        sys.setswitchinterval(before)
    assert known(mem) == []


# Address spaces, aliases, transactions


def test_an_alias_in_another_address_space(vm: Memslots, mem: GuestMemory) -> None:
    """SMRAM: two slots of two address spaces over one memory; 0 has something else there."""
    ram, vga, smm = filled(4), filled(1, seed=2), mem.address_space(1)
    assert (smm.as_id, smm.vm) == (1, vm)
    mem.place(0, 0, ram, flags=LOG)
    mem.place(1, 0xA0000, vga)
    smm.place(0, 0, ram, flags=LOG)
    smm.place(1, 0xA0000, ram, 2 * PAGE, PAGE, LOG)
    smm.write(0xA0010, b"handler")
    assert mem.read(2 * PAGE + 16, 7) == smm.read(2 * PAGE + 16, 7) == b"handler"
    assert mem.read(0xA0000, PAGE) == bytes(vga)
    # Each log is of what was written by way of its slot.
    assert (dirty(vm, 1, 1), dirty(vm, 0, 1), dirty(vm, 0)) == ({0}, set(), set())
    with pytest.raises(InvalidRegionError):
        mem.address_space(2)
    with pytest.raises(TypeError):
        mem.address_space("1")  # type: ignore[arg-type]


def test_what_an_mmu_notifier_asks(vm: Memslots, mem: GuestMemory) -> None:
    """The guest pages of a run of host memory, in all address spaces."""
    ram, other, smm = Backing.anonymous(8 * PAGE), Backing.anonymous(PAGE), mem.address_space(1)
    low = mem.place(0, 0x100000, ram, 0, 4 * PAGE)
    high = mem.place(1, 0x800000, ram, 2 * PAGE, 6 * PAGE)
    mem.place(2, 0, other)
    alias = smm.place(0, 0xA0000, ram, 3 * PAGE, PAGE)

    def pages(first: int, end: int) -> list[list[tuple[Slot, int, int]]]:
        hvas = ram.hva + first * PAGE, ram.hva + end * PAGE
        return [vm.address_space(as_id).in_hva_range(*hvas) for as_id in (0, 1)]

    assert pages(0, 1) == [[(low, 0x100, 0x101)], []]
    assert pages(3, 4) == [[(low, 0x103, 0x104), (high, 0x801, 0x802)], [(alias, 0xA0, 0xA1)]]
    assert pages(0, 8) == [[(low, 0x100, 0x104), (high, 0x800, 0x806)], [(alias, 0xA0, 0xA1)]]
    assert pages(4, 5) == [[(high, 0x802, 0x803)], []]


def test_a_split_in_a_transaction(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(4)
    mem.place(0, 0, backing)
    with vm.transaction() as tx:
        tx.delete(0)
        assert mem.read(0, 4 * PAGE) == bytes(backing)  # not yet
        tx.create(1, 0, 1, backing.hva)
        tx.create(2, 3, 1, backing.hva + 3 * PAGE)
    assert known(mem) == [backing]
    assert mem.read(0, PAGE) == bytes(backing)[:PAGE]
    assert mem.read(3 * PAGE, PAGE) == bytes(backing)[3 * PAGE :]
    with pytest.raises(NotMappedError, match="gpa 0x1000 "):
        mem.read(0, 4 * PAGE)
    with vm.transaction() as tx:
        tx.delete(1)
        tx.delete(2)
    assert known(mem) == []


def test_two_slots_trade_places(vm: Memslots, mem: GuestMemory) -> None:
    a, b = filled(2, seed=1), filled(2, seed=2)
    mem.place(0, 0, a)
    mem.place(1, 2 * PAGE, b)
    with vm.transaction() as tx:
        tx.move(0, 2)
        tx.move(1, 0)
    assert mem.read(0, 4 * PAGE) == bytes(b) + bytes(a)
    # The same slots, each with what the other was on.
    with vm.transaction() as tx:
        tx.delete(0)
        tx.delete(1)
        tx.create(0, 2, 2, b.hva)
        tx.create(1, 0, 2, a.hva)
    assert mem.read(0, 4 * PAGE) == bytes(a) + bytes(b)
    assert set(mem.backings) == {a, b}


def test_a_transaction_that_is_given_up(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(1)
    mem.place(0, 0, backing)
    with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
        tx.delete(0)
        raise ZeroDivisionError
    assert mem.read(0, PAGE) == bytes(backing)
    assert known(mem) == [backing]


def test_place_in_a_transaction_is_a_change_of_its_own(vm: Memslots, mem: GuestMemory) -> None:
    with vm.transaction(), pytest.raises(BusyError):
        mem.place(0, 0, filled(1))
    assert known(mem) == []


# Reading and writing


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_across_slots(mem: GuestMemory, count: int) -> None:
    backing = row(mem, count)
    pages = [bytes(backing)[n * PAGE : (n + 1) * PAGE] for n in reversed(range(count))]
    memory = bytearray(b"".join(pages))
    assert mem.read(0, count * PAGE) == memory
    for gpa, size in ((1, count * PAGE - 1), (0, count * PAGE - 1), (PAGE // 2, PAGE)):
        if gpa + size > count * PAGE:
            continue
        assert mem.read(gpa, size) == memory[gpa : gpa + size]
        into = bytearray(size)
        assert mem.readinto(gpa, into) == size
        assert into == memory[gpa : gpa + size]
        data = pattern(size, seed=size)
        assert mem.write(gpa, data) == size
        memory[gpa : gpa + size] = data
        assert mem.read(0, count * PAGE) == memory
        mem.fill(gpa, size, 0xA5)
        memory[gpa : gpa + size] = b"\xa5" * size
        assert mem.read(0, count * PAGE) == memory
    mem.fill(1, 3)
    assert mem.read(0, 5) == memory[:1] + bytes(3) + memory[4:5]


def test_long_copies(vm: Memslots, mem: GuestMemory) -> None:
    size = (LONG // PAGE + 1) * PAGE
    for id in range(6):
        mem.place(id, id * size, Backing.anonymous(size), flags=LOG)
    data = pattern(6 * size - 7)
    assert mem.write(3, data) == len(data)
    assert mem.read(3, len(data)) == data
    into = bytearray(LONG)
    mem.readinto(size - 5, into)
    assert into == data[size - 8 :][:LONG]
    mem.fill(size - 5, LONG, 7)
    assert (
        mem.read(size - 6, LONG + 2)
        == data[size - 9 :][:1] + b"\7" * LONG + (data[size - 8 + LONG :][:1])
    )
    assert all(dirty(vm, id) == set(range(size // PAGE)) for id in range(6))


def test_buffers(mem: GuestMemory) -> None:
    row(mem, 2)
    into = np.zeros((4, 8), np.uint32)
    assert mem.write(PAGE - 64, array("Q", range(16))) == 128
    assert mem.readinto(PAGE - 64, into) == 128
    assert into.ravel().view(np.uint64).tolist() == list(range(16))
    assert mem.write(0, np.arange(3, dtype=np.uint16)) == 6
    assert mem.read(0, 6) == b"\0\0\1\0\2\0"
    for wrong in (into[::2], "text", 8, None):
        for call in (mem.write, mem.readinto):
            with pytest.raises((TypeError, BufferError, ValueError)):
                call(0, wrong)  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError)):
        mem.readinto(0, b"1234")
    assert mem.read(0, 6) == b"\0\0\1\0\2\0"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_numbers(vm: Memslots, mem: GuestMemory, size: int) -> None:
    row(mem, 3, LOG)
    read: Callable[[int], int] = getattr(mem, f"read_u{8 * size}")
    write: Callable[[int, int], None] = getattr(mem, f"write_u{8 * size}")
    for gpa in (0, 8, 1, 3, 5, *range(PAGE - 8, PAGE + 2), 2 * PAGE - 1, 3 * PAGE - size):
        for value in (0, 1, (1 << 8 * size) - 1, 0x0123456789ABCDEF >> (64 - 8 * size)):
            before = mem.read(0, 3 * PAGE)
            dirty(vm, gpa // PAGE)
            write(gpa, value)
            data = value.to_bytes(size, "little")
            assert read(gpa) == value
            assert mem.read(0, 3 * PAGE) == before[:gpa] + data + before[gpa + size :]
    for value in (1 << 8 * size, -1, 1 << 70):
        before = mem.read(0, 3 * PAGE)
        with pytest.raises(OverflowError, match="value"):
            write(0, value)
        assert mem.read(0, 3 * PAGE) == before
    with pytest.raises(TypeError, match="value must be an integer"):
        write(0, "1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gpa must be an integer"):
        read("1")  # type: ignore[arg-type]
    with pytest.raises(NotMappedError, match="gpa 0x3000 "):
        read(3 * PAGE - size + 1)
    with pytest.raises(NotMappedError, match="gpa 0x3000 "):
        write(3 * PAGE - size + 1, 0)


def test_every_call_refuses_the_wrong_type(mem: GuestMemory, tmp_path: Path) -> None:
    row(mem, 1)
    (tmp_path / "file").write_bytes(b"x")
    for gpa in ("0", None, 1.0):
        for call in (
            lambda gpa: mem.read(gpa, 0),
            lambda gpa: mem.readinto(gpa, bytearray()),
            lambda gpa: mem.write(gpa, b""),
            lambda gpa: mem.fill(gpa, 0),
            lambda gpa: mem.view(gpa, 0),
            lambda gpa: mem.views(gpa, 0),
            lambda gpa: mem.mark_dirty(gpa, 0),
            lambda gpa: mem.load(tmp_path / "file", gpa),
        ):
            with pytest.raises(TypeError, match="gpa must be an integer"):
                call(gpa)
    for n in ("0", None, 1.0):
        for method in (mem.read, mem.fill, mem.view, mem.views, mem.mark_dirty):
            with pytest.raises(TypeError, match="n must be an integer"):
                method(0, n)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="value does not fit its 8 bits"):
        mem.fill(0, 1, 256)
    with pytest.raises(OverflowError, match="gpa must not be negative"):
        mem.read(-1, 1)
    assert mem.read(np.uint64(0), np.int8(2)) == mem.read(0, 2)


def test_no_bytes_are_everywhere(mem: GuestMemory) -> None:
    for gpa in (0, 5, TOP - 1):
        assert mem.read(gpa, 0) == b""
        assert mem.readinto(gpa, bytearray()) == mem.write(gpa, b"") == 0
        mem.fill(gpa, 0)
        mem.mark_dirty(gpa, 0)
        assert mem.views(gpa, 0) == mem.views(gpa, 0, write=True) == []
        assert mem.view(gpa, 0).nbytes == 0


def refusals(mem: GuestMemory, gpa: int, n: int) -> Iterator[Callable[[], object]]:
    yield lambda: mem.read(gpa, n)
    yield lambda: mem.view(gpa, n)
    yield lambda: mem.views(gpa, n)
    yield from writes(mem, gpa, n)


def writes(mem: GuestMemory, gpa: int, n: int) -> Iterator[Callable[[], object]]:
    yield lambda: mem.fill(gpa, n, 1)
    yield lambda: mem.views(gpa, n, write=True)
    if n < 1 << 20:
        yield lambda: mem.write(gpa, bytes(n))


@pytest.mark.parametrize("before", range(8))
def test_a_hole(vm: Memslots, mem: GuestMemory, before: int) -> None:
    row(mem, before, LOG) if before else None
    mem.place(60, (before + 1) * PAGE, filled(1), flags=LOG)
    hole = before * PAGE
    kept = mem.read(0, hole)
    into = bytearray(b"kept" * PAGE * 4)
    for gpa in {0, max(hole - 5, 0), hole, hole + 7}:
        bad = max(gpa, hole)
        for n in (bad - gpa + 1, bad - gpa + PAGE + 100, 1 << 40, 1 << 63):
            for call in refusals(mem, gpa, n):
                with pytest.raises(NotMappedError, match=f"gpa {bad:#x} .* is in no slot"):
                    call()
        with pytest.raises(NotMappedError, match=f"gpa {bad:#x} "):
            mem.readinto(gpa, memoryview(into)[: bad - gpa + 1])
    assert into == b"kept" * PAGE * 4
    assert mem.read(0, hole) == kept
    assert all(dirty(vm, slot.id) == set() for slot in vm)


@pytest.mark.parametrize("before", range(8))
def test_readonly(vm: Memslots, mem: GuestMemory, before: int) -> None:
    row(mem, before, LOG) if before else None
    rom = filled(1, seed=2)
    mem.place(60, before * PAGE, rom, flags=LOG | READONLY)
    kept = mem.read(0, (before + 1) * PAGE)
    assert kept.endswith(bytes(rom))
    for gpa in {0, max(before * PAGE - 5, 0), before * PAGE + 9}:
        bad = max(gpa, before * PAGE)
        for call in writes(mem, gpa, bad - gpa + 8):
            with pytest.raises(ReadOnlyError, match=f"gpa {bad:#x} "):
                call()
    for write in (mem.write_u8, mem.write_u16, mem.write_u32, mem.write_u64):
        with pytest.raises(ReadOnlyError):
            write(before * PAGE, 0)
    assert mem.read(0, (before + 1) * PAGE) == kept
    assert all(dirty(vm, slot.id) == set() for slot in vm)
    view = mem.views(0, (before + 1) * PAGE)[-1]
    assert view.readonly
    assert bytes(view) == bytes(rom)


@pytest.mark.parametrize("before", range(7))
def test_the_first_that_is_in_the_way_is_named(vm: Memslots, mem: GuestMemory, before: int) -> None:
    """Good slots, one on unknown memory, a hole, and a READONLY slot."""
    row(mem, before) if before else None
    unknown = filled(1)
    slot = vm.create(60, before, 1, unknown.hva)
    mem.place(61, (before + 2) * PAGE, filled(1), flags=READONLY)
    kept = bytes(unknown)
    gpa = max(before * PAGE - 1, 0)
    for n in (2, PAGE, PAGE + 2, 3 * PAGE):
        for call in refusals(mem, gpa, n):
            with pytest.raises(NotMappedError, match="host memory is not known") as caught:
                call()
            assert f"gpa {before * PAGE:#x} is in {slot}" in str(caught.value)
    assert bytes(unknown) == kept


def unknown_memory() -> None:
    """Touching what a slot merely names would be the end of the process."""
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(PAGE))
    for id, hva in enumerate((0, PAGE, 0x1000_0000_0000), 1):
        vm.create(id, id, 1, hva)
    for gpa in (PAGE - 1, PAGE, 2 * PAGE, 3 * PAGE):
        for call in refusals(mem, gpa, 8):
            with pytest.raises(NotMappedError, match="host memory is not known"):
                call()
    print("well", end="")


def test_unknown_memory_is_never_touched() -> None:
    assert run_fresh(unknown_memory) == "well"


def test_a_slot_that_is_not_all_on_known_memory(vm: Memslots, mem: GuestMemory) -> None:
    room = memoryview(mmap.mmap(-1, 4 * PAGE))
    backing = Backing(room[PAGE : 3 * PAGE])
    mem.add(backing)
    vm.create(0, 0x10, 4, backing.hva - PAGE)
    mem.write(0x11000, b"ab")
    assert bytes(backing)[:2] == b"ab"
    with pytest.raises(NotMappedError, match=r"gpa 0x10ffe .*not known"):
        mem.read(0x10FFE, 4)
    with pytest.raises(NotMappedError, match=r"gpa 0x13000 .*is beyond <Backing"):
        mem.fill(0x12FF0, 17)
    assert mem.read(0x12FF0, 16) == bytes(16)


def test_the_end_of_guest_memory(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(2)
    mem.place(0, TOP - 3 * PAGE, backing, flags=LOG)  # the last page of all no slot can have
    assert mem.read(TOP - 3 * PAGE, 2 * PAGE) == bytes(backing)
    mem.write_u64(TOP - PAGE - 8, 1)
    assert dirty(vm, 0) == {1}
    for gpa, n in ((TOP - PAGE - 1, 2), (TOP - PAGE, 1), (TOP - 1, 1), (TOP - 3 * PAGE, 3 * PAGE)):
        for call in refusals(mem, gpa, n):
            with pytest.raises(NotMappedError, match=f"gpa {max(gpa, TOP - PAGE):#x} "):
                call()
    for gpa, n in ((TOP - 1, 2), (TOP - PAGE, TOP - 1), (2, TOP - 1), (TOP - 3 * PAGE, 4 * PAGE)):
        for call in refusals(mem, gpa, n):
            with pytest.raises(InvalidRegionError, match="go beyond the last guest address"):
                call()
        with pytest.raises(InvalidRegionError, match="go beyond the last guest address"):
            mem.mark_dirty(gpa, n)
    with pytest.raises(InvalidRegionError):
        mem.read_u64(TOP - 4)
    with pytest.raises(OverflowError):
        mem.read(TOP, 1)
    with pytest.raises(OverflowError):
        mem.read(0, TOP)


# Overlap


@pytest.mark.parametrize("pages", [None, [0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [1, 0, 3, 2, 1]])
@pytest.mark.parametrize(("source", "target"), [(0, 100), (100, 0), (0, PAGE), (PAGE, 0), (7, 7)])
def test_guest_memory_copied_onto_itself(
    mem: GuestMemory, pages: list[int] | None, source: int, target: int
) -> None:
    """By way of one slot or of several, which overwrite what is yet to be copied."""
    n = 3 * PAGE
    backing = filled(5)
    if pages is None:
        mem.place(0, 0, backing)
    else:
        for id, page in enumerate(pages):
            mem.place(id, id * PAGE, backing, page * PAGE, PAGE)
    there = memoryview(backing)[source : source + n]
    # What it comes to with a copy in between: guest memory is written in order.
    data = bytes(there)
    before = bytes(backing)
    want = bytearray(before)
    for gpa in range(target, target + n):
        page = gpa // PAGE if pages is None else pages[gpa // PAGE]
        want[page * PAGE + gpa % PAGE] = data[gpa - target]
    assert mem.write(target, there) == n
    assert bytes(backing) == want
    memoryview(backing)[:] = before
    wanted = mem.read(target, n)
    assert mem.readinto(target, there) == n
    assert bytes(backing) == before[:source] + wanted + before[source + n :]


# Marks


def test_marks_are_on_the_pages_that_were_written(vm: Memslots, mem: GuestMemory) -> None:
    mem.place(0, 0, Backing.anonymous(70 * PAGE), flags=LOG)
    mem.place(1, 70 * PAGE, Backing.anonymous(PAGE))
    mem.place(2, 71 * PAGE, Backing.anonymous(2 * PAGE), flags=LOG)
    for call, pages in (
        (lambda: mem.write(5, b"x"), {0}),
        (lambda: mem.write(PAGE - 1, b"xy"), {0, 1}),
        (lambda: mem.fill(63 * PAGE, PAGE + 1), {63, 64}),
        (lambda: mem.write_u64(3 * PAGE - 4, 1), {2, 3}),
        (lambda: mem.write_u8(9 * PAGE, 1), {9}),
        (lambda: mem.write_u16(10 * PAGE - 2, 1), {9}),
        (lambda: mem.write_u32(10 * PAGE - 1, 1), {9, 10}),
        (lambda: mem.mark_dirty(12 * PAGE - 1, PAGE), {11, 12}),
        (lambda: mem.fill(69 * PAGE, 2 * PAGE), {69}),
        (lambda: mem.read(0, 70 * PAGE), set()),
        (lambda: mem.readinto(0, bytearray(PAGE)), set()),
        (lambda: mem.views(0, PAGE, write=True)[0].__setitem__(0, 1), set()),
        (lambda: mem.write(0, b""), set()),
    ):
        call()
        assert dirty(vm, 0) == pages
        assert dirty(vm, 2) == set()
    mem.fill(69 * PAGE + 1, 2 * PAGE)
    assert (dirty(vm, 0), dirty(vm, 2)) == ({69}, {0})
    mem.mark_dirty(0, 1 << 63)
    assert (dirty(vm, 0), dirty(vm, 2)) == (set(range(70)), {0, 1})


def test_marks_of_another_address_space(vm: Memslots, mem: GuestMemory) -> None:
    backing, smm = filled(2), mem.address_space(1)
    mem.place(0, 0, backing, flags=LOG)
    smm.place(0, 0, backing, flags=LOG)
    smm.mark_dirty(PAGE, 1)
    smm.fill(0, 1)
    assert (dirty(vm, 0), dirty(vm, 0, 1)) == (set(), {0, 1})


def test_marks_from_inside_a_listener(vm: Memslots, mem: GuestMemory) -> None:
    """The slot is INVALID while it moves: it cannot be accessed, before and after it can."""
    mem.place(0, 0, filled(3), flags=LOG)
    seen: list[object] = []

    class Listener:
        def prepare(self, *args: object) -> None:
            with pytest.raises(NotMappedError, match="about to go or to move"):
                mem.write(PAGE, b"x")
            mem.mark_dirty(2 * PAGE, 1)
            seen.append(None)

        def commit(self, *args: object) -> None:
            mem.write(0x100000, b"y")
            seen.append(mem.read(0x100000, 1))

    with vm.subscribe(Listener()):
        vm.move(0, 0x100)
    assert seen == [None, b"y"]
    assert dirty(vm, 0) == {0, 2}


def test_marks_while_the_slot_moves(vm: Memslots, mem: GuestMemory) -> None:
    """What was written is in the log, wherever the slot is by then."""
    pages = LONG // PAGE + 2
    mem.place(0, 0, Backing.anonymous(pages * PAGE), flags=LOG)
    start, end = threading.Barrier(2), threading.Event()

    def move() -> None:
        start.wait()
        n = 0
        while not end.is_set():
            n += 1
            vm.move(0, (n & 1) * 0x1000)

    thread = threading.Thread(target=move)
    thread.start()
    start.wait()
    written = 0
    try:
        for n in range(100_000):
            value = n % 255 + 1
            try:
                mem.fill((n & 1) * 0x1000 * PAGE, pages * PAGE, value)
            except NotMappedError:
                assert dirty(vm, 0) == set()
            else:
                written += 1
                assert dirty(vm, 0) == set(range(pages))
            if written == 50:
                break
    finally:
        end.set()
        thread.join()
    assert written == 50


# Mirrored


def test_a_mirrored_memslots() -> None:
    vm, backend = mirrored()
    mem = GuestMemory(vm)
    backing = filled(4)
    mem.place(0, 0, backing, flags=LOG)
    mem.address_space(1).place(1, 8 * PAGE, backing, PAGE, PAGE)
    agree(vm, backend)
    backend.write(3)
    mem.write(PAGE, b"x")
    assert vm.take_dirty_runs() == [(0, 1, 2), (0, 3, 4)]
    backend.refused = {len(backend.calls) + 1}
    other = filled(1)
    with pytest.raises(OSError, match="no"):
        mem.place(2, 16 * PAGE, other)
    agree(vm, backend)
    assert known(mem) == [backing]
    backend.refused = {len(backend.calls) + 1, len(backend.calls) + 2}
    with pytest.raises(OSError, match="no"):
        vm.delete(1, as_id=1)
    with pytest.raises(OSError, match="no"):
        vm.move(0, 100)
    agree(vm, backend)
    vm.delete(1, as_id=1)
    assert mem.read(PAGE, 1) == b"x"
    mem.fill(0, 1)
    assert vm.take_dirty_runs() == [(0, 0, 1)]
    vm.delete(0)
    assert known(mem) == []
    assert isinstance(vm.backend, MirrorBackend)


# Views


def test_views(vm: Memslots, mem: GuestMemory) -> None:
    backing = row(mem, 3)
    view = mem.view(PAGE - 10, 10)
    assert address_of(view) == backing.hva + 3 * PAGE - 10
    view[0] = 1
    assert mem.read_u8(PAGE - 10) == 1
    mem.write_u8(PAGE - 9, 2)
    assert view[1] == 2
    with pytest.raises(InvalidRegionError, match="0xb bytes from gpa 0xff6 are in 2 slots"):
        mem.view(PAGE - 10, 11)
    views = mem.views(PAGE - 10, PAGE + 20, write=True)
    assert [len(view) for view in views] == [10, PAGE, 10]
    assert b"".join(views) == mem.read(PAGE - 10, PAGE + 20)
    assert not any(view.readonly for view in views)
    read, write = os.pipe()
    try:
        os.write(write, b"from a pipe")
        assert os.readv(read, mem.views(2 * PAGE - 4, 11, write=True)) == 11
    finally:
        os.close(read)
        os.close(write)
    assert mem.read(2 * PAGE - 4, 11) == b"from a pipe"


def views_outlive_all() -> None:
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(PAGE))
    mem.place(1, PAGE, Backing.memfd(2 * PAGE))
    mem.write(0, pattern(3 * PAGE))
    whole, parts = mem.view(PAGE, 2 * PAGE), mem.views(5, 2 * PAGE)
    array = np.frombuffer(mem.view(0, PAGE), np.uint64)
    vm.delete(0)
    vm.delete(1)
    assert known(mem) == []
    del vm, mem
    gc.collect()
    room = [mmap.mmap(-1, PAGE) for _ in range(100)]  # would be where it was
    assert bytes(whole) == pattern(3 * PAGE)[PAGE:]
    assert array.tobytes() == pattern(3 * PAGE)[:PAGE]
    whole[:5] = b"12345"
    assert b"".join(parts)[PAGE - 5 : PAGE] == b"12345"
    array[:] = 7
    assert bytes(parts[0])[3] == 7
    assert not any(bytes(mapping).strip(b"\0") for mapping in room)
    print("well", end="")


def test_views_outlive_all() -> None:
    assert run_fresh(views_outlive_all) == "well"


def memory_stays_for_the_guest() -> None:
    """What was placed stays for as long as the slot is there, with or without a GuestMemory."""
    vm = Memslots()
    GuestMemory(vm).place(0, 0, Backing.anonymous(PAGE))
    gc.collect()
    hva = vm[0].userspace_addr
    assert any(
        int(line.split("-")[0], 16) <= hva < int(line.split("-")[1].split()[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
    )
    copied = copy.copy(vm)
    mem = GuestMemory(copied)
    with pytest.raises(NotMappedError):
        mem.read(0, 1)  # a copy has the slots, not the memory
    print("well", end="")


def test_memory_stays_for_the_guest() -> None:
    assert run_fresh(memory_stays_for_the_guest) == "well"


# Files


def shortened() -> None:
    """A file that somebody makes shorter: a NotMappedError, not the end of the process."""
    import tempfile

    vm = Memslots()
    mem = GuestMemory(vm)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pattern(4 * PAGE))
        file.flush()
        mem.place(0, 0, Backing.anonymous(PAGE))
        mem.place(1, PAGE, Backing.file(file.name, shared=True))
        mem.place(2, 5 * PAGE, Backing.file(file.name, PAGE, 2 * PAGE))
        assert mem.read(PAGE, 4 * PAGE) == pattern(4 * PAGE)
        os.truncate(file.name, 3 * PAGE)
        for call in refusals(mem, 5, 5 * PAGE - 5):
            with pytest.raises(NotMappedError, match=r"gpa 0x1000 is in .*file is shorter now"):
                call()
        assert mem.read(5 * PAGE, 2 * PAGE) == pattern(4 * PAGE)[PAGE : 3 * PAGE]
        os.truncate(file.name, 3 * PAGE - 1)
        with pytest.raises(NotMappedError, match=r"gpa 0x5001 is in .*file is shorter now"):
            mem.read_u16(5 * PAGE + 1)
        os.truncate(file.name, 4 * PAGE)
        assert mem.read(4 * PAGE, PAGE) == bytes(PAGE)
    print("well", end="")


def test_a_file_that_is_made_shorter() -> None:
    assert run_fresh(shortened) == "well"


def test_load(vm: Memslots, mem: GuestMemory, tmp_path: Path) -> None:
    row(mem, 3, LOG)
    kept = mem.read(0, 3 * PAGE)
    path = tmp_path / "kernel"
    path.write_bytes(b"kernel" * 1000)
    assert mem.load(path, 10) == mem.load(os.fspath(path), 10) == 6000
    assert mem.read(0, 3 * PAGE) == kept[:10] + b"kernel" * 1000 + kept[6010:]
    assert [dirty(vm, id) for id in range(3)] == [{0}, {0}, set()]
    with pytest.raises(NotMappedError, match="gpa 0x3000 "):
        mem.load(path, 2 * PAGE)
    with pytest.raises(FileNotFoundError):
        mem.load(tmp_path / "nothing", 0)
    assert mem.read(2 * PAGE, PAGE) == kept[2 * PAGE :]
    path.write_bytes(b"")
    assert mem.load(path, 0) == 0


# The object


def test_what_it_is_of() -> None:
    vm = Memslots(address_spaces=2)
    for wrong in (None, 8, vm.address_space(0), vm.vcpu(), Memslots):
        with pytest.raises(TypeError, match="vm must be a Memslots"):
            GuestMemory(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        GuestMemory()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        GuestMemory(vm, 1)  # type: ignore[call-arg]
    mem = GuestMemory(vm)
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            way(mem)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        pickle.dumps(mem.address_space(1))


def test_a_slot_by_place_is_deleted_as_any(vm: Memslots, mem: GuestMemory) -> None:
    row(mem, 2)
    vm.delete(0)
    with pytest.raises(NoSuchSlotError):
        vm.delete(0)
    with pytest.raises(NotMappedError):
        mem.read(0, 1)
    assert len(mem.read(PAGE, PAGE)) == PAGE
