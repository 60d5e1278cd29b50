"""Benchmarks that anybody can repeat: what `memslots bench` runs.

`run` makes a `Report` of a `plan`. `Report.rows` compares this package with the array of Linux 5.16
in the tests by which Linux's series "Keep memslots in tree-based structures instead of array-based
ones" (5.17) showed its gain. `Report.against` compares it with structures that Python programs use
instead; `Report.absent` names those that are not installed.

There are no page tables, no TLB flushes and no guest. The figures time only the work of the data
structure, one call at a time, from Python.
"""

from memslots.bench.computer import Machine
from memslots.bench.rivals import AGAINST_SLOTS, CASES, RivalResult, RivalsResult
from memslots.bench.run import Plan, Report, plan, run
from memslots.bench.series import QUICK_SLOTS, SERIES_SLOTS, TESTS, Row
from memslots.bench.structures import STRUCTURES
from memslots.bench.timing import FULL, QUICK, Effort, Timing
from memslots.errors import WrongAnswerError

__all__ = [
    "AGAINST_SLOTS",
    "CASES",
    "FULL",
    "QUICK",
    "QUICK_SLOTS",
    "SERIES_SLOTS",
    "STRUCTURES",
    "TESTS",
    "Effort",
    "Machine",
    "Plan",
    "Report",
    "RivalResult",
    "RivalsResult",
    "Row",
    "Timing",
    "WrongAnswerError",
    "plan",
    "run",
]

# Pickles name a value by this module. It stays when the value's own module is moved.
for _value in (
    Effort,
    Machine,
    Plan,
    Report,
    RivalResult,
    RivalsResult,
    Row,
    Timing,
):
    _value.__module__ = __name__
del _value
