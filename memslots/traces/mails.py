"""Decodes the parts of mails that are in base64.

Lines are then counted as if the mail had been sent without the encoding.
"""

from __future__ import annotations

import re
from binascii import Error, a2b_base64
from collections.abc import Iterator
from itertools import chain

_MAIL = re.compile(rb"^(?:content-|mime-version:|message-id:)", re.IGNORECASE | re.MULTILINE)
#: The lines that a mail begins with: fields, perhaps behind the line of a mailbox or of a part.
_HEADER = re.compile(rb"(?:[A-Za-z][A-Za-z-]*:[^\n]*\n|(?:[ \t]|--|>?From )[^\n]*\n|\r?\n)*")
_BASE64 = re.compile(rb"content-transfer-encoding:\s*\"?base64\b", re.IGNORECASE)
_ALTERNATIVE = re.compile(rb"content-type:\s*multipart/alternative\b", re.IGNORECASE)
_PAGE = re.compile(rb"content-type:\s*text/html\b", re.IGNORECASE)
_LONGEST = 1 << 20  # line that is kept until its end is read
_ENCODED = re.compile(rb"[A-Za-z0-9+/]+={0,2}")


def decoded(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the blocks of a text, decoded if the text begins with a mail's header."""
    first = b""
    # A pipe may bring the header in several blocks.
    while (header := _header(first)) is None and (block := next(blocks, b"")):
        first += block
    blocks = chain([first], blocks)
    yield from _decoded(blocks) if _MAIL.search(first if header is None else header) else blocks


def _header(text: bytes) -> bytes | None:
    """Returns the header that a text begins with, or None if the header may go on."""
    found = _HEADER.match(text)
    assert found is not None
    goes_on = b"\n" not in text[found.end() :] and len(text) < _LONGEST
    return None if goes_on else found[0]


def _decoded(blocks: Iterator[bytes]) -> Iterator[bytes]:
    is_base64 = is_page = is_body = has_both = False
    line = rest = b""
    for block in chain(filter(None, blocks), [b""]):
        found = []
        lines = (line + block).splitlines(keepends=True)
        # The last line may go on in the next block.
        line = lines.pop() if block and len(lines[-1]) < _LONGEST else b""
        for each in lines:
            text = each.strip()
            if is_body and (not text or _ENCODED.fullmatch(text)):
                rest += text
                whole = len(rest) & ~3
                try:
                    found.append(a2b_base64(rest[:whole]))
                    rest = rest[whole:]
                    continue
                except Error:
                    each = rest + b"\n"  # it only looked like base64
            if is_body:
                found.append(b"\n")  # the body may end without one
                is_body, rest = False, b""
            found.append(each)
            if not text:
                is_body = is_base64 and not (is_page and has_both)
                is_base64 = is_page = False
            is_base64 = is_base64 or _BASE64.match(text) is not None
            is_page = is_page or _PAGE.match(text) is not None
            # Its page has the same text once more.
            has_both = has_both or _ALTERNATIVE.match(text) is not None
        yield b"".join(found)
