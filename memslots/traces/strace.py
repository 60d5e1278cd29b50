"""Reading the output of strace.

The reader understands:
- a bare pid, `[pid N]` or none in front (with `-Y`'s names), and grep's `file:line:` in front;
- `-t -tt -ttt -r` stamps and their long forms, `-T -y -yy -i -n -k`, `-X raw`, `-X verbose`;
- calls that strace cut in two (`<unfinished ...>` and `resumed`), which it joins per thread;
- calls behind any other text.
A call is counted as lost if strace did not decode its struct or if its other half is missing. The
calls of ltrace, perf, ftrace and other tracers are lost too, since they print no structs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from memslots.traces.clock import EPOCH_FROM, Clock
from memslots.traces.events import (
    Capability,
    Counts,
    Event,
    FdClosed,
    FdDuplicated,
    FdsClosed,
    FdsReceived,
    FdsUnshared,
    TaskEnded,
    TaskStarted,
)
from memslots.traces.lines import Lines, Word
from memslots.traces.strace_inner import ARGUMENT_NAME, Found, Quotes, memslot_calls
from memslots.traces.strace_ioctls import (
    IoctlReader,
    Result,
    UndecodedError,
    read_result,
    split_ioctl,
)
from memslots.traces.tracers import DECIMAL, OtherTracers

#: The calls that say which process has which VM.
_FOLLOWED = frozenset(
    (
        "ioctl",
        "clone",
        "clone2",
        "clone3",
        "fork",
        "vfork",
        "close",
        "close_range",
        "unshare",
        "pidfd_getfd",
        "execve",
        "execveat",
        "dup",
        "dup2",
        "dup3",
        "fcntl",
        "fcntl64",
    )
)
#: These matter if they bring descriptors.
_RECEIVING = ("recvmsg", "recvmmsg")
_NAMES = "|".join(sorted(_FOLLOWED))
#: The halves of a cut call, behind their dots. Most halves are those of a vCPU's KVM_RUN, which do
#: not matter.
_BEGUN = r">(?<=<unfinished \.\.\.>)(?<!KVM_RUN <unfinished \.\.\.>)"
_RESUMED = (
    rf" (?<=<\.\.\. )(?:{_NAMES}|recvm?msg) resumed>(?!, 0\) +=(?: 0\n| -1 (?:EINTR|EAGAIN)))"
)
#: Names that the search finds by the bracket behind them: a line has few brackets, and most of
#: these are behind `ioctl`.
_NAMED = [*sorted(_FOLLOWED - {"ioctl", "close", "fcntl", "fcntl64", "pidfd_getfd"}), "_IOC"]
_LAST_LETTERS = "".join(sorted({name[-1] for name in _NAMED}))
_BEHIND_NAME = "|".join(rf"(?<={name}\()" for name in _NAMED)
#: F_DUPFD and F_DUPFD_CLOEXEC, as names or as numbers (-X raw).
_DUPFD = r"(?:F_DUPFD|(?:0|0x406)(?=[,) ]))"
#: CLOSE stands for the closes that matter. recvmsg matters if it brings descriptors.
_BRACKET = (
    rf"\((?:(?<=[{_LAST_LETTERS}]\()(?:{_BEHIND_NAME}|CLOSE)"
    rf"|(?:(?<=fcntl\()|(?<=fcntl64\())[^\n]*, {ARGUMENT_NAME}(?:0x[0-9a-f]+ /\* )?{_DUPFD}"
    r"|(?<=d\()(?<=pidfd_getfd\()"
    r"|(?<=g\()(?:(?<=recvmsg\()|(?<=recvmmsg\())[^\n]*cmsg_type=(?:SCM_RIGHTS|0x1\b))"
)
#: strace prints requests by name or, in all lines, as numbers (-X raw). `_IOC(` is a request that
#: strace does not know.
_WORDS = (
    Word(rb"MEMORY_REGION", b"Y"),
    Word(rb"KVM_C(?:REATE_VM|HECK_EXTENSION)", b"C"),
    Word(rb"ae(?:(?<=0xae)|(?<=0ae)4)"),  # 0xae01, ...; 0x4020ae46, 0x40a0ae49
    Word(rf"\.\.\.(?:{_BEGUN}|{_RESUMED})".encode()),
    Word(rb"strace: Process ", b"P"),
    Word(rb"\+\+\+", b"+"),
    Word(rb"kvm_set_user_memory", b"y"),
    *(Word(number.encode(), number.encode()) for number in DECIMAL),
)
#: Lines that are known to be counted before those are forgotten on which no more calls stand.
_MOST_COUNTED = 1000
#: A line with two structs of memslot calls is longer.
_ONE_CALL = 180
#: Most descriptors of VMs whose close the search tells from another.
_MOST_FDS = 16


def words(vm_fds: Collection[int]) -> tuple[Word, ...]:
    """Returns the words of the lines that are read; see Lines. The others do not matter.

    Of the many lines of `close` only those matter that close one of `vm_fds`.
    """
    close = r"(?!)"
    if len(vm_fds) > _MOST_FDS:
        close = r"(?<=close\()"
    elif vm_fds:
        numbers = "|".join(f"{fd}|{fd:#x}" for fd in sorted(vm_fds))
        close = rf"(?<=close\(){ARGUMENT_NAME}(?:{numbers})\b"
    return (*_WORDS, Word(_BRACKET.replace("CLOSE", close).encode()))


#: The beginning of a call other than these, which strace cut.
_OTHER_BEGUN = re.compile(
    rf"(?:\[pid\s+\d{{1,20}}\]\s+|\d{{1,20}}\s+)?"
    rf"(?:(?:(?P<clock>\d\d:\d\d:\d\d(?:\.\d{{1,9}})?)|\d{{9,20}}\.\d{{1,9}})\s+)?"
    rf"(?!(?:{_NAMES})\()[a-z]\w*\(".encode()
)

#: Words of a line that matters even so: the name of a memslot call may be cut.
_NOT_IDLE = (b"ioctl(", b"attached", b"guest_phys_addr=")

_HEAD = r"""
    \s*
    (?: \[pid\s+(?P<pid>\d{1,20})(?:<[^>]{0,99}>)?(?:\ /\*.{0,99}?\*/)?\]\s+
      | (?P<bare>\d{1,20})(?:<[^>]{0,99}>)?(?:\ /\*.{0,99}?\*/)?\s+ )?
    (?: (?: (?P<clock>\d\d:\d\d:\d\d(?:\.\d+)?) | (?P<seconds>\d{1,20}\.\d+|\d{9,20}) )\s+ )?
    (?: \(\+\s*\d+(?:\.\d+)?\)\s+ )?                         # -r beside -t
    (?: \[\s*\d+\]\s+ )? (?: \[[0-9a-f?]{8,16}\]\s+ )?       # -n, -i
    (?: (?P<call>[a-z_][a-z0-9_]*) (?=\()
      | <\.\.\.\ (?P<resumed>[a-z_][a-z0-9_]*)\ resumed>\s?
      | (?P<ended>\+\+\+\ (?:exited|killed|superseded))
      | (?P<signal>---\ (?:SIG|stopped))
      | (?P<note>strace:\ ) )
"""
HEAD = re.compile(_HEAD, re.VERBOSE)
#: The same behind what a log or a container puts in front of each line. Digits of a date or a time
#: are no pid.
_BEHIND = re.compile(
    r"(?: (?=\[pid\ )"
    r"  | (?<![\w./-]) (?<!\d:) (?<![A-Z][a-z][a-z]\ ) (?<![A-Z][a-z][a-z]\ \ ) (?=\S) )" + _HEAD,
    re.VERBOSE,
)
#: The pid that may stand right in front of a call that follows another program's output.
_PID = re.compile(r"\[pid\s+\d{1,20}\]")
_GREP = re.compile(r"(?:(?=\d*[^\s:(\d])[^\s:(]*[:-])?(?:\d+[:-])?(?=[\s\[<\d a-z])")
#: The struct of a memslot call, or the beginning of the struct behind the request.
_BEHEADED = re.compile(
    r"guest_phys_addr=[^=]*memory_size="
    r"|(?:KVM_SET_USER_MEMORY_REGION2?|0x4020ae46|0x40a0ae49"
    r"|_IOC\(_IOC_WRITE, 0xae, 0x4(?:6, 0x20|9, 0xa0)\))(?: /\*[^*]*\*/)?, \{slot="
)
#: A descriptor, in a decimal or hexadecimal number that a C integer can hold.
_FD = r"(?:0x[0-9a-f]{1,16}|\d{1,20})"
_CLOSE = re.compile(rf"close\({ARGUMENT_NAME}({_FD})\b")
_DUP = re.compile(
    rf"(?:dup[23]?|(?P<fcntl>fcntl(?:64)?))\({ARGUMENT_NAME}(?P<fd>{_FD})"
    rf"(?:<[^>]*>+)?(?(fcntl), {ARGUMENT_NAME}(?:0x[0-9a-f]+ /\* )?{_DUPFD}|[,)])"
)
_CLOSE_RANGE = re.compile(
    rf"close_range\({ARGUMENT_NAME}(?P<first>{_FD})(?:<[^>]*>+)?, {ARGUMENT_NAME}(?P<last>{_FD})"
    rf"(?:<[^>]*>+)?, {ARGUMENT_NAME}(?P<flags>0x[0-9a-f]{{1,8}}|\d{{1,10}}|[\w|]+)"
)
#: clone's flags behind their name, or as the first argument, which is a stack on some processors.
_CLONE_FLAGS = re.compile(r"flags=(0x[0-9a-f]{1,16}|0\b)|(?:clone|unshare)\((0x[0-9a-f]{1,8}|0)\b")
#: The descriptors in a message, perhaps with their names (-y).
_RIGHTS = re.compile(
    r"cmsg_type=(?:SCM_RIGHTS|0x1(?: /\* SCM_RIGHTS \*/)?)\s*, "
    r"cmsg_data=\[((?:(?!cmsg_data=).)*?)\]\}"
)
_DESCRIPTOR = re.compile(rf"(?:^|,)\s*({_FD})(?=\s*(?:$|[,<]))")
#: strace's message, and whether more text follows: a paste may have lost its line ends.
ATTACHED = re.compile(
    r"strace: Process (\d{1,20}) attached(?: with \d+ threads)?(?:\s*\Z|(?P<more>))"
)
_UNFINISHED = "<unfinished ...>"
#: The end of an ioctl that returned.
_ENDED = re.compile(r"\)\s*= (?:\?|-?\d)")


@dataclass(slots=True)
class _Begun:
    """A call that strace cut at `<unfinished ...>`; `text` is None if the call does not matter."""

    line: int
    text: str | None


class _Head(NamedTuple):
    """The thread and time in front of a call."""

    tid: int | None
    time_ns: int | None


class StraceReader:
    """Iterates over the events of strace's lines; `counts` is complete at the end."""

    def __init__(self, lines: Lines, counts: Counts) -> None:
        self.counts = counts
        self.notes: list[str] = []
        self._lines = lines
        self._clock = Clock()
        self._begun: dict[int | None, _Begun] = {}
        self._ioctls = IoctlReader(counts)
        self._tracers = OtherTracers()
        self._announced: set[int] = set()  # by "strace: Process N attached"
        self._first_pid = False  # a [pid N] was seen
        self._without_pid = False  # a call without a pid was seen
        self._fragment: tuple[int, str] | None = None
        self._qemu_lines = 0
        self._vm_fds: set[int] = set()  # each at which any process had a VM

    def __iter__(self) -> Iterator[Event]:
        self._lines.words = words(self._vm_fds)
        number = 0
        for number, raw in self._lines:
            if self._is_idle(raw):
                continue
            text = raw.decode("ascii", "replace").rstrip("\r")
            if self._fragment is not None:
                if not text:  # of a broken line that was joined
                    self._lines.next_too = True
                    continue
                first, beginning = self._fragment
                self._fragment = None
                yield from self._line(first, number, beginning + text)
            else:
                yield from self._line(number, number, text)
        if self._fragment is not None:
            yield from self._line(self._fragment[0], number, self._fragment[1])
        for begun in self._begun.values():
            self._lose_begun(begun)
        self._finish()

    def _is_idle(self, raw: bytes) -> bool:
        """Returns whether a line only begins a call that does not matter."""
        if not raw.endswith(_UNFINISHED.encode()) or self._lines.words is None or self._fragment:
            return False
        found = _OTHER_BEGUN.match(raw)
        if found is None or any(word in raw for word in _NOT_IDLE):
            return False
        if any(begun.text for begun in self._begun.values()):
            return False
        if found["clock"]:
            self._clock.time_of_day(found["clock"].decode())  # midnight may have passed
        return True

    def _finish(self) -> None:
        counts = self.counts
        counts.lines = self._lines.total
        counts.calls = self._ioctls.decoded
        counts.unrelated = counts.lines - self._ioctls.lines
        if self._qemu_lines:
            self.notes.append(
                f"{self._qemu_lines} lines of QEMU's kvm_set_user_memory trace between strace's "
                "lines were ignored; --format qemu reads them instead"
            )

    def _line(self, first: int, number: int, text: str) -> Iterator[Event]:
        """Yields the events of one line, which begins at line `first` and ends at `number`."""
        counted = self._ioctls.counted
        if len(counted) > _MOST_COUNTED + 2 * len(self._begun):
            counted &= {first, *(begun.line for begun in self._begun.values())}
        if "attached" in text and (attached := list(ATTACHED.finditer(text))):
            self._announced.update(int(found[1]) for found in attached)
            text = ATTACHED.sub("", text)
            if attached[-1]["more"] is None:
                if text:
                    # strace's message interrupted the line of a call; the next line continues it.
                    self._fragment = (first, text)
                    self._lines.next_too = True
                return
        if self._tracers.has_call(text):
            reason = "another tracer than strace: it prints no struct"
            self._lose(first, reason, text, _errno_of(text))
        found = HEAD.match(text)
        if found is None:
            grep = _GREP.match(text)
            found = HEAD.match(text, grep.end()) if grep else None
        if found is None and (found := _behind(text)):
            front = text[: found.start()]
            yield from self._inner_calls(first, number, front, memslot_calls(front))
        if found is None:
            yield from self._odd_line(first, number, text)
            return
        head = self._read_head(found)
        tid = head.tid
        kind = found.lastgroup  # the last group of HEAD that matched
        if found["pid"] and tid is not None:
            yield from self._see_pid(number, tid)
        elif tid is None and kind == "call":
            self._without_pid = True
        if self._clock.relative and self._lines.words is not None:
            self._lines.words = None  # times since the line before add up over all lines
        behind = found.end()
        if kind == "call" and found["call"] != "ioctl":
            behind = found.start("call")  # "consoleioctl" is other text directly before a call
        others = memslot_calls(text, behind)
        own = text[: others[0].start] if others else text
        event: Event | None = None
        if kind == "call":
            event = self._call(first, number, own[found.start("call") :], head)
        elif kind == "resumed":
            event = self._resumed(number, found["resumed"], own[found.end() :], head)
        elif kind == "ended":
            if begun := self._begun.pop(tid, None):
                self._lose_begun(begun)
            # The thread that superseded this one became another program under this one's pid.
            by_exec = found["ended"].endswith("superseded")
            event = TaskEnded(number, tid, by_exec=by_exec)
        if event is not None:
            yield event
        if others:
            yield from self._inner_calls(first, number, text, others)
        elif kind != "resumed" and found["call"] != "ioctl":
            self._lose_beheaded(first, text)
            return
        if len(text) > _ONE_CALL:
            # Behind the struct of the last call there may be another one without its beginning.
            last = text.find("}", others[-1].start if others else found.end())
            self._lose_beheaded(first, text[last + 1 :] if last >= 0 else "")

    def _read_head(self, found: re.Match[str]) -> _Head:
        pid, bare, clock, seconds = found.group("pid", "bare", "clock", "seconds")
        tid = pid or bare
        if tid and not seconds and int(tid) >= EPOCH_FROM:
            tid, seconds = None, tid  # whole seconds since the epoch, not a pid
        time_ns = None
        if clock:
            time_ns = self._clock.time_of_day(clock)
        elif seconds:
            time_ns = self._clock.seconds(seconds)
        return _Head(int(tid) if tid else None, time_ns)

    def _see_pid(self, number: int, tid: int) -> Iterator[Event]:
        """Learns from a `[pid N]`. The first unannounced one is the thread without a pid so far."""
        if not self._first_pid and self._announced and self._without_pid:
            if tid in self._announced:
                return
            yield TaskStarted(number, None, tid, True)
        self._first_pid = True

    def _odd_line(self, first: int, number: int, text: str) -> Iterator[Event]:
        """Yields the events of a line that does not begin like strace's lines."""
        if "kvm_set_user_memory " in text:
            self._qemu_lines += 1
        found = memslot_calls(text)
        yield from self._inner_calls(first, number, text, found)
        if not found:
            self._lose_beheaded(first, text)

    def _lose_beheaded(self, first: int, text: str) -> None:
        """Counts the call as lost whose beginning is missing in a line, if there is one."""
        if "guest_phys_addr=" not in text and "{slot=" not in text:
            return  # most lines
        found = _BEHEADED.search(text)
        if found is not None and found.start() not in Quotes(text):
            self._lose(first, "the line's beginning is missing", text)

    def _inner_calls(
        self, first: int, number: int, text: str, found: list[Found]
    ) -> Iterator[Event]:
        """Yields the events of memslot calls that stand behind other text."""
        ends = [call.start for call in found[1:]] + [len(text)]
        begin = 0
        for call, end in zip(found, ends, strict=False):
            if call.doubtful:
                reason = "after a quotation mark: a call, or text that a program wrote"
                self._lose(first, reason, text[call.start : end])
            else:
                head = self._head_of(text, begin, call.start)
                event = self._call(first, number, text[call.start : end], head)
                if event is not None:
                    yield event
            begin = call.start

    def _head_of(self, text: str, begin: int, call: int) -> _Head:
        """Returns the thread and time in front of a call that follows other text at `begin`."""
        for pid in _PID.finditer(text, begin, call):
            found = HEAD.match(text, pid.start())
            if found is not None and found["call"] and found.start("call") == call:
                return self._read_head(found)
        return _Head(None, None)

    def _call(self, first: int, number: int, text: str, head: _Head) -> Event | None:
        """Returns the event of a call. Keeps an `<unfinished ...>` call until it is resumed."""
        unfinished = text.find(_UNFINISHED)
        if unfinished >= 0 and text.startswith("ioctl(") and _ENDED.search(text, 0, unfinished):
            unfinished = -1  # of another call, which follows on the line
        if unfinished < 0:
            return self._complete(first, number, text, head)
        before = self._begun.pop(head.tid, None)
        if before is not None:
            self._lose_begun(before)
        name = text.partition("(")[0]
        text, rest = text[:unfinished].rstrip(), text[unfinished + len(_UNFINISHED) :]
        if rest.strip().startswith(")"):  # "<unfinished ...>) = ?": it never returned
            if _is_memslot(text):
                self._lose(first, "the call did not return", text)
            return None
        wanted = name in _FOLLOWED and (name != "ioctl" or _is_wanted(text))
        self._begun[head.tid] = _Begun(first, text if wanted else None)
        return None

    def _resumed(self, number: int, name: str, rest: str, head: _Head) -> Event | None:
        begun = self._begun.pop(head.tid, None)
        if begun is not None and begun.text and not begun.text.startswith(name + "("):
            self._lose_begun(begun)  # lines between the two calls are missing
            begun = None
        if name in _RECEIVING:
            return self._received(number, rest, head)
        if begun is None:
            # KVM_RUN and most other ioctls print their argument when they return. A memslot call
            # printed all of it before, so only the bracket is left.
            if name == "ioctl" and (re.match(r"\)\s+= ", rest) or _BEHEADED.search(rest)):
                reason = "resumed, but its beginning is not in the trace (perhaps another ioctl)"
                self._lose(number, reason, f"<... ioctl resumed>{rest}", _errno_of(rest))
        elif begun.text is not None:
            return self._complete(begun.line, number, begun.text + rest, head)
        return None

    def _complete(self, first: int, number: int, text: str, head: _Head) -> Event | None:
        """Returns the event of a whole call with its result."""
        name = text.partition("(")[0]
        if name == "ioctl":
            cut = self._lines.cut and number == self._lines.total
            event = self._ioctls.read(first, number, text, head.tid, head.time_ns, cut)
            if event is not None and not isinstance(event, Capability):
                self._hold(event.fd)
            return event
        if name in _RECEIVING:
            return self._received(number, text, head)
        if name not in _FOLLOWED:
            return None
        try:
            result = read_result(text)
        except UndecodedError:
            return None
        if result.errno or result.value is None:
            return None
        if name == "close":
            found = _CLOSE.match(text)
            if found and (fd := _number(found[1])) in self._vm_fds:
                return FdClosed(number, head.tid, fd)
        elif name.startswith(("fcntl", "dup")):
            if found := _DUP.match(text):
                fd = _number(found["fd"])
                if fd in self._vm_fds:
                    self._hold(result.value)
                if fd != result.value:
                    return FdDuplicated(number, head.tid, fd, result.value)
        elif name == "close_range":
            return _closed_range(number, head.tid, text)
        elif name == "pidfd_getfd":
            self._hold(result.value)
            return FdsReceived(number, head.tid, (result.value,))
        elif name == "unshare":
            if _has_clone_files(text):
                return FdsUnshared(number, head.tid)
        elif name.startswith("execve"):
            return TaskEnded(number, head.tid, by_exec=True)
        elif result.value > 0:
            shares = _has_clone_files(text) if "clone" in name else False
            if shares is not None:
                return TaskStarted(number, head.tid, result.value, shares)
        return None

    def _hold(self, fd: int | None) -> None:
        """Remembers that a VM is at `fd`: from now on the lines that close it are read."""
        if fd is not None and fd not in self._vm_fds:
            self._vm_fds.add(fd)
            if self._lines.words is not None:
                self._lines.words = words(self._vm_fds)

    def _received(self, number: int, text: str, head: _Head) -> FdsReceived | None:
        """Returns the event of a message that brought descriptors, or None."""
        fds = [
            _number(fd) for rights in _RIGHTS.findall(text) for fd in _DESCRIPTOR.findall(rights)
        ]
        if not fds or text.find("cmsg_type=") in Quotes(text):
            return None
        for fd in fds:
            self._hold(fd)
        return FdsReceived(number, head.tid, tuple(fds))

    def _lose_begun(self, begun: _Begun) -> None:
        if begun.text is not None and _is_memslot(begun.text):
            self._ioctls.count_lines(begun.line, begun.line)
            self.counts.lose(begun.line, "unfinished, and never resumed", begun.text)

    def _lose(self, line: int, reason: str, text: str, errno: int | None = None) -> None:
        self._ioctls.count_lines(line, line)
        self.counts.lose(line, reason, text, errno)


def _behind(text: str) -> re.Match[str] | None:
    """Returns the head of a followed call that other text stands in front of, or None."""
    quotes = Quotes(text)
    for found in _BEHIND.finditer(text):
        name = found["call"] or found["resumed"]
        followed = found["ended"] or name in _FOLLOWED or name in _RECEIVING
        if followed and found.start() not in quotes:
            return found
    return None


def _number(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)


def _closed_range(number: int, tid: int | None, text: str) -> Event | None:
    """Returns the event of a close_range. With CLOSE_RANGE_CLOEXEC it closes nothing yet."""
    found = _CLOSE_RANGE.match(text)
    if found is None:
        return None
    flags = found["flags"]
    bits = _number(flags) if flags[0].isdecimal() else 0
    unshared = "CLOSE_RANGE_UNSHARE" in flags or bool(bits & 2)
    if "CLOSE_RANGE_CLOEXEC" in flags or bits & 4:
        return FdsUnshared(number, tid) if unshared else None
    return FdsClosed(number, tid, _number(found["first"]), _number(found["last"]), unshared)


def _has_clone_files(text: str) -> bool | None:
    """Returns whether a clone or unshare has CLONE_FILES, or None if the line does not tell."""
    if "CLONE_" in text:
        return "CLONE_FILES" in text
    # strace -X raw, or -e raw=clone.
    found = re.search(
        r"flags=(0x[0-9a-f]{1,16}|0\b)|(?:clone|unshare)\((0x[0-9a-f]{1,8}|0)\b", text
    )
    if found is not None:
        return bool(_number(found[1] or found[2]) & 0x400)
    return False if "flags=" in text else None


def _is_memslot(text: str) -> bool:
    return split_ioctl(text).kind in ("region", "region2") if text.startswith("ioctl(") else False


def _is_wanted(text: str) -> bool:
    return split_ioctl(text).kind != ""


def _errno_of(rest: str) -> int | None:
    try:
        result: Result = read_result(rest)
    except UndecodedError:
        return None
    return result.errno
