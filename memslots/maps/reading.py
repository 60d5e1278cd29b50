"""Finding the format of an input, and reading its maps.

The tables below list the formats in the order in which they are tried. Formats with a magic number
come first, and formats whose lines may be in any log come last.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import struct
from typing import BinaryIO, Protocol

from memslots.errors import InvalidRegionError, TraceError
from memslots.maps.binary import maps_of
from memslots.maps.documents import Json, map_of
from memslots.maps.entries import Map
from memslots.maps.firmware import Efi, Ram, Smap
from memslots.maps.mtree import FlatViews, Tree
from memslots.maps.procmaps import ProcMaps
from memslots.maps.ramblock import RamBlocks
from memslots.maps.text import E820, Csv, Iomem, Memmap
from memslots.maps.vmmlogs import CloudHypervisor, Dosemu, Libkrun, Syzkaller, Unidbg
from memslots.memory.dumpfiles import READERS, REFUSED
from memslots.replay import replay
from memslots.traces import NO_TRACE, open_trace
from memslots.traces.source import Source
from memslots.traces.wrapping import Wrapping

#: A text is read whole, up to about this many bytes. Only traces are longer; they are read in
#: blocks.
_MOST_TEXT = 256 << 20
_HEAD = 1 << 12
_LOOKED_AT = 1 << 20  # bytes of a text in which a format is looked for, before it is a trace
#: A memslot call of a trace, but not of a syzkaller program.
_TRACE = re.compile(r"kvm_set_user_memory\b|(?<!ioctl\$)KVM_SET_USER_MEMORY_REGION")
#: The beginning of QMP's answer to a command that prints text.
_ANSWER = re.compile(r"\s*\{\s*\"return\"\s*:\s*\"")


class _Text(Protocol):
    name: str

    def recognises(self, text: str) -> bool: ...
    def read(self, text: str) -> list[Map]: ...


_TEXTS: tuple[_Text, ...] = (
    Json(),
    FlatViews(),
    Tree(),
    Syzkaller(),
    CloudHypervisor(),
    Dosemu(),
    Unidbg(),
    Libkrun(),
    E820(),
    Efi(),
    Smap(),
    Csv(),
    Memmap(),
    Iomem(),
    Ram(),
    RamBlocks(),
    ProcMaps(),
)
#: Inputs that are recognised to be refused with a reason.
_REFUSED = (*REFUSED, "ramblock", "proc-maps")
_NAMES = (*(one.name for one in READERS), *(one.name for one in _TEXTS), "trace")
#: The names of all formats of maps, in the order in which they are tried.
FORMATS = tuple(name for name in _NAMES if name not in _REFUSED)


def read(
    path: str | os.PathLike[str], format: str = "auto", stream: BinaryIO | None = None
) -> list[Map]:
    """Returns the maps of guest memory in a file of any known format.

    Parameters
    ----------
    path : str or path
        A file; ``-`` is standard input. Texts may be compressed (gzip, xz), quoted, or in a log.
    format : str
        A name of memslots.maps.FORMATS; "auto" looks at the content.
    stream : binary file, optional
        A stream to read instead of the file; `path` is then its name.

    Returns
    -------
    list of Map
        For a trace, one map for each VM and address space that has slots.

    Raises
    ------
    TraceError
        The input cannot be read, or is in none of the formats.
    ValueError
        There is no such format.
    """
    if format not in ("auto", *_NAMES):
        raise ValueError(f"format must be auto or one of {', '.join(FORMATS)}, not {format!r}")
    name = os.fspath(path)
    with contextlib.ExitStack() as opened:
        if stream is None:
            source = opened.enter_context(Source(path))
            stream = source.stream  # a FIFO can be opened only once
            if name == "-" or not stream.seekable():
                stream = io.BytesIO(b"".join(source.blocks()))
        seekable = stream if stream.seekable() else io.BytesIO(stream.read())
        return _read(name, seekable, format)


def recognised(name: str, file: BinaryIO) -> str:
    """Returns the format of a file that is open at its beginning, and seeks back to there."""
    head = file.read(_HEAD)
    file.seek(0)
    for reader in READERS:
        if head.startswith(reader.magic):
            return reader.name
    text = text_of(name, file, _LOOKED_AT)
    file.seek(0)
    if not _TRACE.search(text):
        for one in _TEXTS:
            if one.recognises(text):
                return one.name
    return "trace"


def _read(name: str, file: BinaryIO, format: str) -> list[Map]:
    if format == "auto":
        format = recognised(name, file)
    try:
        for reader in READERS:
            if format == reader.name:
                return _some(maps_of(reader, file))
        for one in _TEXTS:
            if format == one.name:
                return _some(one.read(text_of(name, file)))
    except InvalidRegionError as error:
        raise TraceError(name, error.strerror or str(error)) from None
    except (ValueError, KeyError, OverflowError, RecursionError, struct.error) as error:
        raise TraceError(name, str(error)) from None
    return _of_trace(name, file)


def _some(maps: list[Map]) -> list[Map]:
    found = [one for one in maps if one.entries]
    if not found:
        raise ValueError("it has no entries, so no map")
    return found


def text_of(name: str, file: BinaryIO | None, most: int = _MOST_TEXT) -> str:
    """Returns at least the first `most` bytes of a text, without the wrapping of its lines."""
    with Source(name, file) as source:
        parts = []
        size = 0
        for block in source.text():
            parts.append(block)
            size += len(block)
            if size >= most:
                break
    text = Wrapping().taken_off(b"".join(parts)).decode("utf-8", "replace")
    return _answer(text) if _ANSWER.match(text) else text


def _answer(text: str) -> str:
    """Returns the text in QMP's answer to human-monitor-command, or the whole text."""
    try:
        document, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return text
    answer = document["return"]
    return answer if isinstance(answer, str) else text


def unrecognised(error: TraceError) -> TraceError:
    """Returns the error that a trace gave, with the formats of maps if the file is no trace."""
    if not error.reason.startswith(NO_TRACE):
        return error
    known = ", ".join(FORMATS[:-1])
    reason = f"it is in no known format ({known}), and {error.reason}"
    return TraceError(error.name, reason, None, errno.EINVAL)


def _of_trace(name: str, file: BinaryIO) -> list[Map]:
    try:
        with open_trace(name, "auto", file) as trace:
            report = replay(trace)
    except TraceError as error:
        raise unrecognised(error) from None
    maps = [
        map_of(vm.memslots.map(as_id), "trace")
        for vm in report.vms
        for as_id in range(vm.memslots.address_spaces)
    ]
    return [one for one in maps if one.entries] or maps[:1]
