"""MemoryMaps combined and made of arrays, compared with dicts from page to host page."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from allocations import each_failure
from hypothesis import given
from hypothesis import strategies as st
from maps import HOST, maps, pages

from memslots import Flags, InvalidRegionError, MemoryMap, OverlapError, Slot


def whole(m: MemoryMap) -> None:
    """Checks what must hold for any map."""
    slots = list(m)
    assert len({slot.id for slot in slots}) == len(slots)
    assert all(a.end_gfn <= b.base_gfn for a, b in pairwise(slots))
    assert m.nr_pages == len(pages(m))
    assert all(m[slot.id] is slot and m.lookup(slot.base_gfn) is slot for slot in slots)
    again = pickle.loads(pickle.dumps(m))
    assert again == m and hash(again) == hash(m) and list(again) == slots


@given(maps(), maps())
def test_each_operation_page_by_page(a: MemoryMap, b: MemoryMap) -> None:
    mine, theirs = pages(a), pages(b)
    over, less, common = a | b, a - b, a & b
    for m in (a, b, over, less, common):
        whole(m)
    assert pages(over) == {**mine, **theirs}
    assert pages(less) == {gfn: at for gfn, at in mine.items() if gfn not in theirs}
    assert pages(common) == {gfn: at for gfn, at in mine.items() if gfn in theirs}
    assert all(slot in over or b_is_free(b, slot) for slot in b)
    assert a | a == a == a & a and a - a == MemoryMap() and (a - b) | (a & b) != 5
    assert MemoryMap() | a == a == a | MemoryMap() == a - MemoryMap()
    assert ((a - b) | (a & b)).merged() == a.merged()
    assert a | b == (a - b) | b


def b_is_free(b: MemoryMap, slot: Slot) -> bool:
    """Returns whether the slot may have another id elsewhere: a map's pickle says so."""
    return not isinstance(b.__reduce__()[1][0][list(b).index(slot)], Slot)  # type: ignore[index]


@given(maps())
def test_merged(m: MemoryMap) -> None:
    joined = m.merged()
    whole(joined)
    assert pages(joined) == pages(m)
    slots = list(joined)
    for one, two in pairwise(slots):
        assert (
            one.end_gfn != two.base_gfn
            or one.userspace_addr + one.memory_size != two.userspace_addr
            or one.flags != two.flags
        )
    assert joined.merged() == joined and list(joined.merged()) == slots


def test_ids_of_what_is_cut_and_joined() -> None:
    ram = MemoryMap([(0, 100, HOST, 0, 7), (200, 100, HOST << 1, 0, 2)])
    bar = MemoryMap([(10, 5, 0x1000, 0, 2)])
    assert [(slot.id, slot.base_gfn) for slot in ram - bar] == [(7, 0), (0, 15), (2, 200)]
    # The bar keeps its id; the slot that had it may get any.
    over = ram | bar
    assert [(slot.id, slot.base_gfn) for slot in over] == [(7, 0), (2, 10), (0, 15), (1, 200)]
    assert [slot.id for slot in (over - bar).merged()] == [7, 0, 1]
    assert ram & bar == MemoryMap([(10, 5, HOST + 10 * 4096, 0, 7)])


def test_what_cannot_be_joined() -> None:
    end = (1 << 64) - 4096
    most = (1 << 31) - 1
    cases: list[list[Any]] = [
        [(0, 1, end), (1, 1, 0)],  # host memory does not continue after its end
        [(0, most, 0), (most, 1, most << 12)],  # rule 4
        [(0, 1, 0), (1, 1, 4096, 2)],
    ]
    for slots in cases:
        m = MemoryMap(slots)
        assert len(m.merged()) == 2 and m.merged() == m


def test_maps_that_have_nothing_in_common() -> None:
    m, other = MemoryMap([(0, 1, 0)]), MemoryMap([(0, 1, 0)], as_id=1)
    operations: list[Callable[[Any, Any], object]] = [
        lambda a, b: a | b,
        lambda a, b: a & b,
        lambda a, b: a - b,
    ]
    for operation in operations:
        with pytest.raises(ValueError, match="address spaces 0 and 1"):
            operation(m, other)
        for a, b in ((m, 5), (5, m), (m, [(0, 1, 0)])):
            with pytest.raises(TypeError):
                operation(a, b)


@pytest.mark.parametrize("types", ["QQQII", "QLQBH", "qqqii", "LILhb"])
@given(maps(), st.randoms())
def test_from_arrays(types: str, m: MemoryMap, random: Any) -> None:
    slots = list(m)
    random.shuffle(slots)
    bases, npages, hvas, flags, ids = (
        array(type_, [int(getattr(slot, name)) for slot in slots])
        for type_, name in zip(
            types, ("base_gfn", "npages", "userspace_addr", "flags", "id"), strict=True
        )
    )
    made = MemoryMap.from_arrays(bases, npages, hvas, flags, ids, generation=3)
    assert list(made) == list(m) and made.generation == 3
    whole(made)
    made = MemoryMap.from_arrays(bases, npages, hvas, flags)
    assert made == MemoryMap([slot_fields(slot) for slot in slots])
    same = MemoryMap.from_arrays(bases, npages, hvas, Flags.READONLY, ids, as_id=1)
    assert {(slot.as_id, slot.flags) for slot in same} <= {(1, Flags.READONLY)}
    whole(made)
    whole(same)


