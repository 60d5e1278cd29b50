"""Places slots on host memory: known memory, aliases, transactions."""

from __future__ import annotations

import itertools
import mmap
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest
from backend import Interrupt, mirrored
from guest import LOG, PAGE, READONLY, TOP, dirty, filled, known, pattern
from listening import Recorder
from model import unchanged

from memslots import (
    Backing,
    BusyError,
    GuestMemory,
    InvalidRegionError,
    Memslots,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    Slot,
)

# Placing


def test_a_listener_that_came_before() -> None:
    """What knows the memory is a listener too, and is told from others."""
    vm = Memslots()
    vm.subscribe(Recorder([]))
    memory = GuestMemory(vm)
    backing = filled(1)
    memory.place(0, 0, backing)
    assert GuestMemory(vm).backings == (backing,)
    assert memory.read(0, PAGE) == bytes(backing)


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
    # This slot is not made by `place`, and lets the guest try to write.
    vm.create(1, 1, 1, rom.hva)
    with pytest.raises(ReadOnlyError, match=r"gpa 0x1005 .*host memory cannot be written"):
        mem.write(PAGE + 5, b"x")
    assert mem.read(PAGE, PAGE) == pattern(PAGE)
    assert mem.view(PAGE, 1).readonly


def test_all_of_a_memslots_know_the_same_memory(vm: Memslots, mem: GuestMemory) -> None:
    """A GuestMemory that is gone leaves no memory behind."""
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
    mem.remove(backing)  # not known yet: does nothing
    mem.add(backing)
    mem.add(backing)
    assert known(mem) == [backing]
    assert mem.read(16, 1) == bytes(backing)[16:17]
    with pytest.raises(BusyError, match="slots are on <Backing"):
        mem.remove(backing)
    vm.create(0, 0, 1, backing.hva + PAGE, as_id=1)
    vm.delete(0)
    with pytest.raises(BusyError):  # a slot of any address space counts
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


def test_a_slot_on_several_backings_lets_all_of_them_go(vm: Memslots, mem: GuestMemory) -> None:
    whole = mmap.mmap(-1, 6 * PAGE)
    parts = [Backing(memoryview(whole)[n * PAGE : (n + 1) * PAGE]) for n in range(6)]
    for part in (parts[4], parts[0], parts[2], parts[1], parts[5], parts[3]):
        mem.add(part)
    assert known(mem) == parts
    for part in parts:
        with pytest.raises(ValueError, match="shares memory"):
            mem.add(Backing(memoryview(whole)[part.hva - parts[0].hva :][:PAGE]))
    vm.create(0, 0, 4, parts[1].hva)
    vm.create(1, 8, 1, parts[3].hva)
    vm.delete(0)
    assert known(mem) == [parts[0], parts[3], parts[5]]


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
    """Does something else in the middle of a call, as another thread could."""

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
    """A thread that has placed a slot can read it, whatever other threads let go of."""
    backing = filled(3)
    vm = Memslots()
    mem = GuestMemory(vm)
    start = threading.Barrier(3)
    stop = threading.Event()

    def place(id: int) -> None:
        start.wait()
        for times in itertools.count(1):
            mem.place(id, id * PAGE, backing, id * PAGE, PAGE)
            assert mem.read(id * PAGE, PAGE) == bytes(backing)[id * PAGE : (id + 1) * PAGE]
            vm.delete(id)
            if stop.is_set() and times > 10:
                return

    def let_go() -> None:
        start.wait()
        for times in itertools.count(1):
            with suppress(BusyError):
                mem.remove(backing)
            if stop.is_set() and times > 10:
                return

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(place, 0), pool.submit(place, 1), pool.submit(let_go)]
            wait(work, timeout=0.3, return_when=FIRST_EXCEPTION)
            stop.set()
            for each in work:
                each.result()
    finally:
        sys.setswitchinterval(before)
    assert known(mem) == []


# Address spaces, aliases, transactions


def test_an_alias_in_another_address_space(vm: Memslots, mem: GuestMemory) -> None:
    """SMRAM: two slots of two address spaces on one memory; space 0 has another slot there."""
    ram, vga, smm = filled(4), filled(1, seed=2), mem.address_space(1)
    assert (smm.as_id, smm.vm) == (1, vm)
    mem.place(0, 0, ram, flags=LOG)
    mem.place(1, 0xA0000, vga)
    smm.place(0, 0, ram, flags=LOG)
    smm.place(1, 0xA0000, ram, 2 * PAGE, PAGE, LOG)
    smm.write(0xA0010, b"handler")
    assert mem.read(2 * PAGE + 16, 7) == smm.read(2 * PAGE + 16, 7) == b"handler"
    assert mem.read(0xA0000, PAGE) == bytes(vga)
    # Each log has only the writes through its own slot.
    assert (dirty(vm, 1, 1), dirty(vm, 0, 1), dirty(vm, 0)) == ({0}, set(), set())
    with pytest.raises(InvalidRegionError):
        mem.address_space(2)
    with pytest.raises(TypeError):
        mem.address_space("1")  # type: ignore[arg-type]


def test_what_an_mmu_notifier_asks(vm: Memslots, mem: GuestMemory) -> None:
    """It asks for the guest pages of a run of host memory, in all address spaces."""
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
    # The same slots, each on the other's memory.
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
