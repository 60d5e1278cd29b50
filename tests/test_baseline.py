"""The array of Linux 5.16: that it answers as the trees do, and what is its own."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from array import array
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model import state_of
from strategies import MAX_GFN, MAX_HVA, MAX_SLOTS, SPACES, steps

from memslots import BusyError, Flags, InvariantError, MemslotError, Memslots, Slot
from memslots.baseline import ArrayMemslots
from memslots.errors import PROPERTIES

HVA = 0x7000_0000_0000


class Refused(Exception):
    pass


class Listener:
    """Notes what it hears, and what it finds meanwhile; refuses in one method when told to."""

    def __init__(self, vm: Memslots) -> None:
        self.vm = vm
        self.heard: list[object] = []
        self.refuses = ""

    def note(self, method: str, *args: object) -> None:
        spaces = [self.vm.address_space(as_id) for as_id in range(SPACES)]
        found = [[space.lookup(gfn) for gfn in range(0, 70, 7)] for space in spaces]
        self.heard.append((method, args, found, state_of(self.vm)))
        if method == self.refuses:
            self.refuses = ""
            raise Refused(method)

    def prepare(self, *args: object) -> None:
        self.note("prepare", *args)

    def invalidate(self, *args: object) -> None:
        self.note("invalidate", *args)

    def commit(self, *args: object) -> None:
        self.note("commit", *args)


def outcome(vm: Memslots, call: str, *args: object) -> object:
    """What a call comes to, to the last word."""
    try:
        return getattr(vm, call)(*args)
    except MemslotError as error:
        ranges = getattr(error, "existing", None), getattr(error, "requested", None)
        return type(error), str(error), error.rule, ranges
    except Refused as error:
        return str(error)


def everything_read(vm: Memslots) -> list[object]:
    found: list[object] = []
    for as_id in range(SPACES):
        for face in (vm.address_space(as_id), vm.vcpu(as_id)):
            for gfn in range(80):
                found += [face.lookup(gfn), face.in_gfn_range(gfn, gfn + 5)]
                hits = face.in_hva_range((gfn << 12) + 1, (gfn + 4) << 12)
                found.append(sorted((slot.id, start, end) for slot, start, end in hits))
                for write in (0, 1):
                    found.append(outcome(cast("Memslots", face), "gpa_to_hva", gfn << 12, write))
            found += [face.get(id) for id in range(MAX_SLOTS)]
            found.append(list(face.lookup_many(array("Q", range(80)))))
            found.append(list(face.translate(array("Q", range(0, 80 << 12, 2048)), write=True)))
        for id in range(MAX_SLOTS):
            for args in ((id, 0, 64, b"\x0f" * 8, as_id), (id, 0, 7, bytes(3), as_id)):
                found.append(outcome(vm, "clear_dirty_log", *args))
            found.append(outcome(vm, "get_dirty_log", id, as_id))
    return found


@given(
    manual_dirty_log=st.sampled_from([0, 1, 3]),
    steps=st.lists(
        st.one_of(
            *[steps] * 4, st.tuples(st.just("refuse"), st.sampled_from(["prepare", "invalidate"]))
        ),
        max_size=30,
    ),
)
def test_it_answers_as_the_trees_do(
    manual_dirty_log: int, steps: list[tuple[str, *tuple[Any, ...]]]
) -> None:
    limits = {"address_spaces": SPACES, "max_gfn": MAX_GFN, "max_hva": MAX_HVA}
    limits["manual_dirty_log"] = manual_dirty_log
    both = [Memslots(MAX_SLOTS, **limits), cast("Memslots", ArrayMemslots(MAX_SLOTS, **limits))]
    listeners = [Listener(vm) for vm in both]
    for vm, listener in zip(both, listeners, strict=True):
        for id in range(3):
            vm.create(id, 15 * id, 7, 0x5000 * id, id)
        vm.subscribe(listener)
    for call, *args in steps:
        if call == "refuse":
            for listener in listeners:
                (listener.refuses,) = args
            continue
        trees, by_array = (outcome(vm, call, *args) for vm in both)
        assert by_array == trees
        for vm in both:
            vm.check()
        assert state_of(both[1]) == state_of(both[0])
        assert listeners[1].heard == listeners[0].heard
    trees, by_array = (everything_read(vm) for vm in both)
    assert by_array == trees


def test_many_slots_in_any_order(drivers: Any) -> None:
    """Numbers and id table stay right while slots come, move and go at random places."""
    driver = drivers("slotarray")
    shuffled = random.Random(7)
    vm = ArrayMemslots()
    bases: dict[int, int] = {}
    for step in range(4000):
        id = shuffled.randrange(300)
        base = 2 * shuffled.randrange(5000)
        taken = base in bases.values()
        if id not in bases and not taken:
            vm.create(id, base, 2, HVA, step & 1)
            bases[id] = base
        elif id in bases and shuffled.random() < 0.4:
            vm.delete(id)
            del bases[id]
        elif id in bases and not taken:
            vm.move(id, base)
            bases[id] = base
        elif id in bases:
            vm.set_flags(id, shuffled.randrange(2))
        if step % 10 == 0:
            vm.check()
            in_order = sorted(bases, key=bases.__getitem__)
            assert [slot.id for slot in vm] == in_order
            numbers = {id: number for number, id in enumerate(in_order)}
            assert driver.ids(vm) == [numbers.get(id, -1) for id in range(max(bases) + 1)]
    assert len(vm) > 100
    for id in list(bases):
        vm.delete(id)
    vm.check()
    assert (list(vm), vm.lookup(0), driver.ids(vm)) == ([], None, [])


def test_two_pieces_of_memory_take_turns(drivers: Any) -> None:
    """A change gets memory only when the slots, or the ids, have outgrown what there is."""
    driver, alloc = drivers("slotarray"), drivers("alloc")
    vm = ArrayMemslots()
    for id in range(100):
        vm.create(id, 2 * id, 1, HVA)
    vm.set_flags(0, 0)
    vm.delete(99)
    asked = alloc.asked()
    first, second, room, ids_room = driver.memory(vm)
    assert (room, ids_room) == (128, 128)
    vm.create(99, 1000, 1, HVA)
    assert driver.memory(vm)[:2] == (second, first)
    vm.move(5, 2000)  # INVALID first: two steps
    assert driver.memory(vm)[:2] == (second, first)
    vm.delete(5)
    assert driver.memory(vm)[:2] == (second, first)
    assert alloc.asked() == asked
    vm.create(128, 4000, 1, HVA)
    assert alloc.asked() == asked + 1
    assert driver.memory(vm)[2:] == (128, 256)


def test_last_used_goes_with_its_slot(drivers: Any) -> None:
    last_used = drivers("slotarray").last_used
    vm = ArrayMemslots()
    for id in range(5):
        vm.create(id, 100 * id, 1, HVA)
    vm.lookup(300)
    assert last_used(vm) == 3
    vm.lookup(301)  # none: it stays
    assert last_used(vm) == 3
    vm.create(9, 50, 1, HVA)
    assert last_used(vm) == 4
    vm.move(9, 350)
    assert last_used(vm) == 3
    vm.move(3, 5)
    assert last_used(vm) == 1
    vm.delete(0)
    assert last_used(vm) == 0
    vm.lookup(400)
    vm.delete(4)
    assert last_used(vm) == 0
    vm.check()


CASES = ["S1 ids", "S1 count", "S1 greatest id", "S1 record", "S2 order", "S2 pages", "S3"]
CASES += ["S4 pages", "S4 room", "D1 flag", "D1 bit"]


@pytest.mark.parametrize("name", CASES)
def test_a_broken_property_is_named(drivers: Any, name: str) -> None:
    vm = ArrayMemslots(address_spaces=2)
    for id in range(5):
        vm.create(id, 64 * id, 7, HVA, id & 1, as_id=1)
    vm.check()
    breaking = drivers("slotarray").broken(vm.address_space(1), name)
    next(breaking)
    try:
        with pytest.raises(InvariantError) as caught:
            vm.check()
    finally:
        assert next(breaking, None) is None
    number = name[:2]
    assert caught.value.property == number
    text = f"{number}: {PROPERTIES[number]}: not so in address space 1"
    assert str(caught.value).startswith(text)
    vm.check()


def test_there_are_no_transactions() -> None:
    with pytest.raises(NotImplementedError, match="no transactions"):
        ArrayMemslots().transaction()


def test_ids_are_small() -> None:
    vm = ArrayMemslots(1 << 20)
    vm.create((1 << 20) - 1, 0, 1, HVA)
    assert list(vm.lookup_many(array("Q", [0, 1]))) == [(1 << 20) - 1, -1]
    vm.delete((1 << 20) - 1)
    vm.check()
    with pytest.raises(ValueError, match="max_slots"):
        ArrayMemslots((1 << 20) + 1)


def test_a_change_beside_another_threads_is_refused() -> None:
    """There is no lock to wait for: the arrays are left alone."""
    vm = ArrayMemslots()
    refused: list[BusyError] = []

    class FromAnotherThread:
        def prepare(self, change: object, old: Slot | None, new: Slot | None) -> None:
            thread = threading.Thread(target=self.change)
            thread.start()
            thread.join()

        def change(self) -> None:
            with pytest.raises(BusyError) as caught:
                vm.create(1, 1, 1, HVA)
            refused.append(caught.value)

    with vm.subscribe(FromAnotherThread()):
        vm.create(0, 0, 1, HVA, Flags.READONLY)
    assert len(refused) == 1
    assert [slot.id for slot in vm] == [0]
    vm.create(1, 1, 1, HVA)
    vm.check()


def test_a_face_belongs_to_an_array() -> None:
    trees, by_array = Memslots(), ArrayMemslots()
    for vm, other in ((trees, by_array), (by_array, trees)):
        for face in (type(vm.address_space(0)), type(vm.vcpu())):
            make = cast("Any", face)
            with pytest.raises(TypeError):
                make(other, 0)


def test_repr() -> None:
    vm = ArrayMemslots(address_spaces=2)
    vm.create(0, 0, 3, HVA)
    assert repr(vm) == "<ArrayMemslots: [1, 0] slots by address space>"
    assert repr(ArrayMemslots()) == "<ArrayMemslots: 0 slots, 0 pages, generation 0>"
    assert repr(vm.address_space(0)) == "<ArrayAddressSpace 0: 1 slots, generation 2>"
    assert repr(vm.vcpu(1)) == "<ArrayVcpu of address space 1: 0 hits, 0 misses>"


def test_nothing_imports_it() -> None:
    code = "import sys, memslots, memslots.cli; print([m for m in sys.modules if 'baseline' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
