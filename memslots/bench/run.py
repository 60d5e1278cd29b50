"""A whole run: its cases and their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from memslots import Memslots
from memslots.baseline import ArrayMemslots
from memslots.bench import computer, rivals
from memslots.bench.computer import Machine
from memslots.bench.guest import AnyMemslots, Guest
from memslots.bench.rivals import CASES, RivalsResult
from memslots.bench.series import TESTS, Row, Test
from memslots.bench.timing import Effort, in_turn


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run, its date and machine, and how long it took."""

    machine: Machine
    date: str
    effort: Effort
    seconds: float
    #: The versions of the distributions that rivals need, None if missing. Empty without rivals.
    versions: dict[str, str | None]
    rows: list[Row]
    against: list[RivalsResult]

    @property
    def absent(self) -> dict[str, list[str]]:
        """The structures that were left out, and the distributions that each of them lacks."""
        return rivals.absent(self.versions) if self.against else {}


@dataclass(frozen=True, slots=True)
class Plan:
    """The tests of the series and the cases against rivals, each with its numbers of slots."""

    tests: Sequence[Test]
    series_slots: Sequence[int]
    cases: Sequence[rivals.RivalCase]
    against_slots: Sequence[int]

    def __len__(self) -> int:
        """Returns how often `run` reports its progress: at each case, and when it makes slots."""
        series = (len(self.tests) + 1) * len(self.series_slots) if self.tests else 0
        against = (len(self.cases) + 1) * len(self.against_slots) if self.cases else 0
        return series + against


def plan(names: Sequence[str], series_slots: Sequence[int], against_slots: Sequence[int]) -> Plan:
    """Returns a plan with the tests of these names, or with all of `TESTS` and `CASES`."""
    return Plan(
        [test for test in TESTS.values() if not names or test.name in names],
        series_slots,
        [case for case in CASES if not names or case.test in names],
        against_slots,
    )


def run(plan: Plan, effort: Effort, progress: Callable[[str], object] = lambda _: None) -> Report:
    """Measures everything. Calls `progress` with the name of each part before it begins.

    WrongAnswerError if the code to be timed returns a wrong answer.
    """
    began = time.perf_counter()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    rows = list(_rows(plan, effort, progress))
    against = list(_against(plan, effort, progress))
    # As the tables list them: test by test.
    rows.sort(key=lambda row: list(TESTS).index(row.test))
    order = [(case.test, case.name) for case in CASES]
    against.sort(key=lambda result: order.index((result.test, result.case)))
    return Report(
        machine=computer.describe(),
        date=date,
        effort=effort,
        seconds=time.perf_counter() - began,
        versions=rivals.versions() if plan.cases else {},
        rows=rows,
        against=against,
    )


def _rows(plan: Plan, effort: Effort, progress: Callable[[str], object]) -> Iterator[Row]:
    for slots in plan.series_slots if plan.tests else ():
        progress(f"making {slots} slots")
        guest = Guest(slots)
        before, after = guest.make(ArrayMemslots), guest.make(Memslots)
        for test in plan.tests:
            progress(f"{test.title}, {slots} slots")
            yield _row(test, guest, before, after, effort)


def _row(test: Test, guest: Guest, before: AnyMemslots, after: AnyMemslots, effort: Effort) -> Row:
    array, trees = (test.case(guest, vm, effort) for vm in (before, after))
    before_timing, after_timing, loop = in_turn([array.sample, trees.sample, trees.loop], effort)
    figures = test.reported.get(guest.slots)
    return Row(
        test=test.name,
        slots=guest.slots,
        of=test.of,
        operations=test.operations(guest.slots),
        before=before_timing,
        after=after_timing,
        loop=loop,
        share_before=array.share,
        share_after=trees.share,
        reported=None if figures is None else figures[0] / figures[1],
    )


def _against(
    plan: Plan, effort: Effort, progress: Callable[[str], object]
) -> Iterator[RivalsResult]:
    for slots in plan.against_slots if plan.cases else ():
        progress(f"making {slots} slots")
        entrants, questions = rivals.prepare_slots(slots)
        for case in plan.cases:
            progress(f"{case.title}, {slots} slots")
            yield rivals.measure(case, entrants, questions, effort)
