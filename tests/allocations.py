"""Makes allocations of the core, or of Python, fail one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any


def each_failure(alloc: Any, call: Callable[[], object], unharmed: Callable[[], None]) -> int:
    """Fails the first allocation of the call, then the second, … until the call succeeds.

    Returns the number of failures.
    """
    gc.collect()  # no garbage of earlier tests is freed while the allocations are counted
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


def python_failures(
    testcapi: Any, errors: type[Exception] | tuple[type[Exception], ...] = MemoryError
) -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Fails the first allocation of Python in a call, then the second, … until 20 calls succeed.

    They must succeed in a row: CPython survives some failed allocations. Yields a function for each
    allocation: given the call, it returns whether one of `errors` was raised. `testcapi` is
    CPython's own module _testcapi.
    """
    nth = in_a_row = 0

    def fails(call: Callable[[], object]) -> bool:
        nonlocal in_a_row
        testcapi.set_nomemory(nth, nth + 1)
        try:
            call()
        except errors:
            testcapi.remove_mem_hooks()
            in_a_row = 0
            return True
        finally:
            testcapi.remove_mem_hooks()
        in_a_row += 1
        return False

    while in_a_row < 20:
        yield fails
        nth += 1
