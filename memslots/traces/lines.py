"""The lines of a trace, or only those that contain one of a few words.

A strace has millions of lines without a memslot call. These lines are never split or read one by
one. Each word is searched for in a piece of many lines, and line feeds are counted. A pattern takes
about 0.5 ns a byte if it begins with fixed bytes that few lines have. A search for one byte takes
at most 0.1 ns a byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from memslots.traces.wrapping import Wrapping

#: Longest line in bytes; the rest is cut. No memslot call is longer, but a traced write(2) may be.
LINE_LIMIT = 1 << 20
#: Bytes that are searched for one word after the other. A smaller piece more often lacks a word's
#: rare byte, and it stays in the processor's cache.
PIECE = 16 << 10


class Word:
    """A pattern that stays within a line.

    `rare` is empty, or bytes that are in every match and in few lines. A piece without these bytes
    has no match, so it is not searched for the pattern.
    """

    __slots__ = ("pattern", "rare")

    def __init__(self, pattern: bytes, rare: bytes = b"") -> None:
        self.pattern = re.compile(pattern)
        self.rare = rare


class LineTooLongError(Exception):
    """A line is longer than LINE_LIMIT, and `long_lines` is false."""


class Lines:
    """Iterates over (number, line) of `blocks`; numbers start at 1, lines have no line feed.

    If `words` is not None, iterating yields only lines with one of these words. The first line of
    every block comes too, so a clock is read now and then. `words` may be changed between two
    lines. `next_too` asks once for the very next line. Afterwards `total` is the number of lines,
    and `cut` is true if the last line had no line feed. A line longer than LINE_LIMIT is cut if
    `long_lines` is true; else iterating raises LineTooLongError.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._wrapping = Wrapping()
        self._lines: Iterator[tuple[int, bytes]] = self._read()
        self.words: tuple[Word, ...] | None = None
        self.next_too = False
        self.total = 0
        self.cut = False
        self.long_lines = False

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self._lines

    def __next__(self) -> tuple[int, bytes]:
        return next(self._lines)

    def put_back(self, number: int, line: bytes) -> None:
        """Makes the next iteration return this line once more."""
        self._lines = chain([(number, line)], self._lines)

    def _read(self) -> Iterator[tuple[int, bytes]]:
        carry = b""
        overlong = False
        for block in self._blocks:
            end = block.rfind(b"\n") + 1
            if not end:
                carry, overlong = self._grow(carry, block, overlong)
                continue
            if overlong:  # the rest of a line that was cut
                first = block.find(b"\n") + 1
                text, overlong = carry + b"\n" + block[first:end], False
            else:
                text = carry + block[:end]
            whole = self._wrapping.end_of_whole(text)
            if whole:
                yield from self._select(self._wrapping.taken_off(text[:whole]))
            carry, overlong = self._grow(text[whole:], block[end:], False)
        if carry:
            self.cut = not carry.endswith(b"\n")
            text = carry + b"\n" if self.cut else carry
            yield from self._select(self._wrapping.taken_off(text))

    def _grow(self, carry: bytes, more: bytes, overlong: bool) -> tuple[bytes, bool]:
        if overlong:
            return carry, True
        carry += more
        if len(carry) <= LINE_LIMIT:
            return carry, False
        if not self.long_lines:
            raise LineTooLongError
        return carry[:LINE_LIMIT], True

    def _select(self, text: bytes) -> Iterator[tuple[int, bytes]]:
        """Yields the selected lines of `text`, which ends with a line feed."""
        at = 0
        while at < len(text):
            words = self.words
            if words is None:
                end = text.find(b"\n", at)
                self.total += 1
                yield self.total, text[at:end]
                at = end + 1
                continue
            places = [at]  # the first line is always yielded
            stop = at
            while True:
                for place in places:
                    if place < at:
                        continue  # another word of the line before
                    start = text.rfind(b"\n", at, place) + 1 or at
                    end = text.find(b"\n", place)
                    self.total += text.count(b"\n", at, start) + 1 if start > at else 1
                    at = end + 1
                    yield self.total, text[start:end]
                    if self.words is not words or self.next_too:
                        break
                else:
                    begin = max(at, stop)
                    if begin < len(text):
                        stop = text.rfind(b"\n", begin, begin + PIECE) + 1
                        stop = stop or text.find(b"\n", begin) + 1
                        places = _places(words, text, begin, stop)
                        continue
                    self.total += text.count(b"\n", at)
                    at = len(text)
                self.next_too = False
                break


def _places(words: tuple[Word, ...], text: bytes, start: int, stop: int) -> list[int]:
    """Returns the places of words in `text[start:stop]`, in order.

    Each line that contains a word contains at least one of the places.
    """
    places: list[int] = []
    for word in words:
        if text.find(word.rare, start, stop) >= 0:
            places += [found.start() for found in word.pattern.finditer(text, start, stop)]
    places.sort()
    return places
