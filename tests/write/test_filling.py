"""Tests pickle and copy: limits, slots, logs and generations; not listeners and Vcpus."""

from __future__ import annotations

import copy
import pickle
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import pytest
from model import state_of, unchanged

from memslots import Flags, InvalidRegionError, Memslots, Slot

HVA = 0x1000_0000_0000
LIMITS = {"address_spaces": 2, "max_gfn": 0xFFFFF, "max_hva": 1 << 46, "manual_dirty_log": 1}


def by_pickle(vm: Memslots, protocol: int) -> Memslots:
    twin = pickle.loads(pickle.dumps(vm, protocol))
    assert isinstance(twin, type(vm))
    return twin


WAYS: dict[str, Callable[[Memslots], Memslots]] = {"copy": copy.copy, "deepcopy": copy.deepcopy}
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    WAYS[f"pickle {protocol}"] = partial(by_pickle, protocol=protocol)


class Listener:
    def commit(self, *args: object) -> None: ...


@pytest.fixture(params=WAYS)
def how(request: pytest.FixtureRequest) -> Callable[[Memslots], Memslots]:
    return WAYS[request.param]


@pytest.fixture
def used() -> Memslots:
    vm = Memslots(1 << 20, **LIMITS)
    vm.create(5, 0x100, 100, HVA, Flags.LOG_DIRTY_PAGES)
    vm.create(70_000, 0x200, 16, 0x1000, Flags.READONLY)
    vm.create(1, 0, 8, 0x1000, Flags.LOG_DIRTY_PAGES | Flags.READONLY)
    vm.create(5, 0x300, 16, 0x1000, Flags.LOG_DIRTY_PAGES, as_id=1)
    vm.move(5, 0x400)
    vm.mark_dirty_many(array("Q", [0x400, 0x463, 0x441]))
    vm.mark_dirty(0x30F, as_id=1)
    return vm


def test_everything_is_there(used: Memslots, how: Callable[[Memslots], Memslots]) -> None:
    before = state_of(used)
    twin = how(used)
    assert type(twin) is type(used)
    assert twin is not used
    twin.check()
    for name in ("max_slots", *LIMITS):
        assert getattr(twin, name) == getattr(used, name)
    assert state_of(twin) == state_of(used) == before
    assert list(twin) == list(used)
    assert twin.get_dirty_log(5) == used.get_dirty_log(5)
    assert twin[70_000] in used


def test_the_two_go_their_own_ways(used: Memslots, how: Callable[[Memslots], Memslots]) -> None:
    twin = how(used)
    with unchanged(used):
        twin.delete(70_000)
        twin.move(5, 0x600)
        twin.set_flags(1, Flags.READONLY)
        twin.mark_dirty(0x601)
        twin.clear_dirty_log(5, 0, 64, b"\xff" * 8)
        twin.create(9, 0x700, 1, 0, as_id=1)
        twin.check()
    with unchanged(twin):
        used.delete(5)
        used.mark_dirty(0x301, as_id=1)
        used.delete(5, as_id=1)
        used.check()
    del used
    twin.check()
    assert twin.lookup(0x600) is twin[5]


def test_generations_go_on(used: Memslots, how: Callable[[Memslots], Memslots]) -> None:
    generations = used.generation, used.address_space(1).generation
    twin = how(used)
    assert (twin.generation, twin.address_space(1).generation) == generations
    twin.create(9, 0x700, 1, 0)
    assert twin.generation == generations[0] + 2


def test_listeners_and_vcpus_stay_behind(
    used: Memslots, how: Callable[[Memslots], Memslots]
) -> None:
    heard: list[object] = []

    class Unpicklable:
        def commit(self, *args: object) -> None:
            heard.append(args)

    vcpu = used.vcpu()
    vcpu.lookup(0x400)
    with used.subscribe(Unpicklable()):
        twin = how(used)
        twin.delete(5)
        assert heard == []
        used.delete(70_000)
        assert len(heard) == 1
    assert vcpu.lookup(0x400) is used[5]
    assert twin.vcpu().stats == (0, 0)


