"""Removes what mails, CI logs, web pages and terminals add around the lines of a trace.

People paste traces into mails, CI logs and pages, and programs colour them. Removing this wrapping
keeps the number of lines, so line numbers stay those that an editor shows.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: Colours and other control sequences of a terminal (ECMA-48); window titles.
_TERMINAL = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]"
)
_NO_BREAK_SPACE = b"\xc2\xa0"
_NO_BREAK = 0xA0
_ENTITY = re.compile(rb"&(?:(lt|gt|amp|quot|nbsp|apos)|#(\d{1,3})|#[xX]([0-9a-fA-F]{1,2}));")
_ENTITIES = {
    b"lt": b"<", b"gt": b">", b"amp": b"&", b"quot": b'"', b"apos": b"'", b"nbsp": b" ",
}  # fmt: skip
_TAGS = re.compile(
    rb"</?(?:pre|code|span|tt|samp|font|div|p|b|i|td|tr)(?: [^<>\n]*)?>", re.IGNORECASE
)
#: Prefixes of lines. A prefix is removed if more than half of the input's lines have it.
_PREFIXES = (
    # A quotation in a mail.
    re.compile(rb"^(?:[>|] ?)+", re.MULTILINE),
    # A CI's time.
    re.compile(
        rb"^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)\]?[ \t]",
        re.MULTILINE,
    ),
)
#: A call in a comment of a program's source.
_COMMENT = re.compile(
    rb"^[ \t]*(?://|#|\*) ?(?=[^\n]*(?:kvm_set_user_memory|ioctl\(|resumed>|clone3?\(|close\())",
    re.MULTILINE,
)


#: The break of a line that was too long for a mail (RFC 2045); the next line continues it.
_SOFT_BREAK = re.compile(rb"=\r?\n")
#: RFC 2045: a line has at most 76 characters. A broken line that a reply quotes has less text.
_LONGEST_QUOTED = 76
_BROKEN_FROM = 65
_QUOTED_BYTE = re.compile(rb"=([0-9A-F]{2})")
_RESULT = (
    rb"(?:\)[ \t]*=[ \t]*(?:\?|0x[0-9a-f]|\d|-\d+[ \t]+[(E])|<(?:unfinished|detached) \.\.\.>)"
)


class _Calls(NamedTuple):
    """How calls stand in a kind of trace."""

    #: A call that begins in a line and does not end in it. The pattern begins with fixed bytes: it
    #: is searched in whole blocks.
    goes_on: re.Pattern[bytes]
    ends: re.Pattern[bytes]
    #: The beginning of another line of the trace.
    other: re.Pattern[bytes]
    #: A call whose fields are all readable.
    whole: re.Pattern[bytes]


#: The beginning of a call that ends before the name of the call or of the request.
_BEGINS_CALL = re.compile(
    rb"(?:ioctl\([^,\n]{1,200},|^\s*(?:\[pid +)?\d{1,10}\]?(?: [\d:.]{8,30})?)\s*\Z", re.MULTILINE
)
_STRACE = _Calls(
    # A name that begins a line is behind a line feed, or behind a blank that no comma precedes.
    re.compile(
        rb"KVM_SET_USER_MEMORY_REGION(?:2?(?: \*/)?[ \t]*(?:,|\r?\n)"
        rb"(?![^\n]*(?:" + _RESULT + rb"|strace: Process ))"
        rb"|(?<=\nKVM_SET_USER_MEMORY_REGION)|(?<=\n KVM_SET_USER_MEMORY_REGION))"
    ),
    re.compile(_RESULT),
    re.compile(
        rb"[ \t]*(?:\[pid|(?:\d+ +)?(?:\d\d:\d\d:\d\d|\d{9,}\.\d|[a-z_]\w*\(|<\.\.\. )|\+\+\+ |--- "
        rb"|strace: )"
    ),
    re.compile(
        rb"KVM_SET_USER_MEMORY_REGION2?(?: \*/)?, \{slot=\w+, "
        rb"flags=\w+(?: ?\| ?\w+)*(?: /\*[^*]*\*/)?, guest_phys_addr=\w+, memory_size=\w+, "
        rb"userspace_addr=\w+[,}]"
    ),
)
#: The calls that tell whose memslots these are. They are shorter, so they break where those do.
_AROUND = _Calls(
    re.compile(rb"(?:KVM_CREATE_VM|\bclone3?\(|F_DUPFD)(?![^\n]*" + _RESULT + rb")"),
    _STRACE.ends,
    _STRACE.other,
    re.compile(rb"KVM_CREATE_VM, |flags=[\w|]+[,)}]|F_DUPFD"),
)
_QEMU = _Calls(
    re.compile(rb"kvm_set_user_memory (?![^\n]* ret=-?\d)(?=[^\n]*(?:Slot|AddrSpace)#)"),
    re.compile(rb"\bret=-?\d"),
    re.compile(rb".*kvm_set_user_memory"),
    re.compile(
        rb"Slot#\d+ flags=0x[0-9a-f]+ gpa=0x[0-9a-f]+ size=0x[0-9a-f]+ ua=0x[0-9a-f]+ "
        rb"(?:guest_memfd=-?\d+ guest_memfd_offset=(?:0x)?[0-9a-f]+ )?ret=-?\d"
    ),
)
#: A word of each call, which is found fast.
_CALLS = ((b"KVM_SET_USER_MEMORY_REGION", _STRACE), (b"kvm_set_user_memory ", _QEMU))
_MOST_LINES = 16  # of one call
_LONGEST_CALL = 1 << 10


def _joined(text: bytes, calls: _Calls) -> bytes:
    """Joins each call into one line, and adds empty lines to keep the number of lines."""
    lines = text.split(b"\n")
    first = start = place = 0
    for found in calls.goes_on.finditer(text):
        first += text.count(b"\n", place, found.start())
        place = found.start()
        if first < start:
            continue  # a line of the call before
        begun = first
        if first > start and _BEGINS_CALL.search(lines[first - 1]):
            begun -= lines[first].lstrip().startswith(found[0])
        for end in range(begun + 2, min(begun + _MOST_LINES, len(lines)) + 1):
            parts = lines[begun:end]
            if calls.other.match(parts[-1]):
                break
            # A mail breaks a line at a space, a terminal at any character.
            spaced = b" ".join(filter(None, map(bytes.strip, parts)))
            broken = b"".join(part.rstrip(b"\r") for part in parts)
            ended = [whole for whole in (spaced, broken) if calls.ends.search(whole)]
            if ended:
                whole = next((one for one in ended if calls.whole.search(one)), ended[0])
                lines[begun:end] = [whole, *[b""] * (end - begun - 1)]
                start = end
                break
    return b"\n".join(lines)


def _unquoted(text: bytes) -> bytes:
    """Decodes a mail's quoted-printable text.

    Joins broken lines, and adds as many empty lines after each joined line to keep the count.
    """
    lines = []
    broken = 0
    part = b""
    for line in text.splitlines(keepends=True):
        part += line
        if _SOFT_BREAK.search(line[-3:]):
            part = _SOFT_BREAK.sub(b"", part)
            broken += 1
            continue
        lines.append(part + b"\n" * broken)
        part, broken = b"", 0
    lines.append(part + b"\n" * broken)
    return _QUOTED_BYTE.sub(lambda byte: bytes([int(byte[1], 16)]), b"".join(lines))


def _is_quoted_printable(text: bytes) -> bool:
    """Returns whether a text is quoted-printable, by its "=" or the lengths of its lines."""
    if 2 * text.count(b"=3D") > text.count(b"="):
        return True
    if b"=\n" not in text and b"=\r\n" not in text:
        return False
    lines = text.splitlines()
    broken = min(len(line) for line in lines if line.endswith(b"="))
    longest = max(map(len, lines))
    return broken >= _BROKEN_FROM and longest <= _LONGEST_QUOTED


def _character(entity: re.Match[bytes]) -> bytes:
    """Returns the character that a page's entity stands for."""
    if entity[1] is not None:
        return _ENTITIES[entity[1]]
    number = int(entity[2]) if entity[2] is not None else int(entity[3], 16)
    return b" " if number == _NO_BREAK else chr(number).encode()


