"""The array of Linux 5.16 answers as the trees do; also tests what only the array has."""

from __future__ import annotations

import gc
import inspect
import random
import subprocess
import sys
from array import array
from collections.abc import Callable
from typing import Any, cast

import pytest
from allocations import each_failure
from hypothesis import given
from hypothesis import strategies as st
from smallmachine import MAX_GFN, MAX_HVA, MAX_SLOTS, SPACES
from strategies import steps

from memslots import Flags, InvariantError, MemslotError, Memslots
from memslots.baseline import ArrayMemslots
from memslots.errors import PROPERTIES

HVA = 0x7000_0000_0000


def outcome(vm: Memslots, call: str, *args: object) -> object:
    """Returns the result of a call, or its error with every word."""
    try:
        return getattr(vm, call)(*args)
    except MemslotError as error:
        ranges = getattr(error, "existing", None), getattr(error, "requested", None)
        return type(error), str(error), error.rule, ranges


def everything_listed(vm: Memslots) -> list[object]:
    spaces = [vm.address_space(as_id) for as_id in range(SPACES)]
    return [(space.generation, space.nr_pages, len(space), list(space)) for space in spaces]


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
            found.append(outcome(vm, "get_dirty_log", id, as_id))
    return found


@given(
    manual_dirty_log=st.sampled_from([0, 1, 3]),
    steps=st.lists(steps, max_size=30),
)
def test_it_answers_as_the_trees_do(
    manual_dirty_log: int, steps: list[tuple[str, *tuple[Any, ...]]]
) -> None:
    limits = {"address_spaces": SPACES, "max_gfn": MAX_GFN, "max_hva": MAX_HVA}
    limits["manual_dirty_log"] = manual_dirty_log
    both = [Memslots(MAX_SLOTS, **limits), cast("Memslots", ArrayMemslots(MAX_SLOTS, **limits))]
    for vm in both:
        for id in range(3):
            vm.create(id, 15 * id, 7, 0x5000 * id, id)
    for call, *args in steps:
        if not hasattr(both[1], call):
            continue
        trees, by_array = (outcome(vm, call, *args) for vm in both)
        assert by_array == trees
        for vm in both:
            vm.check()
        assert everything_listed(both[1]) == everything_listed(both[0])
    trees, by_array = (everything_read(vm) for vm in both)
    assert by_array == trees


def test_many_slots_in_any_order(drivers: Any) -> None:
    """Ids and the id table stay right while slots are created, moved and deleted at random."""
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
    """A change allocates only if the slots, or the ids, have outgrown the memory."""
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
    vm.move(5, 2000)  # two steps: INVALID first
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
    vm.lookup(301)  # finds no slot: last-used stays
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


def test_ids_are_small() -> None:
    vm = ArrayMemslots(1 << 20)
    vm.create((1 << 20) - 1, 0, 1, HVA)
    assert list(vm.lookup_many(array("Q", [0, 1]))) == [(1 << 20) - 1, -1]
    vm.delete((1 << 20) - 1)
    vm.check()
    with pytest.raises(ValueError, match="max_slots"):
        ArrayMemslots((1 << 20) + 1)


CALLS: dict[str, tuple[Callable[[ArrayMemslots], object], int]] = {
    # A ninth slot needs a greater array; a log has a bitmap.
    "create": (lambda vm: vm.create(8, 0x800, 70, 0x8000), 1),
    "create logging": (lambda vm: vm.create(8, 0x800, 70, 0x8000, Flags.LOG_DIRTY_PAGES), 2),
    "move": (lambda vm: vm.move(4, 0x900), 0),
    "move and log": (lambda vm: vm.set_region(0, 1, 0x90_0000, 70 << 12, 0), 1),
    "set_flags": (lambda vm: vm.set_flags(0, Flags.LOG_DIRTY_PAGES), 1),
    "delete": (lambda vm: vm.delete(4), 0),
}


def change_without_memory(alloc: Any, name: str) -> None:
    vm = ArrayMemslots()
    for id in range(8):
        vm.create(id, 0x100 * id, 70, 0x1000 * id, Flags.LOG_DIRTY_PAGES if id == 4 else 0)
    before = list(vm), vm.generation

    def unharmed() -> None:
        vm.check()
        assert (list(vm), vm.generation) == before

    call, expected = CALLS[name]
    assert each_failure(alloc, lambda: call(vm), unharmed) == expected
    vm.check()
    assert (list(vm), vm.generation) != before


@pytest.mark.parametrize("name", CALLS)
def test_a_change_without_memory_changes_nothing(drivers: Any, name: str) -> None:
    alloc = drivers("alloc")
    gc.collect()
    at_first = alloc.live()
    change_without_memory(alloc, name)
    gc.collect()
    assert alloc.live() == at_first


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


def test_the_signature() -> None:
    ours = inspect.signature(ArrayMemslots).parameters
    assert [str(each) for each in ours.values()] == [
        str(each)
        for name, each in inspect.signature(Memslots).parameters.items()
        if name not in ("backend", "map")
    ]
