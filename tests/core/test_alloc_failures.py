"""Makes every allocation of every call fail in turn.

Each failure must raise MemoryError, change nothing and leak nothing.
"""

from __future__ import annotations

import copy
import gc
import pickle
import random
import sys
import sysconfig
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from allocations import each_failure, python_failures
from model import state_of

from memslots import Backing, Flags, GuestMemory, MemoryMap, Memslots, Slot

pytestmark = pytest.mark.usefixtures("no_garbage")

Call = Callable[[Memslots], object]

LOG = Flags.LOG_DIRTY_PAGES
GFNS = memoryview(bytes(8 * 100)).cast("Q")

CALLS: dict[str, Call] = {
    "create": lambda vm: vm.create(60, 0x600, 70, 0x6000),
    "create logging": lambda vm: vm.create(60, 0x600, 70, 0x6000, LOG),
    "create by set_region": lambda vm: vm.set_region(60, LOG, 0x600000, 0x1000, 0x6000),
    "move": lambda vm: vm.move(3, 0x900),
    "move and log": lambda vm: vm.set_region(3, LOG, 0x900000, 0x46000, 0x3000),
    "set_flags": lambda vm: vm.set_flags(3, LOG),
    "delete": lambda vm: vm.delete(3),
    "delete logging": lambda vm: vm.delete(4),
}


# These calls make an object and leave the machine as it is.
MAKERS: dict[str, Call] = {
    "copy": copy.copy,
    "pickle": lambda vm: pickle.loads(pickle.dumps(vm)),
    "vcpu": lambda vm: vm.vcpu(),
    "address_space": lambda vm: vm.address_space(0),
    "subscribe": lambda vm: vm.subscribe(Listener()),
    "iter": list,
    "in_gfn_range": lambda vm: vm.in_gfn_range(0, 0x1000),
    "in_hva_range": lambda vm: vm.in_hva_range(0, 0x10000),
    "get_dirty_log": lambda vm: vm.get_dirty_log(4),
    "lookup_many": lambda vm: vm.lookup_many(GFNS),
}


class Listener:
    def invalidate(self, slot: Slot) -> None:
        pass


def state(vm: Memslots) -> object:
    logs = [bytes(vm.get_dirty_log(slot.id)) for slot in vm if slot.flags & LOG]
    return list(vm), vm.generation, vm.nr_pages, logs


def six_slots() -> Memslots:
    """Returns a Memslots with six slots: one more, with a greater id, makes the id tables grow.

    get_dirty_log leaves the logs unchanged.
    """
    vm = Memslots(manual_dirty_log=3)
    for id in range(6):
        vm.create(id, 0x100 * id, 70, 0x1000 * id, LOG if id == 4 else 0)
    return vm


@pytest.fixture
def vm() -> Memslots:
    return six_slots()


def references(held: list[Slot]) -> list[int]:
    """Returns the number of references to each Slot.

    Counts are compared only if they are from here. From CPython 3.14 on, a load of a local
    variable counts as a reference in some places and not in others.
    """
    return [sys.getrefcount(slot) for slot in held]


