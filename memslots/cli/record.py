"""`memslots record`: runs a VMM under strace, and shows its memslot calls as they come."""

from __future__ import annotations

import errno
import io
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from memslots.traces import LostCall, RegionCall, TraceError, open_trace

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: The system calls that show slots, and the processes to which they belong.
_TRACED = "trace=ioctl,clone,clone3,fork,vfork,close,dup,dup2,dup3,fcntl"
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
