"""The objects that the operations of fuzz_calls.py work on, and the table of operations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compared import (
    Compared,
    Face,
    caught,
)
from fuzz.choices import MAX_HVA, Address, Bytes, Choice, Field, Number
from model import Model, ModelSlot, plain

from memslots import (
    GuestMemfd,
    InvalidRegionError,
    MemoryMap,
    Memslots,
    Slot,
    Transaction,
)

#: The most calls of an input, so that it ends soon.
MOST_CALLS = 100
#: The most Slots kept to the end of an input, to see that they do not change.
MOST_KEPT = 32


@dataclass(frozen=True)
class Sort:
    """A kind of machine. If its slots may be huge they do not log: the model's logs are sets."""

    max_slots: int
    max_gfn: int
    max_hva: int
    logs: bool


#: A machine so small that calls collide, one for a kernel's recorded calls, a largest one.
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
#: The arguments of each change, by name, alike in Memslots, Transaction and Model.
CHANGES: dict[str, tuple[Number, ...]] = {
    "set_region": SET_REGION,
    "create": (U32, U64, U64, ADDRESS, U32, U32),
    "move": (U32, U64, U32),
    "set_flags": (U32, U32, U32),
    "delete": (U32, U32),
}
NAMES: dict[str, tuple[str, ...]] = {
    "set_region": ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"),
    "set_region2": (
        "slot",
        "flags",
        "guest_phys_addr",
        "memory_size",
        "userspace_addr",
        "guest_memfd",
        "guest_memfd_offset",
    ),
    "create": ("slot", "base_gfn", "npages", "userspace_addr", "flags", "as_id"),
    "move": ("slot", "base_gfn", "as_id"),
    "set_flags": ("slot", "flags", "as_id"),
    "delete": ("slot", "as_id"),
}


def taken(value: object, field: Number) -> int | type[Exception]:
    """Returns the integer of an argument, or the error that it raises."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return TypeError
    except ZeroDivisionError:
        return ZeroDivisionError
    return number if 0 <= number < 1 << field.bits else OverflowError


class Target:
    """The machine of one input, and the state that its operations share."""

    #: (class, name) of each method and attribute that was used.
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
        closed, another = GuestMemfd(4096), GuestMemfd(4096)
        closed.close()
        self.other = Memslots()
        self.other.set_region2(0, 4, 0, 4096, 0, another)
        #: Files that cannot be bound.
        self.memfds = {"closed": closed, "another's": another, "none": None}
        self.kept: list[tuple[Slot, ModelSlot, int]] = []
        self.maps: list[tuple[MemoryMap, list[ModelSlot]]] = []

    @property
    def vm(self) -> Memslots:
        return self.both.vm

    @property
    def model(self) -> Model:
        return self.both.model

    def of(self, owner: object, name: str) -> Any:
        """Returns a method or an attribute by name. All are taken here, so none is forgotten."""
        self.used.add((type(owner).__name__, name))
        return getattr(owner, name)

    def face(self, number: int) -> Face:
        faces = [face for space in self.both.faces for face in space]
        return faces[number % len(faces)]

    def ints(
        self, call: Callable[..., object], values: tuple[Any, ...], fields: tuple[Number, ...]
    ) -> list[int] | None:
        """Returns the arguments as integers.

        If one is none, makes the call that refuses it: None.
        """
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
        """Returns flags, without the log on a machine that has none."""
        number = taken(value, U32)
        if self.sort.logs or not isinstance(number, int) or number & ~3:
            return value
        return value if not number & 1 else number & ~1

    def call_of(self, owner: Memslots | Transaction, verb: str, named: bool) -> Callable[..., Any]:
        """Returns a change as a call, which may pass all arguments but the first by name."""
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

    def keep_map(self, m: MemoryMap) -> None:
        if len(self.maps) < MOST_KEPT:
            self.maps.append((m, self.model.in_order(m.as_id)))

    def end(self) -> None:
        for m, slots in self.maps:
            assert [plain(slot) for slot in m] == slots
            assert MemoryMap(m, m.as_id) == m
        self.both.close_all()
        for slot, was, number in self.kept:
            assert (plain(slot), hash(slot)) == (was, number)

    def mark_dirty(self, *values: Any) -> None:
        """Marks a page, with the argument as a caller gives it."""
        call = self.of(self.vm, "mark_dirty")
        numbers = self.ints(call, values, (U64, U32))
        if numbers is None:
            return
        gfn, as_id = numbers
        if as_id >= self.model.address_spaces:
            assert caught(InvalidRegionError, call, *values).rule == 2
            return
        assert call(*values) is None
        self.model.mark_dirty(gfn, as_id)


@dataclass(frozen=True)
class Operation:
    """An operation: `run` gets the target and the values of its fields."""

    name: str
    fields: tuple[Field[Any], ...]
    run: Callable[..., None]


TABLE: list[Operation] = []
Call = tuple[str, tuple[Any, ...]]


def operation(*fields: Field[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Puts a function into TABLE, under its own name."""

    def put(run: Callable[..., None]) -> Callable[..., None]:
        TABLE.append(Operation(run.__name__, fields, run))
        return run

    return put