@pytest.fixture
def testcapi() -> Any:
    """Returns CPython's own module that makes its allocations fail."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        # "a b".split() is enough: PyList_New then frees an array that belongs to another list.
        pytest.skip("free-threaded CPython 3.13 breaks its heap when it cannot make a list")
    return pytest.importorskip("_testcapi", reason="this CPython has no _testcapi")


@pytest.mark.parametrize("name", CALLS)
def test_a_change_without_memory_changes_nothing(drivers: Any, vm: Memslots, name: str) -> None:
    before = state(vm)

    def unharmed() -> None:
        vm.check()
        assert state(vm) == before

    failed = each_failure(drivers("alloc"), lambda: CALLS[name](vm), unharmed)
    # A slot; its bitmap if it logs; an INVALID copy; two id tables that grow.
    assert (
        failed
        == {
            "create": 3,
            "create logging": 4,
            "create by set_region": 4,
            "move": 2,
            "move and log": 3,
            "set_flags": 2,
            "delete": 1,
            "delete logging": 1,
        }[name]
    )
    vm.check()
    assert state(vm) != before


@pytest.mark.parametrize("name", MAKERS)
def test_what_cannot_be_made_leaves_nothing_behind(drivers: Any, vm: Memslots, name: str) -> None:
    before = state(vm)
    made: list[object] = []

    def unharmed() -> None:
        vm.check()
        assert state(vm) == before

    failed = each_failure(drivers("alloc"), lambda: made.append(MAKERS[name](vm)), unharmed)
    unharmed()
    if isinstance(made[0], Memslots):
        made[0].check()
        assert state(made[0]) == before
    # Copies: the machine and its space; a slot each, a log, and the first id table of each set. A
    # Vcpu: its cache, and its line among the readers.
    copies = dict.fromkeys(("copy", "pickle"), 2 + 6 + 1 + 2)
    assert failed == (copies | {"vcpu": 2}).get(name, 0)


@pytest.mark.parametrize("name", ["iter", "in_gfn_range", "in_hva_range"])
def test_a_long_list_that_cannot_be_made(drivers: Any, name: str) -> None:
    vm = Memslots()
    for id in range(40):
        vm.create(id, 0x10 * id, 7, 0x1000 * (id % 8))
    wanted = MAKERS[name](vm)

    def made() -> None:
        assert MAKERS[name](vm) == wanted

    assert each_failure(drivers("alloc"), made, vm.check) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_what_cannot_be_made_for_want_of_python_objects(
    drivers: Any, testcapi: Any, vm: Memslots, name: str
) -> None:
    alloc = drivers("alloc")
    before = state(vm)
    MAKERS[name](vm)  # imports what the call needs: a failed import is not the call's
    vm.vcpu()  # its line among the readers is kept for the next Vcpu
    gc.collect()  # collects the garbage of other tests
    live = alloc.live()
    failed = 0
    made: list[object] = []
    errors = MemoryError, pickle.PicklingError  # PicklingError: pickle did not ask why
    for fails in python_failures(testcapi, errors):
        made.clear()
        if fails(lambda: made.append(MAKERS[name](vm))):
            failed += 1
            assert alloc.live() == live
        elif isinstance(made[0], Memslots):
            made[0].check()
            assert state(made[0]) == before
        vm.check()
        assert state(vm) == before
    # The number of objects differs between versions of CPython.
    assert failed > 0 or name not in ("copy", "pickle")
    vm.delete(0)


@pytest.mark.parametrize("spaces", [1, 2, 16])
def test_no_memory_for_a_memslots(drivers: Any, spaces: int) -> None:
    failed = each_failure(drivers("alloc"), lambda: Memslots(address_spaces=spaces), lambda: None)
    assert failed == 1 + spaces


@pytest.mark.parametrize("name", CALLS)
def test_python_objects_without_memory(drivers: Any, testcapi: Any, name: str) -> None:
    """The same for Python's allocations: the Slot objects of the slots."""
    alloc = drivers("alloc")
    call = CALLS[name]
    failed = 0
    hoard = [Slot(9, 0, 0, 1, 0) for _ in range(100)]
    for fails in python_failures(testcapi):
        vm = six_slots()
        before, live = state(vm), alloc.live()
        # Slots that were given up are kept for reuse. Take those, so that an allocation can fail.
        hoard += [Slot(9, 0, 0, 1, 0) for _ in range(30)]
        if fails(partial(call, vm)):
            failed += 1
            assert (state(vm), alloc.live()) == (before, live)
        else:
            assert state(vm) != before
        vm.check()
    assert failed > 0


def test_a_slot_without_a_record_releases_none(testcapi: Any) -> None:
    failed = 0
    hoard = [Slot(9, 0, 0, 1, 0) for _ in range(100)]  # those kept for reuse
    for fails in python_failures(testcapi):
        vm = six_slots()
        gone = [vm[3]]
        vm.set_flags(3, LOG)  # the next slot is made in the memory of the one that had this record
        before = references(gone)
        hoard += [Slot(9, 0, 0, 1, 0) for _ in range(30)]
        if fails(partial(vm.create, 60, 0x600, 70, 0x6000)):
            failed += 1
            assert references(gone) == before
        vm.check()
    assert failed > 0


