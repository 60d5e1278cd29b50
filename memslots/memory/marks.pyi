from memslots.memslots import Memslots
from memslots.values.records import DirtyRun

def take_runs(vm: Memslots, logs: list[object]) -> list[DirtyRun]:
    """What Memslots.take_dirty_runs does; what was taken is in `logs`, for return_marks."""

def return_marks(vm: Memslots, logs: list[object]) -> None:
    """Mark again what take_runs took, in the slots that it was taken from."""
