from typing import NamedTuple

from memslots.read.reader import Reader

class DirtyRun(NamedTuple):
    """Guest pages [start_gfn, end_gfn) of an address space that were written."""

    as_id: int
    start_gfn: int
    end_gfn: int

def take_runs(vm: Reader, logs: list[object]) -> list[DirtyRun]:
    """Returns the runs of all slots' dirty logs. Takes the marks and stores them in `logs`."""

def return_logs(vm: Reader, logs: list[object]) -> None:
    """Marks again the pages that take_runs stored in `logs`."""
