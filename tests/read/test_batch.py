"""Tests lookup_many and translate: every kind of buffer, the results, and other threads."""

from __future__ import annotations

import sys
import threading
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from model import unchanged

from memslots import BAD_HVA, AddressSpace, Flags, Memslots, Vcpu

HVA = 0x7000_0000_0000
Face = Memslots | AddressSpace | Vcpu

GFNS = [0, 16, 15, 32, 33, 34, 2**40, 2**64 - 1, 32]
IDS = [5, -1, 5, 6, 6, -1, -1, -1, 6]
GPAS = [0, 16 << 12, 0x8ABC, (33 << 12) + 0xFFF, 34 << 12, 2**64 - 1]
HVAS = [HVA, BAD_HVA, HVA + 0x8ABC, HVA + 0x100000 + 0x1FFF, BAD_HVA, BAD_HVA]
HVAS_TO_WRITE = [HVA, BAD_HVA, HVA + 0x8ABC, BAD_HVA, BAD_HVA, BAD_HVA]

FACES: dict[str, Callable[[Memslots], Face]] = {
    "vm": lambda vm: vm,
    "space": lambda vm: vm.address_space(0),
    "vcpu": lambda vm: vm.vcpu(),
}


@pytest.fixture
def used(vm: Memslots) -> Memslots:
    vm.create(5, 0, 16, HVA)
    vm.create(6, 32, 2, HVA + 0x100000, Flags.READONLY)
    vm.create(7, 16, 4, HVA, as_id=1)
    return vm


@pytest.fixture(params=FACES)
def face(used: Memslots, request: pytest.FixtureRequest) -> Face:
    return FACES[request.param](used)


def quads(values: list[int]) -> array[int]:
    return array("Q", values)


IN: dict[str, Callable[[list[int]], Any]] = {
    "array Q": quads,
    "array L": lambda values: array("L", values),
    "memoryview": lambda values: memoryview(quads(values)),
    "read-only memoryview": lambda values: memoryview(bytes(quads(values))).cast("Q"),
    "part of a memoryview": lambda values: memoryview(quads([1, *values, 2]))[1:-1],
    "cast bytearray": lambda values: memoryview(bytearray(quads(values))).cast("Q"),
}


@pytest.mark.parametrize("kind", IN)
def test_kinds_of_buffer(face: Face, kind: str) -> None:
    gfns, gpas = IN[kind](GFNS), IN[kind](GPAS)
    before = bytes(gfns)
    ids = face.lookup_many(gfns)
    assert isinstance(ids, array)
    assert ids.typecode == "i"
    assert ids.tolist() == IDS
    hvas = face.translate(gpas)
    assert isinstance(hvas, array)
    assert hvas.typecode == "Q"
    assert hvas.tolist() == HVAS
    assert face.translate(gpas, write=True).tolist() == HVAS_TO_WRITE
    assert bytes(gfns) == before


def test_the_other_address_space(used: Memslots) -> None:
    for face in (used.address_space(1), used.vcpu(1)):
        assert face.lookup_many(quads([0, 16, 19, 20])).tolist() == [-1, 7, 7, -1]
        assert face.translate(quads([16 << 12])).tolist() == [HVA]


def test_nothing_in_nothing_out(face: Face) -> None:
    assert face.lookup_many(quads([])) == array("i")
    assert face.translate(quads([])) == array("Q")
    out = array("i")
    assert face.lookup_many(quads([]), out) is out


def test_no_slots_at_all() -> None:
    vm = Memslots()
    assert vm.lookup_many(quads([0, 1])).tolist() == [-1, -1]
    assert vm.translate(quads([0, 1])).tolist() == [BAD_HVA] * 2


def test_out(face: Face) -> None:
    ids = array("i", [7] * len(GFNS))
    assert face.lookup_many(quads(GFNS), ids) is ids
    assert ids.tolist() == IDS
    ids = array("i", [7] * len(GFNS))
    assert face.lookup_many(quads(GFNS), out=memoryview(ids)).tolist() == IDS
    assert ids.tolist() == IDS
    hvas = quads([7] * len(GPAS))
    assert face.translate(quads(GPAS), hvas) is hvas
    assert hvas.tolist() == HVAS
    assert face.translate(quads(GPAS), out=hvas, write=True) is hvas
    assert hvas.tolist() == HVAS_TO_WRITE


def test_part_of_a_buffer_as_out(face: Face) -> None:
    ids = array("i", [7] * 5)
    face.lookup_many(quads([0, 32, 99]), out=memoryview(ids)[1:4])
    assert ids.tolist() == [7, 5, 6, -1, 7]


def test_translate_in_place(face: Face) -> None:
    gpas = quads(GPAS)
    assert face.translate(gpas, out=gpas) is gpas
    assert gpas.tolist() == HVAS


