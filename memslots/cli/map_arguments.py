"""Reading the maps that an argument of `memslots plan` or `memslots diff` names.

An argument is a file with a map in any format of memslots.maps, or a trace. A trace stands for its
map at the end, or after a line (`FILE:LINE`).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memslots import MemoryMap, MemslotError
from memslots.cli.output import complain
from memslots.cli.progress import Meter, metered
from memslots.maps import Map, read
from memslots.maps.entries import machines
from memslots.maps.reading import recognised, unrecognised
from memslots.read.document import map_of_document
from memslots.replay import replay
from memslots.traces import TraceError, open_trace
from memslots.traces.samples import SAMPLES
from memslots.traces.source import Source

#: The beginning of a map in JSON. No line of a trace begins like this.
_JSON = re.compile(rb"\s*(\{|\[\s*(\{|\]))")


@dataclass(frozen=True)
class Maps:
    """The maps of all address spaces, by number; `name` is the argument."""

    name: str
    spaces: Mapping[int, MemoryMap]

    def of(self, as_id: int) -> MemoryMap:
        """Returns the map of an address space; the map is empty if the space is not known."""
        return self.spaces.get(as_id) or MemoryMap(as_id=as_id)


def two_maps(first: str, second: str, vm: int) -> tuple[Maps, Maps] | None:
    """Returns the maps that the arguments name, or prints an error and returns None."""
    try:
        with metered("") as meter:
            return read_maps(first, vm, meter), read_maps(second, vm, meter)
    except TraceError as error:
        complain(error)
        return None


def read_maps(name: str, vm: int, meter: Meter) -> Maps:
    """Returns the maps that `name` names. `vm` is the number of the trace's VM, from 1.

    Raises TraceError if the file cannot be read or is no map.
    """
    path, until = _split(name)
    meter.doing(f"reading {name}")
    sample = path.removeprefix("sample:") if path.startswith("sample:") else None
    if sample is not None and sample not in SAMPLES:
        raise TraceError(name, f"there is no such sample; the samples are {', '.join(SAMPLES)}")
    if sample is None:
        stream = _stream(path)
        text = _json_text(path, stream)
        if text is not None:
            return _map_in_json(name, text, until)
        if stream is not None:
            stream.seek(0)
        found = _map_in_words(path, stream, until, vm)
        if found is not None:
            return Maps(name, found)
        if stream is not None:
            stream.seek(0)
        try:
            with open_trace(path, "auto", stream) as trace:
                trace.source.watch = meter.reading
                report = replay(trace, meter.replaying, until=until)
        except TraceError as error:
            raise unrecognised(error) from None
    else:
        with SAMPLES[sample].open() as sampled, open_trace(path, "auto", sampled) as trace:
            report = replay(trace, until=until)
    lines = report.counts.lines
    if until is not None and until > lines:
        raise TraceError(path, f"line {until} was asked for, but the trace ends at line {lines}")
    if not report.vms and vm == 1:
        return Maps(name, {})  # the trace has no call up to that line
    if not 1 <= vm <= len(report.vms):
        raise TraceError(name, f"there is no VM {vm}; the trace has {len(report.vms)}")
    memslots = report.vms[vm - 1].memslots
    return Maps(name, {k: memslots.map(k) for k in range(memslots.address_spaces)})


def _split(name: str) -> tuple[str, int | None]:
    """Returns the path, and the line after which to stop or None."""
    path, colon, line = name.rpartition(":")
    if colon and path and line.isascii() and line.isdigit() and mode_of(name) is None:
        return path, int(line)
    return name, None


def _stream(path: str) -> BinaryIO | None:
    """Returns the content of an input that can be read only once, else None."""
    if path == "-":
        return io.BytesIO(sys.stdin.buffer.read())
    mode = mode_of(path)
    if mode is None or stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return io.BytesIO(Path(path).read_bytes())


def mode_of(path: str) -> int | None:
    """Returns the mode of a file, or None if there is none or one may not look."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return None


def _json_text(path: str, stream: BinaryIO | None) -> bytes | None:
    """Returns the whole content of a file that begins like JSON, else None."""
    with Source(path, stream) as source:
        blocks = source.blocks()
        first = next(blocks, b"")
        return b"".join([first, *blocks]) if _JSON.match(first) else None


def _map_in_words(
    path: str, stream: BinaryIO | None, until: int | None, vm: int
) -> dict[int, MemoryMap] | None:
    """Returns the maps of a file in a format of memslots.maps, or None if it is a trace."""
    with contextlib.ExitStack() as files:
        if stream is None:
            with Source(path):  # raises TraceError if the file cannot be opened
                stream = files.enter_context(Path(path).open("rb"))
        format = recognised(path, stream)
        if format == "trace":
            return None
        if until is not None:
            raise TraceError(
                path, f"line {until} was asked for, but it is a map ({format}), not a trace"
            )
        maps = read(path, format, stream)
    found = machines(maps)
    if vm > len(found) > 1:
        raise TraceError(path, f"there is no VM {vm}; the file has the maps of {len(found)}")
    try:
        # A map alone may be compared with any VM of a trace.
        return _memory_maps(found[vm - 1 if len(found) > 1 else 0])
    except MemslotError as error:
        raise TraceError(path, error.strerror or str(error)) from None


def _memory_maps(maps: list[Map]) -> dict[int, MemoryMap]:
    return {one.as_id: one.memory_map() for one in maps}


def _map_in_json(name: str, text: bytes, until: int | None) -> Maps:
    if until is not None:
        raise TraceError(name, f"line {until} was asked for, but it is a map in JSON, not a trace")
    try:
        document = json.loads(text)
        # A document of `memslots replay --json` or `map --json`: the first VM of its first file.
        if isinstance(document, dict) and "files" in document:
            return Maps(name, _of_document(name, document, text))
        m = MemoryMap(*map_of_document(document))
    except (MemslotError, OverflowError, ValueError) as error:
        raise TraceError(name, getattr(error, "strerror", None) or str(error)) from None
    return Maps(name, {m.as_id: m})


def _of_document(name: str, document: dict[str, object], text: bytes) -> dict[int, MemoryMap]:
    try:
        slots = document["files"][0]["vms"][0]["final_map"]  # type: ignore[index]
        spaces = sorted({slot["as_id"] for slot in slots})
    except (AttributeError, LookupError, TypeError):
        raise ValueError("it is neither a map nor a document of `memslots replay --json`") from None
    if any(slot.get("userspace_addr") is None for slot in slots):
        # Its map tells no host addresses, as QEMU's info mtree does not.
        return _memory_maps(machines(read(name, "json", io.BytesIO(text)))[0])
    return {
        k: MemoryMap(map_of_document([slot for slot in slots if slot["as_id"] == k])[0], k)
        for k in spaces
    }
