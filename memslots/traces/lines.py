"""The lines of a trace, or only those that contain one of a few words.

A strace has millions of lines without a memslot call. These lines are never split or read one by
one. Each word is searched for in a whole block at the speed of memchr, and line feeds are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from memslots.traces.wrapping import Wrapping

#: Longest line in bytes; the rest is cut. No memslot call is longer, but a traced write(2) may be.
LINE_LIMIT = 1 << 20


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
        self._lines = self._read()
        self._again: tuple[int, bytes] | None = None
        self.words: tuple[bytes, ...] | None = None
        self.next_too = False
        self.total = 0
        self.cut = False
        self.long_lines = False

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self

    def __next__(self) -> tuple[int, bytes]:
        if self._again is not None:
            again, self._again = self._again, None
            return again
        return next(self._lines)

    def put_back(self, number: int, line: bytes) -> None:
        """Makes the next iteration return this line once more."""
        self._again = number, line

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
            yield from self._select(self._wrapping.taken_off(text))
            carry, overlong = self._grow(b"", block[end:], False)
        if carry:
            self.cut = True
            yield from self._select(self._wrapping.taken_off(carry + b"\n"))

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
            found = dict.fromkeys(words, -1)
            start = at  # the first line is always yielded
            while True:
                end = text.find(b"\n", start)
                self.total += text.count(b"\n", at, start) + 1
                at = end + 1
                yield self.total, text[start:end]
                if self.words is not words or self.next_too:
                    self.next_too = False
                    break
                for word, place in list(found.items()):
                    if place < at:
                        if (place := text.find(word, at)) < 0:
                            del found[word]
                        else:
                            found[word] = place
                if not found:
                    self.total += text.count(b"\n", at)
                    return
                start = text.rfind(b"\n", at, min(found.values())) + 1 or at
