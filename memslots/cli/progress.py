"""Progress bars on standard error, if that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from memslots.traces.source import Source

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
