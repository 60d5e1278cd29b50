"""Memslots against the dull model: any calls in any order, the whole state compared after each."""

from __future__ import annotations

import copy
import pickle
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import NONE, Answer, Model, ModelSlot, ModelTransaction, Refused, plain, state_of
from strategies import (
    MAX_GFN,
    MAX_HVA,
    MAX_SLOTS,
    SPACES,
    as_ids,
    askew,
    flags,
    gfns,
    good_as_ids,
    hvas,
    ids,
    marks,
    npages,
    steps,
)

from memslots import (
    AddressSpace,
    BusyError,
    Change,
    Flags,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    Slot,
    Transaction,
    Vcpu,
)

INVALID = int(Flags.INVALID)


class ListenerSaysNo(Exception):
    pass


class GivenUp(Exception):
    pass


@dataclass(frozen=True)
class Event:
    """A call of a listener: what it was given, and what it saw when it looked around."""

    listener: int
    method: str
    args: tuple[object, ...]
    slots: list[ModelSlot]


class Listener:
    """Notes each call and what a lookup from inside it sees; refuses when told to."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.number = number

    def note(self, method: str, slot: Slot, *args: object) -> None:
        vm = self.machine.vm
        with pytest.raises(BusyError):
            vm.create(0, 0, 1, 0)
        space = vm.address_space(slot.as_id)
        slots = [plain(s) for s in space]
        assert all(look_alike(vm, space, s) for s in slots)
        self.machine.events.append(Event(self.number, method, args, slots))
        if (self.number, method) == self.machine.trouble:
            raise ListenerSaysNo(method)

    def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        either = new or old
        assert either is not None
        self.note("prepare", either, change.name, old and plain(old), new and plain(new))

    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        either = new or old
        assert either is not None
        self.note("commit", either, change.name, old and plain(old), new and plain(new))


class FullListener(Listener):
    def invalidate(self, slot: Slot) -> None:
        self.note("invalidate", slot, plain(slot))


def look_alike(vm: Memslots, space: AddressSpace, slot: ModelSlot) -> bool:
    """Whether all ways to read agree on this slot, marked INVALID or not."""
    gfn, gpa = slot.end_gfn - 1, slot.base_gfn << 12
    try:
        hva: int | None = space.gpa_to_hva(gpa)
    except NotMappedError:
        hva = None
    found = space.lookup(gfn)
    return (
        found is not None
        and plain(found) == slot == plain(space[slot.id])
        and found in space
        and list(space.lookup_many(array("Q", [gfn]))) == [slot.id]
        and list(space.translate(array("Q", [gpa]))) == [(1 << 64) - 1 if hva is None else hva]
        and hva == (None if slot.flags & INVALID else slot.userspace_addr)
        and vm.vcpu(slot.as_id).lookup(gfn) is found
    )


class Machine(RuleBasedStateMachine):
    memslots_class: type[Memslots]

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.trouble: tuple[int, str] | None = None  # which listener refuses, and in what
        self.listeners: dict[int, tuple[Listener, Callable[[], None]]] = {}

    @initialize(
        manual_dirty_log=st.sampled_from([0, 1, 3]),
        kinds=st.lists(st.sampled_from([Listener, FullListener]), max_size=3),
    )
    def begin(self, manual_dirty_log: int, kinds: list[type[Listener]]) -> None:
        limits = {"address_spaces": SPACES, "max_gfn": MAX_GFN, "max_hva": MAX_HVA}
        limits["manual_dirty_log"] = manual_dirty_log
        self.vm = self.memslots_class(MAX_SLOTS, **limits)
        self.model = Model(MAX_SLOTS, **limits)
        self.meet()
        for number, kind in enumerate(kinds):
            self.subscribe_or_close(number, kind)
        for as_id in range(SPACES):
            for id in range(3):
                args = (id, 15 * id, 7, 0x5000 * id, id, as_id)
                self.change(self.vm.create, self.model.create, as_id, *args)

    def meet(self) -> None:
        spaces = range(SPACES)
        self.faces: list[list[Memslots | AddressSpace | Vcpu]] = [
            [self.vm.address_space(as_id), self.vm.vcpu(as_id)] for as_id in spaces
        ]
        self.faces[0].append(self.vm)

    def pick(self, data: st.DataObject) -> tuple[int, int]:
        """Mostly a slot in use, else any: as_id, id."""
        used = [(as_id, id) for as_id in range(SPACES) for id in self.model.slots[as_id]]
        usual: int = data.draw(st.integers(0, 7))
        return data.draw(st.sampled_from(used) if used and usual else st.tuples(as_ids, ids))

    # Changes

    def expected_events(self, answer: Answer, before: list[ModelSlot], as_id: int) -> list[Event]:
        change, old, new = answer.change, answer.old, answer.new
        if change is None or change == NONE or answer.rule == 6:
            return []
        seen = before  # what is in the active set while a method runs
        if answer.through_invalid and old is not None:
            marked = replace(old, flags=old.flags | INVALID)
            seen = [marked if slot.id == old.id else slot for slot in before]
        after = self.model.in_order(as_id)
        calls: list[tuple[str, tuple[object, ...], list[ModelSlot]]] = []
        if answer.through_invalid:
            calls.append(("invalidate", (old,), seen))
        if answer.rule is None and answer.refused_by != "invalidate":
            calls.append(("prepare", (change, old, new), seen))
        if answer.done:
            calls.append(("commit", (change, old, new), after))
        events = []
        for method, args, slots in calls:
            for number, (listener, _) in sorted(self.listeners.items()):
                if hasattr(listener, method):
                    events.append(Event(number, method, args, slots))
                    if (number, method) == self.trouble and method == answer.refused_by:
                        return events
        return events

    def change(
        self,
        call: Callable[..., Change | Slot],
        told: Callable[..., Answer],
        as_id: int,
        *args: int,
    ) -> None:
        before = self.model.in_order(as_id) if as_id < SPACES else []
        answer = told(*args, raising=self.raising())
        self.events.clear()
        if answer.refused_by is not None:
            with pytest.raises(ListenerSaysNo, match=answer.refused_by):
                call(*args)
        else:
            self.same_outcome(call, args, answer)
        assert self.events == self.expected_events(answer, before, as_id)
        if answer.refused_by is not None:
            self.trouble = None

    def raising(self) -> list[str]:
        """The methods of listeners that raise if they are called."""
        if self.trouble is None:
            return []
        number, method = self.trouble
        return [method] if hasattr(self.listeners[number][0], method) else []

    def same_outcome(
        self, call: Callable[..., Change | Slot], args: tuple[int, ...], answer: Answer
    ) -> None:
        if answer.errno:
            with pytest.raises(MemslotError) as caught:
                call(*args)
            self.same_error(caught.value, answer)
            return
        result = call(*args)
        if isinstance(result, Slot):
            assert plain(result) == (answer.new or answer.old)
        else:
            assert result.name == answer.change

    @staticmethod
    def same_error(error: MemslotError, answer: Answer) -> None:
        assert error.errno == answer.errno
        if answer.rule is not None:
            assert error.rule == answer.rule
        kind = {3: NoSuchSlotError, 6: OverlapError}.get(answer.rule or 0, InvalidRegionError)
        assert type(error) is kind
        if isinstance(error, OverlapError):
            # Which of several slots in the way is named is open.
            assert answer.new is not None
            assert plain(error.requested) == answer.new
            assert plain(error.existing).overlaps(answer.new)
            assert error.existing.id != answer.new.id

    @rule(
        as_id=as_ids,
        id=ids,
        flags=flags,
        gfn=gfns,
        n=npages,
        hva=hvas,
        skew=st.tuples(*[askew] * 3),
    )
    def set_region(
        self, as_id: int, id: int, flags: int, gfn: int, n: int, hva: int, skew: tuple[int, ...]
    ) -> None:
        args = (as_id << 16 | id, flags, (gfn << 12) + skew[0], (n << 12) + skew[1], hva + skew[2])
        self.change(self.vm.set_region, self.model.set_region, as_id, *args)

    @rule(flags=flags, gfn=gfns, data=st.data())
    def set_region_again(self, flags: int, gfn: int, data: st.DataObject) -> None:
        """A call that fits a slot in use but for one or two of its values."""
        as_id, id = self.pick(data)
        old = self.model.get(as_id, id)
        assume(old is not None)
        assert old is not None
        gpa = data.draw(st.sampled_from([gfn, old.base_gfn])) << 12
        size = data.draw(st.sampled_from([old.npages] * 8 + [old.npages + 1, 0])) << 12
        bits = data.draw(st.sampled_from([flags, old.flags, old.flags ^ 1]))
        args = (as_id << 16 | id, bits, gpa, size, old.userspace_addr)
        self.change(self.vm.set_region, self.model.set_region, as_id, *args)

    @rule(as_id=as_ids, id=ids, flags=flags, gfn=gfns, n=npages, hva=hvas)
    def create(self, as_id: int, id: int, flags: int, gfn: int, n: int, hva: int) -> None:
        self.change(self.vm.create, self.model.create, as_id, id, gfn, n, hva, flags, as_id)

    @rule(gfn=gfns, data=st.data())
    def move(self, gfn: int, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        self.change(self.vm.move, self.model.move, as_id, id, gfn, as_id)

    @rule(flags=flags, flip=st.booleans(), data=st.data())
    def set_flags(self, flags: int, flip: bool, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        old = self.model.get(as_id, id)
        if flip and old is not None:
            flags = old.flags ^ 1
        self.change(self.vm.set_flags, self.model.set_flags, as_id, id, flags, as_id)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        self.change(self.vm.delete, self.model.delete, as_id, id, as_id)

    # Transactions

    @precondition(lambda self: issubclass(self.memslots_class, Memslots))
    @rule(steps=st.lists(steps, max_size=7), gives_up=st.sampled_from([False, False, False, True]))
    def transaction(self, steps: list[tuple[str, *tuple[int, ...]]], gives_up: bool) -> None:
        told = ModelTransaction(self.model)
        self.events.clear()
        caught: Exception | None = None
        try:
            with self.vm.transaction() as tx:
                for verb, *args in steps:
                    self.step(tx, told, verb, *args)
                self.look_at_steps(tx, told.trial)
                if gives_up:
                    raise GivenUp
        except (GivenUp, ListenerSaysNo, OverlapError) as error:
            caught = error
        if gives_up:
            assert isinstance(caught, GivenUp)
            assert self.events == []
            return
        before = [self.model.in_order(as_id) for as_id in range(SPACES)]
        gone = told.gone()
        answer = told.end(self.raising())
        if answer.errno:
            assert isinstance(caught, OverlapError)
            assert caught.rule == 6
            pair = plain(caught.existing), plain(caught.requested)
            assert pair[0].overlaps(pair[1])
            assert all(told.trial.get(slot.as_id, slot.id) == slot for slot in pair)
        elif answer.refused_by is not None:
            assert isinstance(caught, ListenerSaysNo)
            assert str(caught) == answer.refused_by
        else:
            assert caught is None
        assert self.events == self.expected_events_of(told, gone, answer, before)
        if answer.refused_by is not None:
            self.trouble = None

    def step(self, tx: Transaction, told: ModelTransaction, verb: str, *args: int) -> None:
        if verb == "mark_dirty":  # by a reader, where the slots are still as they were
            self.vm.mark_dirty(*args)
            self.model.mark_dirty(*args)
        else:
            self.same_outcome(getattr(tx, verb), args, told.step(verb, *args))

    def look_at_steps(self, tx: Transaction, trial: Model) -> None:
        """What the transaction will make of the slots, and what readers still find."""
        assert self.events == []
        for as_id in range(SPACES):
            for id in range(MAX_SLOTS):
                slot = tx.get(id, as_id=as_id)
                assert (slot and plain(slot)) == trial.get(as_id, id)
            for gfn in range(0, 70, 3):
                slot = tx.lookup(gfn, as_id)
                held = {s.id for s in trial.slots[as_id].values() if s.holds(gfn)}
                assert (slot is None and not held) or (slot is not None and slot.id in held)
            space = self.vm.address_space(as_id)
            assert [plain(slot) for slot in space] == self.model.in_order(as_id)
            assert space.generation == self.model.generations[as_id]

    def expected_events_of(
        self,
        told: ModelTransaction,
        gone: list[ModelSlot],
        answer: Answer,
        before: list[list[ModelSlot]],
    ) -> list[Event]:
        """All of invalidate, then all of prepare, then all of commit, each in order of steps."""
        if answer.errno:
            return []
        calls: list[tuple[str, int, tuple[object, ...]]] = [
            ("invalidate", slot.as_id, (slot,)) for slot in gone
        ]
        for method in ("prepare", "commit"):
            for step, (as_id, _) in zip(told.steps, told.ids(), strict=True):
                calls.append((method, as_id, (step.change, step.old, step.new)))
        events = []
        for method, as_id, args in calls:
            for number, (listener, _) in sorted(self.listeners.items()):
                if hasattr(listener, method):
                    slots = self.model.in_order(as_id) if method == "commit" else before[as_id]
                    events.append(Event(number, method, args, slots))
                    if (number, method) == self.trouble and method == answer.refused_by:
                        return events
        return events

    # Listeners

    @rule(number=st.integers(0, 3), kind=st.sampled_from([Listener, FullListener]))
    def subscribe_or_close(self, number: int, kind: type[Listener]) -> None:
        """At most three, and the numbers are in order of subscription."""
        if number in self.listeners:
            self.listeners.pop(number)[1]()
        elif not self.listeners or number > max(self.listeners):
            listener = kind(self, number)
            self.listeners[number] = listener, self.vm.subscribe(listener).close
        self.trouble = None

    @precondition(lambda self: self.listeners)
    @rule(data=st.data(), method=st.sampled_from(["prepare", "invalidate"]))
    def next_is_refused(self, data: st.DataObject, method: str) -> None:
        self.trouble = data.draw(st.sampled_from(sorted(self.listeners))), method

    # Dirty logs

    @rule(as_id=good_as_ids, gfns=marks)
    def mark_dirty(self, as_id: int, gfns: list[int]) -> None:
        for gfn in gfns:
            self.model.mark_dirty(gfn, as_id)
        for gfn in gfns[:2]:
            self.vm.mark_dirty(gfn, as_id=as_id)
        self.vm.mark_dirty_many(array("Q", gfns[2:]), as_id=as_id)

    @rule(data=st.data())
    def get_dirty_log(self, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        self.dirty_log(self.vm.get_dirty_log, self.model.get_dirty_log, id, as_id=as_id)

    @rule(
        first_page=st.sampled_from([0, 0, 0, 64, 128, 1]),
        num_pages=st.sampled_from([0, 7, 36, 64, 65, 128]),
        to_the_end=st.booleans(),
        bitmap=st.binary(min_size=16, max_size=16),
        data=st.data(),
    )
    def clear_dirty_log(
        self, first_page: int, num_pages: int, to_the_end: bool, bitmap: bytes, data: st.DataObject
    ) -> None:
        as_id, id = self.pick(data)
        slot = self.model.get(as_id, id)
        if slot is not None and to_the_end:
            num_pages = max(slot.npages - first_page, 0)
        args = (id, first_page, num_pages, bitmap)
        self.dirty_log(self.vm.clear_dirty_log, self.model.clear_dirty_log, *args, as_id=as_id)

    @staticmethod
    def dirty_log(
        call: Callable[..., object], told: Callable[..., object], *args: object, as_id: int
    ) -> None:
        try:
            want = told(*args, as_id=as_id)
        except Refused as refused:
            with pytest.raises(MemslotError) as caught:
                call(*args, as_id=as_id)
            assert caught.value.errno == refused.args[0]
        else:
            assert call(*args, as_id=as_id) == want

    # Reading

    @rule(as_id=good_as_ids, gfns=st.lists(gfns, max_size=8), offset=st.integers(0, 4095))
    def look(self, as_id: int, gfns: list[int], offset: int) -> None:
        model = self.model
        slots = [model.lookup(as_id, gfn) for gfn in gfns]
        gpas = [(gfn << 12) + offset for gfn in gfns]
        for face in self.faces[as_id]:
            found = [face.lookup(gfn) for gfn in gfns]
            assert [slot and plain(slot) for slot in found] == slots
            many = face.lookup_many(array("Q", gfns))
            assert list(many) == [-1 if slot is None else slot.id for slot in slots]
            for write in (False, True):
                hvas = [model.translate(as_id, gpa, write) for gpa in gpas]
                assert list(face.translate(array("Q", gpas), write=write)) == hvas
                for gpa, hva, slot in zip(gpas, hvas, slots, strict=True):
                    if hva != (1 << 64) - 1:
                        assert face.gpa_to_hva(gpa, write) == hva
                    else:
                        with pytest.raises(ReadOnlyError if slot else NotMappedError):
                            face.gpa_to_hva(gpa, write=write)

    @rule(as_id=good_as_ids, first=st.integers(0, 30), pages=st.integers(0, 20), skew=askew)
    def ranges(self, as_id: int, first: int, pages: int, skew: int) -> None:
        start, end = (first << 12) + skew, ((first + pages) << 12) + 2 * skew
        for face in self.faces[as_id]:
            slots = [plain(slot) for slot in face.in_gfn_range(first, first + pages)]
            assert slots == self.model.in_gfn_range(as_id, first, first + pages)
            hits = face.in_hva_range(start, end)
            addresses = [slot.userspace_addr for slot, _, _ in hits]
            assert addresses == sorted(addresses)  # and those that are equal come in any order
            by_number = sorted(hits, key=lambda hit: hit[0].id)
            want = sorted(self.model.in_hva_range(as_id, start, end), key=lambda hit: hit[0].id)
            assert [(plain(slot), first, last) for slot, first, last in by_number] == want

    @rule(as_id=good_as_ids, id=ids)
    def by_id(self, as_id: int, id: int) -> None:
        want = self.model.get(as_id, id)
        for face in self.faces[as_id]:
            got = face.get(id)
            assert (got and plain(got)) == want
            if got is None:
                with pytest.raises(NoSuchSlotError):
                    face[id]
            else:
                assert face[id] is got
                assert got in face
                assert Slot(id, as_id, got.base_gfn + 1, got.npages, 0) not in face

    @rule(
        how=st.sampled_from([copy.copy, copy.deepcopy, lambda vm: pickle.loads(pickle.dumps(vm))])
    )
    def go_on_with_a_copy(self, how: Callable[[Memslots], Memslots]) -> None:
        left = self.vm
        for _, close in self.listeners.values():
            close()
        self.vm = how(left)
        self.listeners.clear()
        self.trouble = None
        self.meet()
        for slot in [*left.address_space(0), *left.address_space(1)]:
            left.delete(slot.id, as_id=slot.as_id)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "vm"):  # before `begin` there is nothing
            self.vm.check()
            assert state_of(self.vm) == self.model.state()
            assert (self.vm.generation, self.vm.nr_pages, len(self.vm)) == (
                self.model.generations[0],
                self.model.nr_pages(0),
                len(self.model.slots[0]),
            )


def test_against_the_model(memslots_class: type[Memslots]) -> None:
    machine = type("MachineOfClass", (Machine,), {"memslots_class": memslots_class})
    run_state_machine_as_test(machine)
