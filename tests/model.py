"""The dull model: KVM's answers, from a dict per address space and linear searches.

It is written from the rules alone and shares no line with the package. So a test that compares the
two compares two readings of the rules. Numbers of rules are those of `set_region`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EEXIST, EFAULT, EINVAL, ENOENT
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memslots import Memslots, Slot

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
BAD_HVA = (1 << 64) - 1

LOG_DIRTY_PAGES = 1
READONLY = 2

# The words are in the order of the package's Change; the model uses only their names.
CREATE, DELETE, MOVE, FLAGS_ONLY, NONE = "CREATE", "DELETE", "MOVE", "FLAGS_ONLY", "NONE"


@dataclass(frozen=True)
class ModelSlot:
    id: int
    as_id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int

    @property
    def end_gfn(self) -> int:
        return self.base_gfn + self.npages

    @property
    def end_hva(self) -> int:
        return self.userspace_addr + self.npages * PAGE_SIZE

    def holds(self, gfn: int) -> bool:
        return self.base_gfn <= gfn < self.end_gfn

    def hva_of(self, gfn: int) -> int:
        return self.userspace_addr + (gfn - self.base_gfn) * PAGE_SIZE

    def overlaps(self, other: ModelSlot) -> bool:
        return self.base_gfn < other.end_gfn and other.base_gfn < self.end_gfn


@dataclass(frozen=True)
class Answer:
    """The result of a change.

    errno is 0 if no rule refused it; else rule is the rule that did. change, old and new say what
    was attempted once rules 1 to 6 allowed it. For rule 6, old is the slot in the way. refused_by
    is the listeners' method that refused.
    """

    errno: int
    rule: int | None = None
    change: str | None = None
    old: ModelSlot | None = None
    new: ModelSlot | None = None
    refused_by: str | None = None

    @property
    def done(self) -> bool:
        return self.errno == 0 and self.refused_by is None

    @property
    def through_invalid(self) -> bool:
        """Returns whether it swaps twice: the INVALID copy in, then on, or back if refused."""
        return self.change in (DELETE, MOVE)


class Refused(Exception):
    """The model's dirty log and translation errors: `args[0]` is the errno."""


@dataclass(frozen=True)
class SpaceState:
    """All visible state of one address space."""

    generation: int
    nr_pages: int
    slots: list[ModelSlot]
    logs: dict[int, frozenset[int]]


