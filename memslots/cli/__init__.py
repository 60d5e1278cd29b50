"""The entry point of the `memslots` command, and how it handles errors.

The command itself (commands.py) needs click and rich, the extra `cli`. Exit status: 0 if all
results agree, 1 if some do not, 130 if interrupted. It is 2 if an input or the requested KVM cannot
be used, or the arguments are wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

MISSING = "memslots: the command needs click and rich: pip install 'memslots[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (default: sys.argv[1:]). Returns the exit status."""
    try:
        import rich  # noqa: F401 (a command imports it later: the hint comes in any case)

        from memslots.cli.commands import run
        from memslots.cli.output import OutputClosedError
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        sys.stderr.write(f"{MISSING}\n")
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the terminal may not be able to show a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    except OutputClosedError:
        # The reader of the output closed it (`| head`). Nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        sys.stderr.write("memslots: interrupted\n")
        return 130
    return status
