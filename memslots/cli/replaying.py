"""Replaying the inputs that a command names, in this process or in others.

An input is the name of a file, or the names of several files that are one trace.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from memslots.cli.kernel_memory import KernelMemoryError
from memslots.cli.progress import metered
from memslots.maps.reading import recognised
from memslots.replay import Report, replay
from memslots.replay.live import LiveVM
from memslots.traces import NO_TRACE, Format, Trace, TraceError, open_trace
from memslots.traces.samples import SAMPLES
from memslots.traces.threads import UNORDERED, is_ordered, merged

#: The name of a file, or the names of the files of one trace.
Input = str | list[str]


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pauses the collector of reference cycles.

    No call makes a cycle. The collector would go through all calls read so far again and again,
    which is a fifth of the time of a long trace.
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
    """Replays an input, or the sample named `path`. Shows a progress bar if that takes long."""
    with ExitStack() as opened:
        if sample:
            assert isinstance(path, str)
            stream = opened.enter_context(SAMPLES[path].open())
            trace = opened.enter_context(open_trace(path, "auto", stream))
        else:
            trace = opened.enter_context(_opened(path, format))
        meter = opened.enter_context(metered(f"reading {trace.name}"))
        trace.source.watch = meter.reading
        opened.enter_context(_without_collector())
        try:
            return replay(trace, meter.replaying, live, history=history)
        except KernelMemoryError as error:
            raise TraceError(trace.name, str(error), errno=errno.ENOMEM) from None
        except TraceError as error:
            raise _explained(error, trace, path) from None


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
            try:
                return replay(trace)
            except TraceError as error:
                return _explained(error, trace, path)
    except TraceError as error:
        return error


def _explained(error: TraceError, trace: Trace, path: Input) -> TraceError:
    """Returns the error of an input that is no trace, or a better one if the input is a map."""
    if trace.format != "auto" or not isinstance(path, str):
        return error
    regular = path != "-" and Path(path).is_file()
    if not regular and error.reason.startswith(NO_TRACE):  # read already: nobody can look again
        reason = f"{error.reason}; if it is a map, `memslots map` reads it"
        return TraceError(error.name, reason, error.line, error.errno or errno.EINVAL)
    if not regular:
        return error
    try:
        with Path(path).open("rb") as file:
            found = recognised(path, file)
    except (OSError, TraceError):
        return error
    if found == "trace":
        return error
    return TraceError(path, f"it is no trace; it looks like {found}: try `memslots map`")


def name_of(path: Input) -> str:
    """Returns the name of an input in a report."""
    return path if isinstance(path, str) else f"{path[0]} and {len(path) - 1} more"


def _opened(path: Input, format: Format) -> Trace:
    if isinstance(path, str):
        return open_trace(path, format)
    trace = open_trace(name_of(path), format, merged(path))
    if not is_ordered(path):
        trace.notes.append(UNORDERED)
    return trace
