"""Compares GuestMemory with the dull model: any layout, any accesses, every byte and every mark.

The model keeps a bytearray for each Backing, and slots and logs as tests/model.py does. Slots are
of 1 to 9 pages, side by side, apart, over one another's memory, READONLY, and on no known memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from model import LOG_DIRTY_PAGES, PAGE_SIZE, READONLY, Answer, Model, ModelTransaction, state_of

from memslots import (
    Backing,
    GuestMemory,
    InvalidRegionError,
    MemslotError,
    Memslots,
    NotMappedError,
    ReadOnlyError,
)
from memslots.memory.backing import address_of

SPACES, MAX_SLOTS, BACKINGS, PAGES = 2, 8, 3, 9
ROOM = 30  # pages of guest memory in most accesses
WRITE, READ = "write", "read"

as_ids = st.integers(0, SPACES - 1)
ids = st.integers(0, MAX_SLOTS - 1)
numbers = st.integers(0, BACKINGS - 1)
gfns = st.integers(0, ROOM)
# Mostly near the borders of pages.
gpas = st.builds(
    lambda gfn, offset: max(gfn * PAGE_SIZE + offset, 0),
    gfns,
    st.one_of(st.integers(-9, 9), st.integers(0, PAGE_SIZE)),
)
sizes = st.one_of(
    st.integers(0, 20),
    st.integers(0, 3 * PAGE_SIZE),
    st.integers(0, 12).map(lambda pages: pages * PAGE_SIZE),
)
flags = st.sampled_from([0, 0, LOG_DIRTY_PAGES, LOG_DIRTY_PAGES, READONLY, 3])
seeds = st.integers(0, 255)


def pattern(size: int, seed: int) -> bytes:
    """Returns bytes in which each page, and each shift of a page, differs."""
    return bytes((seed + 7 * n + n // PAGE_SIZE) % 251 for n in range(size))


class Refusal(Exception):
    """The model's refusal of an access: the error, and the guest address."""

    def __init__(self, error: type[MemslotError], gpa: int) -> None:
        self.error = error
        self.gpa = gpa


