"""Ordering the events of a trace so that each task starts before it does anything.

strace prints a clone's result when the clone returns in the parent. The child may run earlier, so
all events must be known before the first of them is replayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from operator import itemgetter

from memslots.traces.events import Event, TaskEnded, TaskStarted
from memslots.traces.spool import Spool


class BirthsFirst:
    """The events of a trace, with each TaskStarted before its child's events.

    Takes a bounded amount of memory, and some for each task. The constructor reads all of `events`.
    It raises what they raise, and OSError if the temporary file of a long trace cannot hold them.
    Iterate any number of times, one after another. `close` deletes the temporary file.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = Spool()
        #: Each with the place that it comes before.
        self._births: list[tuple[int, TaskStarted]] = []
        try:
            self._read(events)
        except BaseException:
            self.close()
            raise
        self._births.sort(key=itemgetter(0))

    def __enter__(self) -> BirthsFirst:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forgets the events."""
        self._events.close()
        self._births = []

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        births = deque(self._births)
        for place, event in enumerate(self._events):
            while births and births[0][0] <= place:
                yield births.popleft()[1]
            if not isinstance(event, TaskStarted):
                yield event

    def _read(self, events: Iterable[Event]) -> None:
        first_seen: dict[int | None, int] = {}  # since the last end of that tid
        born: set[int | None] = set()  # tasks with a TaskStarted, until they end
        last_seen: dict[int | None, int] = {}
        unborn: dict[int | None, int] = {}  # first places of tasks that ended without a TaskStarted
        for place, event in enumerate(events):
            self._events.add(event)
            if isinstance(event, TaskStarted):
                first = unborn.pop(event.child, -1)
                if first > last_seen.get(event.parent, -1) and event.child not in first_seen:
                    before = first  # the parent waited in vfork until the child had ended
                else:
                    before = first_seen.setdefault(event.child, place)
                    born.add(event.child)
                self._births.append((before, event))
                first_seen.setdefault(event.parent, place)
                last_seen[event.parent] = place
            else:
                first_seen.setdefault(event.tid, place)
                last_seen[event.tid] = place
                if isinstance(event, TaskEnded) and not event.by_exec:
                    first = first_seen.pop(event.tid)
                    if event.tid in born:
                        born.remove(event.tid)
                    else:
                        unborn[event.tid] = first