def test_a_list_without_memory_releases_no_slot(testcapi: Any) -> None:
    """Cython 3.3.0 and 3.3.1 released the Slot that did not fit into a list of a map's Slots."""
    map = six_slots().map()
    kept = list(map)
    before = references(kept)
    failed = 0
    for fails in python_failures(testcapi):
        failed += fails(partial(list, map))
        assert references(kept) == before
    assert failed > 0


def test_views_of_a_map_without_memory(drivers: Any) -> None:
    """What a map makes at the first look by id or by host address."""
    alloc = drivers("alloc")
    for look in (lambda m: m.get(3), lambda m: m.in_hva_range(0, 1)):
        m = six_slots().map()

        def made(m: MemoryMap = m, look: Callable[[MemoryMap], object] = look) -> None:
            look(m)

        assert each_failure(alloc, made, lambda: None) == 4


def test_transactions_give_all_memory_back(drivers: Any, vm: Memslots) -> None:
    alloc = drivers("alloc")

    def pass_through(fails: bool) -> None:
        for _ in range(500):
            with suppress(ZeroDivisionError), vm.transaction() as tx:
                tx.delete(1)
                tx.create(1, 0x100, 70, 0x1000)
                tx.move(2, 0x280)
                tx.move(2, 0x200)
                tx.set_flags(3, LOG)
                tx.set_flags(3, 0)
                if fails:
                    raise ZeroDivisionError

    for fails in (False, True):
        pass_through(fails)
        live = alloc.live()
        pass_through(fails)
        assert alloc.live() == live


def test_a_transaction_that_changes_what_it_filled_in_gives_all_memory_back(drivers: Any) -> None:
    alloc = drivers("alloc")
    vm = Memslots()

    def pass_through() -> None:
        with vm.transaction() as tx:
            tx.create_many([(2 * gfn, 1, 0) for gfn in range(40)])
            for id in range(40):
                tx.delete(id)

    pass_through()  # the pool keeps a chunk
    live = alloc.live()
    pass_through()
    assert alloc.live() == live


def test_no_free_id_is_lost_without_memory(testcapi: Any) -> None:
    for nth in range(12):
        vm = Memslots(100)
        for id in range(50):
            vm.create(id, id, 1, 0)
        assert vm.free_id() == 50
        free = set(range(50, 100))
        for id in random.Random(nth).sample(range(50), 50):
            testcapi.set_nomemory(nth, nth + 1)
            try:
                vm.delete(id)
            except MemoryError:
                pass
            finally:
                testcapi.remove_mem_hooks()
            if vm.get(id) is None:
                free.add(id)
            assert vm.free_id() == min(free)


def test_a_fork_without_memory_for_another_lock(drivers: Any, testcapi: Any) -> None:
    """The writer keeps the old lock for its waiting threads."""
    lock = drivers("lock").Lock()
    gate = lock.gate
    testcapi.set_nomemory(0, 0)
    try:
        lock.after_fork(False)
    finally:
        testcapi.remove_mem_hooks()
    assert lock.gate == gate
    assert lock.take()
    lock.release()


def test_no_id_that_a_transaction_took_is_lost_without_memory(testcapi: Any) -> None:
    for nth in range(40):
        vm = Memslots(100)
        vm.create(0, 0, 1, 0)
        assert vm.free_id() == 1
        try:
            with suppress(ZeroDivisionError), vm.transaction() as tx:
                tx.create_many([(gfn, 1, 0) for gfn in range(1, 30)])
                testcapi.set_nomemory(nth, nth + 1)
                raise ZeroDivisionError
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        assert len(vm) == 1
        assert vm.free_id() == 1


@pytest.mark.parametrize("mode", [0, 1])
def test_dirty_runs_without_memory(testcapi: Any, mode: int) -> None:
    """Slots whose log was taken before the failure get their marks back."""
    vm = Memslots(address_spaces=2, manual_dirty_log=mode)
    for as_id in (0, 1):
        for id in range(3):
            vm.create(id, 70 * id, 70, 0x100000 * id, LOG, as_id)
    marks = memoryview(array("Q", range(0, 210, 3)))
    wanted = [(as_id, gfn, gfn + 1) for as_id in (0, 1) for gfn in marks]
    failed = 0
    for fails in python_failures(testcapi):
        for as_id in (0, 1):
            vm.mark_dirty_many(marks, as_id)
        taken: list[object] = [None]

        def take(taken: list[object] = taken) -> None:
            taken[0] = vm.take_dirty_runs()  # needs no memory once the call has returned

        if fails(take):
            failed += 1
            take()
        assert taken == [wanted]
        assert vm.take_dirty_runs() == []
        vm.check()
    assert failed > 12  # a log of each slot and a run of each mark are only some of the allocations


