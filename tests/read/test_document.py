"""MemoryMaps as JSON text, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from maps import maps

from memslots import InvalidRegionError, MemoryMap, Memslots, OverlapError

GOOD = {"guest_phys_addr": "0x1000", "memory_size": 8192, "userspace_addr": "0x7f0000000000"}


@given(maps())
def test_there_and_back(m: MemoryMap) -> None:
    other = MemoryMap.from_json(m.to_json())
    assert other == m and other.to_json() == m.to_json()
    assert list(other) == list(m)  # with the same ids, given or not


def test_what_it_looks_like() -> None:
    vm = Memslots(address_spaces=2)
    vm.create(7, 1, 2, 0x7F0000000000, 3, as_id=1)
    assert json.loads(vm.map(1).to_json()) == {
        "as_id": 1,
        "generation": vm.address_space(1).generation,
        "slots": [{"id": 7, "flags": "LOG_DIRTY_PAGES|READONLY", **GOOD}],
    }
    again = MemoryMap.from_json(vm.map(1).to_json().encode())
    assert (again, again.generation) == (vm.map(1), vm.map(1).generation)


@pytest.mark.parametrize(
    "slot",
    [
        GOOD,
        {**GOOD, "flags": 0, "id": None},
        {**GOOD, "guest_phys_addr": 4096, "memory_size": "0x2000", "flags": "", "more": 1},
    ],
)
def test_what_people_write(slot: dict[str, Any]) -> None:
    wanted = MemoryMap([(1, 2, 0x7F0000000000)])
    assert MemoryMap.from_json(json.dumps([slot])) == wanted
    assert MemoryMap.from_json(json.dumps({"slots": [slot]})) == wanted
    assert MemoryMap.from_json(json.dumps([{**slot, "id": "3"}]))[3].base_gfn == 1


@pytest.mark.parametrize(
    ("document", "error", "text"),
    [
        ("{", ValueError, "Expecting"),
        ("5", InvalidRegionError, 'a list "slots"'),
        ("{}", InvalidRegionError, 'a list "slots"'),
        ([5], InvalidRegionError, "slot 0 of the map is not a JSON object"),
        ([GOOD, {}], InvalidRegionError, 'slot 1 of the map has no "guest_phys_addr"'),
        (
            [{**GOOD, "memory_size": "2 GiB"}],
            InvalidRegionError,
            "memory_size is not a whole number",
        ),
        ([{**GOOD, "memory_size": 1.5}], InvalidRegionError, "memory_size is not a whole number"),
        ([{**GOOD, "memory_size": True}], InvalidRegionError, "memory_size is not a whole number"),
        (
            [{**GOOD, "memory_size": 5000}],
            InvalidRegionError,
            "memory_size 0x1388 is not a multiple",
        ),
        ([{**GOOD, "guest_phys_addr": 1}], InvalidRegionError, "guest_phys_addr 0x1 is no"),
        ([{**GOOD, "flags": "LOUD"}], InvalidRegionError, "unknown flag 'LOUD'"),
        ([{**GOOD, "flags": "4"}], InvalidRegionError, "needs a guest_memfd"),
        ([{**GOOD, "id": -1}], OverflowError, "slot 0 of the map: id"),
        ([GOOD, GOOD], OverlapError, "slots 0 and 1 of the map"),
        ({"slots": [], "as_id": []}, InvalidRegionError, "as_id is not a whole number"),
        ("[" * 100_000, InvalidRegionError, "not nested as deeply"),
    ],
)
def test_not_a_map(document: object, error: type[Exception], text: str) -> None:
    given_ = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(error, match=text):
        MemoryMap.from_json(given_)
