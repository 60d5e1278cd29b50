"""Times code to be compared: alternately, round by round, until the time is up."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memslots.errors import WrongAnswerError

#: Does its work once, and returns the seconds of each thing that it timed.
Sampler = Callable[[], list[float]]


def expect(found: object, wanted: object, what: str) -> None:
    """Raises WrongAnswerError unless both are equal. `python -O` would leave out an assert."""
    if found != wanted:
        raise WrongAnswerError(f"{what}: found {_short(found)}, expected {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " ..."


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how much a run measures."""

    name: str
    #: Seconds for all that is compared with one another, and the least number of rounds.
    seconds: float
    rounds: int
    #: If a test takes more seconds than this, a part of it is done and its time is scaled.
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
    """Returns a sampler of one figure: the seconds that `work` takes, multiplied by `times`."""

    def sample() -> list[float]:
        began = time.perf_counter()
        work()
        return [(time.perf_counter() - began) * times]

    return sample


def in_turn(samplers: Sequence[Sampler], effort: Effort) -> list[Timing]:
    """Returns the timing of each, measured alternately: a slow moment of the machine meets all.

    Every other round goes backwards, so none always comes after the same one. If the least number
    of rounds would take more than five times the seconds of `effort`, there are fewer rounds.
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
    """The samplers of one test. `sample` returns seconds, of the whole test or of one move.

    `share` is the part of the test that a sample does. `loop` times the loops without the calls.
    """

    sample: Sampler
    loop: Sampler
    share: float = 1.0


def empty_loop(lists: Sequence[Sequence[Any]]) -> None:
    """Loops over the lists without making the calls."""
    for items in lists:
        for _ in items:
            pass
