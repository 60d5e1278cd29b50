"""Replaying traces: each call is made on a Memslots, and its result compared with the kernel's."""

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
    "Disagreement",
    "Replayer",
    "Report",
    "VmReport",
    "errno_name",
    "replay",
]

# Pickles name a value by this module. It stays when the value's own module is moved.
for _value in (
    Disagreement,
    Report,
    VmReport,
):
    _value.__module__ = __name__
del _value
