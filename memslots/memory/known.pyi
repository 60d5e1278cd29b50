from collections.abc import Callable
from typing import TypeVar, final

from memslots.dirty.runs import DirtyRun
from memslots.memslots import Memslots
from memslots.values.records import Change, Slot

_T = TypeVar("_T")

@final
class Backings:
    """Knows which host memory may be touched. It listens to the changes of its Memslots."""

    def __new__(cls, vm: Memslots) -> Backings: ...
    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        """Forgets Backings that a DELETE leaves without slots. The Memslots calls it."""

def without_changes(vm: Memslots, work: Callable[[], _T]) -> _T:
    """Returns what work() returns. Nobody changes the slots meanwhile: other threads wait."""

def take_runs(vm: Memslots, logs: list[object]) -> list[DirtyRun]:
    """Does what Memslots.take_dirty_runs does. `logs` gets the marks, for return_logs."""
