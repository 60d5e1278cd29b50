"""Replaying traces: makes each call on a Memslots and compares its result with the kernel's."""

from memslots.replay.costs import Cost, CostlyCall, Costs
from memslots.replay.replayer import (
    OUTSIDE,
    Disagreement,
    Replayer,
    Report,
    VmReport,
    errno_name,
    replay,
)

__all__ = [
    "OUTSIDE",
    "Cost",
    "CostlyCall",
    "Costs",
    "Disagreement",
    "Replayer",
    "Report",
    "VmReport",
    "errno_name",
    "replay",
]

# A pickle names each value by this module, so pickles stay readable if the value's module moves.
for _value in (
    Cost,
    CostlyCall,
    Costs,
    Disagreement,
    Report,
    VmReport,
):
    _value.__module__ = __name__
del _value
