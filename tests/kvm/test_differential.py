"""Makes the same calls of the kernel and of a Memslots, and compares every answer.

Calls are random, wrong ones among them. MEMSLOTS_KVM_CALLS is their number (default 5,000),
MEMSLOTS_KVM_SEED their seed (default 0). `pytest -rP` shows the calls and the answers.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from livekernel import MSR_KVM_WALL_CLOCK, PAGE, HostMemory
from needs import needs_kvm

from memslots import Change, Flags, MemslotError, Memslots, OverlapError
from memslots.kvm import KvmVM

CALLS = int(os.environ.get("MEMSLOTS_KVM_CALLS", "5000"))
SEED = int(os.environ.get("MEMSLOTS_KVM_SEED", "0"))

STEPS = 50  # steps of an example, which begins without slots; its end takes as many calls
IDS = 5  # the usual ids
PROBE = 100  # an id that no step uses
GFNS = 80  # the kernel writes below this gfn, so it writes to HostMemory's memory
HOST_PAGES = GFNS + 64

# A method of Pair and its arguments.
Step = tuple[Any, ...]


class Draw:
    """Draws steps that collide often: values are few, but one in sixteen is an extreme."""

    def __init__(self, random: Random, limits: dict[str, int], host: int) -> None:
        self.random = random
        self.limits = limits
        self.host = host

    def mostly(self, usual: int, *extremes: int) -> int:
        return usual if self.random.randrange(16) else self.random.choice(extremes)

    def id(self) -> int:
        most = self.limits["max_slots"]
        return self.mostly(self.random.randrange(IDS), most - 1, most, 0xFFFF)

    def as_id(self) -> int:
        spaces = self.limits["address_spaces"]
        return self.mostly(0, spaces - 1, spaces, 0xFFFF)

    def flags(self) -> int:
        return self.mostly(self.random.choice((0, 1, 1, 1, 2, 3)), 4, 1 << 16, 0xFFFFFFFF)

    def gfn(self) -> int:
        last = self.limits["max_gfn"]
        extremes = last - 64, last - 1, last, last + 1, last + 2, (1 << 52) - 1
        return self.mostly(self.random.randrange(GFNS - 16), *extremes)

    def npages(self) -> int:
        """Draws a number of pages. Large ones are refused: a slot takes memory for each page."""
        extremes = 0, 63, 64, 65, 100, 130, 1 << 31, (1 << 35) - 2, (1 << 52) - 1
        return self.mostly(self.random.randrange(1, 20), *extremes)

    def hva(self) -> int:
        end = self.limits["max_hva"]
        extremes = (*(end - n * PAGE for n in (-1, 0, 1, 2, 5, 10)), 0, (1 << 64) - PAGE)
        return self.mostly(self.host + self.random.randrange(4) * PAGE, *extremes)

    def askew(self) -> int:
        return self.mostly(0, 1, 2048, PAGE - 1)

    # Steps

    def region(self) -> Step:
        verb = self.random.choice(("set_region", "set_region2"))
        slot = self.as_id() << 16 | self.id()
        gpa, size = self.gfn() * PAGE + self.askew(), self.npages() * PAGE + self.askew()
        return verb, slot, self.flags(), gpa, size, self.hva() + self.askew()

    def again(self) -> Step:
        gfn = self.random.choice((None, self.gfn()))
        return "again", self.id(), gfn, self.flags(), self.askew()

    def delete(self) -> Step:
        return "delete", self.id(), self.as_id()

    def get(self) -> Step:
        return "get", self.id(), self.as_id()

    def clear(self) -> Step:
        first = self.random.choice((0, 0, 0, 0, 0, 64))
        first = self.mostly(first, 1, 32, 63, 65, 128, 192, 1 << 32, (1 << 64) - 64)
        pages = self.random.choice((*[None] * 6, self.random.randrange(10), 64, 65, 100, 128))
        if not self.random.randrange(16):
            pages = self.random.choice((0xFFFFFFC0, (1 << 32) - 1, 1 << 32, (1 << 64) - 1))
        every, some = b"\xff" * 24, self.random.randbytes(24)
        bitmap = self.random.choice((every, every, some, some, every[:7], b""))
        return "clear_dirty_log", self.id(), self.as_id(), first, pages, bitmap

    def write(self) -> Step:
        # Never gpa 0, which tells KVM not to write.
        return "write", self.random.randrange(GFNS - 1), self.random.choice((8, 0xFF4, 0xFF8))

    def step(self) -> Step:
        kinds = [self.region] * 4 + [self.again] * 3 + [self.write] * 5
        kinds += [self.clear] * 3 + [self.get, self.get, self.delete]
        return self.random.choice(kinds)()


class Pair:
    """A VM of the kernel and a Memslots with the kernel's limits, or with some wrong ones."""

    def __init__(self, manual_dirty_log: int, wrong: dict[str, int] | None = None) -> None:
        self.memory = HostMemory(HOST_PAGES)
        self.kvm = KvmVM(manual_dirty_log=manual_dirty_log)
        self.vcpu = self.kvm.create_vcpu()
        self.limits = self.kvm.limits | (wrong or {})
        self.vm = Memslots(**self.limits)
        self.answers: Counter[tuple[str, str]] = Counter()

    def close(self) -> None:
        self.kvm.close()

    @property
    def calls(self) -> int:
        return self.answers.total()

    def compare(self, steps: list[Step]) -> None:
        """Starts from no slots; deletes what a failed example has left."""
        for slot in self.kvm.slots:
            self.kvm.set_region(slot.as_id << 16 | slot.id, 0, 0, 0, 0)
        self.vm = Memslots(**self.limits)
        for verb, *args in steps:
            getattr(self, verb)(*args)
            self.vm.check()
        self.same_state()

    # Steps

    def set_region(self, *args: int) -> None:
        self.region(*args)

    def set_region2(self, *args: int) -> None:
        self.both("set_region2", "set_region2", *args)

    def used(self, id: int) -> int:
        """Returns an id in use instead of a usual one, if there is any."""
        ids = [slot.id for slot in self.vm]
        return ids[id % len(ids)] if ids and id < IDS else id

    def again(self, id: int, gfn: int | None, flags: int, askew: int) -> None:
        """Returns a slot's own region, with another place, with other flags, or unchanged."""
        id = self.used(id)
        slot = self.vm.get(id)
        if slot is None:
            self.delete(id, 0)
        else:
            gpa = (slot.base_gfn if gfn is None else gfn) * PAGE + askew
            self.region(id, flags, gpa, slot.memory_size, slot.userspace_addr)

    def delete(self, id: int, as_id: int) -> None:
        self.region(as_id << 16 | id, 0, 0, 0, 0)

    def get(self, id: int, as_id: int) -> None:
        self.get_dirty_log(self.used(id), as_id)

    def get_dirty_log(self, id: int, as_id: int) -> None:
        self.both("get_dirty_log", "get_dirty_log", id, as_id)

    def clear_dirty_log(
        self, id: int, as_id: int, first: int, pages: int | None, bitmap: bytes
    ) -> None:
        """Clears a log. Without a number of pages, clears up to the slot's end."""
        id = self.used(id)
        slot = self.vm.get(id)
        if pages is None:
            pages = max(0, slot.npages - first) if slot else 64
        verb = "clear_dirty_log"
        self.both(verb, verb, id, first, pages, bitmap, as_id)

    def write(self, gfn: int, offset: int) -> None:
        """Makes the kernel write 12 bytes, which end in the next page from 0xff5 on.

        The kernel stops at the first page that cannot be written. The write is not made if it would
        reach memory of this process that is not ours.
        """
        held = list(self.vm)
        if held and gfn % 4:
            near = held[gfn % len(held)]
            gfn = max(1, near.base_gfn + gfn % near.npages)
        pages = [gfn, gfn + 1] if offset + 12 > PAGE else [gfn]
        slots = [self.vm.lookup(page) for page in pages]
        for page, slot in zip(pages, slots, strict=True):
            if slot is not None and not self.memory.holds(slot.gfn_to_hva(page)):
                return
        self.vcpu.set_msr(MSR_KVM_WALL_CLOCK, gfn * PAGE + offset)
        for page, slot in zip(pages, slots, strict=True):
            self.mark(page)
            if slot is None or slot.flags & Flags.READONLY:
                break
        what = "hole" if slot is None else "READONLY" if slot.flags & Flags.READONLY else "slot"
        self.answers["write", f"{len(pages)} pages, {what}"] += 1

    def mark(self, gfn: int) -> None:
        self.vm.mark_dirty(gfn)

    # Comparing

    def region(self, *args: int, verb: str = "set_region") -> object:
        return self.both(verb, "set_region", *args)

    def both(self, theirs: str, ours: str, *args: Any) -> object:
        kernel = self.answer(self.kvm, theirs, args)
        answer = self.answer(self.vm, ours, args)
        self.answers[theirs, words(answer)] += 1
        assert answer == kernel, f"{theirs}{args}: Memslots {answer}, the kernel {kernel}"
        return answer

    @staticmethod
    def answer(vm: KvmVM | Memslots, verb: str, args: tuple[Any, ...]) -> object:
        try:
            answer = getattr(vm, verb)(*args)
        except MemslotError as error:
            what: list[object] = [type(error), error.errno, error.rule]
            if verb.startswith("set_region"):
                what.append(str(error))
            if isinstance(error, OverlapError):
                what += [getattr(error, "existing", None), error.requested]
            return tuple(what)
        except OverflowError as error:
            return OverflowError, str(error)
        return bytes(answer) if isinstance(answer, bytearray) else answer

    def same_state(self) -> None:
        """Asserts that the kernel has every slot of the Memslots, as far as calls can tell."""
        slots = [slot for k in range(self.vm.address_spaces) for slot in self.vm.address_space(k)]
        assert sorted(slots, key=lambda slot: (slot.as_id, slot.id)) == self.kvm.slots
        for as_id in range(self.vm.address_spaces):
            for id in (*range(IDS), self.limits["max_slots"] - 1):
                self.same_slot(id, as_id)
        for slot in slots:
            self.region(slot.as_id << 16 | slot.id, 0, 0, 0, 0)
        assert self.kvm.slots == []
        for as_id in range(self.vm.address_spaces):
            assert self.region(as_id << 16 | PROBE, 0, 0, GFNS * PAGE, 0) is Change.CREATE
            self.region(as_id << 16 | PROBE, 0, 0, 0, 0)

    def same_slot(self, id: int, as_id: int) -> None:
        number = as_id << 16 | id
        slot = self.vm.address_space(as_id).get(id)
        self.get_dirty_log(id, as_id)
        if slot is None:
            answer = self.region(number, 0, 0, 0, 0)
            assert answer is not Change.DELETE
            return
        for gfn in (slot.base_gfn - 1, slot.base_gfn, slot.end_gfn - 1, slot.end_gfn):
            self.probe(max(gfn, 0), as_id)
        same = (slot.flags, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr)
        assert self.region(number, *same) is Change.NONE

    def probe(self, gfn: int, as_id: int) -> None:
        """Returns whether a page is free, by creating a slot there."""
        if self.region(as_id << 16 | PROBE, 0, gfn * PAGE, PAGE, 0) is Change.CREATE:
            self.region(as_id << 16 | PROBE, 0, 0, 0, 0)


