"""Tests memslots.core.invariants: the checker sees each broken property and names it.

When the property is mended, the checker passes.
"""

from __future__ import annotations

import math
import random
from array import array
from typing import Any

import pytest

from memslots import Flags, InvariantError, Memslots
from memslots.errors import PROPERTIES


@pytest.fixture
def vm() -> Memslots:
    vm = Memslots(address_spaces=2)
    for id in range(40):
        vm.create(id, 64 * id, 7, 0x10000 * id, Flags.LOG_DIRTY_PAGES if id % 2 else 0, as_id=1)
    vm.address_space(1).lookup_many(array("Q", range(0, 64 * 40, 5)))  # so many make an index
    vm.check()
    return vm


# name, the broken property, whether each tree has it
CASES = [
    ("R1", "R1", True),
    ("R2", "R2", True),
    ("R3", "R3", True),
    ("R4", "R4", True),
    ("R5", "R5", True),
    ("R5 cycle", "R5", True),
    ("H1", "H1", False),
    ("S1 ids", "S1", False),
    ("S1 count", "S1", False),
    ("S1 hva", "S1", False),
    ("S2", "S2", False),
    ("S3", "S3", False),
    ("S4", "S4", False),
    ("P1", "P1", False),
    ("P1 slots", "P1", False),
    ("P2", "P2", False),
    ("D1 flag", "D1", False),
    ("D1 bit", "D1", False),
    ("I1 row: base_gfn", "I1", False),
    ("I1 row: npages", "I1", False),
    ("I1 row: id", "I1", False),
    ("I1 row: userspace_addr", "I1", False),
    ("I1 row: flags", "I1", False),
    ("I1 row: record", "I1", False),
    ("I1 slot", "I1", False),
    ("I1 count", "I1", False),
    ("I1 kept", "I1", False),
]


def test_every_property_is_broken_by_some_case() -> None:
    assert {number for _, number, _ in CASES} == set(PROPERTIES)


@pytest.mark.parametrize("active", [True, False], ids=["active", "inactive"])
@pytest.mark.parametrize(
    ("name", "number", "hva"),
    [
        (name, number, hva)
        for name, number, both in CASES
        for hva in ([False, True] if both else [False])
    ],
)
def test_a_broken_property_is_named(
    drivers: Any, vm: Memslots, name: str, number: str, hva: bool, active: bool
) -> None:
    breaking = drivers("corruption").broken(vm.address_space(1), name, active=active, hva=hva)
    k, id = next(breaking)
    try:
        with pytest.raises(InvariantError) as caught:
            vm.check()
    finally:
        assert next(breaking, None) is None
    assert caught.value.property == number
    where = f"in set {k} of address space 1"
    if hva or name in ("H1", "S1 hva"):
        where += ", hva tree"
    if id is not None:
        where += f", at slot {id}"
    assert str(caught.value) == f"{number}: {PROPERTIES[number]}: not so {where}"
    vm.check()


def test_the_depth_stays_within_its_bound(drivers: Any) -> None:
    vm = Memslots()
    ids = list(range(vm.max_slots))
    random.Random(0).shuffle(ids)
    for id in ids:
        vm.create(id, 3 * id, 2, id << 13)
    vm.check()
    least = math.log2(len(ids) + 1)
    assert least <= drivers("corruption").depth(vm) <= 2 * least
