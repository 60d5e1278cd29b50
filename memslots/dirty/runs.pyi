from typing import NamedTuple

from memslots.read.reader import Reader
from memslots.values.records import Slot

class DirtyRun(NamedTuple):
    """Guest pages [start_gfn, end_gfn) of an address space that were written."""

    as_id: int
    start_gfn: int
    end_gfn: int

def take_logs(vm: Reader, logs: list[object]) -> None:
    """Takes the marks of all slots' dirty logs, and stores them in `logs`."""

def take_runs(vm: Reader, logs: list[object]) -> list[DirtyRun]:
    """Returns the runs of all slots' dirty logs. Takes the marks and stores them in `logs`."""

def copy_pages(
    logs: list[object], places: dict[Slot, list[tuple[int, int, int, bool]]], guarded: bool
) -> int:
    """Copies the marked pages from copies of the memory. Returns their number. NotMappedError."""

def return_logs(vm: Reader, logs: list[object]) -> None:
    """Marks again the pages that take_runs stored in `logs`."""
