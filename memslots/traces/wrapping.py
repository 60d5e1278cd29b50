"""Removes what mails, CI logs, web pages and terminals add around the lines of a trace.

People paste traces into mails, CI logs and pages, and programs colour them. Removing this wrapping
keeps the number of lines, so line numbers stay those that an editor shows.
"""

from __future__ import annotations

import re
from itertools import pairwise
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
    rb"^[ \t]*(?://|#|\*) ?(?=[^\n]*(?:kvm_set_user_memory|ioctl\(|resumed>|clone3?\(|close\()"
    rb"|\d+ *$)",
    re.MULTILINE,
)


#: The break of a line that was too long for a mail (RFC 2045); the next line continues it.
_SOFT_BREAK = re.compile(rb"=\r?\n")
#: RFC 2045: a line has at most 76 characters. A broken line that a reply quotes has less text.
_LONGEST_QUOTED = 76
_BROKEN_FROM = 65
#: An equals sign that is neither a break nor the beginning of a byte's number.
_NOT_QUOTED = re.compile(rb"=(?!\r?\n|[0-9A-F]{2})")
_ENCODED_END = b"=0A"
_QUOTED_BYTE = re.compile(rb"=([0-9A-F]{2})")
_RESULT = (
    rb"(?:\)[ \t]*=[ \t]*(?:\?|0x[0-9a-f]|\d|-\d+[ \t]+[(E])"
    rb"|(?:<|&lt;)(?:unfinished|detached) \.\.\.)"
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


#: The beginning of a call at the end of a line: up to its descriptor, or only its pid and time.
_BEGINNING = re.compile(
    rb"(?:ioctl\([^,\n]{1,200},|(?P<pid>(?:^|[\s|:+>])(?:\[pid +)?\d{1,10}\]?(?: [\d:.]{8,30})?))\Z"
)
_LONGEST_BEGINNING = 256
#: The beginning of a call up to its bracket or its request, with its pid and time.
_HEAD_OF_CALL = re.compile(
    rb"(?:(?:\[pid +\d{1,10}\]|(?<!= )(?<!=)\b\d{1,10}) +)?(?:\d[\d:.]{7,29} +)?"
    rb"(?:\w+\([^()\n]*|\w*\(?)\Z"
)
_IN_ENDED_LINE = (b"= ", b"=3D ", b"...>")  # of a call, also in quoted-printable text
#: The end of a call in its line, or strace's message that interrupts it.
_ENDED = rb"[^\n]{0,4096}(?:" + _RESULT + rb"|strace: Process )"
_OTHER_LINE = re.compile(
    rb"[ \t]*(?:\[pid|(?:\d+ +)?(?:\d\d:\d\d:\d\d|\d{9,}\.\d|[a-z_]\w*\(|<\.\.\. )|\+\+\+ |--- "
    rb"|strace: )"
)
_STRACE = _Calls(
    # A name that begins a line is behind a line feed, or behind a blank that no comma precedes.
    re.compile(
        rb"KVM_SET_USER_MEMORY_REGION(?:2?(?: \*/)?[ \t]*(?:,|\r?\n)(?!" + _ENDED + rb")"
        rb"|(?<=\nKVM_SET_USER_MEMORY_REGION)|(?<=\n KVM_SET_USER_MEMORY_REGION))"
    ),
    re.compile(_RESULT),
    _OTHER_LINE,
    re.compile(
        rb"\bioctl\(.*(?:KVM_SET_USER_MEMORY_REGION2?(?: \*/)?|0x4020ae46|0x40a0ae49"
        rb"|_IOC\(_IOC_WRITE, 0xae, 0x4(?:6, 0x20|9, 0xa0)\)), \{slot=\w+, "
        rb"flags=\w+(?: ?\| ?\w+)*(?: /\*[^*]*\*/)?, guest_phys_addr=\w+, memory_size=\w+, "
        rb"userspace_addr=\w+[,}]"
    ),
)
_NAMES = (
    *(b"ioctl", b"clone", b"clone3", b"fcntl", b"fcntl64", b"dup", b"dup2", b"dup3"),
    *(b"recvmsg", b"recvmmsg", b"pidfd_getfd", b"unshare", b"close_range"),
)
#: The bracket behind one of these names; the search finds it faster than the names.
_CALLED = rb"\((?<=[legpd234]\()(?:" + b"|".join(rb"(?<=\b%b\()" % name for name in _NAMES) + rb")"
#: The beginning of a line of strace, without its pid.
_NO_PID = rb"\s*(?:[a-z_]\w*\(|<\.\.\.|[+-]{3})"
#: The rest of a result. It is no pid in a line of its own.
_REST_OF_NUMBER = rb"\d+(?: <[\d.]+>)?\r?\n(?!" + _NO_PID + rb")"
_ANY_GOES_ON = (
    _CALLED + rb"(?:(?!" + _ENDED + rb")"
    rb"|(?=[^\n]{0,4096}\) += \d+(?:\r?\n)+(?:[^\n(=]{0,99}[\s|:+>])?" + _REST_OF_NUMBER + rb"))"
)
#: Whether an input has broken lines.
_BROKEN = re.compile(_ANY_GOES_ON)
#: All calls that are followed. Only an input with a broken line is searched for them: they are
#: many. A call that ends in its line may have its pid in the line before, and the rest of its
#: result in the next one.
_ANY = _Calls(
    re.compile(
        _ANY_GOES_ON
        + rb"|\((?:"
        + b"|".join(rb"(?<=\n%b\()" % name for name in _NAMES)
        + rb")(?![^\n]{0,4096}strace: Process )"
    ),
    _STRACE.ends,
    _OTHER_LINE,
    re.compile(
        _STRACE.whole.pattern + rb"|KVM_CREATE_VM, |0xae01, |\bclone3?\(.*flags=[\w|]+[,)}]"
        rb"|\bfcntl(?:64)?\(.*, (?:F_DUPFD|0(?:x406)?, )"
        rb"|\brecvm?msg\(.*cmsg_type=(?:SCM_RIGHTS|0x1)\b[^,]*, "
        rb"cmsg_data=\[(?:(?!cmsg_data=)[^]])*\]\}"
    ),
)
_QEMU = _Calls(
    re.compile(
        rb"kvm_set_user_memory(?: *\r?\n|[ \t](?![^\n]{0,4096} ret=-?\d))"
        rb"(?=[^\n]{0,4096}(?:Slot|AddrSpace)#)"
    ),
    re.compile(rb"\bret=-?\d"),
    re.compile(rb"(?:(?!\bret=-?\d).)*kvm_set_user_memory"),
    re.compile(
        rb"Slot#\d+ flags=0x[0-9a-f]+ gpa=0x[0-9a-f]+ size=0x[0-9a-f]+ ua=0x[0-9a-f]+ "
        rb"(?:guest_memfd=-?\d+ guest_memfd_offset=(?:0x)?[0-9a-f]+ )?ret=-?\d"
    ),
)
#: A word of each call, which is found fast.
_REQUEST = b"KVM_SET_USER_MEMORY_REGION"
_EVENT = b"kvm_set_user_memory"
_CALLS = ((_REQUEST, _STRACE), (_EVENT, _QEMU))
#: The rest of an event's name that a line begins with. It is searched for in whole blocks.
_BEGINS_WITH_REST = re.compile(rb"\n(?!kvm_)[a-z_]{1,18} (?:AddrSpace|Slot)#\d")
_REST_OF_EVENT = re.compile(rb"\r?\n([a-z_]{1,18}) (?=(?:AddrSpace|Slot)#\d)")
_BEGINS_WITH_NAME = re.compile(rb"\s*(?:[a-z]\w*\(|KVM_|0x4|kvm_set_user_memory)")
_MOST_LINES = 16  # of one call
_FEW_LINES = 4  # that may begin alike by chance
_LONGEST_CALL = 1 << 10
_DECIDING = 1 << 14  # bytes of the first lines, at least, that decide how an input is wrapped
_LOOKED_AT = 1 << 18  # most bytes of a block that are looked at for that


def _front(text: bytes) -> bytes:
    """Returns what stands in front of all lines, up to a character that is in no word."""
    lines = [line for line in text.split(b"\n") if line.strip()]
    found = re.match(rb"(?s).*\W", _same(lines)) if len(lines) > _FEW_LINES else None
    return found[0] if found else b""


def _same(lines: list[bytes]) -> bytes:
    """Returns what all lines begin with."""
    least, greatest = min(lines, default=b""), max(lines, default=b"")
    at = 0
    while least[at : at + 1] == greatest[at : at + 1] != b"":
        at += 1
    return least[:at]


def _begins_call(line: bytes) -> bool:
    """Returns whether a call begins at the end of a line, before its name or its request."""
    found = _BEGINNING.search(line.rstrip()[-_LONGEST_BEGINNING:])
    if found is None:
        return False
    return found["pid"] is None or not any(word in line for word in _IN_ENDED_LINE)


class _Shape(NamedTuple):
    """What is in front of all lines, before and after known prefixes are removed; the width."""

    outer: bytes
    front: bytes
    width: int

    def without_front(self, line: bytes) -> bytes:
        return line.removeprefix(self.outer).removeprefix(self.front)


def _with_whole_event(rest: re.Match[bytes]) -> bytes:
    """Returns the rest of an event's name before the line end that broke the name."""
    broken = _EVENT.endswith(rest[1]) and rest.string.endswith(
        _EVENT.removesuffix(rest[1]), 0, rest.start()
    )
    return rest[1] + b"\n" if broken else rest[0]


def _joined(text: bytes, calls: _Calls, shape: _Shape) -> bytes:
    """Joins each call into one line, and keeps the number of lines.

    A call that begins behind another one in the last of its lines is joined there.
    """
    lines = text.split(b"\n")
    first = start = place = 0
    tried = opened = -1  # opened: the line that keeps the beginning of such a call
    for found in calls.goes_on.finditer(text):
        first += text.count(b"\n", place, found.start())
        place = found.start()
        if (first < start and first != opened) or first == tried:
            continue  # a line of the call before, or another call in the same line
        tried = first
        begun, column = first, place - (text.rfind(b"\n", 0, place) + 1)
        if first >= max(start, 1) and _begins_call(lines[first - 1]):
            begun -= _BEGINS_WITH_NAME.match(shape.without_front(lines[first])) is not None
            column = len(lines[begun].rstrip()) if begun < first else column
        at = 0 if begun == opened else _start_of_call(lines[begun], column)
        for end in range(first + 1, min(begun + _MOST_LINES, len(lines)) + 1):
            parts = [lines[begun][at:], *map(shape.without_front, lines[begun + 1 : end])]
            if end - 1 > first and calls.other.match(parts[-1]):
                break
            whole = _whole(parts, calls, shape.width)
            if whole is None:
                continue
            if whole[-1:].isdigit():
                after = next((n for n in range(end, len(lines)) if lines[n].strip()), end)
                rest = [*map(shape.without_front, lines[after : after + 2])]
                if re.match(_REST_OF_NUMBER, b"\n".join(rest) + b"\n"):
                    whole += rest[0]
                    end = after + 1
            if end - begun > 1:
                following = shape.without_front(lines[end]) if end < len(lines) else b""
                behind = _start_of_next(whole, following, calls)
                lines[begun:end] = [
                    *(lines[begun][:at] + whole[:behind], *[b""] * (end - begun - 2)),
                    whole[behind:],
                ]
                if behind < len(whole):
                    opened = end - 1
            start = end
            break
    return b"\n".join(lines)


def _start_of_call(line: bytes, place: int) -> int:
    """Returns where the call in `line` begins whose name or bracket is at `place`."""
    found = _HEAD_OF_CALL.search(line[: place + 1])
    return found.start() if found else place


def _start_of_next(whole: bytes, following: bytes, calls: _Calls) -> int:
    """Returns where another call begins in a joined line that goes on in the line `following`.

    If there is none, returns the length of the line.
    """
    if _begins_call(whole):
        return _start_of_call(whole, len(whole.rstrip()))
    place = len(whole)
    for found in calls.goes_on.finditer(whole + b"\n" + following):
        if found.start() < len(whole):
            place = found.start()
    return _start_of_call(whole, place) if place < len(whole) else place


def _whole(parts: list[bytes], calls: _Calls, width: int) -> bytes | None:
    """Returns the line whose parts these are, or None if a part is missing."""
    parts = [part.rstrip(b"\r") for part in parts]
    # A mail breaks a line at a space, a terminal at its width; or both did.
    ways = [
        b" ".join(filter(None, map(bytes.strip, parts))),
        b"".join(parts),
        b"".join(part + b" " * (len(part) < width) for part in parts[:-1]) + parts[-1],
    ]
    ended = [way for way in ways if calls.ends.search(way)]
    return next((one for one in ended if calls.whole.search(one)), next(iter(ended), None))


def _unquoted(text: bytes) -> bytes:
    """Decodes a mail's quoted-printable text.

    Joins broken lines, and adds as many empty lines after each joined line to keep the count. If
    something stands in front of all lines, it stands there once in the joined line.
    """
    lines = []
    broken = 0
    part = b""
    all_lines = text.splitlines(keepends=True)
    pairs = [(_SOFT_BREAK.search(before[-3:]), line) for before, line in pairwise(all_lines)]
    front = _same([line for follows, line in pairs if follows])
    # They also begin alike if all lines were broken at the same place.
    others = [line for follows, line in pairs if not follows]
    if 3 * sum(line.startswith(front) for line in others) <= len(others):
        front = b""
    for line in all_lines:
        part += line.removeprefix(front) if broken else line
        if _SOFT_BREAK.search(line[-3:]):
            part = _SOFT_BREAK.sub(b"", part)
            broken += 1
            continue
        lines.append(_with_ends(part, broken))
        part, broken = b"", 0
    lines.append(_with_ends(part, broken))
    return _QUOTED_BYTE.sub(lambda byte: bytes([int(byte[1], 16)]), b"".join(lines))


def _with_ends(part: bytes, broken: int) -> bytes:
    """Returns a joined line and as many more line ends as it was broken.

    Its encoded line ends are among these. If there are more of them, the others become spaces.
    """
    ends = min(broken, part.count(_ENCODED_END))
    part = part.replace(_ENCODED_END, b"\n", ends).replace(_ENCODED_END, b" ")
    return part + b"\n" * (broken - ends)


def _is_quoted_printable(text: bytes) -> bool:
    """Returns whether a text is quoted-printable, by its "=" or the lengths of its lines."""
    if 2 * text.count(b"=3D") > text.count(b"="):
        return True
    if _NOT_QUOTED.search(text) or _SOFT_BREAK.search(text) is None:
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


def _ended(text: bytes, calls: _Calls) -> bool:
    """Returns whether a call ends within `text`, perhaps in broken lines."""
    return bool(calls.ends.search(text) or calls.ends.search(text.replace(b"\n", b"")))


class Wrapping:
    """Removes the wrapping of one input. The first lines decide how all lines are wrapped."""

    def __init__(self) -> None:
        self._beginning = b""
        self._prefixes: list[re.Pattern[bytes]] = []
        self._is_page = False
        self._is_quoted = False
        self._is_broken = False
        self._shape = _Shape(b"", b"", 0)

    def end_of_whole(self, text: bytes) -> int:
        """Returns the length of `text`, which is whole lines, without a last line that goes on."""
        tail = max(0, len(text) - _LONGEST_CALL)
        last = text.rfind(b"\n", 0, len(text) - 1) + 1
        end = last if _begins_call(text[last:]) else len(text)
        for word, calls in ((b"ioctl(", _ANY), *_CALLS):
            place = text.rfind(word, tail)
            if place < 0 or not calls.goes_on.search(text, place):
                continue
            if not _ended(text[place:], calls):
                start = text.rfind(b"\n", 0, place) + 1
                before = text.rfind(b"\n", 0, max(start - 1, 0)) + 1
                end = before if _begins_call(text[before:start]) else start
                break
            if not _ended(text[place:last], calls):
                end = len(text)  # the last line is the end of the call
                break
        # A call is short. So however many lines end in "=", few of them wait for the next block.
        while end > tail and text.endswith((b"=\n", b"=\r\n"), 0, end):
            end = text.rfind(b"\n", 0, end - 1) + 1
        return end

    def taken_off(self, text: bytes) -> bytes:
        """Returns whole lines without their wrapping; their number does not change."""
        if b"\x1b" in text:
            text = _TERMINAL.sub(b"", text)  # behind the "=" of a broken line
        if len(self._beginning) < _DECIDING:
            # A pipe or a call at the end may leave few lines in the first blocks.
            self._beginning += text[: text.rfind(b"\n", 0, _LOOKED_AT) + 1 or len(text)]
            self._decide(self._beginning)
        return self._joined(self._without_prefixes(self._without_tags(self._decoded(text))))

    def _decide(self, text: bytes) -> None:
        """Decides by the first lines how all lines are wrapped."""
        self._is_quoted = _is_quoted_printable(text)
        text = self._decoded(text)
        self._is_page = _ENTITY.search(text) is not None
        self._prefixes = self._find_prefixes(text)
        text = self._without_tags(text)
        outer = _front(text)
        text = self._without_prefixes(text)
        self._is_broken = self._is_broken or _BROKEN.search(text) is not None
        width = max(len(line.rstrip(b"\r")) for line in text.split(b"\n"))
        self._shape = _Shape(outer, _front(text), width)

    def _decoded(self, text: bytes) -> bytes:
        if self._is_quoted or (b"=3D" in text and _SOFT_BREAK.search(text)):
            text = _unquoted(text)
            if b"\x1b" in text:
                text = _TERMINAL.sub(b"", text)
        if b"\xc2" in text and _NO_BREAK_SPACE in text:
            text = text.replace(_NO_BREAK_SPACE, b" ")
        return text

    def _without_tags(self, text: bytes) -> bytes:
        return _ENTITY.sub(_character, _TAGS.sub(b"", text)) if self._is_page else text

    def _without_prefixes(self, text: bytes) -> bytes:
        for prefix in self._prefixes:
            text = prefix.sub(b"", text)
        return text

    def _joined(self, text: bytes) -> bytes:
        """Joins the calls that are broken into several lines."""
        if _EVENT in text:
            if _BEGINS_WITH_REST.search(text):
                text = _REST_OF_EVENT.sub(_with_whole_event, text)
            if _QEMU.goes_on.search(text):
                text = _joined(text, _QEMU, self._shape)
        self._is_broken = self._is_broken or (
            _REQUEST in text and _STRACE.goes_on.search(text) is not None
        )
        if self._is_broken:
            # First each call from its bracket on. A call whose request begins a line is left.
            text = _joined(text, _ANY, self._shape)
            text = _joined(text, _STRACE, self._shape)
            if self._is_page:
                text = _ENTITY.sub(_character, text)  # those that were broken too
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
