"""The group of all commands: `memslots X` is `command` in memslots/cli/X.py."""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from memslots import __version__
from memslots.cli.output import OutputClosedError, OutputError

NAMES = ("bench", "demo", "diff", "lookup", "map", "plan", "record", "replay", "report", "watch")


class _Commands(UserDict[str, Any]):
    """Imports a command when it is asked for: `memslots --version` needs none."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = import_module(self.data[name]).command
        return command


@click.group(
    commands=_Commands({name: f"memslots.cli.{name}" for name in NAMES}),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="memslots", message="%(prog)s %(version)s")
def command() -> None:
    """KVM's memory slots: replay a VMM's calls, look up guest addresses, plan changes, measure.

    FILE is a trace: the output of strace -f, or of QEMU's -trace kvm_set_user_memory. The commands
    map, lookup, diff and plan read other maps of memory too. A dash (-) is standard input. FILE
    may be compressed with gzip or xz.

    Exit status: 0 if every call gave the recorded result, 1 if some did not, 2 if an input cannot
    be used. With --kvm it is also 2 if /dev/kvm cannot be used.

    Begin with memslots demo.
    """


def run(arguments: Sequence[str]) -> int:
    """Runs the command with `arguments`. Returns the exit status.

    Raises KeyboardInterrupt if interrupted, OutputClosedError if the output was closed, and
    OutputError if it cannot be written.
    """
    streams = sys.stdout, sys.stderr
    try:
        result = command.main(list(arguments), prog_name="memslots", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.Exit as request:
        return request.exit_code
    except SystemExit:
        # If the output was closed, click wraps both streams and exits.
        if (sys.stdout, sys.stderr) == streams:
            raise
        sys.stdout, sys.stderr = streams
        raise OutputClosedError from None
    except OSError as error:
        # Only output has an error without the name of a file; those of this package are subclasses.
        if type(error) is OSError and error.filename is None:
            raise OutputError(error.strerror) from None
        raise
    return result if isinstance(result, int) else 0
