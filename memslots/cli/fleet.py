"""Replaying inputs on a dask cluster: a task for each input.

The workers read the files, so each worker must see them under the same names, and have memslots
installed. dask repeats the task of a worker that died on another worker, until the task was on four
workers that died (dask's `distributed.scheduler.allowed-failures` plus one). Then the input is
reported as one that cannot be used. So are all inputs that are left when the cluster has had no
worker for PATIENCE seconds, or when its scheduler is gone. Nothing waits forever.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from memslots.cli.replaying import Input, name_of, replayed_quietly
from memslots.replay import Report
from memslots.traces import Format, TraceError

# distributed.Client and distributed.Future. Without the extra `fleet` there are no types of them.
Client: TypeAlias = Any
Future: TypeAlias = Any

DASK_MISSING = "--dask needs dask: pip install 'memslots[fleet]'"
#: Seconds until the scheduler must have answered.
CONNECTING = 30.0
#: Seconds without a worker after which the inputs that are left are given up.
PATIENCE = 60.0
#: Seconds between two looks at the results.
_STEP = 0.05
#: Seconds between two questions to the scheduler about its workers.
_BETWEEN = 1.0


class ClusterError(Exception):
    """The cluster cannot be used; the message says why."""


def connected(address: str) -> Client:
    """Returns a client of the scheduler at `address`, or raises ClusterError."""
    try:
        distributed = import_module("distributed")
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("dask", "distributed"):
            raise
        raise ClusterError(DASK_MISSING) from None
    try:
        # A Client that is given no address prints a traceback when it is freed.
        import_module("distributed.comm").get_address_host_port(address)
        client: Client = distributed.Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        reason = str(error) or type(error).__name__
        raise ClusterError(f"no dask scheduler at {address}: {reason}") from None
    return client


def replayed_on(
    client: Client, paths: Sequence[Input], format: Format
) -> Iterator[Report | TraceError]:
    """Replays on the cluster of `client`, and closes the client.

    Yields in the order of `paths`. A result is yielded as soon as all before it are there.
    """
    as_completed = import_module("distributed").as_completed
    with client:
        directory = str(Path.cwd())
        submitted: list[Future] = [
            # The same file may have other contents later: no result of an earlier call is taken.
            client.submit(replayed_at, path, format, directory, pure=False)
            for path in paths
        ]
        place = {future.key: number for number, future in enumerate(submitted)}
        done: dict[int, Report | TraceError] = {}
        completed = as_completed(submitted, loop=client.loop)
        watch = _Watch(client)
        for number, path in enumerate(paths):
            while number not in done:
                for future in completed.next_batch(block=False):
                    at = place[future.key]
                    done[at] = _result(future, paths[at])
                    future.release()
                if number in done:
                    break
                if reason := watch.lost():
                    done[number] = TraceError(name_of(path), reason, errno=errno.EIO)
                else:
                    time.sleep(_STEP)
            yield done.pop(number)


def replayed_at(path: Input, format: Format, directory: str) -> Report | TraceError:
    """Replays an input on a worker. Its name is relative to `directory`."""
    names = [path] if isinstance(path, str) else path
    absolute = [str(Path(directory, name)) for name in names]
    result = replayed_quietly(absolute[0] if isinstance(path, str) else absolute, format)
    if isinstance(result, TraceError):
        return TraceError(name_of(path), result.reason, result.line, result.errno or errno.EINVAL)
    result.name = name_of(path)
    return result


class _Watch:
    """Notices that a cluster will finish no more tasks."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looked = self._alive = time.monotonic()

    def lost(self) -> str:
        """Returns why no more tasks will finish, or an empty string. Asks once a second at most."""
        if self._client.status == "closed":
            return "the dask scheduler is gone"
        now = time.monotonic()
        if now - self._looked < _BETWEEN:
            return ""
        self._looked = now
        try:
            if self._client.scheduler_info().get("workers"):
                self._alive = now
        except OSError:  # the connection is lost; the client connects again, or closes
            pass
        if now - self._alive > PATIENCE:
            return f"the dask cluster has had no worker for {PATIENCE:g} seconds"
        return ""


def _result(future: Future, path: Input) -> Report | TraceError:
    """Returns the result of a finished task. An error of the task is one of its input."""
    if future.status == "finished":
        result: Report | TraceError = future.result()
        return result
    error = future.exception() if future.status == "error" else None
    reason = "its task on the dask cluster "
    if error is None:
        reason += f"was {future.status}"
    elif type(error).__name__ == "KilledWorker":
        died = error.allowed_failures + 1
        reason += f"was on {died} worker{'s' if died > 1 else ''} that died"
    else:
        reason += f"failed: {type(error).__name__}: {error}"
    return TraceError(name_of(path), reason, errno=errno.EIO)
