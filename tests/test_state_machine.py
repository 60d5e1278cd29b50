"""Makes any calls in any order, and compares Memslots with the dull model after each."""

from __future__ import annotations

import copy
import pickle
import random
from array import array
from collections.abc import Callable

from backend import Backend
from compared import Compared, FullListener, GivenUp, Listener
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
from model import Model, ModelSlot, ModelTransaction, plain
from smallmachine import MAX_GFN, MAX_HVA, MAX_SLOTS, SPACES
from strategies import as_ids, askew, flags, gfns, good_as_ids, hvas, ids, marks, npages, steps

from memslots import MemoryMap, Memslots, Transaction


class Machine(RuleBasedStateMachine):
    mirrored = False
    both: Compared

    def __init__(self) -> None:
        super().__init__()
        self.private: set[int] = set()
        self.maps: list[tuple[MemoryMap, list[ModelSlot]]] = []

    @initialize(
        manual_dirty_log=st.sampled_from([0, 1, 3]),
        kinds=st.lists(st.sampled_from([Listener, FullListener]), max_size=3),
    )
    def begin(self, manual_dirty_log: int, kinds: list[type[Listener]]) -> None:
        limits = {"address_spaces": SPACES, "max_gfn": MAX_GFN, "max_hva": MAX_HVA}
        limits["manual_dirty_log"] = manual_dirty_log
        if self.mirrored:
            # There is room to put slots aside, so their logs are never lost.
            limits["max_gfn"] = (1 << 20) - 1
            vm = Memslots(MAX_SLOTS, backend=Backend(MAX_SLOTS, **limits), **limits)
        else:
            vm = Memslots(MAX_SLOTS, **limits)
        self.both = Compared(vm, Model(MAX_SLOTS, **limits))
        for number, kind in enumerate(kinds):
            self.both.subscribe_or_close(number, kind)
        for as_id in range(SPACES):
            for id in range(3):
                args = (id, 15 * id, 7, 0x5000 * id, id, as_id)
                self.change("create", as_id, *args)

    def pick(self, data: st.DataObject) -> tuple[int, int]:
        """Draws (as_id, id), mostly of a slot in use."""
        used = self.both.used()
        usual: int = data.draw(st.integers(0, 7))
        return data.draw(st.sampled_from(used) if used and usual else st.tuples(as_ids, ids))

    # Changes

    def change(self, verb: str, as_id: int, *args: int) -> None:
        both = self.both
        both.change(getattr(both.vm, verb), getattr(both.model, verb), as_id, *args)

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
        self.change("set_region", as_id, *args)

    @rule(flags=flags, gfn=gfns, data=st.data())
    def set_region_again(self, flags: int, gfn: int, data: st.DataObject) -> None:
        """Makes a call that fits a slot in use except for one or two of its values."""
        as_id, id = self.pick(data)
        old = self.both.model.get(as_id, id)
        assume(old is not None)
        assert old is not None
        gpa = data.draw(st.sampled_from([gfn, old.base_gfn])) << 12
        size = data.draw(st.sampled_from([old.npages] * 8 + [old.npages + 1, 0])) << 12
        bits = data.draw(st.sampled_from([flags, old.flags, old.flags ^ 1]))
        args = (as_id << 16 | id, bits, gpa, size, old.userspace_addr)
        self.change("set_region", as_id, *args)

    @rule(as_id=as_ids, id=ids, flags=flags, gfn=gfns, n=npages, hva=hvas)
    def create(self, as_id: int, id: int, flags: int, gfn: int, n: int, hva: int) -> None:
        self.change("create", as_id, id, gfn, n, hva, flags, as_id)

    @rule(gfn=gfns, data=st.data())
    def move(self, gfn: int, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        self.change("move", as_id, id, gfn, as_id)

    @rule(flags=flags, flip=st.booleans(), data=st.data())
    def set_flags(self, flags: int, flip: bool, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        old = self.both.model.get(as_id, id)
        if flip and old is not None:
            flags = old.flags ^ 1
        self.change("set_flags", as_id, id, flags, as_id)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        self.change("delete", as_id, id, as_id)

    # Transactions

    @rule(steps=st.lists(steps, max_size=7), gives_up=st.sampled_from([False, False, False, True]))
    def transaction(self, steps: list[tuple[str, *tuple[int, ...]]], gives_up: bool) -> None:
        def body(tx: Transaction, told: ModelTransaction) -> None:
            for verb, *args in steps:
                self.both.step(tx, told, verb, *args)
            self.both.look_at_steps(tx, told.trial)
            if gives_up:
                raise GivenUp

        self.both.transaction(body)

    @rule(
        cuts=st.lists(
            st.tuples(
                st.integers(0, 60),
                st.integers(0, 30),
                st.sampled_from([None, None, 0, 1, 1, 2, 3, 4]),
                good_as_ids,
            ),
            min_size=1,
            max_size=3,
        )
    )
    def cut(self, cuts: list[tuple[int, int, int | None, int]]) -> None:
        """Does an unmap and a protect."""

        def body(tx: Transaction, told: ModelTransaction) -> None:
            for start, length, bits, as_id in cuts:
                self.both.cut(tx, told, (start, start + length, bits), as_id)
            self.both.look_at_steps(tx, told.trial)

        self.both.transaction(body)

    @rule(
        as_id=good_as_ids, places=st.sets(st.integers(0, 30), max_size=5), pages=st.integers(1, 5)
    )
    def create_many(self, as_id: int, places: set[int], pages: int) -> None:
        slots = [(5 * gfn, pages, gfn << 12) for gfn in sorted(places)]

        def body(tx: Transaction, told: ModelTransaction) -> None:
            self.both.create_many(tx, told, slots, as_id)
            self.both.look_at_steps(tx, told.trial)

        self.both.transaction(body)

    @precondition(lambda self: not self.both.listeners)
    @rule(as_id=good_as_ids, data=st.data())
    def become(self, as_id: int, data: st.DataObject) -> None:
        """Becomes a map with some slots unchanged, some moved or changed, and some new."""
        slots: list[tuple[int, ...]] = []
        gfn = 0
        there = self.both.model.in_order(as_id)
        number: int = data.draw(st.integers(0, 7))
        for _ in range(number):
            gfn += data.draw(st.sampled_from([0, 0, 1, 7]))
            length = data.draw(st.integers(1, 9))
            hva = data.draw(hvas) % MAX_HVA & ~0xFFF
            bits = 0
            id: tuple[int, ...] = ()
            again: int = data.draw(st.integers(0, 3))
            if there and again:
                old = data.draw(st.sampled_from(there))
                length, hva, bits = old.npages, old.userspace_addr, old.flags
                gfn = max(gfn, old.base_gfn) if data.draw(st.booleans()) else gfn
                id = (old.id,) if data.draw(st.booleans()) else ()
            if id and any(id == slot[4:] for slot in slots):
                id = ()
            if hva + (length << 12) <= MAX_HVA and gfn + length <= MAX_GFN:
                slots.append((gfn, length, hva, data.draw(st.sampled_from([bits, 1])), *id))
                gfn += length
        self.both.become(slots, as_id)

    # Listeners

    @rule(number=st.integers(0, 3), kind=st.sampled_from([Listener, FullListener]))
    def subscribe_or_close(self, number: int, kind: type[Listener]) -> None:
        """Subscribes a listener, at most three, or closes one."""
        self.both.subscribe_or_close(number, kind)

    @precondition(lambda self: self.both.listeners)
    @rule(data=st.data(), method=st.sampled_from(["prepare", "invalidate"]))
    def next_is_refused(self, data: st.DataObject, method: str) -> None:
        self.both.trouble = data.draw(st.sampled_from(sorted(self.both.listeners))), method

    # Dirty logs

    @rule(as_id=good_as_ids, gfns=marks)
    def mark_dirty(self, as_id: int, gfns: list[int]) -> None:
        vm, model = self.both.vm, self.both.model
        for gfn in gfns:
            model.mark_dirty(gfn, as_id)
        for gfn in gfns[:2]:
            vm.mark_dirty(gfn, as_id=as_id)
        vm.mark_dirty_many(array("Q", gfns[2:]), as_id=as_id)

    @rule(as_id=good_as_ids, start=st.integers(0, 90), end=st.integers(0, 90))
    def mark_dirty_range(self, as_id: int, start: int, end: int) -> None:
        self.both.mark_range(start, end, as_id)

    @rule()
    def take_dirty_runs(self) -> None:
        self.both.dirty_runs()

    @rule(data=st.data())
    def get_dirty_log(self, data: st.DataObject) -> None:
        as_id, id = self.pick(data)
        vm, model = self.both.vm, self.both.model
        self.both.dirty_log(vm.get_dirty_log, model.get_dirty_log, id, as_id=as_id)

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
        vm, model = self.both.vm, self.both.model
        slot = model.get(as_id, id)
        if slot is not None and to_the_end:
            num_pages = max(slot.npages - first_page, 0)
        args = (id, first_page, num_pages, bitmap)
        self.both.dirty_log(vm.clear_dirty_log, model.clear_dirty_log, *args, as_id=as_id)

    # Reading

    @rule(as_id=good_as_ids, gfns=st.lists(gfns, max_size=8), offset=st.integers(0, 4095))
    def look(self, as_id: int, gfns: list[int], offset: int) -> None:
        for face in self.both.faces[as_id]:
            self.both.look(face, gfns, offset)

    @rule(as_id=good_as_ids, seed=st.integers(0, 7), times=st.integers(1, 9))
    def look_often(self, as_id: int, seed: int, times: int) -> None:
        """With so few slots, some 30 searches make an index: now, or at some later one."""
        dice = random.Random(seed)
        for face in self.both.faces[as_id]:
            self.both.look(face, [dice.randrange(40) for _ in range(5 * times)], seed)

    @rule(as_id=good_as_ids, first=st.integers(0, 30), pages=st.integers(0, 20), skew=askew)
    def ranges(self, as_id: int, first: int, pages: int, skew: int) -> None:
        start, end = (first << 12) + skew, ((first + pages) << 12) + 2 * skew
        for face in self.both.faces[as_id]:
            self.both.ranges(face, first, first + pages, start, end)

    @rule(
        as_id=good_as_ids,
        gfn=st.integers(0, 60),
        pages=st.integers(0, 40),
        npages=st.integers(1, 9),
        align=st.sampled_from([1, 2, 3, 8, 50]),
        hva=st.integers(0, 0x20000),
    )
    def room(self, as_id: int, gfn: int, pages: int, npages: int, align: int, hva: int) -> None:
        for face in (*self.both.faces[as_id], self.both.vm.map(as_id)):
            self.both.room(face, gfn, npages, gfn + pages, align, hva)

    @rule(as_id=good_as_ids)
    def free_id(self, as_id: int) -> None:
        used = self.both.model.slots[as_id]
        lowest = next(id for id in range(len(used) + 1) if id not in used)
        if lowest < MAX_SLOTS:
            assert self.both.vm.free_id(as_id) == lowest

    @rule(gfn=st.integers(0, 60), pages=st.integers(0, 20), private=st.booleans())
    def set_private(self, gfn: int, pages: int, private: bool) -> None:
        vm = self.both.vm
        before = {page for start, end in vm.private_runs() for page in range(start, end)}
        assert before == self.private
        vm.set_private(gfn, gfn + pages, private)
        changed = set(range(gfn, gfn + pages))
        self.private = self.private | changed if private else self.private - changed
        assert {page for page in range(90) if vm.is_private(page)} == self.private

    @rule(as_id=good_as_ids, gfns=st.lists(gfns, max_size=8))
    def take_map(self, as_id: int, gfns: list[int]) -> None:
        m = self.both.vm.map(as_id)
        self.both.look(m, gfns, 5)
        self.both.ranges(m, 3, 20, 3 << 12, 20 << 12)
        for slot in m:
            self.both.by_id(m, slot.id)
        self.maps.append((m, self.both.model.in_order(as_id)))

    def teardown(self) -> None:
        for m, slots in self.maps:
            assert [plain(slot) for slot in m] == slots

    @rule(as_id=good_as_ids, id=ids)
    def by_id(self, as_id: int, id: int) -> None:
        for face in self.both.faces[as_id]:
            self.both.by_id(face, id)

    @rule(
        how=st.sampled_from([copy.copy, copy.deepcopy, lambda vm: pickle.loads(pickle.dumps(vm))])
    )
    def go_on_with_a_copy(self, how: Callable[[Memslots], Memslots]) -> None:
        self.both.go_on_with_a_copy(how)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "both"):  # `begin` has not run yet
            self.both.same()


class Mirrored(Machine):
    mirrored = True


def test_against_the_model() -> None:
    run_state_machine_as_test(Machine)


def test_mirrored_against_the_model() -> None:
    """The backend has the same slots after each step, too."""
    run_state_machine_as_test(Mirrored)
