"""Removes what mails, CI logs, web pages and terminals add around the lines of a trace.

People paste traces into mails, CI logs and pages, and programs colour them. Removing this wrapping
keeps the number of lines, so line numbers stay those that an editor shows.
"""

from __future__ import annotations

import re

#: Colours and other control sequences of a terminal (ECMA-48); window titles.
_TERMINAL = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]"
)
_NO_BREAK_SPACE = b"\xc2\xa0"
_ENTITY = re.compile(rb"&(lt|gt|amp|quot|nbsp|#39|#x27|#34|#60|#62);")
_ENTITIES = {
    b"lt": b"<", b"#60": b"<", b"gt": b">", b"#62": b">", b"amp": b"&", b"quot": b'"',
    b"#34": b'"', b"#39": b"'", b"#x27": b"'", b"nbsp": b" ",
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
_QUOTED_SIGN = re.compile(rb"=3D")
_QUOTED_BYTE = re.compile(rb"=([0-9A-F]{2})")
_WRAPPED_STRACE = re.compile(
    rb"KVM_SET_USER_MEMORY_REGION2?, \{[^{}\n]*(?:\r?\n[ \t]*[a-z_]+=[^{}\n]*){1,12}\}[ \t]*"
    rb"(?:\r?\n[ \t]*)?\)[^\n]*"
)
_WRAPPED_QEMU = re.compile(
    rb"kvm_set_user_memory (?:AddrSpace#|Slot#)(?![^\n]* ret=)[^\n]*"
    rb"(?:(?:\r?\n[ \t]*){1,3}"
    rb"(?:Slot#|flags=|gpa=|size=|ua=|guest_memfd)(?![^\n]* ret=)[^\n]*){0,6}"
    rb"(?:\r?\n[ \t]*){1,3}"
    rb"(?:Slot#\d+ |(?:flags|gpa|size|ua|guest_memfd|guest_memfd_offset)=[^\n]* |)ret=[^\n]*"
)
#: A call that begins in a line and does not end in it.
_GOES_ON_STRACE = re.compile(rb"KVM_SET_USER_MEMORY_REGION(?![^\n]*\})(?=[^\n]*(?:\{|AddrSpace#))")
_GOES_ON_QEMU = re.compile(rb"kvm_set_user_memory (?![^\n]* ret=)(?=[^\n]*(?:Slot|AddrSpace)#)")
_LINE_END = re.compile(rb"(?:[ \t]*\r?\n[ \t]*)+")


def _one_line(found: re.Match[bytes]) -> bytes:
    """Joins a call into one line, and adds empty lines to keep the number of lines."""
    whole = found[0]
    return _LINE_END.sub(b" ", whole) + b"\n" * whole.count(b"\n")


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


class Wrapping:
    """Removes the wrapping of one input. The first lines decide which prefixes all lines have."""

    def __init__(self) -> None:
        self._prefixes: list[re.Pattern[bytes]] | None = None
        self._is_page = False

    def taken_off(self, text: bytes) -> bytes:
        """Returns whole lines without their wrapping; their number does not change."""
        if b"\x1b" in text:
            text = _TERMINAL.sub(b"", text)
        if b"D" in text and _QUOTED_SIGN.search(text) and _SOFT_BREAK.search(text):
            text = _unquoted(text)
        if b"\xc2" in text and _NO_BREAK_SPACE in text:
            text = text.replace(_NO_BREAK_SPACE, b" ")
        if self._prefixes is None:
            self._is_page = b"&lt;" in text or b"&gt;" in text or b"&quot;" in text
            self._prefixes = self._find_prefixes(text)
        if self._is_page:
            text = _TAGS.sub(b"", text)
            text = _ENTITY.sub(lambda found: _ENTITIES[found[1]], text)
        for prefix in self._prefixes:
            text = prefix.sub(b"", text)
        if b"KVM_SET_USER_MEMORY_REGION" in text and _GOES_ON_STRACE.search(text):
            text = _WRAPPED_STRACE.sub(_one_line, text)
        if b"#" in text and b"kvm_set_user_memory " in text and _GOES_ON_QEMU.search(text):
            text = _WRAPPED_QEMU.sub(_one_line, text)
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
