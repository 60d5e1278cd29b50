"""Readers beside a writer, readers beside readers, and the time of a change beside readers.

Readers make batches of a million look-ups, which hold the GIL only for some microseconds. Run by
itself, `python benchmarks/threads.py [slots ...]` prints every figure and its goal.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from common import (
    KVM_SIZES,
    PAGES,
    SEED,
    check_repeats,
    hva_of,
    make_memslots,
    medians,
    merge,
    random_gfns,
    split,
)

from memslots import Memslots

Step = Callable[[], object]

MILLION = 1_000_000
READERS = (0, 1, 2)


@contextmanager
def crew(*bodies: Step) -> Iterator[None]:
    """Starts threads together with the block, and joins them at its end. Raises their failure."""
    start = threading.Barrier(len(bodies) + 1)
    failures: list[BaseException] = []

    def run(body: Step) -> None:
        try:
            start.wait()
            body()
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the benchmark's)
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        start.wait()
        yield
    finally:
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def beside(*steps: Step) -> Iterator[None]:
    """Runs a thread for each step, which repeats the step until the block ends."""
    done = threading.Event()

    def repeat(step: Step) -> None:
        step()
        while not done.is_set():
            step()

    with crew(*(partial(repeat, step) for step in steps)):
        try:
            yield
        finally:
            done.set()


def seconds_of(*bodies: Step) -> float:
    """Returns the seconds from the begin of the first thread to the end of the last."""
    begins: list[float] = []
    ends: list[float] = []

    def timed(body: Step) -> None:
        begins.append(time.perf_counter())
        body()
        ends.append(time.perf_counter())

    with crew(*(partial(timed, body) for body in bodies)):
        pass
    return max(ends) - min(begins)


class Reader:
    """A thread's own Vcpu, pages and answers. The writer has the last two slots for itself."""

    def __init__(self, vm: Memslots, slots: int, seed: int) -> None:
        self.vcpu = vm.vcpu()
        self.gfns = random_gfns(slots - 2, MILLION, seed)
        self.ids = np.empty(MILLION, np.int32)
        self.batch()
        assert np.array_equal(self.ids, self.gfns // PAGES)

    def batch(self) -> None:
        self.vcpu.lookup_many(self.gfns, self.ids)


class Searcher:
    """Does the same search in a sorted array of the thread's own, without memslots."""

    PIECE = 1 << 16  # numpy allocates each array of answers; a small one needs no kernel call

    def __init__(self, slots: int, seed: int) -> None:
        self.bases = np.arange(slots, dtype=np.uint64) * PAGES
        self.gfns = random_gfns(slots - 2, MILLION, seed)
        found = np.searchsorted(self.bases, self.gfns, side="right") - 1
        assert np.array_equal(found, self.gfns // PAGES)

    def batch(self) -> None:
        for begin in range(0, MILLION, self.PIECE):
            np.searchsorted(self.bases, self.gfns[begin : begin + self.PIECE], side="right")


def single_changes(vm: Memslots, slots: int) -> dict[str, tuple[Step, Step]]:
    """Returns changes and the changes that undo them, of a slot that readers find or the last."""
    last = slots - 1
    return {
        "delete and create": (
            partial(vm.delete, last),
            partial(vm.create, last, last * PAGES, PAGES, hva_of(last)),
        ),
        "set_flags": (partial(vm.set_flags, 0, 1), partial(vm.set_flags, 0, 0)),
        "move": (
            partial(vm.move, last, slots * PAGES),
            partial(vm.move, last, last * PAGES),
        ),
    }


def all_changes(vm: Memslots, slots: int) -> dict[str, tuple[Step, Step]]:
    """Returns the single changes, a transaction of three changes, and a sleep of 20 µs."""

    def transaction(body: Callable[..., None]) -> None:
        with vm.transaction() as tx:
            body(tx, slots - 2)

    steps = (partial(transaction, merge), partial(transaction, split))
    sleep = partial(time.sleep, 0.00002)
    return single_changes(vm, slots) | {"transaction": steps, "sleep": (sleep, sleep)}


# The pair of steps in which each change is measured, and which of the two steps it is. A sleep is
# no change: beside searchers, it shows how late the machine runs a thread that waited.
CHANGES = {
    "sleep": ("sleep", slice(None)),
    "create": ("delete and create", slice(1, None, 2)),
    "delete": ("delete and create", slice(0, None, 2)),
    "set_flags": ("set_flags", slice(None)),
    "move": ("move", slice(None)),
    "transaction": ("transaction", slice(None)),
}


def others(vm: Memslots, slots: int) -> dict[str, Step]:
    """Returns the work that another thread can do beside the reader."""
    pairs = tuple(single_changes(vm, slots).values())

    def write() -> None:
        for there, back in pairs:
            there()
            back()

    def write_and_pause() -> None:
        write()
        time.sleep(0.0001)

    def plain_python() -> None:
        for _ in range(1000):
            pass

    return {"writer": write, "pausing writer": write_and_pause, "plain Python": plain_python}


OTHERS = ("writer", "pausing writer", "plain Python")


class _Beside:
    """Runs a reader beside another thread's work.

    At the end of a batch a reader needs the GIL. A thread that never releases the GIL keeps it for
    CPython's switch interval of 5 ms, which is much beside a batch of 12 ms. Plain Python, which
    does not use memslots, shows this cost alone. A pausing writer releases the GIL.
    """

    def setup(self, slots: int, other: str) -> None:
        """Makes the slots and the reader, and checks that the changes repeat."""
        vm = make_memslots(slots)
        self.reader = Reader(vm, slots, SEED)
        self.others = others(vm, slots)
        for there, back in single_changes(vm, slots).values():
            check_repeats(vm, there, back)

    def alone(self) -> float:
        began = time.perf_counter()
        self.reader.batch()
        return MILLION / (time.perf_counter() - began)

    def with_other(self, other: str) -> float:
        with beside(self.others[other]):
            return self.alone()


class Throughput(_Beside):
    """Measures the look-ups per second of one reader."""

    params = (KVM_SIZES, ("nobody", *OTHERS))
    param_names = ("slots", "beside")
    unit = "lookups/s"

    def track_throughput(self, slots: int, other: str) -> float:
        """Returns the throughput of one reader beside another thread."""
        alone = other == "nobody"
        return medians(self.alone if alone else partial(self.with_other, other))[0]


class ThroughputRatio(_Beside):
    """Measures the share of throughput that a reader keeps. Goal beside a writer: 0.90."""

    params = (KVM_SIZES, OTHERS)
    param_names = ("slots", "beside")
    unit = "ratio"

    def measure(self, other: str) -> list[float]:
        return medians(self.alone, partial(self.with_other, other))

    def track_ratio(self, slots: int, other: str) -> float:
        """Returns the throughput beside the thread over that alone."""
        alone, with_other = self.measure(other)
        return with_other / alone


class Scaling:
    """Compares the throughput of two threads with that of one. Goal: 1.9 if the machine can."""

    params = KVM_SIZES
    param_names = ("slots",)
    unit = "times"

    def setup(self, slots: int) -> None:
        """Makes two readers and two searchers."""
        vm = make_memslots(slots)
        self.readers = [Reader(vm, slots, SEED + n) for n in range(2)]
        self.searchers = [Searcher(slots, SEED + n) for n in range(2)]

    def track_readers(self, slots: int) -> float:
        """Returns the ratio for readers of one Memslots."""
        first, second = self.readers
        one, two = medians(
            partial(seconds_of, first.batch), partial(seconds_of, first.batch, second.batch)
        )
        return 2 * one / two

    def track_machine(self, slots: int) -> float:
        """Returns the ratio for numpy searches that share nothing: what the machine allows."""
        first, second = self.searchers
        one, two = medians(
            partial(seconds_of, first.batch), partial(seconds_of, first.batch, second.batch)
        )
        return 2 * one / two


class Latency:
    """Times a change beside readers. Goals: a median under 50 µs, the worst under 2 ms.

    create, set_flags and a transaction wait for readers once; delete and move wait twice.
    """

    params = (KVM_SIZES, tuple(CHANGES), READERS)
    param_names = ("slots", "change", "readers")
    unit = "µs"

    def setup(self, slots: int, change: str, readers: int) -> None:
        """Makes the slots and the readers, and checks that the change repeats."""
        vm = make_memslots(slots)
        self.batches: list[Step]
        self.changes = all_changes(vm, slots)
        if change == "sleep":
            self.batches = [Searcher(slots, SEED + n).batch for n in range(readers)]
        else:
            self.batches = [Reader(vm, slots, SEED + n).batch for n in range(readers)]
            check_repeats(vm, *self.changes[CHANGES[change][0]])

    def sample(self, pair: str, seconds: float = 0.2) -> list[float]:
        """Returns the microseconds of each change, with the two steps of the pair in turn.

        A pause of random length precedes each change. The pause releases the GIL, so readers are in
        their batches, and the change meets them anywhere in a batch. Without the pause most changes
        would fall into the 5 ms in which a reader waits for the GIL.
        """
        dice = random.Random(SEED)
        took = []
        with beside(*self.batches):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                for step in self.changes[pair]:
                    time.sleep(dice.uniform(0, 0.0002))
                    began = time.perf_counter_ns()
                    step()
                    took.append((time.perf_counter_ns() - began) / 1000)
        return took

    def measure(self, change: str) -> list[float]:
        pair, which = CHANGES[change]
        return self.sample(pair)[which]

    def track_median(self, slots: int, change: str, readers: int) -> float:
        """Returns the median time."""
        return statistics.median(self.measure(change))

    def track_worst(self, slots: int, change: str, readers: int) -> float:
        """Returns the worst time of some hundreds of changes."""
        return max(self.measure(change))


def show(slots: int, case: str, figure: str, goal: str = "-") -> None:
    """Prints a line of the table."""
    print(f"{slots:>6}  {case:<50}{figure:>26}  {goal}", flush=True)


def show_all(slots: int) -> None:
    """Prints every figure for a number of slots."""
    for other in OTHERS:
        ratio = ThroughputRatio()
        ratio.setup(slots, other)
        alone, with_other = ratio.measure(other)
        if other == OTHERS[0]:
            show(slots, "reader alone", f"{alone / 1e6:.1f} M/s")
        figure = f"{with_other / 1e6:.1f} M/s, ratio {with_other / alone:.2f}"
        show(slots, f"reader beside {other}", figure, ">= 0.90" if "writer" in other else "-")
    scaling = Scaling()
    scaling.setup(slots)
    show(slots, "two readers over one", f"{scaling.track_readers(slots):.2f}", ">= 1.90")
    show(slots, "two numpy searches over one", f"{scaling.track_machine(slots):.2f}")
    for change in CHANGES:
        for readers in READERS:
            latency = Latency()
            latency.setup(slots, change, readers)
            took = latency.measure(change)
            figure = f"{statistics.median(took):.1f} / {max(took):.0f} µs"
            if change == "sleep":
                case = f"sleep of 20 µs, {readers} numpy searches"
                show(slots, f"{case}: median / worst", figure)
            else:
                case = f"{change}, {readers} readers"
                show(slots, f"{case}: median / worst", figure, "< 50 / < 2000 µs")


def main() -> None:
    """Prints every figure, for the given numbers of slots or for KVM_SIZES."""
    print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, numpy {np.__version__}")
    print(f"{'slots':>6}  {'case':<50}{'figure':>26}  goal")
    for slots in [int(given) for given in sys.argv[1:]] or KVM_SIZES:
        show_all(slots)


if __name__ == "__main__":
    main()
