"""Any calls of every public method, made on a Memslots and on the dull model, and compared.

An input is a machine and then calls, each an operation of TABLE with its arguments; choices.py says
how they are bytes. After each call the whole state is compared and `check` walks everything.
`one_input` runs without atheris, too. As a script this fuzzes: docs/fuzzing.md says how.

To add an operation, write a function like those below at the end of its file: its number is its
place in TABLE, and the kept cases mean what they meant.
"""

from __future__ import annotations

import copy
import operator
import pickle
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # A script finds its own folder on the path; what it imports has tests/ as its root.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from fuzz.engine import main

    main("fuzz.fuzz_calls")

from backend import Logless
from compared import (
    Compared,
    Face,
    Flusher,
    FullListener,
    GivenUp,
    Listener,
    ListenerSaysNo,
    Witness,
    caught,
)
from fuzz.buffers import FOUR, IN, OUT, WRONG_IN, WRONG_OUT
from fuzz.choices import MAX_HVA, Address, Byte, Bytes, Choice, Choices, Field, Number, Numbers
from model import BAD_HVA, Model, ModelSlot, ModelTransaction, plain, state_of, to_bitmap

from memslots import (
    AddressSpace,
    BusyError,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    ReadOnlyError,
    Slot,
    Transaction,
    Vcpu,
)

#: An input makes no more calls than this, so that it is over soon.
MOST_CALLS = 100
#: How many Slots are kept to the end of an input, to see that they do not change.
MOST_KEPT = 32


@dataclass(frozen=True)
class Sort:
    """A sort of machine. Where slots may be huge they do not log: the model's logs are sets."""

    max_slots: int
    max_gfn: int
    max_hva: int
    logs: bool


#: One so small that calls collide, one that a kernel's recorded calls fit, one as large as any.
SORTS = (
    Sort(6, 160, MAX_HVA, True),
    Sort(32764, 4095, MAX_HVA, True),
    Sort(32764, (1 << 52) - 1, (1 << 64) - 4096, False),
)
MACHINE: tuple[Field[Any], ...] = (
    Choice(range(len(SORTS))),
    Choice((1, 2, 1, 2, 3, 16)),
    Choice((0, 1, 3)),
)

U32, U64, BYTES, ADDRESS = Number(32), Number(64), Bytes(), Address(64)
BOOL = Choice((False, True))
SET_REGION: tuple[Number, ...] = (U32, U32, ADDRESS, ADDRESS, ADDRESS)
#: The arguments of each change, by its name; those of Memslots, Transaction and Model are the same.
CHANGES: dict[str, tuple[Number, ...]] = {
    "set_region": SET_REGION,
    "create": (U32, U64, U64, ADDRESS, U32, U32),
    "move": (U32, U64, U32),
    "set_flags": (U32, U32, U32),
    "delete": (U32, U32),
}
NAMES: dict[str, tuple[str, ...]] = {
    "set_region": ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"),
    "create": ("slot", "base_gfn", "npages", "userspace_addr", "flags", "as_id"),
    "move": ("slot", "base_gfn", "as_id"),
    "set_flags": ("slot", "flags", "as_id"),
    "delete": ("slot", "as_id"),
}


