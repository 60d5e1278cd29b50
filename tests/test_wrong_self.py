"""Methods called through their class on another object: a TypeError, never a crash."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress

from fresh import run_fresh

from memslots import (
    AddressSpace,
    Backing,
    GuestMemory,
    MemoryMap,
    Memslots,
    Slot,
    Transaction,
    Vcpu,
)
from memslots.baseline import ArrayAddressSpace, ArrayMemslots, ArrayVcpu
from memslots.baseline.reader import ArrayReader
from memslots.memory.segments import Batch, Segments
from memslots.read.reader import Reader

# This class has no stub, because only the package makes it.
Backings: type = importlib.import_module("memslots.memory.known").Backings
CLASSES: list[type] = [Memslots, Reader, AddressSpace, Vcpu, MemoryMap, Slot, Transaction]
CLASSES += [Backing, Backings, GuestMemory, Batch, Segments]
CLASSES += [ArrayMemslots, ArrayReader, ArrayAddressSpace, ArrayVcpu]


def methods(cls: type) -> dict[str, Callable[..., object]]:
    """Returns all members of a class that take a self, attributes too."""
    found: dict[str, Callable[..., object]] = {}
    for name, member in vars(cls).items():
        if isinstance(member, staticmethod):  # takes no self
            continue
        if callable(member):
            found[name] = member
        elif hasattr(member, "__get__"):
            found[name] = member.__get__
    return found


def call_all() -> None:
    """Calls every member on every wrong object, and prints those that did not raise TypeError."""
    vm = Memslots()
    vm.create(0, 0, 1, 0)
    objects = [
        8,
        -1,
        object(),
        b"0" * 1000,
        Memslots,
        vm,
        vm.address_space(0),
        vm.vcpu(),
        vm[0],
        vm.map(),
    ]
    objects += [vm.map(), vm.transaction(), Reader()]
    mem = GuestMemory(vm)
    objects += [mem, Backing.anonymous(4096), Backings(vm), Batch(), Segments(mem)]
    array = ArrayMemslots()
    objects += [array, array.address_space(0), array.vcpu(), ArrayReader()]
    calls = 0
    for cls in CLASSES:
        for name, method in methods(cls).items():
            for wrong in objects:
                # The self of __new__ is a class.
                if isinstance(wrong, cls) or (name == "__new__" and isinstance(wrong, type)):
                    continue
                for arguments in range(7):  # one of these is the number of arguments that it takes
                    calls += 1
                    with suppress(TypeError):
                        print(f"{cls.__name__}.{name}", wrong, method(wrong, *[0] * arguments))
    assert vm.vcpu().stats == (0, 0)
    vm.check()
    array.check()
    print(calls > 1000, end="")


def test_every_method_looks_at_its_self() -> None:
    assert run_fresh(call_all) == "True"


def test_every_class_has_some() -> None:
    for cls in CLASSES:
        assert len(methods(cls)) > 1
    assert {"lookup", "gpa_to_hva", "generation", "__len__"} <= methods(Reader).keys()
    assert {"create", "transaction", "subscribe", "max_slots"} <= methods(Memslots).keys()
    assert methods(ArrayReader).keys() < methods(Reader).keys()
    assert methods(ArrayMemslots).keys() < methods(Memslots).keys()
    assert {"__enter__", "create", "lookup"} <= methods(Transaction).keys()
    assert {"place", "read", "write_u64", "views", "__repr__"} <= methods(GuestMemory).keys()
    assert {"fileno", "hva", "kind", "__len__"} <= methods(Backing).keys()


def made_by_new() -> None:
    """Makes each by __new__ without its owner: that fails, or the result does no harm."""
    for cls in (Backing, Backings, GuestMemory, Segments):
        for arguments in ((), (None,), (8,), (object(), 8)):
            with suppress(TypeError, AttributeError):
                print(cls.__name__, cls.__new__(cls, *arguments))
    for vm in (Memslots(), Memslots().transaction()):
        with suppress(TypeError):
            print(vm._create_slot(0))  # type: ignore[arg-type]
    for method in methods(Transaction).values():
        for argument in (0, vm, MemoryMap([(0, 1, 0)])):
            for count in range(6):
                with suppress(Exception):
                    method(Transaction.__new__(Transaction), *[argument] * count)
    mem = GuestMemory.__new__(GuestMemory, Memslots())
    print(mem.backings, mem.as_id, end="")


def test_what_is_made_by_new_alone() -> None:
    assert run_fresh(made_by_new) == "() 0"
