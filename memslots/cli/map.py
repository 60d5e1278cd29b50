"""`memslots map`: the map of guest memory that a file holds."""

from __future__ import annotations

import click

import memslots.maps as formats
from memslots.cli import json_output
from memslots.cli.beside import Beside, beside_options
from memslots.cli.options import file_names, json_option, kind_option, read_kinds
from memslots.cli.output import complain, show
from memslots.cli.progress import metered
from memslots.errors import TraceError


@click.command("map")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, shell_complete=file_names)
@click.option(
    "--from",
    "format",
    type=click.Choice(["auto", *formats.FORMATS]),
    default="auto",
    metavar="FORMAT",
    help="The format of the files, if their content does not tell.",
)
@click.option(
    "--to",
    "written",
    type=click.Choice(list(formats.WRITERS)),
    default="text",
    help="The format to write; all but text, json and mtree hold one map.",
)
@kind_option
@beside_options
@json_option
def command(
    files: tuple[str, ...],
    format: str,
    written: str,
    kinds: str,
    hosts: tuple[str, ...],
    raw: str | None,
    layout: str,
    as_json: bool,
) -> int:
    """Show the map of guest memory that each FILE holds.

    A FILE may be a trace, QEMU's info mtree or info mtree -f, the map of a BIOS (e820) or of EFI,
    /proc/iomem, or a map in JSON or CSV. It may be a LiME file, an ELF core or a full crash dump of
    Windows. It may be LeechCore's memory map, a program of syzkaller, or a log of cloud-hypervisor,
    dosemu2, unidbg or libkrun.

    Exit status: 0, or 2 if a FILE cannot be used.
    """
    wanted = read_kinds(kinds)
    if written != "text" and len(files) > 1:
        raise click.UsageError(f"--to {written} takes one FILE, not {len(files)}")
    others = Beside(hosts, raw, layout)
    found: list[tuple[str, list[formats.Map]] | TraceError] = []
    for name in files:
        try:
            with metered(f"reading {name}"):
                maps = others.completed(formats.read(name, format))
            found.append((name, [one.of_kind(*wanted) for one in maps]))
        except TraceError as error:
            found.append(error)
            complain(error)
    if as_json:
        show(json_output.maps(found))
    else:
        for one in found:
            if not isinstance(one, TraceError):
                text = formats.write(one[1], written)
                show(text if written != "text" else f"{one[0]}: {one[1][0].format}\n{text}")
    return 2 if any(isinstance(one, TraceError) for one in found) else 0
