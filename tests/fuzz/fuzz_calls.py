"""Any calls of every public method, made on a Memslots and on the dull model, and compared.

An input is a machine and then calls, each an operation of TABLE (target.py) with its arguments;
choices.py says how they are bytes. After each call the whole state is compared
and `check` walks everything.
`one_input` runs without atheris, too. As a script this fuzzes: docs/fuzzing.md says how.

The operations are in changes.py and reads.py. To add one, write a function at the end of this file:
its number is its place in TABLE, and the kept cases mean what they meant.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # A script finds its own folder on the path; what it imports has tests/ as its root.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from fuzz.engine import main

    main("fuzz.fuzz_calls")

from backend import Logless
from compared import ListenerSaysNo, caught
from fuzz import changes, reads  # noqa: F401 (they fill TABLE, in this order)
from fuzz.choices import Byte, Choices, Numbers
from fuzz.target import MACHINE, MOST_CALLS, SORTS, TABLE, U32, U64, Call, Target, operation
from model import to_bitmap

from memslots import InvalidRegionError, Memslots, NoRoomError

# Inputs as calls, and calls as inputs


def decode(data: bytes) -> tuple[tuple[int, int, int], list[Call]]:
    """The machine and the calls that an input stands for."""
    choices = Choices(data)
    sort, spaces, manual = (field.decode(choices) for field in MACHINE)
    calls: list[Call] = []
    while choices and len(calls) < MOST_CALLS:
        one = TABLE[choices.byte() % len(TABLE)]
        calls.append((one.name, tuple(field.decode(choices) for field in one.fields)))
    return (sort, spaces, manual), calls


def encode(machine: tuple[int, int, int], calls: list[Call]) -> bytes:
    """The input that stands for a machine and calls."""
    parts = [field.encode(value) for field, value in zip(MACHINE, machine, strict=True)]
    numbers = {one.name: number for number, one in enumerate(TABLE)}
    for name, values in calls:
        number = numbers[name]
        parts.append(bytes([number]))
        parts += [f.encode(v) for f, v in zip(TABLE[number].fields, values, strict=True)]
    return b"".join(parts)


def one_input(data: bytes) -> None:
    """Make the calls of one input; AssertionError where the two disagree."""
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
    """Takes down the errors that come from where nobody can catch them."""
    reported: list[BaseException | None] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda told: reported.append(told.exc_value)
    try:
        yield reported
    finally:
        sys.unraisablehook = before


# What has come since: at the end, so that inputs which are kept still mean what they meant


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
    """The same slots and marks, in a Memslots whose changes are made elsewhere too."""
    model = on.model
    limits = {
        name: getattr(on.vm, name)
        for name in ("max_slots", "address_spaces", "max_gfn", "max_hva", "manual_dirty_log")
    }
    if limits["max_slots"] > 1 << 16:  # more ids than its call can name
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
            if vm.manual_dirty_log == 3:  # the new log has every page, of READONLY slots too
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
    """What an address space holds, looked at now and at the end of the input."""
    as_id = space % on.model.address_spaces
    m = on.of(on.vm, "map")(as_id=as_id)
    on.both.look(m, [gfn % (1 << 52) for gfn in gfns], 5)
    on.both.ranges(m, first, first + pages, first << 12, (first + pages) << 12)
    for slot in m:
        on.both.by_id(m, slot.id)
    on.keep_map(m)


@operation(Byte(), U64, Byte(), Byte(), Byte(), U64)
def room(on: Target, number: int, gfn: Any, pages: int, npages: int, align: int, hva: Any) -> None:
    """Neighbours and holes, as far as a page; then the errors."""
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
    """Of a Memslots, and in a transaction."""
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
