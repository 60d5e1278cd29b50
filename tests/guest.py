"""Helpers for the tests of guest memory."""

from __future__ import annotations

import random

from model import pages_of

from memslots import (
    Backing,
    Flags,
    GuestMemory,
    Memslots,
)

PAGE = 0x1000
LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
LONG = (256 << 10) + 1  # bytes: a copy that releases the GIL
TOP = 1 << 64


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def filled(pages: int, seed: int = 1) -> Backing:
    backing = Backing.anonymous(pages * PAGE)
    memoryview(backing)[:] = pattern(pages * PAGE, seed)
    return backing


def dirty(vm: Memslots, id: int, as_id: int = 0) -> set[int]:
    return pages_of(vm.get_dirty_log(id, as_id))


def known(mem: GuestMemory) -> list[Backing]:
    return list(mem.backings)