def taken(value: object, field: Number) -> int | type[Exception]:
    """What is made of an argument: an integer, or the error that it is."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return TypeError
    except ZeroDivisionError:
        return ZeroDivisionError
    return number if 0 <= number < 1 << field.bits else OverflowError


class Target:
    """The machine of one input, and what its operations share."""

    #: (class, name) of each method and attribute that was ever used.
    used: set[tuple[str, str]] = set()  # noqa: RUF012 (of all inputs together)

    def __init__(self, sort: Sort, address_spaces: int, manual_dirty_log: int) -> None:
        self.sort = sort
        limits = {
            "address_spaces": address_spaces,
            "max_gfn": sort.max_gfn,
            "max_hva": sort.max_hva,
            "manual_dirty_log": manual_dirty_log,
        }
        vm = Memslots(sort.max_slots, **limits)
        self.both = Compared(vm, Model(sort.max_slots, **limits))
        self.kept: list[tuple[Slot, ModelSlot, int]] = []

    @property
    def vm(self) -> Memslots:
        return self.both.vm

    @property
    def model(self) -> Model:
        return self.both.model

    def of(self, owner: object, name: str) -> Any:
        """A method or an attribute, by name: all are taken here, so that none is forgotten."""
        self.used.add((type(owner).__name__, name))
        return getattr(owner, name)

    def face(self, number: int) -> Face:
        faces = [face for space in self.both.faces for face in space]
        return faces[number % len(faces)]

    def ints(
        self, call: Callable[..., object], values: tuple[Any, ...], fields: tuple[Number, ...]
    ) -> list[int] | None:
        """The arguments as integers; None where one is none, after the call that refuses it."""
        numbers: list[int] = []
        errors: list[type[Exception]] = []
        for value, field in zip(values, fields, strict=True):
            one = taken(value, field)
            if isinstance(one, int):
                numbers.append(one)
            else:
                errors.append(one)
        if errors:
            assert type(caught(Exception, call, *values)) in errors
            return None
        return numbers

    def flags(self, value: Any) -> Any:
        """Flags, without the log where there is none."""
        number = taken(value, U32)
        if self.sort.logs or not isinstance(number, int) or number & ~3:
            return value
        return value if not number & 1 else number & ~1

    def call_of(self, owner: Memslots | Transaction, verb: str, named: bool) -> Callable[..., Any]:
        """A change as a call, which hands all arguments but the first on by name if told to."""
        method: Callable[..., Any] = self.of(owner, verb)
        if not named:
            return method
        return lambda first, *rest: method(first, **dict(zip(NAMES[verb][1:], rest, strict=True)))

    def with_flags(self, verb: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            self.flags(value) if name == "flags" else value
            for name, value in zip(NAMES[verb], values, strict=True)
        )

    def keep(self, slot: Slot) -> None:
        if len(self.kept) < MOST_KEPT:
            self.kept.append((slot, plain(slot), hash(slot)))

    def end(self) -> None:
        self.both.close_all()
        for slot, was, number in self.kept:
            assert (plain(slot), hash(slot)) == (was, number)


@dataclass(frozen=True)
class Operation:
    """What can be called: `run` is given the target and the values of its fields."""

    name: str
    fields: tuple[Field[Any], ...]
    run: Callable[..., None]


TABLE: list[Operation] = []
Call = tuple[str, tuple[Any, ...]]


def operation(*fields: Field[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put a function in TABLE, under its own name."""

    def put(run: Callable[..., None]) -> Callable[..., None]:
        TABLE.append(Operation(run.__name__, fields, run))
        return run

    return put


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


# Changes


def change(on: Target, verb: str, named: bool, *values: Any) -> None:
    values = on.with_flags(verb, values)
    call = on.call_of(on.vm, verb, named)
    numbers = on.ints(call, values, CHANGES[verb])
    if numbers is not None:
        as_id = numbers[0] >> 16 if verb == "set_region" else numbers[-1]
        on.both.change(lambda *_: call(*values), getattr(on.model, verb), as_id, *numbers)


@operation(BOOL, *CHANGES["set_region"])
def set_region(on: Target, named: bool, *values: Any) -> None:
    change(on, "set_region", named, *values)


@operation(BOOL, *CHANGES["create"])
def create(on: Target, named: bool, *values: Any) -> None:
    change(on, "create", named, *values)


@operation(BOOL, *CHANGES["move"])
def move(on: Target, named: bool, *values: Any) -> None:
    change(on, "move", named, *values)


@operation(BOOL, *CHANGES["set_flags"])
def set_flags(on: Target, named: bool, *values: Any) -> None:
    change(on, "set_flags", named, *values)


@operation(BOOL, *CHANGES["delete"])
def delete(on: Target, named: bool, *values: Any) -> None:
    change(on, "delete", named, *values)