def test_everything_is_given_back(drivers: Any) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    vm = Memslots(address_spaces=2)
    for id in range(100):
        vm.create(id, id, 1, 0, LOG, as_id=id % 2)
    vcpu = vm.vcpu()
    assert alloc.live() > live + 100  # a bitmap for each slot, and the memory of the slots
    del vm
    assert len(vcpu) == 50  # the Vcpu keeps its Memslots
    del vcpu
    assert alloc.live() == live


def in_one_step(vm: Memslots) -> None:
    """Makes a transaction with every kind of step, in which the id tables grow."""
    with vm.transaction() as tx:
        tx.move(0, 0x100)
        tx.move(1, 0x000)
        tx.set_flags(2, LOG)
        tx.delete(4)
        tx.create(4, 0x400, 10, 0x9000, LOG)
        for id in range(6, 11):
            tx.create(id, 0x100 * id, 70, 0x1000 * id, LOG)


def test_a_transaction_without_memory_changes_nothing(drivers: Any, vm: Memslots) -> None:
    alloc = drivers("alloc")
    before = state(vm)
    live = alloc.live()

    def unharmed() -> None:
        vm.check()
        assert state(vm) == before

    failed = each_failure(alloc, lambda: in_one_step(vm), unharmed)
    # At least a slot for each step except the deletion, a bitmap for each log, and the changes.
    assert failed > 9 + 7 + 2
    vm.check()
    assert len(vm) == 11
    for slot in list(vm):
        vm.delete(slot.id)
    assert alloc.live() < live


def test_a_transaction_without_memory_for_python_objects(drivers: Any, testcapi: Any) -> None:
    alloc = drivers("alloc")
    failed = 0
    hoard = [Slot(9, 0, 0, 1, 0) for _ in range(100)]  # those kept for reuse
    for fails in python_failures(testcapi):
        vm = six_slots()
        before, live = state(vm), alloc.live()
        hoard += [Slot(9, 0, 0, 1, 0) for _ in range(30)]
        if fails(partial(in_one_step, vm)):
            failed += 1
            assert alloc.live() == live
            assert state(vm) == before
        else:
            assert len(vm) == 11
        vm.check()
    assert failed > 5


def test_a_step_without_memory_can_be_made_again(drivers: Any, vm: Memslots) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    with vm.transaction() as tx:
        for id in range(6, 30):
            nth = 0
            while True:
                nth += 1
                alloc.fail_nth(nth)
                try:
                    tx.create(id, 0x100 * id, 70, 0x1000 * id, LOG)
                except MemoryError:
                    continue
                finally:
                    alloc.fail_nth(0)
                break
            assert nth > 2
    vm.check()
    assert len(vm) == 30
    for id in range(6, 30):
        vm.delete(id)
    vm.set_flags(0, LOG)  # a change frees the spare memory of the other id table
    vm.set_flags(0, 0)
    assert alloc.live() == live


# Guest memory


PAGE = 0x1000
MANY = 40  # slots: an access through them needs memory of its own


class Guest:
    """A Memslots with memory: adjacent slots of a page, in reverse order in host memory."""

    def __init__(self) -> None:
        self.vm = Memslots(address_spaces=2)
        self.mem = GuestMemory(self.vm)
        self.ram = Backing.anonymous(MANY * PAGE)
        self.spare = Backing.anonymous(PAGE)
        memoryview(self.ram)[:] = bytes(n % 251 for n in range(MANY * PAGE))
        for id in range(MANY):
            self.mem.place(id, id * PAGE, self.ram, (MANY - 1 - id) * PAGE, PAGE, LOG)
        self.mem.address_space(1).place(1, PAGE, self.ram, size=PAGE)
        self.vm.mark_dirty_range(2, 4)

    def state(self) -> object:
        return state_of(self.vm), bytes(self.ram), self.mem.backings


