"""Runs tests on mutants. A process that has collected all tests forks a process for each trial.

First every test runs once without a mutant. That shows how long it takes, and which switches it
asks. Then each mutant gets the tests that ask its switch, until one fails. First come those that
take the least time for the mutants they have killed. If a test fails, the same tests run again
without the mutant. The mutant counts as killed if all pass then. Otherwise the test that fails is
left out from there on, and the mutant is tried again.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

#: All tests of one mutant may usually take so many seconds. The slowest are left out.
BUDGET = 120.0
#: A test may take so many seconds more than ten times its usual time.
PATIENCE = 10.0
#: The usual time of a test that has not run, in seconds. So a test is left out that takes 40.
UNKNOWN = 3.0

FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Result:
    """What a test did. `asked` has the numbers of the mutants whose switches it asked."""

    seconds: float
    failed: bool
    asked: set[int]


@dataclass(slots=True)
class Trial:
    """Tests that one process runs until one fails.

    `number` is that of the mutant, or 0 for none. `end` is empty if all tests passed.
    """

    number: int
    tests: list[pytest.Item]
    confirms: Trial | None = None
    results: list[Result] = field(default_factory=list)
    end: str = ""

    @property
    def ran(self) -> list[pytest.Item]:
        """Returns the tests that ran. If one failed, it is the last of them."""
        return self.tests[: len(self.results) + (self.end in ("dies", "hangs"))]

    @property
    def seconds(self) -> float:
        return sum(result.seconds for result in self.results)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a mutant: "killed" or "survived", and by which test."""

    number: int
    what: str
    by: str
    seconds: float


class Switchboard:
    """The file in which a process, and all that it starts, reads which mutant is on."""

    def __init__(self, path: Path, switches: int, number: int) -> None:
        self._path = path
        path.write_bytes(number.to_bytes(4, "little") + bytes(switches))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)

    def connect(self, library: Path) -> None:
        """Makes this process, and all that it starts from now on, use the file."""
        os.environ["MEMSLOTS_SWITCHBOARD"] = str(self._path)
        ctypes.CDLL(str(library)).switchboard_open(str(self._path).encode())

    def take(self) -> set[int]:
        """Returns the mutants whose switches were asked since the last call."""
        marks = self._bytes[4:]
        self._bytes[4:] = bytes(len(marks))
        return {number for number, mark in enumerate(marks) if mark}


