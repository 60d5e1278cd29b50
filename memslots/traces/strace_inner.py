"""Finding memslot calls anywhere in a line of strace's output.

Other programs write to the same terminal, and a paste may have lost its line ends. So a call may
stand behind any text, and two calls may stand on one line. But text that a traced program reads or
writes is no call. strace prints such text as a string in the arguments of another call.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: The name that perf trace and strace -N print before an argument.
ARGUMENT_NAME = r"(?:[a-z]{1,10}(?::\ |=))?"
_CALL = re.compile(
    rf"""(?<!_) ioctl\( {ARGUMENT_NAME} (?:-?\d{{1,20}}|0x[0-9a-f]{{1,16}})
    (?:<[^"<>]{{0,4096}}(?:<[^"<>]{{0,99}}>)?>)? ,\ {ARGUMENT_NAME}
    (?:KVM_SET_USER_MEMORY_REGION|0x4020ae46|0x40a0ae49
      |_IOC\(_IOC_WRITE,\ 0xae,\ 0x4(?:6,\ 0x20|9,\ 0xa0)\))""",
    re.VERBOSE,
)
_OPENING = re.compile(r"\b(?P<name>[a-z_][a-z0-9_]{0,40})\(")
#: The next string or the end of the call, whichever comes first. Within JSON a quotation mark has
#: backslashes in front.
_STRING_OR_END = re.compile(r"(?<!\\)(?P<escapes>\\*)\"|\)\s*= ")
_QUOTE = re.compile(r"(?<!\\)(\\*)\"")

#: Calls that strace prints with strings that a program reads, writes or names. ioctl is not among
#: them: its strings are short names, and a call after an ioctl without a result may be real.
_NAMES = """
    access acct add_key bind bpf chdir chmod chown chroot connect creat execve execveat faccessat
    faccessat2 fchmodat fchownat fgetxattr finit_module fremovexattr fsconfig fsetxattr futimesat
    getcwd getdents getdents64 getrandom getsockopt getxattr init_module inotify_add_watch
    kexec_load keyctl lchown lgetxattr link linkat listxattr lsetxattr lstat memfd_create mkdir
    mkdirat mknod mknodat mount mq_open mq_timedreceive mq_timedsend msgrcv msgsnd
    name_to_handle_at newfstatat open openat openat2 prctl pread pread64 preadv preadv2
    process_vm_readv process_vm_writev ptrace pwrite pwrite64 pwritev pwritev2 read readlink
    readlinkat readv recv recvfrom recvmmsg recvmsg removexattr rename renameat renameat2
    request_key rmdir send sendmmsg sendmsg sendto sethostname setsockopt setxattr stat stat64
    statfs statx symlink symlinkat syslog truncate umount2 uname unlink unlinkat utimensat
    vmsplice write writev
"""
_WITH_STRINGS = frozenset(_NAMES.split())


@dataclass(frozen=True, slots=True)
class Found:
    """A memslot call in a line. If `doubtful`, it may be text within quotation marks."""

    start: int
    doubtful: bool


def memslot_calls(text: str, start: int = 0) -> list[Found]:
    """Returns the memslot calls of a line from `start` on, except those in strings of other calls.

    O(length of the line).
    """
    found: list[Found] = []
    if text.find("ioctl(", start) < 0:
        return found
    strings = _strings(text)
    end, name = 0, ""  # the end of the last string that begins before the call, and its call
    following = next(strings, None)
    for call in _CALL.finditer(text, start):
        while following is not None and following.start < call.start():
            end, name = following.end, following.call
            following = next(strings, None)
        quoted = call.start() < end
        if not quoted or name not in _WITH_STRINGS:
            found.append(Found(call.start(), quoted))
    return found


class Quotes:
    """Tells which places of a line are within the strings that strace prints.

    All questions about one line take O(length of the line) together.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._strings: list[tuple[int, int]] | None = None

    def __contains__(self, at: int) -> bool:
        if self._strings is None:
            self._strings = [
                (string.start, string.end)
                for string in _strings(self._text)
                if string.call in _WITH_STRINGS
            ]
        before = bisect_right(self._strings, (at, len(self._text)))
        return before > 0 and at < self._strings[before - 1][1]


class _String(NamedTuple):
    """A string in the arguments of a call, and that call's name; perhaps neither is real."""

    start: int
    end: int
    call: str


def _strings(text: str) -> Iterator[_String]:
    """Yields the strings of a line in order; an unterminated string ends with the line."""
    if '"' not in text:
        return
    position = 0
    while opening := _OPENING.search(text, position):
        position = opening.end()
        while True:
            mark = _STRING_OR_END.search(text, position)
            if mark is None:
                return
            position = mark.end()
            if mark["escapes"] is None:
                break
            end = _end_of_string(text, position, len(mark["escapes"])) or len(text)
            yield _String(mark.start(), end, opening["name"])
            position = end


def _end_of_string(text: str, start: int, escapes: int) -> int | None:
    """Returns the end of a string whose opening mark had `escapes` backslashes in front."""
    # Each level of quoting doubles the backslashes and adds one. So a mark within the string has
    # 2 * escapes + 1 backslashes; each escaped backslash before a mark adds 2 * escapes + 2.
    for mark in _QUOTE.finditer(text, start):
        if len(mark[1]) % (2 * escapes + 2) == escapes:
            return mark.end()
    return None
