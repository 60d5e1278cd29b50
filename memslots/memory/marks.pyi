from collections.abc import Callable
from typing import TypeVar

from memslots.dirty.runs import DirtyRun
from memslots.memslots import Memslots

_T = TypeVar("_T")

def without_changes(vm: Memslots, work: Callable[[], _T]) -> _T:
    """Returns what work() returns; nobody changes the slots meanwhile, and others wait."""

def take_runs(vm: Memslots, logs: list[object]) -> list[DirtyRun]:
    """What Memslots.take_dirty_runs does; what was taken is in `logs`, for return_marks."""

def return_marks(vm: Memslots, logs: list[object]) -> None:
    """Mark again what take_runs took, in the slots that it was taken from."""