@operation(Byte(), Choice(("gfn", "flags", "npages", "hva", "nothing")), U64)
def set_region_again(on: Target, number: int, differs: str, value: Any) -> None:
    """A call that fits a slot in use but for one of its values."""
    used = on.both.used()
    if not used or type(value) is not int:
        return
    as_id, id = used[number % len(used)]
    old = on.model.slots[as_id][id]
    gfn, npages, hva, flags = old.base_gfn, old.npages, old.userspace_addr, old.flags
    if differs == "gfn":
        gfn = value
    elif differs == "flags":
        flags = value & 0xFFFFFFFF
    elif differs == "npages":
        npages = value
    elif differs == "hva":
        hva = value << 12
    args = (as_id << 16 | id, flags, gfn << 12, npages << 12, hva)
    change(on, "set_region", False, *args)


# Transactions

#: What a step may be, and its arguments: a change, or whatever else may come in between.
STEPS: dict[str, tuple[Field[Any], ...]] = {
    **CHANGES,
    "mark_dirty": (U64, U32),
    "get": (U32, U32),
    "lookup": (U64, U32),
    "busy": (Choice(("create", "check", "copy", "transaction")),),
    "subscribe": (Choice(range(4)), Choice((Listener, FullListener, Flusher))),
}


class Steps:
    """The steps of a transaction."""

    MOST = 12
    verbs = tuple(STEPS)

    def decode(self, choices: Choices) -> list[Call]:
        steps: list[Call] = []
        for _ in range(choices.byte() % (self.MOST + 1)):
            verb = self.verbs[choices.byte() % len(self.verbs)]
            steps.append((verb, tuple(field.decode(choices) for field in STEPS[verb])))
        return steps

    def encode(self, value: list[Call]) -> bytes:
        parts = [bytes([len(value)])]
        for verb, values in value:
            parts.append(bytes([self.verbs.index(verb)]))
            parts += [f.encode(v) for f, v in zip(STEPS[verb], values, strict=True)]
        return b"".join(parts)


@operation(Choice(("ends", "gives up", "is dropped")), BOOL, Steps())
def transaction(on: Target, end: str, named: bool, steps: list[Call]) -> None:
    if end == "is dropped":
        dropped(on, named, steps)
        return
    over: list[Transaction] = []

    def body(tx: Transaction, told: ModelTransaction) -> None:
        over.append(tx)
        for verb, values in steps:
            step(on, tx, told, verb, named, *values)
        on.both.look_at_steps(tx, told.trial)
        if end == "gives up":
            raise GivenUp

    on.of(on.vm, "transaction")
    on.both.transaction(body)
    for name, *args in (("__exit__", None, None, None), ("__enter__",), ("get", 0), ("delete", 0)):
        caught(RuntimeError, on.of(over[0], name), *args)
    caught(TypeError, on.of(over[0], "__reduce__"))
    caught(TypeError, on.of(over[0], "__setstate__"), {})


def dropped(on: Target, named: bool, steps: list[Call]) -> None:
    """Left open and let go: nothing has happened."""
    before = state_of(on.vm)
    marks = [call for call in steps if call[0] == "mark_dirty"]
    tx = on.vm.transaction().__enter__()
    told = ModelTransaction(on.model)
    for verb, values in steps:
        step(on, tx, told, verb, named, *values)
    on.both.events.clear()
    del tx
    assert on.both.events == []
    assert marks or state_of(on.vm) == before


def step(
    on: Target, tx: Transaction, told: ModelTransaction, verb: str, named: bool, *values: Any
) -> None:
    if verb in CHANGES:
        values = on.with_flags(verb, values)
        call = on.call_of(tx, verb, named)
        numbers = on.ints(call, values, CHANGES[verb])
        if numbers is not None:
            answer = told.step(verb, *numbers)
            on.both.same_outcome(lambda *_: call(*values), tuple(numbers), answer)
    elif verb == "mark_dirty":  # by a reader, where the slots are still as they were
        mark_dirty(on, *values)
    elif verb == "busy":
        busy(on, *values)
    elif verb == "subscribe":
        subscribe(on, *values)
    else:
        look_at(on, tx, told.trial, verb, *values)