@pytest.mark.parametrize("shift", [-3, -1, 1, 3])
def test_results_are_not_written_over_what_is_to_be_looked_up(face: Any, shift: int) -> None:
    memory = quads([*GPAS, *GPAS])
    count = len(GPAS) - 1
    given = memoryview(memory)[3 : 3 + count]
    out = memoryview(memory)[3 + shift : 3 + shift + count]
    before = memory.tolist()
    with pytest.raises(ValueError, match="out overlaps gpas"):
        face.translate(given, out=out)
    narrow = memoryview(memory).cast("B").cast("i")
    for first in (6, 6 + shift, 6 + 2 * count - 1, 7 - count):
        with pytest.raises(ValueError, match="out overlaps gfns"):
            face.lookup_many(given, out=narrow[first : first + count])
    assert memory.tolist() == before


def test_results_may_lie_beside_what_is_to_be_looked_up(face: Any) -> None:
    memory = quads([*GPAS, *GPAS])
    count = len(GPAS)
    expected = face.translate(quads(GPAS)).tolist()
    face.translate(memoryview(memory)[:count], out=memoryview(memory)[count:])
    assert memory[count:].tolist() == expected
    memory[count:] = quads(GPAS)
    face.translate(memoryview(memory)[count:], out=memoryview(memory)[:count])
    assert memory[:count].tolist() == expected
    face.translate(memoryview(memory)[:0], out=memoryview(memory)[:0])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (array("q", [1]), TypeError),
        (array("I", [1]), TypeError),
        (array("d", [1]), TypeError),
        (b"12345678", TypeError),
        (bytearray(8), TypeError),
        ("12345678", TypeError),
        ([1], TypeError),
        (1, TypeError),
        (None, TypeError),
        (memoryview(quads([1, 2, 3, 4]))[::2], ValueError),
        (memoryview(quads([1, 2]))[::-1], ValueError),
    ],
)
def test_wrong_input(face: Face, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        face.lookup_many(wrong)
    with pytest.raises(error):
        face.translate(wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (array("i", [7] * 2), ValueError),
        (array("i", [7] * 4), ValueError),
        (array("i"), ValueError),
        (memoryview(array("i", [7] * 6))[::2], ValueError),
        (memoryview(bytes(12)).cast("i"), ValueError),
        (array("I", [7] * 3), TypeError),
        (array("q", [7] * 3), TypeError),
        (bytearray(12), TypeError),
        ([7, 7, 7], TypeError),
    ],
)
def test_wrong_ids_out(face: Face, wrong: Any, error: type[Exception]) -> None:
    before = bytes(wrong)
    with pytest.raises(error):
        face.lookup_many(quads([0, 1, 2]), wrong)
    assert bytes(wrong) == before


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (quads([7] * 2), ValueError),
        (quads([7] * 4), ValueError),
        (memoryview(quads([7] * 6))[::2], ValueError),
        (memoryview(bytes(24)).cast("Q"), ValueError),
        (array("q", [7] * 3), TypeError),
        (array("i", [7] * 3), TypeError),
        (bytearray(24), TypeError),
    ],
)
def test_wrong_hvas_out(face: Face, wrong: Any, error: type[Exception]) -> None:
    before = bytes(wrong)
    with pytest.raises(error):
        face.translate(quads([0, 1, 2]), out=wrong)
    assert bytes(wrong) == before


def askew(size: int, format: Literal["i", "Q"]) -> Any:
    """Returns `size` bytes as elements that begin at an odd address."""
    return memoryview(bytearray(size + 1))[1:].cast(format)


def test_buffers_askew(used: Memslots, face: Face) -> None:
    with unchanged(used):
        for call in (face.lookup_many, face.translate, used.mark_dirty_many):
            with pytest.raises(ValueError, match=r"g[fp].*s must be aligned"):
                call(askew(32, "Q"))
        ids, hvas = askew(16, "i"), askew(32, "Q")
        with pytest.raises(ValueError, match="out must be aligned"):
            face.lookup_many(quads([0] * 4), out=ids)
        with pytest.raises(ValueError, match="out must be aligned"):
            face.translate(quads([0] * 4), out=hvas)
    assert not any(bytes(ids) + bytes(hvas))


def test_nothing_may_lie_askew(used: Memslots, face: Face) -> None:
    ids, hvas = askew(0, "i"), askew(0, "Q")
    assert face.lookup_many(askew(0, "Q")) == array("i")
    assert face.translate(askew(0, "Q")) == array("Q")
    assert face.lookup_many(askew(0, "Q"), out=ids) is ids
    assert face.translate(askew(0, "Q"), out=hvas) is hvas
    used.mark_dirty_many(askew(0, "Q"))


def test_a_read_only_machine_state(used: Memslots) -> None:
    with unchanged(used):
        used.lookup_many(quads(GFNS))
        used.translate(quads(GPAS), write=True)


# numpy