class Model:
    def __init__(
        self,
        max_slots: int = 32764,
        address_spaces: int = 1,
        max_gfn: int = (1 << 40) - 1,
        max_hva: int = (1 << 47) - 4096,
        manual_dirty_log: int = 0,
    ) -> None:
        self.max_slots = max_slots
        self.address_spaces = address_spaces
        self.max_gfn = max_gfn
        self.max_hva = max_hva
        self.manual_dirty_log = manual_dirty_log
        self.staging = False  # True in the copy of a ModelTransaction
        self.slots: list[dict[int, ModelSlot]] = [{} for _ in range(address_spaces)]
        self.logs: list[dict[int, set[int]]] = [{} for _ in range(address_spaces)]
        self.generations = list(range(address_spaces))

    def copy(self) -> Model:
        return copy.deepcopy(self)

    # Changes

    def plan(self, as_id: int, id: int, flags: int, gpa: int, size: int, hva: int) -> Answer:
        """Returns the judgement of rules 1 to 7 on a call. Changes nothing."""
        if flags & ~(LOG_DIRTY_PAGES | READONLY):
            return Answer(EINVAL, 1)
        if (
            size % PAGE_SIZE
            or gpa % PAGE_SIZE
            or hva % PAGE_SIZE
            or hva + size > self.max_hva
            or as_id >= self.address_spaces
            or id >= self.max_slots
            or (gpa + size) % (1 << 64) < gpa
        ):
            return Answer(EINVAL, 2)
        old = self.slots[as_id].get(id)
        if size == 0:
            return Answer(0, None, DELETE, old) if old else Answer(EINVAL, 3)
        npages = size // PAGE_SIZE
        if npages > 2**31 - 1:
            return Answer(EINVAL, 4)
        new = ModelSlot(id, as_id, gpa // PAGE_SIZE, npages, hva, flags)
        if old is None:
            change = CREATE
        else:
            same_memory = (old.userspace_addr, old.npages) == (new.userspace_addr, new.npages)
            if not same_memory or (old.flags ^ new.flags) & READONLY:
                return Answer(EINVAL, 5)
            if old.base_gfn != new.base_gfn:
                change = MOVE
            elif old.flags != new.flags:
                return Answer(0, None, FLAGS_ONLY, old, new)
            else:
                return Answer(0, None, NONE, old, new)
        for other in self.slots[as_id].values():
            if other.id != id and other.overlaps(new) and not self.staging:
                return Answer(EEXIST, 6, None, other, new)
        if new.end_gfn - 1 > self.max_gfn:
            return Answer(EINVAL, 7, change, old, new)
        return Answer(0, None, change, old, new)

    def change(
        self,
        as_id: int,
        id: int,
        flags: int,
        gpa: int,
        size: int,
        hva: int,
        raising: Collection[str] = (),
    ) -> Answer:
        """Makes one change. `raising`: the methods of listeners that raise when called."""
        answer = self.plan(as_id, id, flags, gpa, size, hva)
        if answer.change in (None, NONE):
            return answer
        if answer.through_invalid and "invalidate" in raising:
            answer = replace(answer, errno=0, rule=None, refused_by="invalidate")
        elif answer.errno == 0 and "prepare" in raising:
            answer = replace(answer, refused_by="prepare")
        if (answer.done or answer.through_invalid) and not self.staging:
            swaps = 2 if answer.through_invalid else 1
            self.generations[as_id] += swaps * self.address_spaces
        if answer.done:
            self._commit(as_id, id, answer.new)
        return answer

    def _commit(self, as_id: int, id: int, new: ModelSlot | None) -> None:
        slots, logs = self.slots[as_id], self.logs[as_id]
        if new is None:
            del slots[id]
            logs.pop(id, None)
            return
        slots[id] = new
        if not new.flags & LOG_DIRTY_PAGES:
            logs.pop(id, None)
        elif id not in logs:
            logs[id] = set(range(new.npages)) if self.manual_dirty_log & 2 else set()

    def set_region(
        self, slot: int, flags: int, gpa: int, size: int, hva: int, raising: Collection[str] = ()
    ) -> Answer:
        return self.change(slot >> 16, slot & 0xFFFF, flags, gpa, size, hva, raising)

    # The page verbs make calls of set_region. A verb about an existing slot looks for the slot
    # first: without the slot there is no such call.

    def create(
        self,
        id: int,
        base_gfn: int,
        npages: int,
        hva: int,
        flags: int = 0,
        as_id: int = 0,
        raising: Collection[str] = (),
    ) -> Answer:
        args = (as_id, id, flags, base_gfn * PAGE_SIZE, npages * PAGE_SIZE, hva)
        answer = self.plan(*args)
        if answer.rule in (1, 2, 4):
            return answer
        if npages == 0:
            return Answer(EINVAL)  # never the delete that set_region would make
        if id in self.slots[as_id]:
            return Answer(EINVAL, 5)
        return self.change(*args, raising)

    def move(self, id: int, base_gfn: int, as_id: int = 0, raising: Collection[str] = ()) -> Answer:
        old = self._old(as_id, id)
        if isinstance(old, Answer):
            return old
        args = (old.flags, base_gfn * PAGE_SIZE, old.npages * PAGE_SIZE, old.userspace_addr)
        return self.change(as_id, id, *args, raising)

    def set_flags(
        self, id: int, flags: int, as_id: int = 0, raising: Collection[str] = ()
    ) -> Answer:
        old = self._old(as_id, id)
        if isinstance(old, Answer):
            return old
        args = (flags, old.base_gfn * PAGE_SIZE, old.npages * PAGE_SIZE, old.userspace_addr)
        return self.change(as_id, id, *args, raising)

    def delete(self, id: int, as_id: int = 0, raising: Collection[str] = ()) -> Answer:
        old = self._old(as_id, id)
        return old if isinstance(old, Answer) else self.change(as_id, id, 0, 0, 0, 0, raising)

    def _old(self, as_id: int, id: int) -> ModelSlot | Answer:
        if as_id >= self.address_spaces or id >= self.max_slots:
            return Answer(EINVAL, 2)
        return self.slots[as_id].get(id) or Answer(EINVAL, 3)

    # Reading

    def state(self) -> list[SpaceState]:
        return [
            SpaceState(
                self.generations[as_id],
                self.nr_pages(as_id),
                self.in_order(as_id),
                {id: frozenset(log) for id, log in self.logs[as_id].items()},
            )
            for as_id in range(self.address_spaces)
        ]

    def get(self, as_id: int, id: int) -> ModelSlot | None:
        return self.slots[as_id].get(id) if as_id < self.address_spaces else None

    def in_order(self, as_id: int) -> list[ModelSlot]:
        return sorted(self.slots[as_id].values(), key=lambda slot: slot.base_gfn)

    def nr_pages(self, as_id: int) -> int:
        return sum(slot.npages for slot in self.slots[as_id].values())

    def lookup(self, as_id: int, gfn: int) -> ModelSlot | None:
        for slot in self.slots[as_id].values():
            if slot.holds(gfn):
                return slot
        return None

    def gpa_to_hva(self, as_id: int, gpa: int, write: bool = False) -> int:
        slot = self.lookup(as_id, gpa >> PAGE_SHIFT)
        if slot is None or (write and slot.flags & READONLY):
            raise Refused(EFAULT, "READONLY" if slot else "not mapped")
        return slot.userspace_addr + gpa - slot.base_gfn * PAGE_SIZE

    def translate(self, as_id: int, gpa: int, write: bool = False) -> int:
        try:
            return self.gpa_to_hva(as_id, gpa, write)
        except Refused:
            return BAD_HVA

    def in_gfn_range(self, as_id: int, start: int, end: int) -> list[ModelSlot]:
        return [s for s in self.in_order(as_id) if max(start, s.base_gfn) < min(end, s.end_gfn)]

    def in_hva_range(self, as_id: int, start: int, end: int) -> list[tuple[ModelSlot, int, int]]:
        found = []
        for slot in self.in_order(as_id):
            first, last = max(start, slot.userspace_addr), min(end, slot.end_hva)
            if first < last:
                offset = first - slot.userspace_addr, last - slot.userspace_addr
                pages = offset[0] // PAGE_SIZE, -(-offset[1] // PAGE_SIZE)
                found.append((slot, slot.base_gfn + pages[0], slot.base_gfn + pages[1]))
        return found

    # Dirty logs: sets of page offsets within the slot

    def mark_dirty(self, gfn: int, as_id: int = 0) -> None:
        slot = self.lookup(as_id, gfn)
        if slot is not None and not slot.flags & READONLY and slot.id in self.logs[as_id]:
            self.logs[as_id][slot.id].add(gfn - slot.base_gfn)

    def mark_dirty_range(self, start: int, end: int, as_id: int = 0) -> None:
        for gfn in range(start, end):
            self.mark_dirty(gfn, as_id)

    def take_dirty_runs(self) -> list[tuple[int, int, int]]:
        runs = []
        for as_id, logs in enumerate(self.logs):
            gfns = set()
            for id, log in logs.items():
                gfns |= {self.slots[as_id][id].base_gfn + page for page in log}
                log.clear()
            for start in sorted(gfn for gfn in gfns if gfn - 1 not in gfns):
                end = start
                while end in gfns:
                    end += 1
                runs.append((as_id, start, end))
        return runs

    def _log(self, as_id: int, id: int, first_page: int = 0) -> tuple[ModelSlot, set[int]]:
        # The kernel checks first_page's alignment before it looks for the slot.
        if as_id >= self.address_spaces or id >= self.max_slots or first_page % 64:
            raise Refused(EINVAL)
        if id not in self.logs[as_id]:
            raise Refused(ENOENT)
        return self.slots[as_id][id], self.logs[as_id][id]

    def get_dirty_log(self, id: int, as_id: int = 0) -> bytearray:
        slot, log = self._log(as_id, id)
        bitmap = to_bitmap(log, slot.npages)
        if not self.manual_dirty_log:
            log.clear()
        return bitmap

    def clear_dirty_log(
        self, id: int, first_page: int, num_pages: int, bitmap: bytes, as_id: int = 0
    ) -> None:
        slot, log = self._log(as_id, id, first_page)
        if first_page > slot.npages:
            raise Refused(EINVAL)
        left = slot.npages - first_page
        if num_pages > left or (num_pages % 64 and num_pages != left):
            raise Refused(EINVAL)
        if len(bitmap) < -(-num_pages // 64) * 8:
            raise Refused(EINVAL)
        log -= {first_page + page for page in pages_of(bitmap) if page < num_pages}


class ModelTransaction:
    """Steps on a copy of a model, in which slots may overlap; `end` judges the whole."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.steps: list[Answer] = []
        # The copy shares the dirty logs: marks that are made meanwhile stay with their slot.
        self.trial = copy.copy(model)
        self.trial.staging = True
        self.trial.slots = [dict(slots) for slots in model.slots]
        self.trial.logs = [dict(logs) for logs in model.logs]

    def step(self, verb: str, *args: int) -> Answer:
        answer: Answer = getattr(self.trial, verb)(*args)
        if answer.done and answer.change != NONE:
            self.steps.append(answer)
        return answer

    def ids(self) -> list[tuple[int, int]]:
        """Returns (as_id, id) of each step."""
        either = [step.new or step.old for step in self.steps]
        return [(slot.as_id, slot.id) for slot in either if slot is not None]

    def gone(self) -> list[ModelSlot]:
        """Returns the slots that leave the place where readers find them, in order of steps."""
        found = []
        for step, (as_id, id) in zip(self.steps, self.ids(), strict=True):
            old = self.model.get(as_id, id)
            if step.through_invalid and old is not None and old not in found:
                found.append(old)
        return found

    def end(self, raising: Collection[str] = ()) -> Answer:
        """Ends the body: commits all steps or refuses them."""
        for slots in self.trial.slots:
            for one in slots.values():
                for other in slots.values():
                    if one.id != other.id and one.overlaps(other):
                        return Answer(EEXIST, 6, None, one, other)
        if "invalidate" in raising and self.gone():
            return Answer(0, refused_by="invalidate")
        if "prepare" in raising and self.steps:
            return Answer(0, refused_by="prepare")
        changed = {
            as_id
            for as_id, id in self.ids()
            if self.model.get(as_id, id) or self.trial.get(as_id, id)
        }
        for as_id in changed:  # one swap each
            self.model.generations[as_id] += self.model.address_spaces
        self._carry_marks()
        self.model.slots, self.model.logs = self.trial.slots, self.trial.logs
        return Answer(0)

    def _carry_marks(self) -> None:
        """T1: a page that logged and logs, in the same place on the same memory, keeps its mark."""
        for as_id, logs in enumerate(self.model.logs):
            for id, log in logs.items():
                old = self.model.slots[as_id][id]
                for new in self.trial.slots[as_id].values():
                    marks = self.trial.logs[as_id].get(new.id)
                    if marks is None or marks is log:
                        continue
                    for gfn in (old.base_gfn + page for page in list(log)):
                        if new.holds(gfn) and new.hva_of(gfn) == old.hva_of(gfn):
                            marks.add(gfn - new.base_gfn)


Step = tuple[str, *tuple[int, ...]]  # a verb and its arguments


def cut_steps(model: Model, start: int, end: int, flags: int | None, as_id: int) -> list[Step]:
    """Returns the steps of an unmap (flags None) or protect, slot by slot. ValueError: refused."""
    steps: list[Step] = []
    held = model.in_gfn_range(as_id, start, end)
    if flags is not None and sum(min(s.end_gfn, end) - max(s.base_gfn, start) for s in held) < (
        end - start
    ):
        raise ValueError("a hole")
    used = set(model.slots[as_id])
    if flags is not None and flags & ~3:
        raise ValueError("unknown flags")
    for slot in held:
        if slot.flags == flags:
            continue
        edges = sorted({slot.base_gfn, slot.end_gfn, *(e for e in (start, end) if slot.holds(e))})
        parts = [
            (first, last, flags if start <= first < end else slot.flags)
            for first, last in pairwise(edges)
        ]
        parts = [part for part in parts if part[2] is not None]
        if len(parts) == 1 and len(edges) == 2 and not (slot.flags ^ (parts[0][2] or 0)) & READONLY:
            steps.append(("set_flags", slot.id, parts[0][2] or 0, as_id))
            continue
        steps.append(("delete", slot.id, as_id))
        for number, (first, last, bits) in enumerate(parts):
            id = slot.id
            if number:
                id = next(id for id in range(len(used) + 1) if id not in used)
                used.add(id)
            args = (id, first, last - first, slot.hva_of(first), bits or 0, as_id)
            steps.append(("create", *args))
        if not parts:
            used.discard(slot.id)
    if len(used) > model.max_slots:
        raise ValueError("no room")
    return steps


def to_bitmap(pages: set[int], npages: int) -> bytearray:
    """Returns the pages as ceil(npages / 64) little-endian 64-bit words."""
    bitmap = bytearray(-(-npages // 64) * 8)
    for page in pages:
        bitmap[page // 8] |= 1 << page % 8
    return bitmap


def pages_of(bitmap: bytes | bytearray) -> set[int]:
    """Returns the numbers of the bits that are set."""
    return {8 * i + bit for i, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


# A Memslots in the model's words


def plain(slot: Slot) -> ModelSlot:
    return ModelSlot(
        slot.id, slot.as_id, slot.base_gfn, slot.npages, slot.userspace_addr, int(slot.flags)
    )


def state_of(vm: Memslots) -> list[SpaceState]:
    """Returns all visible state. Reads dirty logs from a copy, because reading may clear them."""
    twin = copy.copy(vm)
    states = []
    for as_id in range(vm.address_spaces):
        space = vm.address_space(as_id)
        slots = [plain(slot) for slot in space]
        assert len(space) == len(slots)
        logs = {
            slot.id: frozenset(pages_of(twin.get_dirty_log(slot.id, as_id=as_id)))
            for slot in slots
            if slot.flags & LOG_DIRTY_PAGES
        }
        states.append(SpaceState(space.generation, space.nr_pages, slots, logs))
    return states


@contextmanager
def unchanged(vm: Memslots, as_id: int = 0, swaps: int = 0) -> Iterator[None]:
    """Asserts that the body changes only the generation, by the swaps of a rollback."""
    before = state_of(vm)
    before[as_id] = replace(
        before[as_id], generation=before[as_id].generation + swaps * vm.address_spaces
    )
    yield
    vm.check()
    assert state_of(vm) == before
