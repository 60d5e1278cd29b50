"""Storing the events of a trace: memory for the first ones, a temporary file for all others."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter
from typing import IO, Any

from memslots.traces.events import Event, RegionCall

#: Events that stay in memory, some 80 MB.
IN_MEMORY = 1 << 18
#: Events that are written at a time.
_CHUNK = 4096

# Pickling a dataclass takes four times the time of pickling a tuple.
_fields = attrgetter(*(each.name for each in fields(RegionCall)))


class Spool:
    """The events that were added, in that order.

    Iterate any number of times, one after another. `close` deletes the temporary file.
    """

    def __init__(self) -> None:
        self._first: list[Event] = []
        self._next: list[Event] = []  # these wait to be written
        self._written = 0  # events in the file
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._first) + self._written + len(self._next)

    def add(self, event: Event) -> None:
        """Adds an event at the end. Raises OSError if the temporary file cannot hold it."""
        if len(self._first) < IN_MEMORY:
            self._first.append(event)
            return
        self._next.append(event)
        if len(self._next) == _CHUNK:
            self._write()

    def __iter__(self) -> Iterator[Event]:
        yield from self._first
        if self._file is not None:
            self._file.seek(0)
            left = self._written
            while left:
                chunk = pickle.load(self._file)
                left -= len(chunk)
                for each in chunk:
                    yield RegionCall(*each) if type(each) is tuple else each
        yield from self._next

    def close(self) -> None:
        """Forgets the events, and deletes the temporary file."""
        self._first, self._next, self._written = [], [], 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        if self._file is None:
            import tempfile

            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        chunk: list[Any] = [
            _fields(event) if isinstance(event, RegionCall) else event for event in self._next
        ]
        self._file.seek(0, os.SEEK_END)
        pickle.dump(chunk, self._file, pickle.HIGHEST_PROTOCOL)
        self._file.flush()
        self._written += len(chunk)
        self._next = []
