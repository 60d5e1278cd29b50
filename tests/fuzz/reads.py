"""The operations that read: dirty logs, look-ups, ranges, walks, Slots; and new machines."""

from __future__ import annotations

import copy
import operator
import pickle
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from compared import (
    Face,
    caught,
)
from fuzz.buffers import FOUR, IN, OUT, WRONG_IN, WRONG_OUT
from fuzz.choices import Byte, Bytes, Choice, Number, Numbers
from fuzz.target import ADDRESS, BOOL, BYTES, U32, U64, Target, operation, taken
from model import BAD_HVA, ModelSlot, plain

from memslots import (
    AddressSpace,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    ReadOnlyError,
    Slot,
    Vcpu,
)

# Dirty logs


@operation(U64, U32)
def mark_dirty(on: Target, *values: Any) -> None:
    on.mark_dirty(*values)


@operation(Numbers(), Choice((1, 5, 100)), Byte(), Byte())
def mark_dirty_many(on: Target, gfns: list[int], times: int, how: int, space: int) -> None:
    as_id = space % on.model.address_spaces
    gfns = gfns * times
    on.of(on.vm, "mark_dirty_many")(IN[how % len(IN)](gfns), as_id=as_id)
    for gfn in {*gfns}:
        on.model.mark_dirty(gfn, as_id)


@operation(U32, U32)
def get_dirty_log(on: Target, *values: Any) -> None:
    call = on.of(on.vm, "get_dirty_log")
    numbers = on.ints(call, values, (U32, U32))
    if numbers is not None:
        id, as_id = numbers
        on.both.dirty_log(lambda _, as_id: call(*values), on.model.get_dirty_log, id, as_id=as_id)


#: Kinds of bitmaps, and the error of those that are refused.
BITMAPS: tuple[tuple[Callable[[bytes], Any], type[Exception] | None], ...] = (
    (bytes, None),
    (bytearray, None),
    (memoryview, None),
    (lambda bits: memoryview(bits + b"\0")[:-1], None),
    (lambda bits: bits.hex(), TypeError),
    (list, TypeError),
    (lambda bits: memoryview(bits + bytes(4))[::2], BufferError),
)


@operation(U32, U64, U32, BYTES, Choice(range(len(BITMAPS))), U32)
def clear_dirty_log(
    on: Target, slot: Any, first: Any, pages: Any, bits: bytes, how: int, space: Any
) -> None:
    make, error = BITMAPS[how]
    bitmap = make(bits)

    def call(slot: Any, first: Any, pages: Any, as_id: Any) -> Any:
        return on.of(on.vm, "clear_dirty_log")(slot, first, pages, bitmap, as_id=as_id)

    values = (slot, first, pages, space)
    numbers = on.ints(call, values, (U32, U64, U32, U32))
    if numbers is None:
        return
    if error is not None:
        caught(error, call, *values)
        return
    id, first, pages, as_id = numbers
    on.both.dirty_log(
        lambda *_, as_id: call(*values),
        on.model.clear_dirty_log,
        *(id, first, pages, bits),
        as_id=as_id,
    )


