"""Wraps real traces as mails, pages, CIs and terminals do, in up to three ways at once.

Calls and lost calls together are the calls of the trace. If none is lost, the number of VMs and
their maps at the end are those of the trace. `python tests/fuzz/mutate.py 20000` tries that many
examples and prints each that fails; `python tests/fuzz/mutate.py 20000 7` begins at number 7.
"""

from __future__ import annotations

import gzip
import html
import io
import quopri
import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's own folder on the path; the imports start from tests/.
    sys.path.insert(0, str(Path(__file__).parent.parent))

from memslots.replay import Report, replay
from memslots.traces import Counts, TraceError, open_trace

DATA = Path(__file__).parent.parent / "data"

Lines = list[str]
Way = Callable[[Lines, random.Random], Lines]


def in_front(lines: Lines, choose: random.Random) -> Lines:
    """A column in front of each line, as logs and containers write it."""
    front = choose.choice(
        (
            "2026-11-29T18:32:10.123456789Z stderr F ",
            "Nov 29 18:32:10 host strace[123]: ",
            "[2026-03-02T21:01:29.045Z] ",
            "2026-03-02T21:01:29.0451234Z ",
            "[18:32:10]\t[Step 1/2] ",
            "vmm-1  | ",
            "INFO:root:",
            "    // ",
            "+",
            "    ",
        )
    )
    return [front + line for line in lines]


def quoted(lines: Lines, choose: random.Random) -> Lines:
    mark = choose.choice(("> ", ">", "> > ", ">> ", "| "))
    return [mark + line for line in lines]


def coloured(lines: Lines, choose: random.Random) -> Lines:
    if choose.random() < 0.5:
        return [f"\x1b[32m{line}\x1b[0m" for line in lines]
    return [line.replace("KVM_SET", "\x1b[01;31m\x1b[KKVM_SET") for line in lines]


def in_a_mail(lines: Lines, choose: random.Random) -> Lines:
    """Breaks lines at spaces; in format=flowed a broken line ends with a space."""
    width, space = choose.randrange(60, 100), choose.choice(("", " "))
    broken = []
    for line in lines:
        parts = textwrap.wrap(
            line, width, break_on_hyphens=False, break_long_words=False, drop_whitespace=True
        )
        broken += [part + space for part in parts[:-1]] + (parts[-1:] or [""])
    return broken


def in_a_terminal(lines: Lines, choose: random.Random) -> Lines:
    """Breaks lines at any character."""
    width = choose.randrange(80, 140)
    return [line[at : at + width] for line in lines for at in range(0, len(line) or 1, width)]


def quoted_printable(lines: Lines, choose: random.Random) -> Lines:
    text = "".join(f"{line}\n" for line in lines).encode()
    return quopri.encodestring(text).decode("ascii").split("\n")[:-1]


def as_a_page(lines: Lines, choose: random.Random) -> Lines:
    return ["<pre>", *(html.escape(line) for line in lines), "</pre>"]


def no_break_spaces(lines: Lines, choose: random.Random) -> Lines:
    return [line.replace(", ", ",\u00a0") for line in lines]


def with_returns(lines: Lines, choose: random.Random) -> Lines:
    return [line + "\r" for line in lines]


WAYS: tuple[Way, ...] = (
    in_front,
    quoted,
    coloured,
    in_a_mail,
    in_a_terminal,
    quoted_printable,
    as_a_page,
    no_break_spaces,
    with_returns,
)


def traces() -> list[Lines]:
    """Returns the recorded traces, each with its lines."""
    found = []
    for path in [*sorted((DATA / "traces").iterdir()), *sorted((DATA / "descriptors").iterdir())]:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        found.append(text.decode("ascii", "replace").splitlines())
    return found


CALLED = ("KVM_SET_USER_MEMORY", "0x4020ae46", "kvm_set_user_memory")
#: The lines of an example. The first lines show how the others are wrapped.
LONGEST = 60


def excerpt(trace: Lines, choose: random.Random) -> Lines:
    """Returns some lines of a trace with a memslot call among them."""
    calls = [n for n, line in enumerate(trace) if any(word in line for word in CALLED)]
    middle = choose.choice(calls)
    begin = max(0, middle - choose.randrange(LONGEST))
    return trace[begin : middle + 1 + choose.randrange(LONGEST)]


def example(number: int) -> tuple[str, str, list[Way]]:
    """Returns the text of an excerpt, the text of its mutant, and what was done to it."""
    choose = random.Random(number)
    lines = excerpt(choose.choice(TRACES), choose)
    text = "".join(f"{line}\n" for line in lines)
    ways = choose.sample(WAYS, choose.choice((1, 2, 3, 3)))
    # A terminal does not break colours: it breaks lines after so many visible characters.
    if coloured in ways and in_a_terminal in ways:
        ways.sort(key=lambda way: way is coloured)
    for way in ways:
        lines = way(lines, choose)
    return text, "".join(f"{line}\n" for line in lines), ways


def read(text: str) -> tuple[Counts, Report | None]:
    """Returns the counts of a trace, and the report of its replay unless all calls are lost."""
    with open_trace("pasted", stream=io.BytesIO(text.encode())) as trace:
        try:
            report = replay(trace)
        except TraceError:
            return trace.counts, None
        return trace.counts, report


def fault(text: str, mutant: str) -> str | None:
    """Returns what is wrong with the reading of a mutant, or None."""
    (right, wanted), (counts, found) = read(text), read(mutant)
    calls = right.calls + right.lost_total
    if counts.calls + counts.lost_total != calls:
        return f"{counts.calls} calls and {counts.lost_total} lost of {calls}"
    if counts.lost_total != right.lost_total or wanted is None or found is None:
        return None  # told
    if len(found.vms) != len(wanted.vms):
        return f"{len(found.vms)} VMs for {len(wanted.vms)}"
    if [vm.final_map for vm in found.vms] != [vm.final_map for vm in wanted.vms]:
        return "another map at the end"
    return None


TRACES = traces()


def main(count: int, first: int = 0) -> int:
    wrong = 0
    for number in range(first, first + count):
        text, mutant, ways = example(number)
        if why := fault(text, mutant):
            wrong += 1
            print(f"{number}: {', '.join(way.__name__ for way in ways)}: {why}", flush=True)
    print(f"{count} examples, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
