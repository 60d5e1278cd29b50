"""A listener that records its calls and the changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memslots import (
    Change,
    Slot,
)

HVA = 0x7000_0000_0000
Act = Callable[..., object]


class Recorder:
    """Records its calls in `log`, and in each method does what `acts` has for it."""

    def __init__(self, log: list[tuple[Any, ...]], name: str = "", /, **acts: Act) -> None:
        self.log = log
        self.name = name
        self.acts = acts

    def _note(self, method: str, *args: object) -> None:
        self.log.append((self.name + method, *args))
        if method in self.acts:
            self.acts[method](*args)

    def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        self._note("prepare", change, old, new)

    def invalidate(self, slot: Slot) -> None:
        self._note("invalidate", slot)

    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        self._note("commit", change, old, new)


FRESH = Slot(2, 0, 0x30, 1, HVA)
