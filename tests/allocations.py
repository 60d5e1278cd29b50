"""Makes the core's allocations fail, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def each_failure(alloc: Any, call: Callable[[], object], unharmed: Callable[[], None]) -> int:
    """Fails the first allocation of the call, then the second, … until the call succeeds.

    Returns the number of failures.
    """
    failed = 0
    while True:
        live = alloc.live()
        alloc.fail_nth(failed + 1)
        try:
            call()
        except MemoryError:
            failed += 1
        else:
            return failed
        finally:
            alloc.fail_nth(0)
        # Not earlier: the error keeps the objects of its frames.
        assert alloc.live() == live
        unharmed()