class Machine(RuleBasedStateMachine):
    @initialize(manual_dirty_log=st.sampled_from([0, 1, 3]))
    def begin(self, manual_dirty_log: int) -> None:
        limits = {"address_spaces": SPACES, "max_gfn": (1 << 52) - 1}
        limits["manual_dirty_log"] = manual_dirty_log
        self.vm = Memslots(MAX_SLOTS, **limits)
        self.model = Model(MAX_SLOTS, **limits)
        mem = GuestMemory(self.vm)
        self.spaces = [mem, mem.address_space(1)]
        # The Backings live as long as the machine, so no two ever have the same address.
        self.backings = [Backing.anonymous(PAGES * PAGE_SIZE) for _ in range(BACKINGS)]
        self.unknown = Backing.anonymous(PAGES * PAGE_SIZE)
        self.bytes = [bytearray(PAGES * PAGE_SIZE) for _ in range(BACKINGS)]
        self.known: set[int] = set()
        for id, gfn, number, first, pages in (
            (0, 0, 0, 0, 3), (1, 3, 1, 4, 5), (2, 8, 0, 3, 1), (3, 9, 2, 0, 2),
            (4, 11, 0, 8, 1), (5, 12, 1, 0, 3),
        ):  # fmt: skip
            self.place(0, id, gfn, number, first, pages, LOG_DIRTY_PAGES if id else 0)

    # The model's memory

    def where(self, hva: int) -> tuple[int, int] | None:
        """Returns the number of the known backing with a host address, and the offset in it."""
        for number in self.known:
            offset = hva - self.backings[number].hva
            if 0 <= offset < PAGES * PAGE_SIZE:
                return number, offset
        return None

    def access(self, as_id: int, gpa: int, size: int, kind: str) -> list[tuple[int, int, int]]:
        """Returns (number, offset, size) of each page's part, or a Refusal."""
        parts = []
        while size:
            slot = self.model.lookup(as_id, gpa // PAGE_SIZE)
            if slot is None:
                raise Refusal(NotMappedError, gpa)
            if kind == WRITE and slot.flags & READONLY:
                raise Refusal(ReadOnlyError, gpa)
            found = self.where(self.model.gpa_to_hva(as_id, gpa))
            if found is None:
                raise Refusal(NotMappedError, gpa)
            take = min(size, PAGE_SIZE - gpa % PAGE_SIZE)
            parts.append((*found, take))
            gpa, size = gpa + take, size - take
        return parts

    def peek(self, as_id: int, gpa: int, size: int) -> bytes:
        parts = self.access(as_id, gpa, size, READ)
        return b"".join(self.bytes[number][at : at + n] for number, at, n in parts)

    def poke(self, as_id: int, gpa: int, data: bytes) -> int:
        """Writes and marks the bytes. Returns their number."""
        parts = self.access(as_id, gpa, len(data), WRITE)
        for number, at, n in parts:
            self.bytes[number][at : at + n], data = data[:n], data[n:]
        size = sum(n for _, _, n in parts)
        self.mark(as_id, gpa, size)
        return size

    def mark(self, as_id: int, gpa: int, size: int) -> None:
        if size:
            for gfn in range(gpa // PAGE_SIZE, (gpa + size - 1) // PAGE_SIZE + 1):
                self.model.mark_dirty(gfn, as_id)

    def forget(self, before: set[int]) -> None:
        """Forgets memory whose last slot is gone."""
        self.known -= before - self.used()

    def used(self) -> set[int]:
        found = set()
        for slots in self.model.slots:
            for slot in slots.values():
                for number, backing in enumerate(self.backings):
                    end = backing.hva + backing.size
                    if slot.userspace_addr < end and slot.end_hva > backing.hva:
                        found.add(number)
        return found

    def same(self, call: Callable[[], object], told: Callable[[], object]) -> None:
        try:
            want = told()
        except Refusal as refusal:
            with pytest.raises(MemslotError, match=f"gpa {refusal.gpa:#x} ") as caught:
                call()
            assert type(caught.value) is refusal.error
        else:
            assert call() == want

    # Slots

    def changed(self, answer: Answer, call: Callable[[], object]) -> None:
        if answer.errno:
            with pytest.raises(MemslotError) as caught:
                call()
            assert caught.value.errno == answer.errno
        else:
            call()

    @rule(
        as_id=as_ids,
        id=ids,
        gfn=gfns,
        number=numbers,
        first=st.integers(0, PAGES - 1),
        pages=st.integers(1, PAGES),
        flags=flags,
    )
    def place(
        self, as_id: int, id: int, gfn: int, number: int, first: int, pages: int, flags: int
    ) -> None:
        backing = self.backings[number]
        pages = min(pages, PAGES - first)
        answer = self.model.create(id, gfn, pages, backing.hva + first * PAGE_SIZE, flags, as_id)
        args = (id, gfn * PAGE_SIZE, backing, first * PAGE_SIZE, pages * PAGE_SIZE, flags)
        self.changed(answer, lambda: self.spaces[as_id].place(*args))
        if not answer.errno:
            self.known.add(number)

    @rule(as_id=as_ids, id=ids, gfn=gfns, page=st.integers(0, PAGES - 2), flags=flags)
    def create_on_unknown_memory(
        self, as_id: int, id: int, gfn: int, page: int, flags: int
    ) -> None:
        args = (id, gfn, 2, self.unknown.hva + page * PAGE_SIZE, flags, as_id)
        self.changed(self.model.create(*args), lambda: self.vm.create(*args))

    @rule(number=numbers)
    def add(self, number: int) -> None:
        self.spaces[0].add(self.backings[number])
        self.known.add(number)

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        if number in self.known & self.used():
            with pytest.raises(OSError, match="slots are on"):
                self.spaces[1].remove(self.backings[number])
        else:
            self.spaces[1].remove(self.backings[number])
            self.known.discard(number)

    @rule(as_id=as_ids, id=ids, gfn=gfns)
    def move(self, as_id: int, id: int, gfn: int) -> None:
        answer = self.model.move(id, gfn, as_id)
        self.changed(answer, lambda: self.vm.move(id, gfn, as_id))

    @rule(as_id=as_ids, id=ids, logs=st.booleans())
    def turn_the_log(self, as_id: int, id: int, logs: bool) -> None:
        slot = self.model.get(as_id, id)
        flags = (slot.flags & READONLY if slot else 0) | logs
        answer = self.model.set_flags(id, flags, as_id)
        self.changed(answer, lambda: self.vm.set_flags(id, flags, as_id))

    @rule(as_id=as_ids, id=ids)
    def delete(self, as_id: int, id: int) -> None:
        used = self.used()
        answer = self.model.delete(id, as_id)
        self.changed(answer, lambda: self.vm.delete(id, as_id))
        self.forget(used)

    @rule(as_id=as_ids, data=st.data())
    def transaction(self, as_id: int, data: st.DataObject) -> None:
        """Splits a slot, swaps two or merges two, with the same flags and memory."""
        used = self.used()
        slots = self.model.in_order(as_id)
        if not slots:
            return
        a, b = data.draw(st.sampled_from(slots)), data.draw(st.sampled_from(slots))
        free = [id for id in range(MAX_SLOTS) if self.model.get(as_id, id) is None]
        steps: list[tuple[object, ...]]
        if a.id != b.id:
            swapped = [replace(a, base_gfn=b.base_gfn), replace(b, base_gfn=a.base_gfn)]
            steps = [("move", slot.id, slot.base_gfn, as_id) for slot in swapped]
        elif a.npages > 1 and free:
            cut = data.draw(st.integers(1, a.npages - 1))
            rest = (a.base_gfn + cut, a.npages - cut, a.userspace_addr + cut * PAGE_SIZE)
            steps = [
                ("delete", a.id, as_id),
                ("create", a.id, a.base_gfn, cut, a.userspace_addr, a.flags, as_id),
                ("create", free[0], *rest, a.flags, as_id),
            ]
        else:
            steps = [("delete", a.id, as_id)]
        staged = ModelTransaction(self.model)
        for verb, *args in steps:
            staged.step(str(verb), *args)  # type: ignore[arg-type]
        refused = staged.end().errno

        def all_steps() -> None:
            with self.vm.transaction() as tx:
                for verb, *args in steps:
                    getattr(tx, str(verb))(*args)

        if refused:
            with pytest.raises(MemslotError) as caught:
                all_steps()
            assert caught.value.errno == refused
        else:
            all_steps()
        self.forget(used)

    # Bytes

    @rule(as_id=as_ids, gpa=gpas, size=sizes)
    def read(self, as_id: int, gpa: int, size: int) -> None:
        mem = self.spaces[as_id]
        into = bytearray(size)
        self.same(lambda: mem.read(gpa, size), lambda: self.peek(as_id, gpa, size))
        self.same(
            lambda: (mem.readinto(gpa, into), bytes(into)),
            lambda: (size, self.peek(as_id, gpa, size)),
        )

    @rule(as_id=as_ids, gpa=gpas, size=sizes, seed=seeds)
    def write(self, as_id: int, gpa: int, size: int, seed: int) -> None:
        data = pattern(size, seed)
        mem = self.spaces[as_id]
        self.same(lambda: mem.write(gpa, data), lambda: self.poke(as_id, gpa, data))

    @rule(as_id=as_ids, gpa=gpas, size=sizes, byte=seeds)
    def fill(self, as_id: int, gpa: int, size: int, byte: int) -> None:
        def call() -> int:
            self.spaces[as_id].fill(gpa, size, byte)
            return size

        self.same(call, lambda: self.poke(as_id, gpa, bytes([byte]) * size))

    @rule(as_id=as_ids, gpa=gpas, bits=st.sampled_from([8, 16, 32, 64]), value=st.integers(0))
    def number(self, as_id: int, gpa: int, bits: int, value: int) -> None:
        mem = self.spaces[as_id]
        data = (value % (1 << bits)).to_bytes(bits // 8, "little")

        def write() -> int:
            getattr(mem, f"write_u{bits}")(gpa, value % (1 << bits))
            return len(data)

        self.same(write, lambda: self.poke(as_id, gpa, data))
        self.same(
            lambda: getattr(mem, f"read_u{bits}")(gpa),
            lambda: int.from_bytes(self.peek(as_id, gpa, bits // 8), "little"),
        )

    @rule(as_id=as_ids, gpa=gpas, size=sizes, number=numbers, at=st.integers(0, 8 * PAGE_SIZE))
    def copy(self, as_id: int, gpa: int, size: int, number: int, at: int) -> None:
        """Copies from host memory that may be the destination itself."""
        source = memoryview(self.backings[number])[at : at + size]
        there = bytes(self.bytes[number][at : at + size])
        self.same(
            lambda: self.spaces[as_id].write(gpa, source),
            lambda: self.poke(as_id, gpa, there),
        )

    @rule(as_id=as_ids, gpa=gpas, size=sizes, seed=seeds, write=st.booleans())
    def views(self, as_id: int, gpa: int, size: int, seed: int, write: bool) -> None:
        mem = self.spaces[as_id]

        def told() -> tuple[bytes, list[bool]]:
            kind = WRITE if write else READ
            self.access(as_id, gpa, size, kind)
            end = gpa + size
            slots = self.model.in_gfn_range(as_id, gpa // PAGE_SIZE, -(-end // PAGE_SIZE))
            return self.peek(as_id, gpa, size), [
                bool(slot.flags & READONLY) for slot in slots if size
            ]

        def call() -> tuple[bytes, list[bool]]:
            found = mem.views(gpa, size, write=write)
            return b"".join(found), [view.readonly for view in found]

        self.same(call, told)
        try:
            self.access(as_id, gpa, size, WRITE)
        except Refusal:
            return
        for view in mem.views(gpa, size, write=True):
            view[:] = pattern(len(view), seed)
            number, offset = self.where(address_of(view)) or (0, 0)
            self.bytes[number][offset : offset + len(view)] = pattern(len(view), seed)
        mem.mark_dirty(gpa, size)
        self.mark(as_id, gpa, size)

    @rule(as_id=as_ids, gpa=gpas, size=st.sampled_from([1 << 40, 1 << 63, (1 << 64) - 1]))
    def too_much(self, as_id: int, gpa: int, size: int) -> None:
        with pytest.raises(InvalidRegionError if gpa + size > 1 << 64 else NotMappedError):
            self.spaces[as_id].read(gpa, size)

    # All there is

    @rule()
    def take_dirty_runs(self) -> None:
        wanted: list[tuple[int, int, int]] = []
        for as_id, logs in enumerate(self.model.logs):
            pages = sorted(
                self.model.slots[as_id][id].base_gfn + page for id in logs for page in logs[id]
            )
            for log in logs.values():
                log.clear()
            for gfn in pages:
                if wanted and wanted[-1][0] == as_id and wanted[-1][2] == gfn:
                    wanted[-1] = (as_id, wanted[-1][1], gfn + 1)
                else:
                    wanted.append((as_id, gfn, gfn + 1))
        assert self.vm.take_dirty_runs() == wanted

    @invariant()
    def all_the_same(self) -> None:
        if not hasattr(self, "vm"):
            return
        self.vm.check()
        assert state_of(self.vm) == self.model.state()
        assert [bytes(backing) for backing in self.backings] == self.bytes
        assert bytes(self.unknown) == bytes(PAGES * PAGE_SIZE)
        wanted = sorted((self.backings[number] for number in self.known), key=address_of)
        assert all(list(mem.backings) == wanted for mem in self.spaces)


def test_against_the_model() -> None:
    run_state_machine_as_test(Machine)
