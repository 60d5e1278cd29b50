"""Makes any calls of every public method on a Memslots and on the dull model, and compares.

An input is a machine and then calls. Each call is an operation of TABLE (target.py) with its
arguments; choices.py turns them into bytes. After each call the whole state is compared, and
`check` walks everything.

`one_input` runs without atheris, too. As a script this fuzzes: docs/fuzzing.md says how.

The operations are in changes.py and reads.py. To add one, write a function at the end of this file.
Its number is its place in TABLE, so the kept cases keep their meaning.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts a script's own folder on the path; the imports start from tests/.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from fuzz.engine import main

    main("fuzz.fuzz_calls")

from backend import Logless
from compared import ListenerSaysNo, caught
from fuzz import changes, reads  # noqa: F401 (they fill TABLE, in this order)
from fuzz.choices import Byte, Choice, Choices, Numbers
from fuzz.target import MACHINE, MOST_CALLS, SORTS, TABLE, U32, U64, Call, Target, operation
from model import ModelTransaction, plain, to_bitmap

from memslots import (
    InvalidRegionError,
    MemoryMap,
    MemslotError,
    Memslots,
    NoRoomError,
    Slot,
    Transaction,
    plan,
)

# Inputs as calls, and calls as inputs


def decode(data: bytes) -> tuple[tuple[int, int, int], list[Call]]:
    """Returns the machine and the calls of an input."""
    choices = Choices(data)
    sort, spaces, manual = (field.decode(choices) for field in MACHINE)
    calls: list[Call] = []
    while choices and len(calls) < MOST_CALLS:
        one = TABLE[choices.byte() % len(TABLE)]
        calls.append((one.name, tuple(field.decode(choices) for field in one.fields)))
    return (sort, spaces, manual), calls


def encode(machine: tuple[int, int, int], calls: list[Call]) -> bytes:
    """Returns the input for a machine and calls."""
    parts = [field.encode(value) for field, value in zip(MACHINE, machine, strict=True)]
    numbers = {one.name: number for number, one in enumerate(TABLE)}
    for name, values in calls:
        number = numbers[name]
        parts.append(bytes([number]))
        parts += [f.encode(v) for f, v in zip(TABLE[number].fields, values, strict=True)]
    return b"".join(parts)


def one_input(data: bytes) -> None:
    """Makes the calls of one input. Raises AssertionError if the two disagree."""
    (sort, spaces, manual), calls = decode(data)
    run = {one.name: one.run for one in TABLE}
    with unraisable() as reported:
        target = Target(SORTS[sort], spaces, manual)
        for name, values in calls:
            run[name](target, *values)
            target.both.same()
            assert len(reported) == target.both.unraisable
        target.end()
    assert all(isinstance(error, ListenerSaysNo) for error in reported)


@contextmanager
def unraisable() -> Iterator[list[BaseException | None]]:
    """Records the errors that no caller can catch."""
    reported: list[BaseException | None] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda told: reported.append(told.exc_value)
    try:
        yield reported
    finally:
        sys.unraisablehook = before


# Later operations: at the end, so that kept inputs keep their meaning


@operation(Byte(), Byte(), Byte())
def mark_dirty_range(on: Target, start: int, end: int, space: int) -> None:
    on.of(on.vm, "mark_dirty_range")
    on.both.mark_range(start, end, space % on.model.address_spaces)


@operation()
def take_dirty_runs(on: Target) -> None:
    on.of(on.vm, "take_dirty_runs")
    on.both.dirty_runs()


@operation()
def go_on_with_a_backend(on: Target) -> None:
    """Goes on with the same slots and marks in a Memslots that is mirrored in a backend."""
    model = on.model
    limits = {
        name: getattr(on.vm, name)
        for name in ("max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log")
    }
    if limits["max_slots"] > 1 << 16:  # more ids than set_region can name
        return
    backend = Logless(**limits)
    vm = Memslots(**limits, backend=backend)
    assert on.of(vm, "backend") is backend
    for as_id in range(model.address_spaces):
        for slot in model.in_order(as_id):
            args = slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags, as_id
            vm.create(slot.id, *args)
        for id, log in model.logs[as_id].items():
            slot = model.slots[as_id][id]
            if vm.manual_dirty_log == 3:  # the new log has every page, also of READONLY slots
                others = to_bitmap({*range(slot.npages)} - log, slot.npages)
                vm.clear_dirty_log(id, 0, slot.npages, others, as_id)
                continue
            for page in log:
                vm.mark_dirty(slot.base_gfn + page, as_id)
        model.generations[as_id] = vm.address_space(as_id).generation
    on.both.close_all()
    on.both.meet(vm)


@operation(Byte(), Numbers(), Byte(), Byte())
def take_map(on: Target, space: int, gfns: list[int], first: int, pages: int) -> None:
    """Takes the map of an address space; it is checked now and at the end of the input."""
    as_id = space % on.model.address_spaces
    m = on.of(on.vm, "map")(as_id=as_id)
    on.both.look(m, [gfn % (1 << 52) for gfn in gfns], 5)
    on.both.ranges(m, first, first + pages, first << 12, (first + pages) << 12)
    for slot in m:
        on.both.by_id(m, slot.id)
    on.keep_map(m)


@operation(Byte(), U64, Byte(), Byte(), Byte(), U64)
def room(on: Target, number: int, gfn: Any, pages: int, npages: int, align: int, hva: Any) -> None:
    """Compares neighbours and holes around a page, then the errors."""
    face = on.face(number)
    for name in ("floor", "ceil", "hva_to_gpa"):
        call = on.of(face, name)
        if on.ints(call, (gfn,), (U64,)) is None:
            return
    if on.ints(on.of(face, "hva_to_gpa"), (hva,), (U64,)) is None:
        return
    for name in ("holes", "find_hole", "is_mapped", "span"):
        on.of(face, name)
    page = int(gfn) % (1 << 51)
    on.both.room(face, page, npages + 1, page + pages, align + 1, int(hva))
    caught(ValueError, face.holes, page + 1, page)
    caught(ValueError, face.is_mapped, page + 1, page)
    caught(ValueError, face.find_hole, 1, page + 1, page)
    caught(ValueError, face.find_hole, 0)
    caught(ValueError, face.find_hole, 1, align=0)


@operation(U32)
def free_id(on: Target, as_id: Any) -> None:
    """Compares free_id of a Memslots, and in a transaction."""
    call = on.of(on.vm, "free_id")
    numbers = on.ints(call, (as_id,), (U32,))
    if numbers is None:
        return
    if numbers[0] >= on.model.address_spaces:
        assert caught(InvalidRegionError, call, as_id).rule == 2
        return
    used = on.model.slots[numbers[0]]
    lowest = next(id for id in range(len(used) + 1) if id not in used)
    if lowest >= on.vm.max_slots:
        caught(NoRoomError, call, as_id)
        return
    assert call(as_id) == lowest
    with on.vm.transaction() as tx:
        assert on.of(tx, "free_id")(as_id) == lowest


def pages_of(runs: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in runs for page in range(start, end)}


@operation(Byte(), Byte(), Choice((True, False)))
def private(on: Target, start: int, length: int, inside: bool) -> None:
    """Memory attributes, which no change of a slot touches."""
    runs = on.of(on.vm, "private_runs")
    before, changed = pages_of(runs()), set(range(start, start + length))
    on.of(on.vm, "set_private")(start, start + length, inside)
    after = before | changed if inside else before - changed
    assert pages_of(runs()) == after
    assert on.of(on.vm, "is_private")(start) == (start in after)
    caught(ValueError, on.vm.set_private, start + 1, start)
    caught(InvalidRegionError, on.vm.set_private, 0, (1 << 52) + 1 + start)


@operation(Byte(), Byte(), Choice((None, 0, 1, 2, 3, 4)), Byte())
def cut(on: Target, start: int, length: int, flags: int | None, space: int) -> None:
    """Does an unmap or a protect, if slots are few and small."""
    as_id = space % on.model.address_spaces
    bits = flags if flags is None or flags > 3 or on.sort.logs else flags & ~1
    for name in ("unmap", "protect"):
        on.of(on.vm, name)
    caught(ValueError, on.vm.unmap, start + 1, start)
    caught(ValueError, on.vm.protect, start + 1, start, 0)

    def body(tx: Transaction, told: ModelTransaction) -> None:
        for name in ("unmap", "protect", "in_gfn_range"):
            on.of(tx, name)
        on.both.cut(tx, told, (start, start + length, bits), as_id)
        found = [plain(slot) for slot in tx.in_gfn_range(0, 1 << 52, as_id)]
        assert found == told.trial.in_order(as_id)

    on.both.transaction(body)


@operation(Byte(), Byte())
def split_and_merge(on: Target, number: int, part: int) -> None:
    """Splits a slot and merges it again, in one transaction."""
    for name in ("split", "merge"):
        on.of(on.vm, name)
    used = on.both.used()
    if not used:
        return
    as_id, id = used[number % len(used)]
    old = on.model.slots[as_id][id]
    gfn = old.base_gfn + part % old.npages
    caught(MemslotError, on.vm.split, id, old.end_gfn, as_id=as_id)
    caught(MemslotError, on.vm.merge, id, id, as_id=as_id)
    if gfn == old.base_gfn or len(on.model.slots[as_id]) == on.model.max_slots:
        caught(MemslotError, on.vm.split, id, gfn, as_id=as_id)
        return

    def body(tx: Transaction, told: ModelTransaction) -> None:
        one, two = on.of(tx, "split")(id, gfn, as_id=as_id)
        whole = on.of(tx, "merge")(id, two.id, as_id=as_id)
        assert plain(whole) == old and one.id == id
        told.step("delete", id, as_id)
        for slot in (one, two):
            told.step("create", *fields_of(slot))
        told.step("delete", two.id, as_id)
        told.step("delete", id, as_id)
        told.step("create", *fields_of(whole))

    on.both.transaction(body)


def fields_of(slot: Slot) -> tuple[int, ...]:
    """Returns the arguments for create."""
    place = (slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    return *place, int(slot.flags), slot.as_id


@operation(Byte(), Numbers())
def create_many(on: Target, space: int, gfns: list[int]) -> None:
    """Creates slots of a page, all of them or none."""
    as_id = space % on.model.address_spaces
    on.of(on.vm, "create_many")
    slots = [(gfn, 1, 0) for gfn in dict.fromkeys(gfn % 64 for gfn in gfns)]

    def body(tx: Transaction, told: ModelTransaction) -> None:
        on.of(tx, "create_many")
        on.both.create_many(tx, told, slots, as_id)

    on.both.transaction(body)


@operation(Byte(), Byte(), Numbers())
def become(on: Target, space: int, kept: int, gfns: list[int]) -> None:
    """Becomes an earlier map, or another one, without listeners."""
    as_id = space % on.model.address_spaces
    for name in ("become", "apply"):
        on.of(on.vm, name)
    maps = [m for m, _ in on.maps if m.as_id == as_id]
    wanted = maps[kept % len(maps)] if maps else on.vm.map(as_id)
    for gfn in gfns:
        wanted |= MemoryMap([(gfn % 64, 1 + gfn % 5, 0)], as_id)
    plan(on.vm, wanted, max_slots=1 << 20, max_gfn=(1 << 52) - 1)
    if not on.both.listeners and on.both.trouble is None:
        items = wanted.__reduce__()[1][0]  # type: ignore[index]
        fits = all(
            slot.id < on.model.max_slots or not isinstance(item, Slot)
            for slot, item in zip(wanted, items, strict=True)
        )
        if fits and all(slot.end_gfn <= on.model.max_gfn + 1 for slot in wanted):
            on.both.become(list(items), as_id)


@operation(Byte(), Numbers())
def combine_maps(on: Target, space: int, gfns: list[int]) -> None:
    """Makes other maps of a map, in every way."""
    as_id = space % on.model.address_spaces
    m = on.vm.map(as_id)
    other = MemoryMap(
        [(gfn, 1, gfn << 12) for gfn in dict.fromkeys(gfn % 64 for gfn in gfns)], as_id
    )
    over, less, common = (on.of(m, f"__{name}__")(other) for name in ("or", "sub", "and"))
    assert less | common != 5 and over - other == less and less & other == MemoryMap(as_id=as_id)
    assert less.nr_pages + common.nr_pages == m.nr_pages
    assert over.nr_pages == less.nr_pages + other.nr_pages
    for name in ("ror", "rsub", "rand"):
        assert on.of(m, f"__{name}__")(5) is NotImplemented
    assert on.of(m, "merged")().nr_pages == m.nr_pages
    for changed in (m, over, less):
        assert on.of(m, "diff")(changed).slots or m == changed
        assert len(str(m.diff(changed))) > 0
        assert on.of(m, "from_json")(on.of(changed, "to_json")()) == changed
    assert len(on.of(m, "__str__")().splitlines()) == len(m) + (len(m) > 0) or len(m) == 0
    assert on.of(m, "svg")() in on.of(m, "_repr_html_")()
    columns = [
        array("Q", [int(getattr(slot, name)) for slot in m])
        for name in ("base_gfn", "npages", "userspace_addr", "flags", "id")
    ]
    assert on.of(m, "from_arrays")(*columns, as_id=as_id) == m
