"""Transfers between guest memory and descriptors without a copy, and control of host pages."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

from memslots.errors import InvalidRegionError
from memslots.memory.backing import Backing, address_of, place_in_file
from memslots.memory.written import Written
from memslots.values.integers import PAGE_SIZE, field

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory

_HUGE_PAGE = 2 << 20  # of Backing
_MOST_VIEWS = 1024  # views for one call of readv or writev
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_MADV_REMOVE = 9
_MADV_POPULATE_WRITE = 23
_MADV_POPULATE_READ = 22


def write_from(memory: GuestMemory, fd: int, gpa: int, n: int, offset: SupportsIndex | None) -> int:
    """Implements GuestMemory.write_from."""
    fd = _descriptor(fd)
    at, address, size = _checked(offset), field(gpa, "gpa", 64), field(n, "n", 64)
    written = Written(memory, address, size)
    views = written.views
    done = 0
    try:
        while views:
            some = views[:_MOST_VIEWS]
            try:
                count = os.readv(fd, some) if at is None else os.preadv(fd, some, at + done)
            except BlockingIOError:
                if not done:
                    raise
                break
            if count == 0:
                break
            done += count
            views = _rest(views, count)
        written.mark(done)
    except BaseException:
        # A signal handler may raise as a read returns, when nothing tells what was written, or in
        # the middle of the marks.
        written.mark(size)
        raise
    return done


def read_into(memory: GuestMemory, fd: int, gpa: int, n: int, offset: SupportsIndex | None) -> int:
    """Implements GuestMemory.read_into."""
    fd = _descriptor(fd)
    at = _checked(offset)
    views = memory.views(gpa, n)
    done = 0
    while views:
        some = views[:_MOST_VIEWS]
        try:
            count = os.writev(fd, some) if at is None else os.pwritev(fd, some, at + done)
        except BlockingIOError:
            if not done:
                raise
            break
        done += count
        views = _rest(views, count)
    return done


def _descriptor(fd: SupportsIndex) -> int:
    try:
        return index(fd)
    except TypeError:
        raise TypeError(f"fd must be an integer, not {type(fd).__name__!r}") from None


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


def _backing_of(view: memoryview) -> Backing:
    assert isinstance(view.obj, Backing)
    return view.obj


def file_of(memory: GuestMemory, gpa: int, n: int) -> tuple[int, int]:
    """Implements GuestMemory.file_of."""
    size = field(n, "n", 64)
    if size == 0:
        raise ValueError("0 bytes are in no file")
    view = memory.view(gpa, size)
    return place_in_file(_backing_of(view), address_of(view))


def discard(memory: GuestMemory, gpa: int, n: int) -> None:
    """Implements GuestMemory.discard."""
    at, size = field(gpa, "gpa", 64), field(n, "n", 64)
    written = Written(memory, at, size)
    try:
        for view in written.views:
            _discard(memory, at, view)
            at += len(view)
        written.mark(size)
    except BaseException:
        written.mark(size)  # again, if a signal handler raised in the middle of the marks
        raise


def _discard(memory: GuestMemory, gpa: int, view: memoryview) -> None:
    """Gives whole pages back to the host if the memory allows it, and zeroes the rest."""
    begin, size = address_of(view), len(view)
    page = _page_size(_backing_of(view))
    first = -begin % page
    last = max(first, size - (begin + size) % page)
    kind = _backing_of(view).kind
    advice = {"anonymous": mmap.MADV_DONTNEED, "memfd": _MADV_REMOVE}.get(kind)
    if advice is None or last == first or _madvise(begin + first, last - first, advice):
        memory.fill(gpa, size)
    else:
        memory.fill(gpa, first)
        memory.fill(gpa + last, size - last)


def _page_size(backing: Backing) -> int:
    """Returns the size of the pages that the memory surely consists of.

    Of huge pages, the kernel rounds a range up or down, by version, and says nothing.
    """
    return _HUGE_PAGE if backing.huge_pages == "hugetlb" else PAGE_SIZE


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
            # The first byte, and the first of each page after it.
            for at in (0, *range(start + PAGE_SIZE - begin, len(view), PAGE_SIZE)):
                if write:
                    view[at] = view[at]
                else:
                    _ = view[at]


@contextmanager
def writing(memory: GuestMemory, gpa: int, n: int) -> Iterator[memoryview]:
    """Implements GuestMemory.writing."""
    address, size = field(gpa, "gpa", 64), field(n, "n", 64)
    written = Written(memory, address, size)
    while len(written.views) > 1:
        memory.view(address, size)  # raises, unless the slots were merged meanwhile
        written = Written(memory, address, size)
    try:
        yield written.views[0] if written.views else memoryview(bytearray())
        written.mark(size)
    except BaseException:
        written.mark(size)  # again, if a signal handler raised in the middle of the marks
        raise


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
