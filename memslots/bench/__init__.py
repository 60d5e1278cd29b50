"""Benchmarks that anybody can repeat: what `memslots bench` runs.

`rows` measures this package against the array of Linux 5.16, in the tests by which Linux's
series "Keep memslots in tree-based structures instead of array-based ones" (5.17) showed its gain;
`rivals` measures it against what Python programs use instead. Both give plain records, and need
nothing that is not in the standard library; a rival that is not installed is named in the result.

What the figures are not: there are no page tables, no TLB flushes and no guest. Only the work of
the data structure is done, one call at a time, from Python.
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
