"""`memslots diff`: the differences between two maps."""

from __future__ import annotations

import click

from memslots.cli import json_output, text_output
from memslots.cli.map_arguments import two_maps
from memslots.cli.options import file_names, json_option, vm_option
from memslots.cli.output import show
from memslots.cli.progress import metered


@click.command("diff", short_help="Show the differences between two maps.")
@click.argument("first", metavar="FIRST", shell_complete=file_names)
@click.argument("second", metavar="SECOND", shell_complete=file_names)
@vm_option
@json_option
def command(first: str, second: str, vm: int, as_json: bool) -> int:
    """Show the differences between two maps: slots and pages that came, went or changed.

    A map is a file that memslots map reads, a file in JSON (MemoryMap.to_json, or memslots replay
    --json), or a trace: its map at the end, or after a line (FILE:LINE). sample:NAME is a trace
    that ships with memslots.

    Exit status: 0 if nothing differs, 1 if something does, 2 if an input cannot be used.
    """
    both = two_maps(first, second, vm)
    if both is None:
        return 2
    one, two = both
    with metered("comparing"):
        diffs = {
            as_id: one.of(as_id).diff(two.of(as_id)) for as_id in sorted({*one.spaces, *two.spaces})
        }
    show(
        json_output.diff(diffs, one.name, two.name)
        if as_json
        else text_output.diff(diffs, one.name, two.name)
    )
    return 1 if any(diffs.values()) else 0
