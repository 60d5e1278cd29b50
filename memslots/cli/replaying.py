"""Replaying the inputs that a command names, in this process or in others.

An input is the name of a file, or the names of several files that are one trace.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from memslots.cli.kernel_memory import KernelMemoryError
from memslots.replay import Report, replay
from memslots.replay.live import LiveVM
from memslots.traces import Format, Trace, TraceError, open_trace
from memslots.traces.samples import SAMPLES
from memslots.traces.source import Source
from memslots.traces.threads import merged

#: The name of a file, or the names of the files of one trace.
Input = str | list[str]
#: An input of at least this many stored bytes gets a progress bar.
LONG_INPUT = 4 << 20


class Meter:
    """A progress bar for long inputs, shown if standard error is a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def reading(self, source: Source) -> None:
        """Shows how far `source` was read."""
        if not self._console.is_terminal or (source.size or source.position) < LONG_INPUT:
            return
        if self._progress is None or self._task is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(f"reading {source.name}", total=source.size)
        self._progress.update(self._task, completed=source.position)

    def replaying(self, done: int, calls: int) -> None:
        """Shows that `done` of `calls` were replayed."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"replaying call {done} of {calls}")

    def stop(self) -> None:
        """Removes the bar."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


@contextmanager
def _metered(trace: Trace) -> Iterator[Meter]:
    meter = Meter()
    trace.source.watch = meter.reading
    try:
        yield meter
    finally:
        meter.stop()


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pauses the collector of reference cycles, which reading and replaying do not make.

    It would go through all calls read so far again and again, a fifth of the time of a long trace.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def replay_input(
    path: Input,
    format: Format,
    sample: bool = False,
    live: Callable[[], LiveVM] | None = None,
    history: bool = False,
) -> Report:
    """Replays an input, or the sample named `path`. Shows a progress bar if it is long."""
    with ExitStack() as opened:
        if sample:
            assert isinstance(path, str)
            stream = opened.enter_context(SAMPLES[path].open())
            trace = opened.enter_context(open_trace(path, "auto", stream))
        else:
            trace = opened.enter_context(_opened(path, format))
        meter = opened.enter_context(_metered(trace))
        opened.enter_context(_without_collector())
        try:
            return replay(trace, meter.replaying, live, history=history)
        except KernelMemoryError as error:
            raise TraceError(trace.name, str(error), errno=errno.ENOMEM) from None


def replayed_here(
    paths: Sequence[Input],
    format: Format,
    sample: bool = False,
    live: Callable[[], LiveVM] | None = None,
) -> Iterator[Report | TraceError]:
    """Replays one input after the other."""
    for path in paths:
        try:
            yield replay_input(path, format, sample, live)
        except TraceError as error:
            yield error


def replayed_by_others(
    paths: Sequence[Input], format: Format, jobs: int
) -> Iterator[Report | TraceError]:
    """Replays in `jobs` processes, in the same order. At most `jobs` inputs wait for a process."""
    from collections import deque
    from concurrent.futures import Future, ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, get_context("spawn")) as others:
        begun: deque[Future[Report | TraceError]] = deque()
        for path in paths:
            begun.append(others.submit(replayed_quietly, path, format))
            if len(begun) > 2 * jobs:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def replayed_quietly(path: Input, format: Format) -> Report | TraceError:
    """Replays in a separate process, which shows no progress."""
    try:
        with _opened(path, format) as trace, _without_collector():
            return replay(trace)
    except TraceError as error:
        return error


def name_of(path: Input) -> str:
    """Returns the name of an input in a report."""
    return path if isinstance(path, str) else f"{path[0]} and {len(path) - 1} more"


def _opened(path: Input, format: Format) -> Trace:
    return open_trace(name_of(path), format, None if isinstance(path, str) else merged(path))