def look_at(on: Target, tx: Transaction, trial: Model, name: str, *values: Any) -> None:
    method = on.of(tx, name)
    call = method if name == "lookup" else lambda id, as_id: method(id, None, as_id)
    numbers = on.ints(call, values, (U64 if name == "lookup" else U32, U32))
    if numbers is None:
        return
    number, as_id = numbers
    if as_id >= trial.address_spaces:
        assert caught(InvalidRegionError, call, *values).rule == 2
        return
    slot = call(*values)
    if name == "get":
        assert (slot and plain(slot)) == trial.get(as_id, number)
    else:
        held = [one for one in trial.slots[as_id].values() if one.holds(number)]
        assert (plain(slot) in held) if slot else not held


def busy(on: Target, what: str) -> None:
    """What is refused in the body of a transaction."""
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: on.vm.create(0, 0, 1, 0),
        "check": on.vm.check,
        "copy": lambda: copy.copy(on.vm),
        "transaction": lambda: on.vm.transaction().__enter__(),
    }
    caught(BusyError, calls[what])


# Listeners


@operation(Choice(range(4)), Choice((Listener, FullListener, Flusher)))
def subscribe(on: Target, number: int, kind: type[Witness]) -> None:
    """Another listener, or the end of one that there is."""
    on.of(on.vm, "subscribe")
    on.both.subscribe_or_close(number, kind)


@operation(Byte(), Choice(("prepare", "invalidate", "commit")))
def raise_next(on: Target, number: int, method: str) -> None:
    """The next call of that method of that listener raises."""
    if on.both.listeners:
        numbers = sorted(on.both.listeners)
        on.both.trouble = numbers[number % len(numbers)], method


@operation()
def subscription(on: Target) -> None:
    """One that is closed again: what it gives, and that nobody hears of anything."""
    caught(TypeError, on.vm.subscribe, object())
    listener = Listener(on.both, 9)
    with on.vm.subscribe(listener) as given:
        assert on.of(given, "listener") is listener
        caught(TypeError, on.of(given, "__reduce__"))
    on.of(given, "close")()
    assert on.of(given, "__enter__")() is given
    on.of(given, "__exit__")(None, None, None)


# Dirty logs


@operation(U64, U32)
def mark_dirty(on: Target, *values: Any) -> None:
    call = on.of(on.vm, "mark_dirty")
    numbers = on.ints(call, values, (U64, U32))
    if numbers is None:
        return
    gfn, as_id = numbers
    if as_id >= on.model.address_spaces:
        assert caught(InvalidRegionError, call, *values).rule == 2
        return
    assert call(*values) is None
    on.model.mark_dirty(gfn, as_id)


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


#: What a bitmap may be, and the error where it may not.
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
    """A call that fits a slot in use: from some word on to its last page."""
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
    """A Vcpu counts so many look-ups, hits and misses together; unless the list is emptied."""
    expected = [lookups]
    before = sum(on.of(face, "stats")) if isinstance(face, Vcpu) else 0
    yield expected
    if isinstance(face, Vcpu):
        assert sum(face.stats) == before + sum(expected)


#: How often a batch has its numbers over again: an index pays only for a long one.
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
    """A batch with one of the ways to hand numbers over, and one to take the results."""
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
    """One of the two buffers is none that can be, or both are."""
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
    """What a face tells of all its slots, and of itself."""
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
    """Another AddressSpace or Vcpu in place of the one there was."""
    call: Callable[[Any], AddressSpace | Vcpu]
    if by_class:
        cls = Vcpu if vcpu else AddressSpace
        caught(TypeError, cls, 0, 0)
        call = lambda as_id: cls(on.face(0), as_id)  # noqa: E731 (any face will do)
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


#: The limits that a Memslots may be given, and the greatest and least of each.
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
    """A Slot of one's own: what it may be, and that it is that."""
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
    """A page of a slot that is kept, whatever has become of it."""
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
