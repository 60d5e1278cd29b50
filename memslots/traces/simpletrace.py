"""The binary file of QEMU's trace backend "simple", as the text that its simpletrace.py prints.

A header of three 64-bit numbers, then records: names of events by number, and events with their
time, thread and arguments. Numbers are the machine's own; here they are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEAD = b"\xff" * 8 + struct.pack("<Q", 0xF2B177CB0AA429B4)

_HEADER = struct.Struct("<QQQ")
_TYPE = struct.Struct("<Q")
_MAPPING = struct.Struct("<QI")
_EVENT = struct.Struct("<QQII")
_VERSION = 4  # before it the names of events are in a file of their own
_DROPPED = (1 << 64) - 2
_MOST = 1 << 20  # bytes of a record
_NAME = "kvm_set_user_memory"
#: The arguments, by how many there are: QEMU has added some.
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
    """A stream of blocks, so many bytes at a time."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = bytearray()
        self._at = 0

    def take(self, size: int, *, may_end: bool = False) -> bytes:
        """The next; b"" at the end, where that may be."""
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
    """The lines of all events of memory slots; of what cannot be read a line that says so."""
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
