"""Runs a call in the middle of other code, as another thread or a signal handler would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class AtLine:
    """A context manager. Within it, `call` runs before line `number` of the given functions.

    Lines are counted from 1 on, in the order in which this thread executes them. `lines` is their
    number so far: if it is below `number`, `call` did not run.
    """

    def __init__(
        self, number: int, call: Callable[[], object], *functions: Callable[..., Any]
    ) -> None:
        self.lines = 0
        self._number = number
        self._call = call
        self._codes = {function.__code__ for function in functions}

    def __enter__(self) -> AtLine:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code not in self._codes:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._number:
                self._call()
        return self._trace