ACCESSES: dict[str, tuple[Callable[[Guest], object], int]] = {
    "read": (lambda guest: guest.mem.read(5, 30 * PAGE), 1),
    "read few": (lambda guest: guest.mem.read(5, 3 * PAGE), 0),
    "readinto": (lambda guest: guest.mem.readinto(5, bytearray(30 * PAGE)), 1),
    "readinto itself": (
        lambda guest: guest.mem.readinto(5, memoryview(guest.ram)[7 : 30 * PAGE]),
        1,
    ),
    "write": (lambda guest: guest.mem.write(5, bytes(30 * PAGE)), 1),
    "write itself": (lambda guest: guest.mem.write(5, memoryview(guest.ram)[7 : 30 * PAGE]), 1),
    "fill": (lambda guest: guest.mem.fill(5, 30 * PAGE, 3), 1),
    "numbers": (lambda guest: guest.mem.write_u64(PAGE - 4, guest.mem.read_u64(PAGE - 3)), 0),
    "views": (lambda guest: guest.mem.views(5, 30 * PAGE), 1),
    "mark_dirty": (lambda guest: guest.mem.mark_dirty(5, 30 * PAGE), 0),
    "mark_dirty_range": (lambda guest: guest.vm.mark_dirty_range(1, 30), 0),
    # A slot and its log.
    "place": (lambda guest: guest.mem.address_space(1).place(0, 0, guest.spare, flags=LOG), 2),
    # The list of slots to visit.
    "take_dirty_runs": (lambda guest: guest.vm.take_dirty_runs(), 1),
    # The list of slots, and a part of the segments.
    "dump": (lambda guest: guest.mem.dump("/dev/null"), 2),
    "dump_dirty": (lambda guest: guest.mem.dump_dirty("/dev/null"), 2),
    "address_space": (lambda guest: guest.mem.address_space(1), 0),
    "GuestMemory": (lambda guest: GuestMemory(guest.vm), 0),
    "add": (lambda guest: guest.mem.add(guest.spare), 0),
}


# Putting marks back needs Python objects. And without memory CPython takes a path for None: "stat:
# path should be string, bytes, os.PathLike or integer, not PosixPath".
NEEDING_OBJECTS = {"take_dirty_runs", "dump", "dump_dirty"}


def test_a_restore_without_memory_does_nothing(drivers: Any, tmp_path: Path) -> None:
    guest = Guest()
    guest.mem.dump(tmp_path / "snapshot")
    guest.mem.fill(0, MANY * PAGE, 3)
    guest.vm.take_dirty_runs()
    before = guest.state()

    def unharmed() -> None:
        guest.vm.check()
        assert guest.state() == before

    # A part of the segments.
    alloc = drivers("alloc")
    assert each_failure(alloc, lambda: guest.mem.restore(tmp_path / "snapshot"), unharmed) == 2
    assert bytes(guest.ram) == bytes(n % 251 for n in range(MANY * PAGE))
    guest.vm.check()


@pytest.mark.parametrize("name", ACCESSES)
def test_an_access_without_memory_does_nothing(drivers: Any, name: str) -> None:
    guest = Guest()
    before = guest.state()
    call, wanted = ACCESSES[name]

    def unharmed() -> None:
        guest.vm.check()
        assert guest.state() == before

    assert each_failure(drivers("alloc"), lambda: call(guest), unharmed) == wanted
    guest.vm.check()


@pytest.mark.parametrize("name", sorted(ACCESSES.keys() - NEEDING_OBJECTS))
def test_an_access_without_memory_for_python_objects(
    drivers: Any, testcapi: Any, name: str
) -> None:
    alloc = drivers("alloc")
    guest = Guest()
    before = guest.state()
    call, _ = ACCESSES[name]
    gc.collect()
    live = alloc.live()
    for fails in python_failures(testcapi):
        if fails(partial(call, guest)):
            assert alloc.live() == live
            guest.vm.check()
            assert guest.state() == before
        else:
            guest = Guest()  # the call has changed the guest: make it anew
            before = guest.state()
            gc.collect()
            live = alloc.live()
