"""Timing what is to be compared side by side: in turn, round by round, until the time is up."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memslots.errors import WrongAnswerError

#: Does its work once, and gives the seconds of each thing it timed.
Sampler = Callable[[], list[float]]


def expect(found: object, wanted: object, what: str) -> None:
    """Raise WrongAnswerError unless they are equal; not an assert, which `python -O` leaves out."""
    if found != wanted:
        raise WrongAnswerError(f"{what}: found {_short(found)}, expected {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " ..."


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured."""

    name: str
    #: Seconds for everything that is compared with one another, and the rounds at least.
    seconds: float
    rounds: int
    #: A test that takes more seconds than this in one go is done in part and scaled.
    sample: float
    #: Moves in a round; look-ups in a round, one at a time and in a batch; changes in a round.
    moves: int
    lookups: int
    batch: int
    changes: int


FULL = Effort("full", 0.8, 5, 0.12, 40, 20_000, 100_000, 200)
QUICK = Effort("quick", 0.01, 2, 0.002, 5, 500, 2_000, 10)


@dataclass(frozen=True, slots=True)
class Timing:
    """The median and the quartiles of the times, in seconds."""

    rounds: int
    samples: int
    median: float
    lower: float
    upper: float


def _summary(samples: list[float], rounds: int) -> Timing:
    lower, median, upper = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    )
    return Timing(rounds, len(samples), median, lower, upper)


@contextmanager
def without_gc() -> Iterator[None]:
    """Keeps the garbage collector from running while the body is timed."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def timed(work: Callable[[], object], times: float = 1.0) -> Sampler:
    """A sampler of one figure: the seconds that `work` takes, `times` that many."""

    def sample() -> list[float]:
        began = time.perf_counter()
        work()
        return [(time.perf_counter() - began) * times]

    return sample


def in_turn(samplers: Sequence[Sampler], effort: Effort) -> list[Timing]:
    """The timing of each, measured in turn, so that a slow moment of the machine falls on all.

    Every other round goes backwards, so that none always comes after the same one. Where the
    fewest rounds would take more than five times the seconds there are, there are fewer.
    """
    samples: list[list[float]] = [[] for _ in samplers]
    order = list(zip(samplers, samples, strict=True))
    rounds = 0
    with without_gc():
        began = time.perf_counter()
        while True:
            for sampler, into in order:
                into.extend(sampler())
            order.reverse()
            rounds += 1
            spent = time.perf_counter() - began
            enough = effort.seconds if rounds >= effort.rounds else 5 * effort.seconds
            if spent >= enough:
                return [_summary(each, rounds) for each in samples]


@dataclass(frozen=True, slots=True)
class Case:
    """The times of one test. `sample` returns seconds, of the whole test or of one move.

    `share` is the part of the test that was done for it, `loop` the same loops without the calls.
    """

    sample: Sampler
    loop: Sampler
    share: float = 1.0


def empty_loop(lists: Sequence[Sequence[Any]]) -> None:
    """The loops over the lists without the calls."""
    for items in lists:
        for _ in items:
            pass
