"""What this process has mapped where, as /proc/self/maps tells it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

#: The name of memory that many can share and that has no file which anybody could make shorter.
_SHARED_ANONYMOUS = "/dev/zero (deleted)"


class Mapping(NamedTuple):
    """What is behind a run of host memory."""

    may_fault: bool
    """Whether pages may go away, or never come: of a file."""
    device: int
    inode: int
    """Of the file; 0: there is none, or it is not known which."""
    offset: int
    """Of the first byte in it."""


#: Where nobody tells.
UNKNOWN = Mapping(True, 0, 0, 0)


def mapping_of(hva: int, size: int) -> Mapping:
    """What is behind `size` bytes from `hva` on."""
    try:
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return UNKNOWN
    found: list[Mapping] = []
    at = hva
    for line in lines:
        span, _, offset, device, inode, *name = line.split(None, 5)
        start, end = (int(part, 16) for part in span.split("-"))
        if end <= at:
            continue
        if start > at:
            break
        major, minor = (int(part, 16) for part in device.split(":"))
        of_file = int(inode) != 0 and not (name and name[0].rstrip("\n") == _SHARED_ANONYMOUS)
        place = int(offset, 16) + at - start
        found.append(Mapping(of_file, major << 32 | minor, int(inode), place))
        at = end
        if at >= hva + size:
            break
    if at < hva + size:
        return UNKNOWN
    return found[0] if len(found) == 1 else UNKNOWN._replace(may_fault=any(m[0] for m in found))