@operation(Byte(), Byte(), Bytes())
def clear_to_the_end(on: Target, number: int, words: int, bits: bytes) -> None:
    """Makes a call that fits a slot in use: from some word to its last page."""
    used = on.both.used()
    if used:
        as_id, id = used[number % len(used)]
        npages = on.model.slots[as_id][id].npages
        first = 64 * (words % (npages // 64 + 1))
        clear_dirty_log(on, id, first, min(npages - first, 0xFFFFFFFF), bits, 0, as_id)


# Reading


@operation(Byte(), Numbers(), Choice((0, 1, 8, 4095)))
def look(on: Target, face: int, gfns: list[int], offset: int) -> None:
    on.both.look(on.face(face), [gfn % (1 << 52) for gfn in gfns], offset)


@operation(Byte(), U64)
def lookup(on: Target, face: int, gfn: Any) -> None:
    which = on.face(face)
    call = on.of(which, "lookup")
    with counted(on, which, 1) as counts:
        numbers = on.ints(call, (gfn,), (U64,))
        if numbers is None:
            counts.clear()
            return
        found = call(gfn)
    want = on.model.lookup(which.as_id, numbers[0])
    assert (found and plain(found)) == want
    if found is not None:
        on.keep(found)
        assert on.of(found, "__contains__")(gfn)
        at = found.userspace_addr + (numbers[0] - found.base_gfn << 12)
        assert on.of(found, "gfn_to_hva")(gfn) == at


@operation(Byte(), ADDRESS, Number(12), BOOL)
def gpa_to_hva(on: Target, face: int, gpa: Any, offset: Any, write: bool) -> None:
    which = on.face(face)
    call = on.of(which, "gpa_to_hva")
    if type(gpa) is int and type(offset) is int:
        gpa = min(gpa + offset % 4096, (1 << 64) - 1)
    with counted(on, which, 1) as counts:
        numbers = on.ints(lambda gpa: call(gpa, write), (gpa,), (U64,))
        if numbers is None:
            counts.clear()
            return
        want = on.model.translate(which.as_id, numbers[0], write)
        if want != BAD_HVA:
            assert call(gpa, write) == want
        else:
            slot = on.model.lookup(which.as_id, numbers[0] >> 12)
            kind = ReadOnlyError if slot else NotMappedError
            assert type(caught(MemslotError, call, gpa, write=write)) is kind


@contextmanager
def counted(on: Target, face: Face, lookups: int) -> Iterator[list[int]]:
    """Checks that hits and misses of a Vcpu add up to its look-ups, unless the list is emptied."""
    expected = [lookups]
    before = sum(on.of(face, "stats")) if isinstance(face, Vcpu) else 0
    yield expected
    if isinstance(face, Vcpu):
        assert sum(face.stats) == before + sum(expected)


#: How often a batch repeats its numbers: an index pays only for a long batch.
TIMES = (1, 1, 3, 40, 300)


@operation(Byte(), Numbers(), Choice(TIMES), Byte(), Byte())
def lookup_many(on: Target, face: int, gfns: list[int], times: int, how: int, where: int) -> None:
    which = on.face(face)
    ids: dict[int, int] = {}
    for gfn in gfns:
        slot = on.model.lookup(which.as_id, gfn)
        ids[gfn] = -1 if slot is None else slot.id
    gfns = gfns * times
    call = on.of(which, "lookup_many")
    with counted(on, which, len(gfns)):
        batch(call, gfns, [ids[gfn] for gfn in gfns], "i", how, where)


@operation(Byte(), Numbers(), Choice(TIMES), Choice((0, 1, 4095)), BOOL, Byte(), Byte())
def translate(
    on: Target,
    face: int,
    gfns: list[int],
    times: int,
    offset: int,
    write: bool,
    how: int,
    where: int,
) -> None:
    which = on.face(face)
    gpas = [(gfn % (1 << 52) << 12) + offset for gfn in gfns]
    hvas = {gpa: on.model.translate(which.as_id, gpa, write) for gpa in gpas}
    gpas = gpas * times
    method = on.of(which, "translate")
    with counted(on, which, len(gpas)):
        results = [hvas[gpa] for gpa in gpas]
        batch(lambda *args: method(*args, write=write), gpas, results, "Q", how, where)


def batch(
    call: Callable[..., Any], numbers: list[int], want: list[int], code: str, how: int, where: int
) -> None:
    """Makes a batch, with one way to pass numbers and one way to take results."""
    given = IN[how % len(IN)](numbers)
    where %= len(OUT) + 2
    if where == len(OUT):
        result = call(given)
        shape = getattr(given, "shape", None) if type(given).__module__ == "numpy" else None
        assert getattr(result, "shape", None) == shape
        assert shape is not None or (type(result) is array and result.typecode == code)
    elif where == len(OUT) + 1 and code == "Q" and not memoryview(given).readonly:
        result = call(given, given)  # in place
        assert result is given
    else:
        out = OUT[where % len(OUT)](code, len(numbers))
        result = call(given, out)
        assert result is out
    assert array(code, bytes(result)).tolist() == want
    assert result is given or array("Q", bytes(given)).tolist() == numbers


@operation(
    Byte(), Choice(("lookup_many", "translate", "mark_dirty_many")), Numbers(), Byte(), Byte()
)
def wrong_buffers(
    on: Target, face: int, name: str, numbers: list[int], how: int, where: int
) -> None:
    """Makes a batch in which one or both buffers are refused."""
    which = on.face(face)
    given, error = WRONG_IN[how % len(WRONG_IN)]
    if name == "mark_dirty_many":
        caught(error, on.vm.mark_dirty_many, given)
        beyond = on.model.address_spaces
        assert caught(InvalidRegionError, on.vm.mark_dirty_many, FOUR, beyond).rule == 2
        return
    call = on.of(which, name)
    make, other = WRONG_OUT[where % len(WRONG_OUT)]
    out = make("i" if name == "lookup_many" else "Q", len(numbers))
    before = bytes(out)
    caught(error, call, given)
    caught(other, call, IN[how % len(IN)](numbers), out)
    assert type(caught(Exception, call, given, out)) in (error, other)
    assert bytes(out) == before


@operation(Byte(), U64, U64, ADDRESS, ADDRESS, Choice((0, 1, 4095)))
def ranges(on: Target, face: int, first: Any, last: Any, start: Any, end: Any, offset: int) -> None:
    which = on.face(face)
    for name, *pair in (("in_gfn_range", first, last), ("in_hva_range", start, end)):
        numbers = on.ints(on.of(which, name), tuple(pair), (U64, U64))
        if numbers is None:
            return
        if numbers[0] > numbers[1]:
            caught(ValueError, on.of(which, name), *pair)
    first, last = sorted((operator.index(first), operator.index(last)))
    start, end = sorted((operator.index(start), operator.index(end)))
    on.both.ranges(which, first, last, start, min(end + offset, (1 << 64) - 1))


@operation(Byte(), U32)
def by_id(on: Target, face: int, id: Any) -> None:
    which = on.face(face)
    for name in ("get", "__getitem__"):
        if on.ints(on.of(which, name), (id,), (U32,)) is None:
            return
    number = operator.index(id)
    on.both.by_id(which, number)
    default = object()
    assert (which.get(id, default) is default) == (on.model.get(which.as_id, number) is None)


@operation(Byte())
def walk(on: Target, face: int) -> None:
    """Compares what a reader says of all its slots, and of itself."""
    which = on.face(face)
    as_id = on.of(which, "as_id")
    slots = list(on.of(which, "__iter__")())
    want = on.model.in_order(as_id)
    assert [plain(slot) for slot in slots] == want
    assert list(on.of(which, "__reversed__")()) == slots[::-1]
    assert on.of(which, "__len__")() == len(want)
    assert on.of(which, "nr_pages") == on.model.nr_pages(as_id)
    assert on.of(which, "generation") == on.model.generations[as_id]
    for slot in slots[:4]:
        on.keep(slot)
        assert on.of(which, "__contains__")(slot)
        assert which[slot.id] is slot
    caught(TypeError, which.__contains__, 0)
    assert ascii(which) == on.of(which, "__repr__")()
    if not isinstance(which, Memslots):
        caught(TypeError, on.of(which, "__reduce__"))
        caught(TypeError, copy.copy, which)


@operation(BOOL, U32, BOOL)
def new_face(on: Target, vcpu: bool, as_id: Any, by_class: bool) -> None:
    """Replaces an AddressSpace or a Vcpu by another one."""
    call: Callable[[Any], AddressSpace | Vcpu]
    if by_class:
        cls = Vcpu if vcpu else AddressSpace
        caught(TypeError, cls, 0, 0)
        call = lambda as_id: cls(on.vm, as_id)  # noqa: E731
    else:
        call = on.of(on.vm, "vcpu" if vcpu else "address_space")
    numbers = on.ints(call, (as_id,), (U32,))
    if numbers is None:
        return
    if numbers[0] >= on.model.address_spaces:
        assert caught(InvalidRegionError, call, as_id).rule == 2
        return
    face = call(as_id)
    assert face.as_id == numbers[0]
    on.both.faces[numbers[0]][vcpu] = face


@operation()
def limits(on: Target) -> None:
    for name in ("max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log"):
        assert on.of(on.vm, name) == getattr(on.model, name)
    on.of(on.vm, "check")()


#: The limits of a Memslots, with the least and the greatest value of each.
LIMITS: tuple[tuple[str, Number, int, int], ...] = (
    ("max_slots", U64, 1, (1 << 31) - 1),
    ("address_spaces", U32, 1, 16),
    ("max_gfn", U64, 0, (1 << 52) - 1),
    ("max_hva", ADDRESS, 0, (1 << 64) - 1),
    ("manual_dirty_log", U32, 0, 3),
)


@operation(*(field for _, field, _, _ in LIMITS))
def another_machine(on: Target, *values: Any) -> None:
    names = [name for name, *_ in LIMITS]

    def call(max_slots: Any, *others: Any) -> Memslots:
        return Memslots(max_slots, **dict(zip(names[1:], others, strict=True)))

    numbers = on.ints(call, values, tuple(field for _, field, _, _ in LIMITS))
    if numbers is None:
        return
    fits = all(
        least <= number <= most for number, (_, _, least, most) in zip(numbers, LIMITS, strict=True)
    )
    if not fits or numbers[-1] == 2:
        caught(ValueError, call, *values)
        return
    vm = call(*values)
    assert [getattr(vm, name) for name in names] == numbers
    vm.check()


def pickled(vm: Memslots) -> Memslots:
    other: Memslots = pickle.loads(pickle.dumps(vm))
    return other


@operation(Choice((copy.copy, copy.deepcopy, pickled)))
def go_on_with_a_copy(on: Target, how: Callable[[Memslots], Memslots]) -> None:
    on.of(on.vm, "__reduce__")
    on.both.go_on_with_a_copy(how)


# Slots


@operation(U32, U32, U64, U64, ADDRESS, U32)
def slot(on: Target, *values: Any) -> None:
    """Makes a Slot, and compares whether it is allowed and what it is."""
    on.used.add(("Slot", "__init__"))
    fields = (U32, U32, U64, U64, U64, U32)
    if any(not isinstance(taken(v, f), int) for v, f in zip(values, fields, strict=True)):
        errors = [taken(v, f) for v, f in zip(values, fields, strict=True)]
        assert type(caught(Exception, Slot, *values)) in (*errors, InvalidRegionError)
        return
    id, as_id, base, npages, hva, flags = (operator.index(value) for value in values)
    ends = (base + npages << 12, hva + (npages << 12) - 1)
    if flags & ~0x10003 or not npages or max(ends) >= 1 << 64:
        assert caught(InvalidRegionError, Slot, *values).rule is None
        return
    made = Slot(*values)
    want = ModelSlot(id, as_id, base, npages, hva, flags)
    assert ModelSlot(*(on.of(made, name) for name in ATTRIBUTES)) == want
    assert on.of(made, "guest_phys_addr") == base << 12
    assert on.of(made, "memory_size") == npages << 12
    assert on.of(made, "end_gfn") == want.end_gfn
    assert (on.of(made, "guest_memfd"), on.of(made, "guest_memfd_offset")) == (None, 0)
    on.keep(made)
    caught(TypeError, made.__init__, *values)
    for twin in (
        Slot(*values),
        on.of(made, "__copy__")(),
        on.of(made, "__deepcopy__")({}),
        pickle.loads(pickle.dumps(made)),
        Slot(*on.of(made, "__reduce__")()[1]),
    ):
        assert on.of(made, "__eq__")(twin)
        assert not on.of(made, "__ne__")(twin)
        assert on.of(made, "__hash__")() == hash(twin)
        assert on.of(made, "__repr__")() == repr(twin)
        assert on.of(made, "__str__")() == str(twin)
    for order in ("__lt__", "__le__", "__gt__", "__ge__"):
        assert on.of(made, order)(made) is NotImplemented
    for current in on.face(0):
        assert (made == current) == (want == plain(current))
    assert made != want


ATTRIBUTES = ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags")


@operation(Byte(), U64)
def page_of_slot(on: Target, number: int, gfn: Any) -> None:
    """Asks for a page of a Slot that was kept, whatever happened to its slot."""
    if not on.kept:
        return
    which, was, _ = on.kept[number % len(on.kept)]
    for name in ("gfn_to_hva", "__contains__"):
        if on.ints(on.of(which, name), (gfn,), (U64,)) is None:
            return
    page = operator.index(gfn)
    assert (gfn in which) == was.holds(page)
    if was.holds(page):
        hva = was.userspace_addr + (page - was.base_gfn << 12)
        assert which.gfn_to_hva(gfn) == hva
    else:
        caught(NotMappedError, which.gfn_to_hva, gfn)
    face = on.both.faces[was.as_id][0] if was.as_id < on.model.address_spaces else on.vm
    assert (which in face) == (on.model.get(face.as_id, was.id) == was)
    if which not in face and on.model.get(face.as_id, was.id) is None:
        caught(NoSuchSlotError, face.__getitem__, was.id)
