"""The options that several commands have, and what they take."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

import memslots.maps as formats
from memslots.traces import FORMATS
from memslots.traces.samples import SAMPLES


def file_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Lets the shell complete the name of a file, for an argument that is more than a path."""
    return [CompletionItem(incomplete, type="file")]


sample_option = click.option(
    "--sample",
    type=click.Choice(list(SAMPLES)),
    metavar="NAME",
    help="Use a trace that ships with memslots instead of a FILE.",
)
format_option = click.option(
    "--format",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="The format of FILE; auto recognises it by content.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of tables."
)
force_option = click.option(
    "--force",
    is_flag=True,
    help="With --kvm: take as much of the kernel's memory as the slots need, without asking.",
)
vm_option = click.option(
    "--vm",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The number of the VM, if a trace has several, or of the boot, if a log has several.",
)
kind_option = click.option(
    "--kind",
    "kinds",
    default=",".join(formats.MEMORY),
    show_default=True,
    help=f"The kinds to show, separated by commas: {', '.join(formats.KINDS)}; or all.",
)


def read_kinds(kinds: str) -> tuple[str, ...]:
    """Converts the value of `--kind`. Raises UsageError if there is no such kind."""
    wanted = formats.KINDS if kinds == "all" else tuple(kinds.split(","))
    if unknown := sorted({*wanted} - {*formats.KINDS}):
        known = ", ".join(formats.KINDS)
        raise click.UsageError(f"there is no kind {unknown[0]!r}; there are {known}.")
    return wanted


def read_gpa(text: str) -> int:
    """Converts a guest physical address. Raises UsageError if it is none."""
    try:
        value = int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        message = f"{text!r} is not an address: write it in decimal, or in hexadecimal with 0x"
        raise click.UsageError(message) from None
    if not 0 <= value < 1 << 64:
        raise click.UsageError(f"{text} is not an address: it does not fit 64 bits")
    return value
