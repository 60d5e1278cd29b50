"""Makes each call on a Memslots and on the dull model, and compares all visible state.

The driver chooses the calls: hypothesis in test_state_machine.py, a fuzzer's bytes in fuzz/.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from backend import Logless
from model import (
    BAD_HVA,
    NONE,
    READONLY,
    Answer,
    Model,
    ModelSlot,
    ModelTransaction,
    Refused,
    cut_steps,
    plain,
    state_of,
)

from memslots import (
    AddressSpace,
    BusyError,
    Change,
    Flags,
    InvalidRegionError,
    MemoryMap,
    MemslotError,
    Memslots,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    Slot,
    Transaction,
    Vcpu,
)

INVALID = int(Flags.INVALID)

Face = Memslots | AddressSpace | Vcpu | MemoryMap
E = TypeVar("E", bound=BaseException)


class ListenerSaysNo(Exception):
    pass


class GivenUp(Exception):
    pass


def is_same_memory(old: ModelSlot, new: ModelSlot) -> bool:
    """Returns whether a slot can become the other without a delete and a create (rule 5)."""
    return (
        (old.userspace_addr, old.npages) == (new.userspace_addr, new.npages)
        and not (old.flags ^ new.flags) & READONLY
    )  # fmt: skip


def caught(kind: type[E], call: Callable[..., object], *args: object, **named: object) -> E:
    """Returns the error of this kind that a call raises."""
    try:
        result = call(*args, **named)
    except kind as error:
        return error
    raise AssertionError(f"{call} gave {result!r} and no {kind.__name__}")


@dataclass(frozen=True)
class Event:
    """A call of a listener: its arguments, and what a look-up in it found."""

    listener: int
    method: str
    args: tuple[object, ...]
    slots: list[ModelSlot]


class Witness:
    """Records each call and what a look-up in it sees; raises if told to."""

    def __init__(self, both: Compared, number: int) -> None:
        self.both = both
        self.number = number

    def note(self, method: str, slot: Slot, *args: object) -> None:
        vm = self.both.vm
        caught(BusyError, vm.create, 0, 0, 1, 0)
        space = vm.address_space(slot.as_id)
        slots = [plain(s) for s in space]
        assert all(look_alike(vm, space, s) for s in slots)
        self.both.events.append(Event(self.number, method, args, slots))
        if (self.number, method) == self.both.trouble:
            if method == "commit":  # commit refuses nothing
                self.both.trouble = None
                self.both.unraisable += 1
            raise ListenerSaysNo(method)


class Listener(Witness):
    def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        either = new or old
        assert either is not None
        self.note("prepare", either, change.name, old and plain(old), new and plain(new))

    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        either = new or old
        assert either is not None
        self.note("commit", either, change.name, old and plain(old), new and plain(new))


class Flusher(Witness):
    def invalidate(self, slot: Slot) -> None:
        self.note("invalidate", slot, plain(slot))


class FullListener(Listener, Flusher):
    pass


def look_alike(vm: Memslots, space: AddressSpace, slot: ModelSlot) -> bool:
    """Returns whether all ways to read agree on this slot, marked INVALID or not."""
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
        and list(space.translate(array("Q", [gpa]))) == [BAD_HVA if hva is None else hva]
        and hva == (None if slot.flags & INVALID else slot.userspace_addr)
        and vm.vcpu(slot.as_id).lookup(gfn) is found
    )


class Compared:
    def __init__(self, vm: Memslots, model: Model) -> None:
        self.model = model
        self.events: list[Event] = []
        self.trouble: tuple[int, str] | None = None  # which listener raises, and in which method
        self.unraisable = 0  # errors of listeners that no caller sees
        self.listeners: dict[int, tuple[Witness, Callable[[], None]]] = {}
        self.meet(vm)

    def meet(self, vm: Memslots) -> None:
        """Goes on with this Memslots, which has no listeners yet."""
        self.vm = vm
        self.faces: list[list[Face]] = [
            [vm.address_space(as_id), vm.vcpu(as_id)] for as_id in range(vm.address_spaces)
        ]
        self.faces[0].append(vm)
        self.listeners.clear()
        self.trouble = None

    def used(self) -> list[tuple[int, int]]:
        """Returns (as_id, id) of every slot."""
        return [(as_id, id) for as_id, slots in enumerate(self.model.slots) for id in slots]

    def same(self) -> None:
        """Asserts that all visible state is that of the model."""
        vm, model = self.vm, self.model
        vm.check()
        assert state_of(vm) == model.state()
        backend = getattr(vm, "backend", None)  # the array has no backend
        if isinstance(backend, Logless):
            backend.agrees(vm)
        assert (vm.generation, vm.nr_pages, len(vm)) == (
            model.generations[0],
            model.nr_pages(0),
            len(model.slots[0]),
        )

    # Changes

    def expected_events(self, answer: Answer, before: list[ModelSlot], as_id: int) -> list[Event]:
        change, old, new = answer.change, answer.old, answer.new
        if change is None or change == NONE or answer.rule == 6:
            return []
        seen = before  # the slots of the active set while a method runs
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
        before = self.model.in_order(as_id) if as_id < self.model.address_spaces else []
        answer = told(*args, raising=self.raising(self.listeners))
        self.events.clear()
        if answer.refused_by is not None:
            assert str(caught(ListenerSaysNo, call, *args)) == answer.refused_by
        else:
            self.same_outcome(call, args, answer)
        assert self.events == self.expected_events(answer, before, as_id)
        if answer.refused_by is not None:
            self.trouble = None

    def raising(self, hearing: Iterable[int]) -> list[str]:
        """Returns the methods of those listeners that will raise when called."""
        if self.trouble is None:
            return []
        number, method = self.trouble
        if number not in hearing or not hasattr(self.listeners[number][0], method):
            return []
        return [method]

    def same_outcome(
        self, call: Callable[..., Change | Slot], args: tuple[int, ...], answer: Answer
    ) -> None:
        if answer.errno:
            self.same_error(caught(MemslotError, call, *args), answer)
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
            # If several slots are in the way, any of them may be named.
            assert answer.new is not None
            assert plain(error.requested) == answer.new
            assert plain(error.existing).overlaps(answer.new)
            assert error.existing.id != answer.new.id

    # Transactions

    def transaction(self, body: Callable[[Transaction, ModelTransaction], None]) -> None:
        """Runs a transaction with this body, which may raise GivenUp."""
        told = ModelTransaction(self.model)
        begun_with = dict(self.listeners)
        self.events.clear()
        error: Exception | None = None
        try:
            with self.vm.transaction() as tx:
                body(tx, told)
                assert self.events == []
        except (GivenUp, ListenerSaysNo, OverlapError) as raised:
            error = raised
        if isinstance(error, GivenUp):
            assert self.events == []
            return
        # A listener hears of the transaction if it subscribed before the begin and still does.
        hearing = [
            number for number, pair in begun_with.items() if self.listeners.get(number) is pair
        ]
        before = [self.model.in_order(as_id) for as_id in range(self.model.address_spaces)]
        gone = told.gone()
        answer = told.end(self.raising(hearing))
        if answer.errno:
            assert isinstance(error, OverlapError)
            assert error.rule == 6
            pair = plain(error.existing), plain(error.requested)
            assert pair[0].overlaps(pair[1])
            assert all(told.trial.get(slot.as_id, slot.id) == slot for slot in pair)
        elif answer.refused_by is not None:
            assert isinstance(error, ListenerSaysNo)
            assert str(error) == answer.refused_by
        else:
            assert error is None
        assert self.events == self.expected_events_of(told, gone, answer, before, hearing)
        if answer.refused_by is not None:
            self.trouble = None

    def cut(
        self, tx: Transaction, told: ModelTransaction, span: tuple[int, int, int | None], as_id: int
    ) -> None:
        """Does an unmap or, with flags, a protect."""
        start, end, flags = span
        try:
            steps = cut_steps(told.trial, start, end, flags, as_id)
        except ValueError:
            steps = None
        try:
            if flags is None:
                tx.unmap(start, end, as_id=as_id)
            else:
                tx.protect(start, end, flags, as_id)
        except MemslotError:
            assert steps is None
            return
        assert steps is not None
        for verb, *args in steps:
            assert told.step(verb, *args).done

    def create_many(
        self, tx: Transaction, told: ModelTransaction, slots: list[tuple[int, int, int]], as_id: int
    ) -> None:
        """Creates all slots with the lowest free ids. Raises GivenUp if too few ids are free."""
        used = told.trial.slots[as_id]
        free = [id for id in range(self.model.max_slots) if id not in used]
        if len(slots) > len(free):
            caught(NoRoomError, tx.create_many, slots, as_id)
            raise GivenUp
        made = tx.create_many(slots, as_id)
        assert [(s.id, s.base_gfn, s.npages, s.userspace_addr) for s in made] == [
            (id, *fields) for id, fields in zip(free, sorted(slots), strict=False)
        ]
        for slot in made:
            args = (slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, 0, as_id)
            assert told.step("create", *args).done

    def become(self, slots: list[tuple[int, ...]], as_id: int) -> None:
        """Changes to other slots, in as many calls as the plan has, without listeners."""
        wanted = MemoryMap(slots, as_id)  # type: ignore[arg-type]
        if len(wanted) > self.model.max_slots:
            assert isinstance(caught(MemslotError, self.vm.become, wanted), NoRoomError)
            return
        made = self.vm.become(wanted)
        assert self.vm.map(as_id) == wanted
        told = ModelTransaction(self.model)
        ids = {step.slot.id for step in made.steps}
        pairs = [(told.trial.get(as_id, id), self.vm.map(as_id).get(id)) for id in ids]
        for old, new in pairs:
            if old and not (new and is_same_memory(old, plain(new))):
                told.step("delete", old.id, as_id)
        for old, new in pairs:
            if new and old and is_same_memory(old, plain(new)):
                told.step("move", old.id, new.base_gfn, as_id)
                told.step("set_flags", old.id, int(new.flags), as_id)
            elif new:
                args = (new.base_gfn, new.npages, new.userspace_addr, int(new.flags))
                told.step("create", new.id, *args, as_id)
        assert told.end().done

    def step(self, tx: Transaction, told: ModelTransaction, verb: str, *args: int) -> None:
        if verb == "mark_dirty":  # as a reader does: the slots are still as they were
            self.vm.mark_dirty(*args)
            self.model.mark_dirty(*args)
        else:
            self.same_outcome(getattr(tx, verb), args, told.step(verb, *args))

    def look_at_steps(self, tx: Transaction, trial: Model) -> None:
        """Compares what the transaction will make of the slots, and what readers still find."""
        model = self.model
        for as_id in range(model.address_spaces):
            slots = [*model.slots[as_id].values(), *trial.slots[as_id].values()]
            for id in {*range(min(model.max_slots, 8)), *(slot.id for slot in slots)}:
                slot = tx.get(id, as_id=as_id)
                assert (slot and plain(slot)) == trial.get(as_id, id)
            ends = [gfn for slot in slots for gfn in (slot.base_gfn, slot.end_gfn - 1)]
            for gfn in {*range(0, 70, 3), *ends}:
                slot = tx.lookup(gfn, as_id)
                held = [s for s in trial.slots[as_id].values() if s.holds(gfn)]
                assert (slot is None) == (not held)
                if slot is not None:  # of overlapping slots, the one that begins last
                    assert plain(slot) in held
                    assert slot.base_gfn == max(s.base_gfn for s in held)
            space = self.vm.address_space(as_id)
            assert [plain(slot) for slot in space] == model.in_order(as_id)
            assert space.generation == model.generations[as_id]

    def expected_events_of(
        self,
        told: ModelTransaction,
        gone: list[ModelSlot],
        answer: Answer,
        before: list[list[ModelSlot]],
        hearing: list[int],
    ) -> list[Event]:
        """Returns all invalidates, then all prepares, then all commits, in the order of steps."""
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
            for number in sorted(hearing):
                if hasattr(self.listeners[number][0], method):
                    slots = self.model.in_order(as_id) if method == "commit" else before[as_id]
                    events.append(Event(number, method, args, slots))
                    if (number, method) == self.trouble and method == answer.refused_by:
                        return events
        return events

    # Listeners

    def subscribe_or_close(self, number: int, kind: type[Witness]) -> None:
        """Subscribes a listener or closes one. The numbers are in the order of subscription."""
        if number in self.listeners:
            self.listeners.pop(number)[1]()
        elif not self.listeners or number > max(self.listeners):
            listener = kind(self, number)
            self.listeners[number] = listener, self.vm.subscribe(listener).close
        self.trouble = None

    def close_all(self) -> None:
        for _, close in self.listeners.values():
            close()
        self.listeners.clear()

    # Dirty logs

    @staticmethod
    def dirty_log(
        call: Callable[..., object], told: Callable[..., object], *args: object, as_id: int
    ) -> None:
        try:
            want = told(*args, as_id=as_id)
        except Refused as refused:
            assert caught(MemslotError, call, *args, as_id=as_id).errno == refused.args[0]
        else:
            assert call(*args, as_id=as_id) == want

    def mark_range(self, start: int, end: int, as_id: int) -> None:
        if start > end:
            caught(ValueError, self.vm.mark_dirty_range, start, end, as_id)
            return
        self.vm.mark_dirty_range(start, end, as_id=as_id)
        for slot in self.model.in_gfn_range(as_id, start, end):
            self.model.mark_dirty_range(max(start, slot.base_gfn), min(end, slot.end_gfn), as_id)

    def dirty_runs(self) -> None:
        runs = self.vm.take_dirty_runs()
        assert [tuple(run) for run in runs] == self.model.take_dirty_runs()

    # Reading

    def look(self, face: Face, gfns: list[int], offset: int) -> None:
        """Looks up these pages in every way."""
        model, as_id = self.model, face.as_id
        slots = [model.lookup(as_id, gfn) for gfn in gfns]
        gpas = [(gfn << 12) + offset for gfn in gfns]
        found = [face.lookup(gfn) for gfn in gfns]
        assert [slot and plain(slot) for slot in found] == slots
        many = face.lookup_many(array("Q", gfns))
        assert list(many) == [-1 if slot is None else slot.id for slot in slots]
        for write in (False, True):
            hvas = [model.translate(as_id, gpa, write) for gpa in gpas]
            assert list(face.translate(array("Q", gpas), write=write)) == hvas
            for gpa, hva, slot in zip(gpas, hvas, slots, strict=True):
                if hva != BAD_HVA:
                    assert face.gpa_to_hva(gpa, write) == hva
                else:
                    kind = ReadOnlyError if slot else NotMappedError
                    assert type(caught(MemslotError, face.gpa_to_hva, gpa, write=write)) is kind

    def ranges(self, face: Face, first: int, last: int, start: int, end: int) -> None:
        """Compares the slots of the pages [first, last) and of the host addresses [start, end)."""
        as_id = face.as_id
        slots = [plain(slot) for slot in face.in_gfn_range(first, last)]
        assert slots == self.model.in_gfn_range(as_id, first, last)
        hits = face.in_hva_range(start, end)
        addresses = [slot.userspace_addr for slot, _, _ in hits]
        assert addresses == sorted(addresses)  # equal addresses come in any order
        by_number = sorted(hits, key=lambda hit: hit[0].id)
        want = sorted(self.model.in_hva_range(as_id, start, end), key=lambda hit: hit[0].id)
        assert [(plain(slot), first, last) for slot, first, last in by_number] == want

    def room(self, face: Face, gfn: int, npages: int, end: int, align: int, hva: int) -> None:
        """Compares neighbours and holes with a search page by page; `end` is above, near `gfn`."""
        slots = self.model.in_order(face.as_id)
        below = [slot for slot in slots if slot.base_gfn <= gfn]
        above = [slot for slot in slots if slot.base_gfn >= gfn]
        floor, ceil = face.floor(gfn), face.ceil(gfn)
        assert (floor and plain(floor)) == (below[-1] if below else None)
        assert (ceil and plain(ceil)) == (above[0] if above else None)
        free = [page for page in range(gfn, end) if not any(slot.holds(page) for slot in slots)]
        holes = face.holes(gfn, end)
        assert [page for start, stop in holes for page in range(start, stop)] == free
        assert all(a[1] < b[0] for a, b in pairwise(holes))
        assert face.is_mapped(gfn, end) == (not free)
        fits = [
            page
            for page in range(gfn, end - npages + 1)
            if page % align == 0 and {*range(page, page + npages)} <= {*free}
        ]
        assert face.find_hole(npages, gfn, end, align) == (fits[0] if fits else None)
        last = slots[-1].base_gfn + slots[-1].npages if slots else 0
        assert face.span == ((slots[0].base_gfn, last) if slots else None)
        assert face.find_hole(npages) == next(
            (start for start, stop in face.holes() if stop - start >= npages),
            None,
        )
        gpas = [
            (slot.base_gfn << 12) + hva - slot.userspace_addr
            for slot in slots
            if 0 <= hva - slot.userspace_addr < slot.npages << 12
        ]
        if gpas:
            assert face.hva_to_gpa(hva) == min(gpas)
        else:
            assert type(caught(MemslotError, face.hva_to_gpa, hva)) is NotMappedError

    def by_id(self, face: Face, id: int) -> None:
        want = self.model.get(face.as_id, id)
        got = face.get(id)
        assert (got and plain(got)) == want
        if got is None:
            caught(NoSuchSlotError, face.__getitem__, id)
        else:
            assert face[id] is got
            assert got in face
            assert Slot(id, face.as_id, got.base_gfn + 1, got.npages, 0) not in face

    def go_on_with_a_copy(self, how: Callable[[Memslots], Memslots]) -> None:
        """Goes on with a copy and destroys the original: a copy shares nothing with it."""
        left = self.vm
        self.close_all()
        self.meet(how(left))
        for as_id in range(left.address_spaces):
            for slot in left.address_space(as_id):
                left.delete(slot.id, as_id=as_id)
