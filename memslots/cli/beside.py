"""What `memslots map` and `memslots lookup` take beside a map: --host and --raw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

import memslots.maps as formats
from memslots.cli.options import file_names
from memslots.cli.output import complain
from memslots.cli.progress import unmetered
from memslots.errors import TraceError
from memslots.traces.source import Source


@dataclass(frozen=True)
class Beside:
    """The files that are named beside a map."""

    hosts: tuple[str, ...]
    raw: str | None
    layout: str

    def __post_init__(self) -> None:
        if self.layout != "auto" and self.raw is None:
            raise click.UsageError(
                "--layout tells how the file of --raw is laid out: name that file"
            )

    def __bool__(self) -> bool:
        return bool(self.hosts or self.raw)

    def completed(self, maps: list[formats.Map]) -> list[formats.Map]:
        """Returns the maps with what the files say of their entries."""
        if self.raw is not None:
            maps = self._in_raw(self.raw, maps)
        for host in self.hosts:
            maps = formats.beside(maps, host)
        return maps

    def _in_raw(self, raw: str, maps: list[formats.Map]) -> list[formats.Map]:
        with Source(raw) as source:  # raises TraceError if the file cannot be opened
            size = source.size
        if not size:
            raise TraceError(raw, "it is empty, or no regular file: the size of raw memory counts")
        try:
            layouts = [
                formats.raw_layout(one, size) if self.layout == "auto" else self.layout
                for one in maps
            ]
            found = [
                formats.in_raw(one, size, layout) for one, layout in zip(maps, layouts, strict=True)
            ]
        except ValueError as error:
            raise TraceError(raw, str(error)) from None
        if self.layout == "auto":
            told = ", ".join(dict.fromkeys(layouts))
            with unmetered():
                complain(f"{raw}: its layout is {told}, by its size")
        return found


def beside_options(function: Any) -> Any:
    """Adds the options that make a Beside."""
    function = click.option(
        "--layout",
        type=click.Choice(["auto", *formats.LAYOUTS]),
        default="auto",
        show_default=True,
        help="How the file of --raw is laid out; auto tells by its size.",
    )(function)
    function = click.option(
        "--raw",
        metavar="RAW",
        shell_complete=file_names,
        help="Show the places of the entries of an e820 map or /proc/iomem in RAW, which is the raw"
        " memory of that guest.",
    )(function)
    return click.option(
        "--host",
        "hosts",
        multiple=True,
        metavar="FILE",
        shell_complete=file_names,
        help="What is behind the host addresses: /proc/PID/maps or smaps of the VMM, or QEMU's info"
        " ramblock. Repeatable.",
    )(function)