class Process:
    """A process that runs a trial."""

    def __init__(self, trial: Trial, work: Callable[[Trial, Path, Connection], None]) -> None:
        self.trial = trial
        self.results, sending = FORK.Pipe(duplex=False)
        self._folder = tempfile.mkdtemp(prefix="trial-")
        self._process = FORK.Process(target=work, args=(trial, Path(self._folder), sending))
        self._process.start()
        sending.close()
        self.since = time.monotonic()  # when the test that runs now began

    @property
    def current(self) -> pytest.Item:
        return self.trial.tests[len(self.trial.results)]

    def receive(self) -> bool:
        """Takes the result of the current test. Returns whether it was the last."""
        trial = self.trial
        try:
            result = self.results.recv()
        except EOFError:
            trial.end = "dies"
            return True
        self.since = time.monotonic()
        trial.results.append(result)
        trial.end = "fails" if result.failed else ""
        return result.failed or len(trial.results) == len(trial.tests)

    def kill(self) -> None:
        """Ends the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.ident or 0, signal.SIGKILL)
        self._process.join()
        self.results.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Trials:
    """A pytest plugin. Instead of running the tests once, it tries mutants."""

    def __init__(
        self,
        numbers: Iterable[int],
        library: Path,
        workers: int,
        report: Callable[[Outcome], None],
    ) -> None:
        self._numbers = sorted(numbers)
        self._library = library
        self._workers = workers
        self._report = report
        self._failed = False
        self._usual: dict[pytest.Item, float] = {}  # seconds
        self._kills: Counter[pytest.Item] = Counter()
        self._unsteady: set[pytest.Item] = set()  # they failed without a mutant
        self._next: deque[Trial] = deque()  # what to try before the others

    def pytest_sessionstart(self) -> None:
        """Makes Hypothesis try the same examples each time, and not look for smaller ones."""
        from hypothesis import Phase, settings  # pytest must be the first to import it

        settings.register_profile(
            "mutation",
            settings.get_profile("short"),
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
        )
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        asking = self._rehearse(session.items)
        for trial in self._run(Trial(number, self._order(asking[number])) for number in asking):
            mutated = trial.confirms
            if mutated is None and trial.end:
                self._next.append(Trial(0, trial.ran, confirms=trial))
            elif mutated is not None and trial.end:
                if trial.ran[-1] not in self._unsteady:  # two workers may find it at once
                    self._unsteady.add(trial.ran[-1])
                    print(f"without any mutant: {trial.ran[-1].nodeid} {trial.end}", flush=True)
                self._next.append(Trial(mutated.number, self._order(asking[mutated.number])))
            else:
                self._report(self._outcome(mutated or trial))
        return True

    def _rehearse(self, items: list[pytest.Item]) -> dict[int, list[pytest.Item]]:
        """Runs every test once without a mutant. Returns the tests that ask each switch."""
        asking: dict[int, list[pytest.Item]] = {n: [] for n in self._numbers}
        files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
        for trial in self._run(Trial(0, tests) for tests in files):
            for item, result in zip(trial.tests, trial.results, strict=False):
                self._usual[item] = result.seconds
                if not result.failed:
                    for number in asking.keys() & result.asked:
                        asking[number].append(item)
            if trial.end:
                ran = trial.ran
                print(f"without any mutant: {ran[-1].nodeid} {trial.end}", flush=True)
                if rest := trial.tests[len(ran) :]:
                    self._next.append(Trial(0, rest))
        return asking

    def _order(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """Returns the tests of a mutant in the order in which they run."""
        tests: list[pytest.Item] = []
        left = BUDGET
        for item in sorted(items, key=self._usual.__getitem__):
            left -= self._usual[item]
            if left > 0 and item not in self._unsteady:
                tests.append(item)
        return sorted(tests, key=lambda item: self._usual[item] / (1 + self._kills[item]))

    def _outcome(self, trial: Trial) -> Outcome:
        if not trial.end:
            by = f"{len(trial.tests)} tests reach it"
            return Outcome(trial.number, "survived", by, trial.seconds)
        last = trial.ran[-1]
        self._kills[last] += 1
        return Outcome(trial.number, "killed", f"{last.nodeid} {trial.end}", trial.seconds)

    def _run(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Runs trials, several at a time. Yields each when it has ended."""
        others = iter(trials)
        running: dict[Connection, Process] = {}
        while True:
            while len(running) < self._workers:
                trial = self._next.popleft() if self._next else next(others, None)
                if trial is None:
                    break
                if not trial.tests:
                    yield trial
                    continue
                process = Process(trial, self._work)
                running[process.results] = process
            if not running:
                return
            first = min(map(self._deadline, running.values()))
            ready = wait(running, max(0.0, first - time.monotonic()))
            for results, process in list(running.items()):
                if results in ready:
                    done = process.receive()
                elif done := self._deadline(process) < time.monotonic():
                    process.trial.end = "hangs"
                if done:
                    del running[results]
                    process.kill()
                    yield process.trial

    def _deadline(self, process: Process) -> float:
        return process.since + PATIENCE + 10 * self._usual.get(process.current, UNKNOWN)

    def _work(self, trial: Trial, folder: Path, sending: Connection) -> None:
        """Runs a trial's tests in a new process, and sends their results."""
        os.setsid()
        # If a mutant takes all memory, this process is the one to end. It leaves no core.
        Path("/proc/self/oom_score_adj").write_text("1000")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()  # many mutants crash
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        # Else pytest removes the temporary files of the other processes.
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
        board = Switchboard(folder / "switchboard", self._numbers[-1] + 1, trial.number)
        board.connect(self._library)
        for item, following in zip(trial.tests, [*trial.tests[1:], None], strict=True):
            self._failed = False
            board.take()
            began = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds = time.monotonic() - began
            sending.send(Result(seconds, self._failed, board.take()))
            if self._failed:
                return
