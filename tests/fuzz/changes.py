"""The operations that change slots, begin transactions and subscribe listeners."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from compared import (
    Flusher,
    FullListener,
    GivenUp,
    Listener,
    Witness,
    caught,
)
from fuzz.choices import Byte, Choice, Choices, Field
from fuzz.target import BOOL, CHANGES, U32, U64, Call, Target, operation
from model import Model, ModelTransaction, plain, state_of

from memslots import (
    BusyError,
    InvalidRegionError,
    MemslotError,
    Memslots,
    Transaction,
)

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
    """Makes a call that fits a slot in use except for one of its values."""
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


#: A guest_memfd of each kind that cannot be bound.
MEMFDS = ("closed", "another's", "none")


def region2_of(
    on: Target, owner: Memslots | Transaction, named: bool, memfd: str
) -> Callable[..., Any]:
    """Makes a set_region2 with a file that cannot be bound, and the equivalent set_region."""
    call = on.call_of(owner, "set_region2", named)
    return lambda *values: call(*values, on.memfds[memfd], 0)


@operation(BOOL, *CHANGES["set_region"], Choice(MEMFDS))
def set_region2(on: Target, named: bool, *values: Any) -> None:
    *given, memfd = values
    region = on.with_flags("set_region", tuple(given))
    call = region2_of(on, on.vm, named, memfd)
    numbers = on.ints(call, region, CHANGES["set_region"])
    if numbers is None:
        return
    if numbers[1] & 4 and (numbers[1] != 4 or numbers[3]):
        # A delete with the flag is the same as without; other calls with it are refused.
        caught(MemslotError, call, *region)
        return
    numbers[1] &= ~4
    on.both.change(lambda *_: call(*region), on.model.set_region, numbers[0] >> 16, *numbers)


# Transactions

#: The steps and their arguments: changes, and other calls that may come in between.
STEPS: dict[str, tuple[Field[Any], ...]] = {
    **CHANGES,
    "set_region2": (*CHANGES["set_region"], Choice(MEMFDS)),
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


def dropped(on: Target, named: bool, steps: list[Call]) -> None:
    """Leaves a transaction open and drops it: nothing has happened."""
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
    elif verb == "set_region2":
        *given, memfd = values
        region = on.with_flags("set_region", tuple(given))
        call = region2_of(on, tx, named, memfd)
        numbers = on.ints(call, region, CHANGES["set_region"])
        if numbers is not None and numbers[1] & 4 and (numbers[1] != 4 or numbers[3]):
            caught(MemslotError, call, *region)
        elif numbers is not None:
            numbers[1] &= ~4
            answer = told.step("set_region", *numbers)
            on.both.same_outcome(lambda *_: call(*region), tuple(numbers), answer)
    elif verb == "mark_dirty":  # as a reader does: the slots are still as they were
        on.mark_dirty(*values)
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
    """Makes the calls that are refused in the body of a transaction."""
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
    """Subscribes another listener, or closes one."""
    on.of(on.vm, "subscribe")
    on.both.subscribe_or_close(number, kind)


@operation(Byte(), Choice(("prepare", "invalidate", "commit")))
def raise_next(on: Target, number: int, method: str) -> None:
    """Makes the next call of that method of that listener raise."""
    if on.both.listeners:
        numbers = sorted(on.both.listeners)
        on.both.trouble = numbers[number % len(numbers)], method


@operation()
def subscription(on: Target) -> None:
    """Closes a subscription again: checks its attributes, and that no listener is called."""
    caught(TypeError, on.vm.subscribe, object())
    listener = Listener(on.both, 9)
    with on.vm.subscribe(listener) as given:
        assert on.of(given, "listener") is listener
        caught(TypeError, on.of(given, "__reduce__"))
    on.of(given, "close")()
    assert on.of(given, "__enter__")() is given
    on.of(given, "__exit__")(None, None, None)
