"""memslots beside its rivals: single look-ups, batches, changes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from memslots import Slot
from memslots.bench.computer import installed
from memslots.bench.questions import Questions, layout
from memslots.bench.structures import STRUCTURES, Finder, Structure
from memslots.bench.timing import Effort, Sampler, Timing, expect, in_turn, timed

AGAINST_SLOTS = (509, 8194, 32764)
#: The name under which the `for` loop around single look-ups is listed.
LOOP = "(the loop alone)"


@dataclass(frozen=True, slots=True)
class RivalResult:
    """One structure in one case. `ratio` is its time divided by that of memslots."""

    structure: str
    timing: Timing
    ratio: float


@dataclass(frozen=True, slots=True)
class RivalsResult:
    """One case at one number of slots. The seconds are those of one look-up or one change."""

    test: str
    case: str
    title: str
    of: str
    slots: int
    #: The number of look-ups or changes in a round.
    operations: int
    results: list[RivalResult]


#: A structure with the finder that holds the slots.
Entrants: TypeAlias = list[tuple[Structure, Finder]]
#: The samplers of a case by name, memslots first, and the number of operations in a sample.
Prepared: TypeAlias = tuple[dict[str, Sampler], int]
#: Checks the answers and makes the samplers.
Prepare: TypeAlias = Callable[[Entrants, Questions, Effort], Prepared]
#: Returns a number of gfns of one kind.
Ask: TypeAlias = Callable[[Questions, int], list[int]]


@dataclass(frozen=True, slots=True)
class RivalCase:
    """A case: `test` is its group, and `of` says what a figure is the time of."""

    test: str
    name: str
    title: str
    of: str
    prepare: Prepare


def versions() -> dict[str, str | None]:
    """Returns the version of each distribution that a structure needs, None if it is missing."""
    names = dict.fromkeys(name for structure in STRUCTURES for name in structure.requires)
    return {name: installed(name) for name in names}


def absent(versions: dict[str, str | None]) -> dict[str, list[str]]:
    """Returns the structures that lack a distribution, with the names of those that are missing."""
    missing = {
        structure.name: [name for name in structure.requires if versions.get(name, "") is None]
        for structure in STRUCTURES
    }
    return {name: needs for name, needs in missing.items() if needs}


def enter(slots: Sequence[Slot]) -> Entrants:
    """Makes every structure whose distributions are installed, with the slots in it."""
    out = absent(versions())
    return [
        (structure, structure.make(slots)) for structure in STRUCTURES if structure.name not in out
    ]


def measure(
    case: RivalCase, entrants: Entrants, questions: Questions, effort: Effort
) -> RivalsResult:
    """Checks every structure's answers, then times all structures alternately."""
    samplers, operations = case.prepare(entrants, questions, effort)
    timings = dict(zip(samplers, in_turn(list(samplers.values()), effort), strict=True))
    ours = timings[STRUCTURES[0].name].median
    return RivalsResult(
        case.test,
        case.name,
        case.title,
        case.of,
        len(questions.slots),
        operations,
        [RivalResult(name, timing, timing.median / ours) for name, timing in timings.items()],
    )


def _ask(find: Callable[[int], object], gfns: Sequence[int]) -> None:
    for gfn in gfns:
        find(gfn)


def _loop(gfns: Sequence[int]) -> None:
    for _ in gfns:
        pass


def _single(ask: Ask) -> Prepare:
    def prepare(entrants: Entrants, questions: Questions, effort: Effort) -> Prepared:
        gfns = ask(questions, effort.lookups)
        wanted = [questions.answer(gfn) for gfn in gfns]
        samplers: dict[str, Sampler] = {}
        for structure, finder in entrants:
            if (find := finder.find) is not None:
                expect([find(gfn) for gfn in gfns], wanted, structure.name)
                samplers[structure.name] = _timed_each(_ask, len(gfns), find, gfns)
        samplers[LOOP] = _timed_each(_loop, len(gfns), gfns)
        return samplers, len(gfns)

    return prepare


def _timed_each(work: Callable[..., object], count: int, *arguments: object) -> Sampler:
    """Returns a sampler of the seconds of one of the `count` operations that `work` does."""
    return timed(lambda: work(*arguments), 1 / count)


def buffer_of(gfns: list[int]) -> Any:
    """Returns a buffer of uint64: a numpy array if numpy is installed, as its users have it."""
    if installed("numpy") is None:
        return array("Q", gfns)
    import numpy as np

    return np.array(gfns, dtype=np.uint64)


def _batch(ask: Ask) -> Prepare:
    def prepare(entrants: Entrants, questions: Questions, effort: Effort) -> Prepared:
        gfns = ask(questions, effort.batch)
        wanted = [questions.answer(gfn) for gfn in gfns]
        buffer = buffer_of(gfns)
        samplers: dict[str, Sampler] = {}
        for structure, finder in entrants:
            if (find_many := finder.find_many) is not None:
                expect(list(find_many(buffer)), wanted, structure.name)
                samplers[structure.name] = _timed_each(find_many, len(gfns), buffer)
        return samplers, len(gfns)

    return prepare


def _change(
    delete: Callable[[Slot], object], create: Callable[[Slot], object], victims: Sequence[Slot]
) -> None:
    for slot in victims:
        delete(slot)
        create(slot)


def _check_change(structure: Structure, finder: Finder, slot: Slot) -> None:
    def ids() -> list[int]:
        gfns = (slot.base_gfn, slot.end_gfn - 1)
        if finder.find is not None:
            return [finder.find(gfn) for gfn in gfns]
        if finder.find_many is not None:
            return list(finder.find_many(buffer_of(list(gfns))))
        return []

    if finder.delete is not None and finder.create is not None:
        finder.delete(slot)
        expect(ids(), [-1, -1], f"{structure.name}: the pages of a deleted slot")
        finder.create(slot)
        expect(ids(), [slot.id, slot.id], f"{structure.name}: the pages of a created slot")


def _changes(entrants: Entrants, questions: Questions, effort: Effort) -> Prepared:
    victims = questions.victims(effort.changes)
    samplers: dict[str, Sampler] = {}
    for structure, finder in entrants:
        if finder.delete is not None and finder.create is not None:
            for slot in victims[:10]:
                _check_change(structure, finder, slot)
            samplers[structure.name] = _timed_each(
                _change, len(victims), finder.delete, finder.create, victims
            )
    return samplers, len(victims)


def prepare_slots(slots: int) -> tuple[Entrants, Questions]:
    """Returns the structures and the questions for a number of slots."""
    laid_out = layout(slots)
    return enter(laid_out), Questions(laid_out)


LOOKUP = "one look-up"
CASES = (
    RivalCase("single", "hot", "Single, hot", LOOKUP, _single(Questions.hot)),
    RivalCase("single", "sequential", "Single, sequential", LOOKUP, _single(Questions.sequential)),
    RivalCase("single", "random", "Single, random", LOOKUP, _single(Questions.random)),
    RivalCase("single", "miss", "Single, miss", LOOKUP, _single(Questions.miss)),
    RivalCase("batch", "random", "Batch, random", LOOKUP, _batch(Questions.random)),
    RivalCase("batch", "sequential", "Batch, sequential", LOOKUP, _batch(Questions.sequential)),
    RivalCase("batch", "local", "Batch, local", LOOKUP, _batch(Questions.local)),
    RivalCase("changes", "pair", "Changes", "one delete and create", _changes),
)
