from typing import NamedTuple

from memslots.read.reader import Reader

class DirtyRun(NamedTuple):
    """Guest pages [start_gfn, end_gfn) of an address space that were written."""

    as_id: int
    start_gfn: int
    end_gfn: int

def take_runs(vm: Reader, logs: list[object]) -> list[DirtyRun]:
    """The runs of all slots' dirty logs; their marks are taken, and put down in `logs`."""

def return_logs(vm: Reader, logs: list[object]) -> None:
    """Marks what take_runs put down in `logs` again."""
