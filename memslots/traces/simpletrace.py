"""Turns the file of QEMU's trace backend "simple" into the text that its simpletrace.py prints.

The file is a header of three 64-bit numbers, then records. A record is the name of an event number,
or an event with its time, process and arguments. Numbers have the byte order of the machine that
wrote them; this module reads little-endian numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEAD = b"\xff" * 8 + struct.pack("<Q", 0xF2B177CB0AA429B4)

_HEADER = struct.Struct("<QQQ")
_TYPE = struct.Struct("<Q")
_MAPPING = struct.Struct("<QI")
_EVENT = struct.Struct("<QQII")
_VERSION = 4  # earlier versions keep the names of events in another file
_DROPPED = (1 << 64) - 2
_MOST = 1 << 20  # longest record, in bytes
_NAME = "kvm_set_user_memory"
#: The names of the arguments, by their number: later versions of QEMU added some.
_ARGUMENTS = {
    6: ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "ret"),
    7: ("as", "slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "ret"),
    9: (
        *("as", "slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"),
        *("fd", "fd_offset", "ret"),
    ),
}


class _Cut(Exception):
    """The file ends within a record."""


class _Bytes:
    """Reads a given number of bytes at a time from a stream of blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = bytearray()
        self._at = 0

    def take(self, size: int, *, may_end: bool = False) -> bytes:
        """Returns the next `size` bytes; b"" at the end of the stream if `may_end`.

        Raises _Cut if the stream ends earlier.
        """
        while len(self._held) - self._at < size:
            block = next(self._blocks, b"")
            if not block:
                if may_end and len(self._held) == self._at:
                    return b""
                raise _Cut
            del self._held[: self._at]
            self._at = 0
            self._held += block
        self._at += size
        return bytes(self._held[self._at - size : self._at])


def text_of(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields a line for each event of a memory slot, and a line for what cannot be read."""
    stream = _Bytes(blocks)
    try:
        _, _, version = _HEADER.unpack(stream.take(_HEADER.size))
        if version != _VERSION:
            yield f"{_NAME}: a file of simpletrace version {version}\n".encode()
            return
        yield from _events(stream)
    except _Cut:
        yield f"{_NAME} cut off where the file ends\n".encode()


def _events(stream: _Bytes) -> Iterator[bytes]:
    names: dict[int, str] = {}
    last: int | None = None
    while True:
        kind = stream.take(_TYPE.size, may_end=True)
        if not kind:
            return
        if _TYPE.unpack(kind)[0] == 0:
            number, length = _MAPPING.unpack(stream.take(_MAPPING.size))
            names[number] = stream.take(min(length, _MOST)).decode("ascii", "replace")
            continue
        number, time, length, pid = _EVENT.unpack(stream.take(_EVENT.size))
        if not _EVENT.size <= length <= _MOST:
            yield f"{_NAME} in a record of {length} bytes\n".encode()
            return
        arguments = stream.take(length - _EVENT.size)
        if number == _DROPPED or names.get(number) != _NAME:
            continue
        passed = 0 if last is None else time - last
        last = time
        yield _line(passed, pid, arguments).encode()


def _line(passed: int, pid: int, arguments: bytes) -> str:
    count = len(arguments) // 8
    names = _ARGUMENTS.get(count)
    if names is None:
        return f"{_NAME} with {count} arguments\n"
    values = struct.unpack_from(f"<{count}Q", arguments)
    fields = " ".join(f"{name}={value:#x}" for name, value in zip(names, values, strict=True))
    return f"{_NAME} {passed // 1000}.{passed % 1000:03d} pid={pid} {fields}\n"
