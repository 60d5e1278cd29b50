from collections.abc import Callable
from typing import TypeVar

from memslots.dirty.runs import DirtyRun
from memslots.memslots import Memslots

_T = TypeVar("_T")

def without_changes(vm: Memslots, work: Callable[[], _T]) -> _T:
    """Returns what work() returns. Nobody changes the slots meanwhile: other threads wait."""

def take_runs(vm: Memslots, logs: list[object]) -> list[DirtyRun]:
    """Does what Memslots.take_dirty_runs does. `logs` gets the marks, for return_logs."""
