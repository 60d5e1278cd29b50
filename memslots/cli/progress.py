"""Progress bars on standard error, if that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from memslots.traces.source import Source

Result = TypeVar("Result")

#: An input of at least this many stored bytes gets a bar at once.
LONG_INPUT = 4 << 20
#: Other work gets a bar after this many seconds.
PATIENCE = 1.0


class Meter:
    """The bar of work that takes over PATIENCE seconds. Does nothing if there is no terminal."""

    #: The meter of the work that goes on, if any.
    current: Meter | None = None

    def __init__(self, what: str) -> None:
        console = Console(stderr=True)
        self._progress: Progress | None = None
        if console.is_interactive:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._progress.add_task(what, total=None)
        self.start()

    def start(self) -> None:
        """Lets the bar come after PATIENCE seconds."""
        Meter.current = self
        if self._progress is not None:
            self._timer = Timer(PATIENCE, self._progress.start)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Removes the bar, or lets none come."""
        Meter.current = None
        if self._progress is not None:
            self._timer.cancel()
            self._timer.join()
            if self._progress.live.is_started:
                self._progress.stop()

    def doing(self, what: str) -> None:
        """Shows what is done now."""
        if self._progress is not None:
            self._progress.update(self._task, description=what)

    def reading(self, source: Source) -> None:
        """Shows how far `source` was read."""
        if self._progress is not None:
            if (source.size or source.position) >= LONG_INPUT:
                self._progress.start()
            self._progress.update(
                self._task,
                description=f"reading {source.name}",
                total=source.size,
                completed=source.position,
            )

    def replaying(self, done: int, calls: int) -> None:
        """Shows that `done` of `calls` were replayed."""
        self.doing(f"replaying call {done} of {calls}")


@contextmanager
def metered(what: str) -> Iterator[Meter]:
    """Shows `what` while the block runs, if that takes long."""
    meter = Meter(what)
    try:
        yield meter
    finally:
        meter.stop()


@contextmanager
def unmetered() -> Iterator[None]:
    """Shows no bar while the block runs: something is asked or said."""
    meter = Meter.current
    if meter is not None:
        meter.stop()
    yield
    if meter is not None:
        meter.start()


def awaited(results: Iterable[Result], names: Sequence[str]) -> Iterator[Result]:
    """Yields the results, one for each name, and shows which of them is waited for."""
    left = iter(results)
    for number, name in enumerate(names, 1):
        with metered(f"waiting for {name}, file {number} of {len(names)}"):
            result = next(left)
        yield result


@contextmanager
def counted(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the next step in a progress bar.

    The bar is on standard error. If that is no terminal, the function does nothing.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    # The bar is drawn only at a step. A thread that redraws it would take time from what is
    # measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, completed=-1)

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what, refresh=True)

        yield step
