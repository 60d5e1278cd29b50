"""What `strace -ff -o NAME` writes: a file for each thread, NAME.TID, all of one trace."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from heapq import merge
from pathlib import Path

from memslots.traces.source import Source

_NAME = re.compile(r"(.+)\.(\d{1,10})")
#: The times that strace puts first with -ttt, -tt and -t.
_TIME = re.compile(rb"(\d{1,20}\.\d{1,9}|\d\d:\d\d:\d\d(?:\.\d{1,9})?) ")
_STRACE = re.compile(rb"(?:\S+ )?(?:[a-z_0-9]+\(|\+\+\+ |--- )")


def grouped(paths: Iterable[str]) -> list[list[str]]:
    """Files that are one trace, together, in the order of the first of each; others alone."""
    groups: list[list[str]] = []
    threads: dict[str, list[str]] = {}
    for path in paths:
        found = _NAME.fullmatch(path)
        together = threads.get(found[1]) if found else None
        if together is not None and path not in together and _is_thread(path):
            together.append(path)
            continue
        groups.append([path])
        if found and _is_thread(path):
            threads.setdefault(found[1], groups[-1])
    return groups


def merged(paths: Sequence[str]) -> io.BytesIO:
    """One trace of several threads' files: each line with its thread, by time.

    Without times the files come one after the other. What strace-log-merge does.
    """
    files = [_lines(path) for path in sorted(paths, key=_tid)]
    return io.BytesIO(b"".join(line for _, line in merge(*files, key=lambda each: each[0])))


def _tid(path: str) -> int:
    found = _NAME.fullmatch(path)
    assert found is not None
    return int(found[2])


def _is_thread(path: str) -> bool:
    """Whether it begins as strace's output for one thread, without its number on each line."""
    try:
        if not Path(path).is_file() or not Path(path).stat().st_size:
            return False
        with Source(path) as source:
            head = next(source.blocks(), b"")
    except OSError:
        return False  # who reads it says so
    return _STRACE.match(head) is not None


def _lines(path: str) -> list[tuple[bytes, bytes]]:
    """(time, line with the thread before it); a line without a time has that before."""
    with Source(path) as source:
        content = b"".join(source.blocks())
    tid = str(_tid(path)).encode()
    time = b""
    found = []
    for line in content.splitlines():
        if begun := _TIME.match(line):
            time = begun[1]
        found.append((time, tid + b" " + line + b"\n"))
    return found
