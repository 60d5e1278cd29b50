"""`memslots record`: runs a VMM under strace, and shows its memslot calls as they come."""

from __future__ import annotations

import errno
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memslots.cli import text_output
from memslots.cli.output import complain, show
from memslots.cli.replaying import replay_input
from memslots.traces import LostCall, RegionCall, TraceError, open_trace

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: The system calls that show slots, and the processes to which they belong.
#: A strace that does not know a name behind a question mark goes on without it.
_TRACED = (
    "trace=ioctl,clone,clone3,fork,vfork,close,dup,dup2,dup3,fcntl,"
    "?unshare,?close_range,?pidfd_getfd"
)
_PAUSE = 0.1  # seconds between two looks at the end of a file that grows


def record(
    strace: str,
    words: Sequence[str],
    output: str,
    show: Callable[[RegionCall | LostCall], None] | None,
) -> int:
    """Runs a command under strace, which replaces the file `output`. Returns the exit status.

    `show` gets each memslot call while the command runs. Raises OSError if the file cannot be
    written, or strace cannot be run.
    """
    path = Path(output)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file, and could not be read again", output)
    path.write_bytes(b"")  # strace does so later; until then the old content is there
    command = [strace, "-f", "-ttt", "-T", "-e", _TRACED, "-e", "signal=none", "-o", output, "--"]
    with subprocess.Popen([*command, *words]) as run:
        try:
            if show is not None:
                for call in _calls(path, lambda: run.poll() is not None):
                    show(call)
            return run.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                run.wait(0.25)  # it may have got the signal too
            run.kill()
            raise


def _calls(path: Path, ended: Callable[[], bool]) -> Iterator[RegionCall | LostCall]:
    """Yields the memslot calls of a growing trace until strace has ended.

    A lost call comes with the next event. Only the first LOST_KEPT lost calls come.
    """
    shown = 0
    with (
        io.BufferedReader(_Growing(path, ended)) as stream,
        open_trace(path, "strace", stream) as trace,
        suppress(TraceError),  # the replay of the whole file tells what is wrong
    ):
        for event in trace:
            yield from trace.counts.first_lost[shown:]
            shown = len(trace.counts.first_lost)
            if isinstance(event, RegionCall):
                yield event
    yield from trace.counts.first_lost[shown:]


class _Growing(io.FileIO):
    """A file that another program writes. A read at its end waits, until `ended` returns true."""

    def __init__(self, path: Path, ended: Callable[[], bool]) -> None:
        super().__init__(path)
        self._ended = ended

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Reads at least a byte, or returns 0 if none will come."""
        while True:
            ended = self._ended()  # asked first: what is written before the end is read
            if (count := super().readinto(buffer)) or ended:
                return count or 0
            time.sleep(_PAUSE)


@click.command("record", context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-o",
    "--output",
    default="memslots.strace",
    show_default=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="The file for the trace; an existing file is replaced.",
)
@click.option(
    "--live/--no-live",
    default=None,
    help="Show each call on standard error as it comes. [default: if that is a terminal]",
)
def command(words: tuple[str, ...], output: str, live: bool | None) -> int:
    """Run a VMM under strace, and replay its memslot calls.

    COMMAND runs unchanged, on this terminal. The trace stays in FILE, for replay and the others.

    Exit status: that of replay; 2 if strace or COMMAND cannot be run, or no call was recorded.
    """
    strace = shutil.which("strace")
    if strace is None:
        complain("record needs strace, which is not installed (apt install strace)")
        return 2
    if shutil.which(words[0]) is None:
        complain(f"record: there is no program {words[0]!r} that may be executed")
        return 2
    terminal = sys.stderr.isatty()
    end = "\r\n" if terminal else "\n"  # a VMM may have the terminal raw

    def show_call(call: RegionCall | LostCall) -> None:
        click.echo(text_output.live_call(call) + end, nl=False, err=True)

    try:
        status = record(
            strace, words, output, show_call if live or (live is None and terminal) else None
        )
    except OSError as error:
        complain(f"{error.filename or output}: {error.strerror}")
        return 2
    if status:
        complain(f"{words[0]} ended with status {status}")
    try:
        report = replay_input(output, "strace")
    except TraceError as error:
        complain(error)
        return 2
    show(text_output.replay(report))
    return 0 if report.agree else 1
