"""The mappings of this process, read from /proc/self/maps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

#: The name of shared anonymous memory. No file is behind it that anybody could make shorter.
_SHARED_ANONYMOUS = "/dev/zero (deleted)"


class Mapping(NamedTuple):
    """The file, if any, behind a run of host memory."""

    may_fault: bool
    """Whether pages may go away, or may never come, because the memory is of a file."""
    device: int
    inode: int
    """Of the file; 0: there is no file, or it is unknown."""
    offset: int
    """The file offset of the first byte."""


#: The answer if the mappings cannot be read, or do not cover the memory.
UNKNOWN = Mapping(True, 0, 0, 0)


def mapping_of(hva: int, size: int) -> Mapping:
    """Returns what is behind `size` bytes from `hva` on."""
    found: list[Mapping] = []
    at = hva
    try:
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as file:
            for line in file:  # the kernel writes a part at a time: the rest costs nothing
                span, _, offset, device, inode, *name = line.split(None, 5)
                start, end = (int(part, 16) for part in span.split("-"))
                if end <= at:
                    continue
                if start > at:
                    break
                major, minor = (int(part, 16) for part in device.split(":"))
                of_file = int(inode) != 0 and not (
                    name and name[0].rstrip("\n") == _SHARED_ANONYMOUS
                )
                place = int(offset, 16) + at - start
                found.append(Mapping(of_file, major << 32 | minor, int(inode), place))
                at = end
                if at >= hva + size:
                    break
    except OSError:
        return UNKNOWN
    if at < hva + size:
        return UNKNOWN
    return found[0] if len(found) == 1 else UNKNOWN._replace(may_fault=any(m[0] for m in found))
