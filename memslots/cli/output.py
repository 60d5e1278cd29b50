"""What the commands print: results on standard output, complaints on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


class OutputClosedError(Exception):
    """The reader of standard output closed it."""


class OutputError(Exception):
    """Standard output cannot be written, for example because the disk is full."""


def show(shown: str | dict[str, Any]) -> None:
    """Prints a text as it is, or a document as JSON."""
    text = shown if isinstance(shown, str) else json.dumps(shown, indent=2) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def show_line(shown: str | dict[str, Any]) -> None:
    """Prints a text as it is, or a document on one line."""
    show(shown if isinstance(shown, str) else json.dumps(shown) + "\n")


def complain(what: Exception | str) -> None:
    """Prints why the command cannot do something."""
    click.echo(f"memslots: {what}", err=True)