def slot_fields(slot: Slot) -> tuple[int, int, int, int]:
    return slot.base_gfn, slot.npages, slot.userspace_addr, int(slot.flags)


def test_from_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    n = 1000
    bases = numpy.arange(n, dtype=numpy.uint64) * 10
    m = MemoryMap.from_arrays(
        bases[::-1].copy(), numpy.full(n, 5), bases << 20, ids=numpy.arange(n)
    )
    assert len(m) == n and m.lookup(54) == Slot(n - 6, 0, 50, 5, (n - 6) * 10 << 20)
    with pytest.raises(ValueError, match="npages must be C-contiguous"):
        MemoryMap.from_arrays(bases, numpy.full(2 * n, 5)[::2], bases)
    with pytest.raises(TypeError, match="base_gfns must hold integers"):
        MemoryMap.from_arrays(bases * 1.5, bases, bases)
    with pytest.raises(TypeError, match="of this machine"):
        MemoryMap.from_arrays(bases.astype(">u8"), bases, bases)


def test_flags_of_all_slots() -> None:
    """A number of numpy is a buffer as well: it counts as a number."""
    numpy = pytest.importorskip("numpy")
    bases, one, hvas = array("q", [0, 10, 20]), array("q", [1, 1, 1]), array("q", [0, 0, 0])
    for flags in (3, Flags(3), numpy.uint32(3), numpy.int64(3), numpy.array(3)):
        made = MemoryMap.from_arrays(bases, one, hvas, flags)
        assert [slot.flags for slot in made] == [Flags(3)] * 3


def test_what_is_wrong_with_arrays() -> None:
    good = array("q", [0, 10, 20])
    one = array("q", [1, 1, 1])

    def arrays(**other: Any) -> MemoryMap:
        given = {"base_gfns": good, "npages": one, "userspace_addrs": array("q", [0, 0, 0])}
        return MemoryMap.from_arrays(**{**given, **other})

    assert len(arrays()) == 3
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"npages": array("q", [1, 1])}, ValueError, "npages must have 3 elements"),
        ({"npages": 5}, TypeError, "npages must be a buffer of integers"),
        ({"npages": array("d", [1, 1, 1])}, TypeError, "npages must hold integers"),
        ({"npages": array("q", [1, 0, 1])}, InvalidRegionError, "slot 1 of the map: 0 pages"),
        ({"npages": array("q", [1, 1, -1])}, OverflowError, "slot 2 of the map: npages"),
        ({"npages": array("q", [1, 11, 1])}, OverlapError, "slots 1 and 2 of the map"),
        ({"npages": array("Q", [1 << 31] * 3)}, InvalidRegionError, "more than 2147483647"),
        ({"base_gfns": array("Q", [0, 1 << 52, 9])}, InvalidRegionError, "slot 1 .*not a run"),
        ({"base_gfns": array("Q", [20, 0, 20])}, OverlapError, "slots 0 and 2 of the map"),
        ({"userspace_addrs": array("Q", [0, 0, 5])}, InvalidRegionError, "slot 2 .*4096"),
        ({"flags": array("I", [0, 8, 0])}, InvalidRegionError, "slot 1 of the map: unknown flags"),
        ({"flags": 1 << 32}, OverflowError, "flags"),
        ({"flags": 4}, InvalidRegionError, "slot 0 of the map: flags 0x4: GUEST_MEMFD"),
        ({"ids": good[:2]}, ValueError, "ids must have 3 elements"),
        ({"ids": array("q", [0, 1, -2])}, OverflowError, "slot 2 of the map: id"),
        ({"ids": array("q", [5, 1, 5])}, InvalidRegionError, "slots 0 and 2 .*have the id 5"),
        ({"ids": array("q", [5, 1 << 31, 6])}, InvalidRegionError, "id 2147483648 is above"),
    ]
    for other, error, text in wrong:
        with pytest.raises(error, match=text):
            arrays(**other)


def test_no_memory(drivers: Any) -> None:
    a = MemoryMap([(10 * i, 8, i << 30) for i in range(40)])
    b = MemoryMap([(10 * i + 3, 8, i << 31, 0, i) for i in range(30)])
    bases, npages = (array("Q", [getattr(slot, n) for slot in a]) for n in ("base_gfn", "npages"))
    uses: list[tuple[Callable[[], object], int]] = [
        (lambda: a | b, 4),
        (lambda: a - b, 3),
        (lambda: a & b, 3),
        (lambda: a.merged(), 3),
        (lambda: MemoryMap.from_arrays(bases, npages, array("Q", [0] * 40)), 3),
        (lambda: MemoryMap([(0, 1, 0)]), 3),
    ]
    for use, least in uses:
        assert each_failure(drivers("alloc"), use, lambda: None) >= least
