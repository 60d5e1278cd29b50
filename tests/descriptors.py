"""The descriptors that this process has open."""

from __future__ import annotations

import os


def descriptors() -> set[int]:
    """Returns the open descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd") if _is_open(int(name))}  # noqa: PTH208


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False  # the descriptor of the listing itself
    return True