class Wrapping:
    """Removes the wrapping of one input. The first lines decide how all lines are wrapped."""

    def __init__(self) -> None:
        self._prefixes: list[re.Pattern[bytes]] | None = None
        self._is_page = False
        self._is_quoted = False

    def end_of_whole(self, text: bytes) -> int:
        """Returns the length of `text`, which is whole lines, without a last line that goes on."""
        tail = max(0, len(text) - _LONGEST_CALL)
        for word, calls in _CALLS:
            place = text.rfind(word, tail)
            if place < 0 or not calls.goes_on.search(text, place):
                continue
            rest = text[place:]
            if not calls.ends.search(rest) and not calls.ends.search(rest.replace(b"\n", b"")):
                start = text.rfind(b"\n", 0, place) + 1
                before = text.rfind(b"\n", 0, max(start - 1, 0)) + 1
                return before if _BEGINS_CALL.search(text, before, start) else start
        last = text.rfind(b"\n", 0, len(text) - 1) + 1
        end = last if _BEGINS_CALL.search(text, last) else len(text)
        # A call is short. So however many lines end in "=", few of them wait for the next block.
        while end > tail and text.endswith((b"=\n", b"=\r\n"), 0, end):
            end = text.rfind(b"\n", 0, end - 1) + 1
        return end

    def taken_off(self, text: bytes) -> bytes:
        """Returns whole lines without their wrapping; their number does not change."""
        if self._prefixes is None:
            self._is_quoted = _is_quoted_printable(text)
        if self._is_quoted or (b"=3D" in text and _SOFT_BREAK.search(text)):
            text = _unquoted(text)
        if b"\x1b" in text:
            text = _TERMINAL.sub(b"", text)
        if b"\xc2" in text and _NO_BREAK_SPACE in text:
            text = text.replace(_NO_BREAK_SPACE, b" ")
        if self._prefixes is None:
            self._is_page = _ENTITY.search(text) is not None
            self._prefixes = self._find_prefixes(text)
        if self._is_page:
            text = _TAGS.sub(b"", text)
            text = _ENTITY.sub(_character, text)
        for prefix in self._prefixes:
            text = prefix.sub(b"", text)
        for word, calls in _CALLS:
            if word in text and calls.goes_on.search(text):
                text = _joined(text, calls)
                if calls is _STRACE:
                    text = _joined(text, _AROUND)
        return text

    @staticmethod
    def _find_prefixes(text: bytes) -> list[re.Pattern[bytes]]:
        """Returns the prefixes of these lines. They may nest, like a CI's time in a mail."""
        found = []
        for prefix in _PREFIXES * 2:
            lines = sum(bool(line.strip()) for line in text.splitlines())
            if lines and 2 * len(prefix.findall(text)) > lines:
                found.append(prefix)
                text = prefix.sub(b"", text)
        if _COMMENT.search(text):
            found.append(_COMMENT)
        return found
