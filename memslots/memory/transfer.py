"""Transfers between guest memory and descriptors without a copy, and control of host pages."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

from memslots.errors import InvalidRegionError
from memslots.memory.backing import Backing, address_of
from memslots.values.integers import PAGE_SIZE, field

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory

_MOST_VIEWS = 1024  # views for one call of readv or writev
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_MADV_REMOVE = 9
_MADV_POPULATE_WRITE = 23
_MADV_POPULATE_READ = 22


def write_from(memory: GuestMemory, fd: int, gpa: int, n: int, offset: SupportsIndex | None) -> int:
    """Implements GuestMemory.write_from."""
    at = _checked(offset)
    views = memory.views(gpa, n, write=True)
    done = 0
    try:
        while views:
            some = views[:_MOST_VIEWS]
            count = os.readv(fd, some) if at is None else os.preadv(fd, some, at + done)
            if count == 0:
                break
            done += count
            views = _rest(views, count)
    except BaseException:
        # A signal handler may raise as a read returns: then it is not known what was written.
        memory.mark_dirty(gpa, n)
        raise
    memory.mark_dirty(gpa, done)
    return done


def read_into(memory: GuestMemory, fd: int, gpa: int, n: int, offset: SupportsIndex | None) -> int:
    """Implements GuestMemory.read_into."""
    at = _checked(offset)
    views = memory.views(gpa, n)
    done = 0
    while views:
        some = views[:_MOST_VIEWS]
        count = os.writev(fd, some) if at is None else os.pwritev(fd, some, at + done)
        done += count
        views = _rest(views, count)
    return done


def _checked(offset: SupportsIndex | None) -> int | None:
    return None if offset is None else field(offset, "offset", 63)


def _rest(views: list[memoryview], count: int) -> list[memoryview]:
    """Returns the rest of the views after the first `count` bytes."""
    first = 0
    while first < len(views) and count >= len(views[first]):
        count -= len(views[first])
        first += 1
    left = views[first:]
    if count:
        left[0] = left[0][count:]
    return left


def _backing_of(memory: GuestMemory, hva: int) -> Backing:
    backings = memory.backings
    return backings[bisect_right([backing.hva for backing in backings], hva) - 1]


def file_of(memory: GuestMemory, gpa: int, n: int) -> tuple[int, int]:
    """Implements GuestMemory.file_of."""
    hva = address_of(memory.view(gpa, n))
    backing = _backing_of(memory, hva)
    return backing.fileno(), hva - backing.hva


def discard(memory: GuestMemory, gpa: int, n: int) -> None:
    """Implements GuestMemory.discard."""
    views = memory.views(gpa, n, write=True)
    try:
        at = index(gpa)
        for view in views:
            _discard(memory, at, view)
            at += len(view)
    finally:
        memory.mark_dirty(gpa, n)


def _discard(memory: GuestMemory, gpa: int, view: memoryview) -> None:
    """Gives whole pages back to the host if the memory allows it, and zeroes the rest."""
    begin, size = address_of(view), len(view)
    backing = _backing_of(memory, begin)
    first = -begin % PAGE_SIZE
    last = max(first, size - (begin + size) % PAGE_SIZE)
    advice = {"anonymous": mmap.MADV_DONTNEED, "memfd": _MADV_REMOVE}.get(backing.kind)
    if advice is None or last == first or _madvise(begin + first, last - first, advice):
        memory.fill(gpa, size)
    else:
        memory.fill(gpa, first)
        memory.fill(gpa + last, size - last)


def prefault(memory: GuestMemory, gpa: int, n: int, write: bool) -> None:
    """Implements GuestMemory.prefault."""
    for view in memory.views(gpa, n, write=write):
        begin = address_of(view)
        start = begin & -PAGE_SIZE
        size = begin + len(view) - start
        size += -size % PAGE_SIZE
        advice = _MADV_POPULATE_WRITE if write else _MADV_POPULATE_READ
        if _madvise(start, size, advice):
            code = ctypes.get_errno()
            if code != errno.EINVAL:  # kernels before 5.14 do not know the advice: EINVAL
                raise OSError(code, os.strerror(code))
            for at in range(0, len(view), PAGE_SIZE):
                if write:
                    view[at] = view[at]
                else:
                    _ = view[at]


@contextmanager
def writing(memory: GuestMemory, gpa: int, n: int) -> Iterator[memoryview]:
    """Implements GuestMemory.writing."""
    memory.views(gpa, n, write=True)  # raises
    view = memory.view(gpa, n)
    try:
        yield view
    finally:
        memory.mark_dirty(gpa, n)


def array(memory: GuestMemory, gpa: int, dtype: object, n: int) -> object:
    """Implements GuestMemory.array."""
    import numpy as np

    kind = np.dtype(dtype)  # type: ignore[call-overload]
    if kind.hasobject:
        raise InvalidRegionError(errno.EINVAL, f"guest memory cannot hold Python objects: {kind}")
    count = field(n, "n", 64)
    if count == 0:
        return np.empty(0, kind)
    return np.frombuffer(memory.view(gpa, count * kind.itemsize), kind)
