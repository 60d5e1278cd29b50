"""Reading the files of `strace -ff -o NAME`: one file NAME.TID for each thread of one trace."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from heapq import merge
from pathlib import Path

from memslots.traces.clock import EPOCH_FROM
from memslots.traces.source import Source
from memslots.traces.strace import HEAD

UNORDERED = (
    "the files of the threads have no times finer than a second (-ttt), so the order of different"
    " threads' calls is not known: files without times were read one after the other"
)
_NAME = re.compile(r"(.+)\.(\d{1,10})")
#: The time that strace prints first with -ttt, -tt and -t.
_TIME = re.compile(rb"(\d{9,20}(?:\.\d{1,9})?|\d\d:\d\d:\d\d(?:\.\d{1,9})?) ")


def grouped(paths: Iterable[str]) -> list[list[str]]:
    """Groups files that are one trace, in the order of each group's first file.

    Every other file is a group of its own.
    """
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
    """Merges the files of several threads by time, with the thread's id before each line.

    Without times the files follow one another. strace-log-merge does the same.
    """
    files = [_lines(path) for path in sorted(paths, key=_tid)]
    return io.BytesIO(b"".join(line for _, line in merge(*files, key=lambda each: each[0])))


def is_ordered(paths: Iterable[str]) -> bool:
    """Returns whether the first lines of all files have the times by which `merged` orders them."""
    return all(b"." in _lines(path)[0][0] for path in paths)


def _tid(path: str) -> int:
    found = _NAME.fullmatch(path)
    assert found is not None
    return int(found[2])


def _is_thread(path: str) -> bool:
    """Returns whether a file begins like strace's output for one thread, without a pid."""
    try:
        if not Path(path).is_file() or not Path(path).stat().st_size:
            return False
        with Source(path) as source:
            head = next(source.blocks(), b"")
    except OSError:
        return False  # reading the trace later reports the error
    found = HEAD.match(head.partition(b"\n")[0].decode("ascii", "replace"))
    # Without a time a number in front is a pid: the file has several threads.
    return found is not None and not found["pid"] and int(found["bare"] or EPOCH_FROM) >= EPOCH_FROM


def _lines(path: str) -> list[tuple[bytes, bytes]]:
    """Returns (time, line with the thread's id before it) for each line.

    A line without a time has the time of the line before.
    """
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
