"""The two move tests: a slot goes back and forth while another thread reads.

These tests time a move, not a wait for the GIL. So the reader looks up a small batch and then
releases the GIL (time.sleep(0)). The thread that moves sleeps for a moment before each move and
wakes up with the GIL. It holds the GIL from its first reading of the clock on. A move takes far
less than the 5 ms after which CPython would take the GIL away. A move waits for readers in the
middle of a stretch, and this wait is in its time: it is the structure's own cost.

The array is for one thread at a time: a lock, which the GIL makes superfluous where there is one,
keeps the two apart. It is taken before the clock is read.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from memslots.baseline import ArrayMemslots
from memslots.bench.guest import PAGES, AnyMemslots, Guest
from memslots.bench.timing import Case, Effort, expect

#: Look-ups in a batch of the reader.
BATCH = 64
#: The longest sleep before a move, in seconds; random, so that moves meet the reader anywhere.
PAUSE = 0.00005
SEED = 20220113


@contextmanager
def reader(
    vm: AnyMemslots, gfns: Sequence[int], guard: AbstractContextManager[object]
) -> Iterator[None]:
    """Runs a thread that looks the pages up by its own Vcpu, until the block ends.

    The thread holds `guard` during each batch. The block begins after the first batch. An exception
    of the thread is raised when the block ends.
    """
    batch = array("Q", [gfns[number % len(gfns)] for number in range(BATCH)])
    out = array("i", bytes(4 * BATCH))
    begun, done = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        try:
            look_up = vm.vcpu().lookup_many
            while not done.is_set():
                with guard:
                    look_up(batch, out)
                begun.set()
                time.sleep(0)
        except Exception as failure:  # noqa: BLE001 (it rises in the thread that waits)
            failures.append(failure)
            begun.set()

    thread = threading.Thread(target=read, name="memslots bench: reader")
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


def _case(guest: Guest, vm: AnyMemslots, effort: Effort, read: Sequence[int]) -> Case:
    """Moves the guest's last slot to the pages after the guest's end, and back.

    No other slot lies between the two places. So an array that is sorted by gfn has no other slot
    to shift.
    """
    id, base, npages, _ = guest.creates[-1]
    places = (PAGES, base)
    for place in places:
        expect(vm.move(id, place).base_gfn, place, "the moved slot's place")
        slot = vm.lookup(place + npages - 1)
        expect(slot and slot.id, id, "lookup in the moved slot")
    expect(vm.lookup(PAGES), None, "lookup where the slot was")
    dice = random.Random(SEED)
    guard = threading.Lock() if isinstance(vm, ArrayMemslots) else nullcontext()
    move = vm.move

    def sample() -> list[float]:
        took = []
        with reader(vm, read, guard):
            for number in range(2 * effort.moves):
                time.sleep(dice.uniform(0, PAUSE))
                with guard:
                    began = time.perf_counter()
                    move(id, places[number % 2])
                    took.append(time.perf_counter() - began)
        return took

    return Case(sample, _clock)


def move_active(guest: Guest, vm: AnyMemslots, effort: Effort) -> Case:
    """Returns the case whose reader reads pages of the moved slot, at both of its places."""
    _, base, npages, _ = guest.creates[-1]
    count = min(npages, BATCH // 2)
    return _case(guest, vm, effort, [*range(base, base + count), *range(PAGES, PAGES + count)])


def move_inactive(guest: Guest, vm: AnyMemslots, effort: Effort) -> Case:
    """Returns the case whose reader reads pages of other slots, in the guest's lower half."""
    return _case(guest, vm, effort, range(0, PAGES // 2, PAGES // 2 // BATCH))


def _clock() -> list[float]:
    """Returns the time that reading the clock adds to a move."""
    began = time.perf_counter()
    return [time.perf_counter() - began]