def words(answer: object) -> str:
    if isinstance(answer, Change):
        return answer.name
    if isinstance(answer, tuple):
        if answer[0] is OverflowError:
            return "OverflowError"
        _, code, rule, *_ = answer
        return errno.errorcode[code] + (f", rule {rule}" if rule else "")
    if isinstance(answer, bytes):
        return "a bitmap with pages" if any(answer) else "an empty bitmap"
    return "done"


def run(pair: Pair, number: int, calls: int, phases: tuple[Phase, ...]) -> None:
    """Makes at least so many calls, with the seed `number`."""

    @seed(number)
    @settings(
        max_examples=-(-calls // STEPS),
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    # A number makes a step, and 0 makes none. So hypothesis finds the fewest failing steps.
    @given(st.lists(st.integers(0, 1 << 32), min_size=STEPS, max_size=STEPS))
    def examples(numbers: list[int]) -> None:
        limits, host = pair.limits, pair.memory.address
        steps = [Draw(Random(n), limits, host).step() for n in numbers if n]
        try:
            pair.compare(steps)
        except AssertionError as error:
            error.add_note("\n  ".join(("after", *map(str, steps))))
            raise

    examples()


@needs_kvm
@pytest.mark.parametrize("manual_dirty_log", [0, 1, 3])
def test_the_same_answers(manual_dirty_log: int) -> None:
    pair = Pair(manual_dirty_log)
    try:
        run(pair, SEED + manual_dirty_log, -(-CALLS // 3), (Phase.generate, Phase.shrink))
    finally:
        pair.close()
    assert pair.calls >= CALLS / 3
    print(f"manual_dirty_log {manual_dirty_log}: {pair.calls} calls, seed {SEED}")
    for (verb, answer), count in sorted(pair.answers.items()):
        print(f"{count:9,}  {verb}: {answer}")


# A comparison that cannot fail shows nothing


def must_differ(pair: Pair) -> None:
    try:
        with pytest.raises(AssertionError, match=r"Memslots .*, the kernel "):
            run(pair, 0, 20_000, (Phase.generate,))
    finally:
        pair.close()


@needs_kvm
@pytest.mark.parametrize(
    ("limit", "off"),
    [
        ("max_slots", -1),
        ("max_slots", 1),
        ("address_spaces", 1),
        ("max_gfn", -1),
        ("max_gfn", 1),
        ("max_hva", -PAGE),
        ("max_hva", PAGE),
        ("manual_dirty_log", 1),
    ],
)
def test_a_wrong_limit_is_found(limit: str, off: int) -> None:
    with KvmVM() as kvm:
        right = kvm.limits[limit]
    must_differ(Pair(0, {limit: right + off}))


class Forgetful(Pair):
    def mark(self, gfn: int) -> None:
        if gfn % 8:
            super().mark(gfn)


@needs_kvm
@pytest.mark.parametrize("manual_dirty_log", [0, 1, 3])
def test_a_page_not_marked_is_found(manual_dirty_log: int) -> None:
    must_differ(Forgetful(manual_dirty_log))


@needs_kvm
@pytest.mark.parametrize("wrong", [1, 3])
def test_another_mode_is_found(wrong: int) -> None:
    must_differ(Pair(4 - wrong, {"manual_dirty_log": wrong}))
