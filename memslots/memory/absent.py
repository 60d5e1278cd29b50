"""Finds pages of host memory that were never touched: they are zeros and need not be read."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from memslots.memory.backing import Backing

_ENTRY = 8  # bytes of /proc/self/pagemap for each page
# Bit 7 of an entry's last byte: the page is in memory. Bit 6: it is swapped out.
_THERE = bytes(bool(byte & 0xC0) for byte in range(256))


def pages_there(backing: Backing, hva: int, size: int) -> bytes | None:
    """Returns one byte a page, 0 if the page was never touched, or None if this is unknown."""
    if backing.huge_pages == "hugetlb":
        return None
    try:
        if backing.kind == "anonymous":
            return _by_pagemap(hva, size)
        if backing.kind == "memfd":
            return _by_holes(backing.fileno(), hva - backing.hva, size)
    except OSError:
        pass
    return None


def _by_pagemap(hva: int, size: int) -> bytes | None:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        wanted = _ENTRY * (size >> PAGE_SHIFT)
        entries = os.pread(fd, wanted, _ENTRY * (hva >> PAGE_SHIFT))
    finally:
        os.close(fd)
    return entries[_ENTRY - 1 :: _ENTRY].translate(_THERE) if len(entries) == wanted else None


def _by_holes(fd: int, offset: int, size: int) -> bytes:
    """Finds the pages for which the file has data. The holes of a file read as zeros."""
    there = bytearray(size >> PAGE_SHIFT)
    at, end = offset, offset + size
    # A new descriptor has its own file offset; other code may use the offset of the old one.
    fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while at < end:
            try:
                first = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # no data from here on
                raise
            if first >= end:
                break
            at = min(os.lseek(fd, first, os.SEEK_HOLE), end)
            begin, stop = (first - offset) // PAGE_SIZE, -(-(at - offset) // PAGE_SIZE)
            there[begin:stop] = b"\1" * (stop - begin)
    finally:
        os.close(fd)
    return bytes(there)