def test_an_empty_one(how: Callable[[Memslots], Memslots]) -> None:
    twin = how(Memslots(7))
    twin.check()
    assert (twin.max_slots, len(twin), twin.generation) == (7, 0, 0)


def test_a_copy_of_a_copy(used: Memslots, how: Callable[[Memslots], Memslots]) -> None:
    assert state_of(how(how(used))) == state_of(used)


def test_many_slots() -> None:
    vm = Memslots()
    for id in range(5000):
        vm.create(id, (id * 7919) % 5000 * 2, 1, HVA)
    twin = pickle.loads(pickle.dumps(vm))
    twin.check()
    assert list(twin) == list(vm)


def test_what_belongs_to_a_machine_cannot_be_taken_away(used: Memslots) -> None:
    """A Vcpu pickled without its machine could not be used, and would fail late."""
    for part in (used.address_space(1), used.vcpu(), used.subscribe(Listener())):
        with pytest.raises((TypeError, pickle.PicklingError)):
            pickle.dumps(part)


def test_a_spoilt_pickle(used: Memslots) -> None:
    data = pickle.dumps(used)
    for cut in (1, len(data) // 2, len(data) - 2):
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            pickle.loads(data[:cut])


def test_a_pickle_of_slots_that_no_memslots_can_have() -> None:
    """Two slots with one id: as a change, the second could be a move of the first."""
    vm = Memslots()
    first, second = vm.create(1, 0, 4, HVA), Slot(1, 0, 8, 4, HVA)
    reduced: Any = vm.__reduce__()
    restore, (kind, limits, _) = reduced[:2]
    assert list(restore(kind, limits, [(1, [(first, None)])])) == [first]
    for slot in (first, second):
        with pytest.raises(InvalidRegionError, match="rule 5: the id is in use"):
            restore(kind, limits, [(1, [(first, None), (slot, None)])])


@pytest.mark.parametrize(
    ("as_id", "generation", "fits"),
    [
        (0, (1 << 62) - 2, True),
        (0, 1 << 62, False),
        (1, 1, True),
        (1, 2, False),
        (1, (1 << 62) + 1, False),
    ],
)
def test_a_pickle_of_a_generation_that_no_memslots_can_have(
    as_id: int, generation: int, fits: bool
) -> None:
    """The second of two address spaces uses odd generations, far below bit 63."""
    vm = Memslots(address_spaces=2)
    reduced: Any = vm.__reduce__()
    restore, (kind, limits, spaces) = reduced[:2]
    state = list(spaces)
    state[as_id] = (generation, [])
    if fits:
        assert restore(kind, limits, state).address_space(as_id).generation == generation
    else:
        with pytest.raises(ValueError, match=f"address space {as_id} cannot have generation"):
            restore(kind, limits, state)


class Named(Memslots):
    """A subclass with its own attributes, arguments and changes, none of which a copy runs."""

    __slots__ = ("__dict__", "serial")
    name: str

    def __new__(cls, serial: int) -> Named:
        return super().__new__(cls, 4)

    def __init__(self, serial: int) -> None:
        self.serial = serial
        super().create(0, 0, 1, HVA)

    def create(self, *args: object, **kwargs: object) -> NoReturn:
        raise ZeroDivisionError


@pytest.mark.parametrize("way", WAYS)
def test_a_subclass_takes_its_attributes_along(way: str) -> None:
    how = WAYS[way]
    vm = Named(7)
    vm.set_region(1, 0, 0x2000, 0x3000, 0)
    assert "name" not in how(vm).__dict__
    vm.name = "q35"
    twin = how(vm)
    assert type(twin) is Named
    assert (twin.name, twin.serial) == ("q35", 7)
    assert list(twin) == list(vm)
    assert twin.max_slots == 4
