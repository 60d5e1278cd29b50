"""Opening a trace: a plain file, a compressed one, or standard input, as blocks of bytes.

The first bytes tell whether a file is compressed; its name does not matter. Blocks are read only
when needed. So a trace may be longer than memory, and standard input may be a running program.
"""

from __future__ import annotations

import errno
import lzma
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from memslots.errors import TraceError
from memslots.traces import mails, simpletrace

#: Most bytes read, and most bytes decompressed, in one step.
BLOCK = 1 << 18

#: The end of a line of a serial console that a Windows terminal saved.
_CONSOLE_END = b"\r\r\n"
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"
_FOREIGN = {
    b"BZh": "it is compressed with bzip2: pipe it through `bzip2 -dc` into `-`",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: pipe it through `zstd -dc` into `-`",
    b"PK\x03\x04": "it is a zip archive: pipe it through `unzip -p` into `-`",
    b"\xff\xfe": "it is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "it is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
}


class Source:
    """One input. `path` is a file name, or `-` for standard input.

    `size` is the length of the file in bytes, or None if it is no regular file. `position` is the
    number of bytes read so far; a progress bar needs both. Opening and reading raise TraceError if
    anything is wrong with the file.
    """

    def __init__(self, path: str | os.PathLike[str], stream: BinaryIO | None = None) -> None:
        self.name = "standard input" if path == "-" else os.fspath(path)
        self.position = 0
        self.size: int | None = None
        #: Called after each read.
        self.watch: Callable[[Source], None] | None = None
        if stream is not None:
            self._raw = stream
        elif path == "-":
            self._raw = sys.stdin.buffer
        else:
            try:
                self._raw = Path(path).open("rb")  # noqa: SIM115 (close closes it)
            except (OSError, ValueError) as error:
                raise _unreadable(self.name, error) from None
        self._close = stream is None and path != "-"
        if self._close:
            status = os.fstat(self._raw.fileno())
            if stat.S_ISREG(status.st_mode):
                self.size = status.st_size

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stream(self) -> BinaryIO:
        """Returns the file itself, as long as no block of it was read."""
        return self._raw

    def close(self) -> None:
        """Closes the file, if this object opened it."""
        if self._close:
            self._raw.close()

    def blocks(self) -> Iterator[bytes]:
        """Yields the decompressed content in blocks of about BLOCK bytes at most."""
        blocks = self._read()
        head = b""
        for block in blocks:
            head += block
            if len(head) >= len(_XZ):
                break
        for magic, reason in _FOREIGN.items():
            if head.startswith(magic):
                raise TraceError(self.name, reason)
        chained = _chain(head, blocks)
        if head.startswith(_GZIP):
            chained = self._gunzip(chained)
        elif head.startswith(_XZ):
            chained = self._unxz(chained)
        first = next(chained, b"")
        while len(first) < len(simpletrace.HEAD) and (more := next(chained, b"")):
            first += more
        chained = _chain(first, chained)
        yield from simpletrace.text_of(chained) if first.startswith(simpletrace.HEAD) else chained

    def text(self) -> Iterator[bytes]:
        """Yields the blocks of a text: lines end with a line feed, parts of mails are decoded."""
        return mails.decoded(_with_line_feeds(self.blocks()))

    def _read(self) -> Iterator[bytes]:
        # read1 returns what a pipe holds, without waiting for a whole block.
        read = getattr(self._raw, "read1", self._raw.read)
        while True:
            try:
                block = read(BLOCK)
            except OSError as error:
                raise _unreadable(self.name, error) from None
            if not block:
                return
            self.position += len(block)
            if self.watch is not None:
                self.watch(self)
            yield block

    def _gunzip(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        member = zlib.decompressobj(31)
        begun = False
        try:
            for data in blocks:
                while data:
                    if member.eof:  # another member follows; zeros are padding
                        data = data.lstrip(b"\0")
                        if not data:
                            break
                        member, begun = zlib.decompressobj(31), False
                    begun = True
                    yield member.decompress(data, BLOCK)
                    data = member.unconsumed_tail or member.unused_data
            while begun and not member.eof and (rest := member.decompress(b"", BLOCK)):
                yield rest
        except zlib.error as error:
            raise TraceError(self.name, f"its gzip compression is damaged ({error})") from None
        if begun and not member.eof:
            raise TraceError(self.name, "its gzip compression is cut off: the file is truncated")

    def _unxz(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        try:
            for data in blocks:
                while data or not (stream.needs_input or stream.eof):
                    if stream.eof:
                        data = data.lstrip(b"\0")
                        if not data:
                            break
                        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
                    yield stream.decompress(data, BLOCK)
                    data = stream.unused_data if stream.eof else b""
        except lzma.LZMAError as error:
            raise TraceError(self.name, f"its xz compression is damaged ({error})") from None
        if not stream.eof:
            raise TraceError(self.name, "its xz compression is cut off: the file is truncated")


def _with_line_feeds(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields blocks with line feeds at the ends of lines. The first lines decide what ends lines.

    Old Macs, and some programs that save what a serial line sends, end lines with CR alone.
    """
    head = b""
    for block in blocks:
        head += block
        if b"\n" in block or len(head) >= BLOCK:
            break
    blocks = _chain(head, blocks)
    if b"\n" not in head:
        blocks = (block.replace(b"\r", b"\n") for block in blocks)
    elif _CONSOLE_END in head:
        blocks = _without_returns(blocks)
    return blocks


def _without_returns(blocks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        text = (held + block).rstrip(b"\r")
        held = (held + block)[len(text) :]
        yield re.sub(rb"\r+\n", b"\n", text)
    yield held


def _chain(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from blocks


def _unreadable(name: str, error: OSError | ValueError) -> TraceError:
    number, reason = errno.EINVAL, str(error)
    if isinstance(error, OSError) and error.errno and error.strerror:
        number, reason = error.errno, error.strerror
    return TraceError(name, reason[:1].lower() + reason[1:], errno=number)
