"""Reads traces in mails as they are stored and sent, with bodies in base64."""

from __future__ import annotations

import io
import mailbox
from base64 import b64encode
from collections.abc import Callable, Iterator
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.traces import RegionCall, open_trace
from memslots.traces.mails import decoded

QEMU = """\
Hi,

123@1.000100:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000000 ua=0x7f2c0be00000 ret=0
> 123@1.2:kvm_set_user_memory Slot#1 flags=0x2 gpa=0xfffc0000 size=0x40000 ua=0x7f2c0000 ret=0

Zoë
"""


def plain(text: str = QEMU) -> MIMEText:
    return MIMEText(text, _charset="utf-8")


def parts(kind: str, *all: Message) -> MIMEMultipart:
    mail = MIMEMultipart(kind)
    for one in all:
        mail.attach(one)
    return mail


PAGE = MIMEText(f"<pre>{QEMU}</pre>", "html", "utf-8")
MAILS: dict[str, Message] = {
    "one part": plain(),
    "an attachment": parts("mixed", MIMEText("See below\n"), plain(), MIMEText("Regards\n")),
    "a page beside it": parts("alternative", plain(), PAGE),
    "a page beside it, within": parts("mixed", parts("alternative", plain(), PAGE)),
    "a page alone": parts("mixed", PAGE),
    "after bytes": parts("mixed", MIMEText("\0\1\x02" * 99, _charset="utf-8"), plain()),
}
WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "narrow lines": lambda text: "".join(
        f"{part}\n"
        for line in text.splitlines()
        for part in ([line[at : at + 70] for at in range(0, len(line), 70)] or [""])
    ),
    "other capitals": lambda text: text.replace(
        "Content-Transfer-Encoding: base64", "content-transfer-encoding:  BASE64 "
    ),
}


def slots(text: bytes) -> list[int]:
    with open_trace("mail", stream=io.BytesIO(text)) as trace:
        return [event.slot for event in trace if isinstance(event, RegionCall)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mail", MAILS)
def test_mails(mail: str, way: str) -> None:
    text = MAILS[mail].as_string()
    assert "Slot" not in text
    assert slots(WAYS[way](text).encode()) == [0, 1]


def test_a_body_in_one_long_line() -> None:
    head, _, body = plain(QEMU * 9999).as_bytes().partition(b"\n\n")
    assert slots(head + b"\n\n" + body.replace(b"\n", b"")) == [0, 1] * 9999


def test_a_mailbox(tmp_path: Path) -> None:
    """Its mails follow each other, in base64 or not."""
    box = mailbox.mbox(tmp_path / "mbox")
    for mail in (plain(), MIMEText(QEMU.replace("ë", "e")), plain(), parts("mixed", plain())):
        box.add(mail)
    box.close()
    assert slots((tmp_path / "mbox").read_bytes()) == [0, 1] * 4


def test_lines_are_those_of_the_decoded_mail() -> None:
    text = plain().as_bytes()
    header = text.index(b"\n\n") + 2
    with open_trace("mail", stream=io.BytesIO(text)) as trace:
        lines = [event.line for event in trace if isinstance(event, RegionCall)]
    assert lines == [text.count(b"\n", 0, header) + n for n in (3, 4)]


@pytest.mark.parametrize(
    "text",
    [
        b"Content-Transfer-Encoding: base64\nno blank line\n" + b"QUJD\n",
        b"Content-Transfer-Encoding: base64\n\nThis is no base64!\nQUJD\n",
        b"Content-Transfer-Encoding: 7bit\n\nQUJD\n",
        b"QUJD\n",
    ],
)
def test_what_is_not_in_base64_stays(text: bytes) -> None:
    assert b"".join(decoded(iter([text]))).replace(b"\n", b"") == text.replace(b"\n", b"")


def test_what_only_looks_like_base64() -> None:
    head = b"Content-Transfer-Encoding: base64\n\n"
    for body, expected in ((b"Q=\nQU\nQUJD\n", b"Q=QU\nQUJD\n"), (b"QUJD\nQU", b"ABC")):
        assert expected in b"".join(decoded(iter([head + body])))


@given(
    st.lists(
        st.sampled_from(
            [
                b"\n",
                b"QUJD",
                b"=",
                b"--x\n",
                b"Content-Transfer-Encoding: base64\n",
                b"\xff",
                b"a b",
            ]
        )
    ),
    st.lists(st.integers(0, 300)),
)
def test_blocks_do_not_matter(pieces: list[bytes], cuts: list[int]) -> None:
    text = b"Message-Id: x\n" + b"".join(pieces)
    edges = [14, *sorted(cut + 14 for cut in cuts), len(text) + 314]
    blocks = [text[:14], *(text[a:b] for a, b in pairwise(edges))]
    assert b"".join(decoded(iter(blocks))) == b"".join(decoded(iter([text])))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_header_in_pieces(size: int) -> None:
    """A pipe may bring the header line by line, or in smaller pieces."""
    text = b"From: x\nSubject: a\n trace\nContent-Transfer-Encoding: base64\n\n"
    text += b64encode(QEMU.encode()) + b"\n"
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    assert b"Slot#0" in b"".join(decoded(iter(blocks)))


def test_a_text_is_not_held_back_for_a_header() -> None:
    def lines() -> Iterator[bytes]:
        yield b"strace: Process 7 attached\n"
        yield b"ioctl(3, KVM_CREATE_VM, 0) = 9\n"
        raise AssertionError("the first lines were not enough")

    assert next(decoded(lines())).endswith(b"= 9\n")