def test_numpy(face: Face) -> None:
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    ids = face.lookup_many(np.array(GFNS, dtype=np.uint64))
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.int32
    assert ids.tolist() == IDS
    hvas = face.translate(np.array(GPAS, dtype=np.uint64))
    assert isinstance(hvas, np.ndarray)
    assert hvas.dtype == np.uint64
    assert hvas.tolist() == HVAS


def test_numpy_shapes(face: Face) -> None:
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    gfns = np.array(GFNS[:6], dtype=np.uint64).reshape(3, 2)
    ids = face.lookup_many(gfns)
    assert ids.shape == (3, 2)
    assert ids.ravel().tolist() == IDS[:6]
    assert face.lookup_many(gfns[1:]).tolist() == [IDS[2:4], IDS[4:6]]
    assert face.lookup_many(np.empty((0, 4), dtype=np.uint64)).shape == (0, 4)
    assert face.lookup_many(np.array(32, dtype=np.uint64)).shape == ()
    out = np.empty(6, dtype=np.int32)
    assert face.lookup_many(quads(GFNS[:6]), out) is out
    assert out.tolist() == IDS[:6]
    gpas = np.array(GPAS, dtype=np.uint64)
    assert face.translate(gpas, out=gpas) is gpas
    assert gpas.tolist() == HVAS


def test_numpy_that_does_not_fit(face: Face) -> None:
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    for dtype in (np.int64, np.uint32, np.float64, ">u8"):
        with pytest.raises(TypeError):
            face.lookup_many(np.zeros(3, dtype=dtype))
    for strange in (np.zeros(6, dtype=np.uint64)[::2], np.zeros((3, 2), dtype=np.uint64).T):
        with pytest.raises(ValueError, match="contiguous"):
            face.lookup_many(strange)
    fixed = np.zeros(3, dtype=np.int32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError):
        face.lookup_many(np.zeros(3, dtype=np.uint64), fixed)


def test_numpy_askew(face: Face) -> None:
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    packed = np.zeros(4, dtype=[("tag", "u1"), ("gfn", "u8")])
    for gfns in (packed["gfn"][:1], np.frombuffer(packed, "u8", count=4, offset=1)):
        assert not gfns.flags.aligned
        with pytest.raises(ValueError, match="aligned"):
            face.lookup_many(gfns)
        with pytest.raises(ValueError, match="aligned"):
            face.translate(np.zeros(len(gfns), "u8"), out=gfns)
        assert face.lookup_many(gfns.copy()).tolist() == [5] * len(gfns)
    assert face.lookup_many(packed["gfn"][:0]).shape == (0,)


# Threads


@pytest.mark.parametrize("call", ["lookup_many", "translate", "mark_dirty_many"])
def test_others_run_meanwhile(used: Memslots, call: str) -> None:
    """While one thread is in a batch of millions, another one counts."""
    gfns = quads([0, 32, 99, 15] * 1_000_000)
    counted = 0
    stop = False

    def count() -> None:
        nonlocal counted
        while not stop:
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # no thread is made to release the GIL; batches release it unasked
    try:
        thread.start()
        while not counted:
            time.sleep(0.001)
        progress = 0
        for _ in range(50):  # one is enough if a processor is free
            before = counted
            getattr(used, call)(gfns)
            progress += counted - before
            if progress > 100:
                break
    finally:
        stop = True
        thread.join()
        sys.setswitchinterval(interval)
    assert progress > 100


def test_batches_beside_changes() -> None:
    """Slot 1 moves back and forth between two places, slot 2 comes and goes, slot 0 stays."""
    vm = Memslots(4)
    vm.create(0, 0, 16, HVA)
    vm.create(1, 16, 16, HVA + 0x100000)
    gfns = quads(list(range(64)) * 2000)
    allowed = [{0}] * 16 + [{1, -1}] * 16 + [{2, -1}] * 16 + [{1, -1}] * 16
    there = [HVA + (gfn << 12) for gfn in range(16)]
    hvas = [HVA + 0x100000 + (gfn << 12) for gfn in range(16)]
    gpas = quads([gfn << 12 for gfn in gfns])
    done = threading.Event()

    def change() -> int:
        rounds = 0
        while not done.is_set():
            vm.move(1, 48)
            vm.create(2, 32, 16, HVA)
            vm.move(1, 16)
            vm.delete(2)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(change)
        try:
            vcpu = vm.vcpu()
            for face in (vm, vcpu) * 15:
                ids = face.lookup_many(gfns)
                seen = [set(ids[gfn::64]) for gfn in range(64)]
                assert all(some <= all_ for some, all_ in zip(seen, allowed, strict=True))
                found = face.translate(gpas)
                for gfn in range(16):
                    assert set(found[gfn::64]) == {there[gfn]}
                    assert set(found[16 + gfn :: 64]) <= {hvas[gfn], BAD_HVA}
                    assert set(found[32 + gfn :: 64]) <= {there[gfn], BAD_HVA}
        finally:
            done.set()
        assert writer.result() > 0
    vm.check()
