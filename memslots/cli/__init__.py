"""The `memslots` command: its entry point, and what becomes of errors.

The command itself (commands.py) needs click and rich, the extra `cli`. Exit status: 0 all results
agree, 1 some do not, 2 unusable input (or KVM, where it is asked for) or wrong arguments,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

MISSING = "memslots: the command needs click and rich: pip install 'memslots[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: the process's own); returns the exit status."""
    try:
        from memslots.cli.commands import OutputClosedError, run
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        sys.stderr.write(f"{MISSING}\n")
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    except OutputClosedError:
        # Whoever read our output has enough of it (`| head`). Nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        sys.stderr.write("memslots: interrupted\n")
        return 130
    return status
