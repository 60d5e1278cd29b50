"""The entry point of the `memslots` command, and how it handles errors.

The command itself (commands.py) needs click and rich, the extra `cli`. Exit status: 0 if all
results agree, 1 if some do not, 130 if interrupted. It is 2 if an input or the requested KVM cannot
be used, standard output cannot be written, or the arguments are wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

MISSING = "memslots: the command needs click and rich: pip install 'memslots[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (default: sys.argv[1:]). Returns the exit status."""
    try:
        import rich  # noqa: F401 (a command imports it later: the hint comes in any case)

        from memslots.cli.commands import run
        from memslots.cli.output import OutputClosedError, OutputError
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        sys.stderr.write(f"{MISSING}\n")
        return 2
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the terminal may not be able to show a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    except OutputClosedError:
        _leave_output()
        return 141
    except OutputError as error:
        sys.stderr.write(f"memslots: standard output: {error}\n")
        _leave_output()
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("memslots: interrupted\n")
        return 130
    return status


def _open_what_is_closed() -> None:
    """Opens the null device as each standard stream that the caller closed (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _leave_output() -> None:
    """Lets the flush at exit write nothing: it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
