"""`memslots watch`: asks a running QEMU for its flat view of memory, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import click

from memslots.cli import json_output, text_output
from memslots.cli.options import file_names, kind_option, read_kinds
from memslots.cli.output import complain, show_line
from memslots.cli.qmp import Qmp, QmpClosedError, QmpError
from memslots.errors import InvalidRegionError
from memslots.maps import Entry, Map
from memslots.maps.changes import Run, changed_runs
from memslots.maps.mtree import FlatViews
from memslots.traces.events import shorten

_QUESTION = "info mtree -f"


@dataclass(frozen=True)
class SpaceChange:
    """What changed in one address space."""

    as_id: int
    removed: list[Entry]
    added: list[Entry]
    runs: list[Run]


def watch(
    path: str,
    kinds: Sequence[str],
    interval: float | None,
    show_map: Callable[[datetime, list[Map]], None],
    show_change: Callable[[datetime, list[SpaceChange]], None],
) -> str | None:
    """Shows the memory of the QEMU whose QMP socket is at `path`, and each change of it.

    Between an answer and the next question `interval` seconds pass; None: only the map is shown.
    Returns why QEMU shut down, or None. Raises QmpError if the socket cannot be used, or if QEMU
    is gone without saying that it shuts down.
    """
    with Qmp(path) as qmp:
        maps = _ask(qmp, kinds)
        show_map(_now(), maps)
        if interval is None:
            return None
        try:
            while True:
                qmp.wait(interval)
                before, maps = maps, _ask(qmp, kinds)
                if found := changes(before, maps):
                    show_change(_now(), found)
        except QmpClosedError as closed:
            if closed.reason is None:
                raise
            return closed.reason


def changes(before: Sequence[Map], after: Sequence[Map]) -> list[SpaceChange]:
    """Returns the changes of each address space that has any.

    A second address space that is missing in `before` or `after` is equal to the first there.
    """
    found = []
    for as_id in sorted({one.as_id for one in (*before, *after)}):
        old, new = _space(before, as_id), _space(after, as_id)
        olds, news = {*old}, {*new}
        removed = [entry for entry in old if entry not in news]
        added = [entry for entry in new if entry not in olds]
        if removed or added:
            found.append(SpaceChange(as_id, removed, added, changed_runs(old, new)))
    return found


def _space(maps: Sequence[Map], as_id: int) -> Map:
    by_id = {one.as_id: one for one in maps}
    return by_id[as_id] if as_id in by_id else by_id.get(0, Map(()))


def _ask(qmp: Qmp, kinds: Sequence[str]) -> list[Map]:
    text = qmp.execute("human-monitor-command", command_line=_QUESTION)
    if not isinstance(text, str) or "FlatView #" not in text:
        answer = shorten(str(text), 80)
        raise QmpError(f"QEMU's answer to `{_QUESTION}` has no flat view: {answer!r}")
    try:
        return [one.of_kind(*kinds) for one in FlatViews.read(text)]
    except (ValueError, InvalidRegionError) as error:
        why = getattr(error, "strerror", None) or error
        raise QmpError(f"QEMU's answer to `{_QUESTION}` is no map: {why}") from None


def _now() -> datetime:
    return datetime.now().astimezone()


@click.command("watch", short_help="Watch the memory of a running QEMU.")
@click.option(
    "--qmp",
    "path",
    required=True,
    metavar="SOCKET",
    help="QEMU's QMP socket.",
    shell_complete=file_names,
)
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait before the next look.",
)
@click.option("--once", is_flag=True, help="Show the map, and end.")
@kind_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document a line: map, changes.")
def command(path: str, interval: float, once: bool, kinds: str, as_json: bool) -> int:
    """Watch the memory of a running QEMU: show its map, and then what changes.

    QEMU needs a socket for it: -qmp unix:SOCKET,server=on,wait=off

    Exit status: 0 if QEMU shut down, or with --once; 2 if SOCKET cannot be used or QEMU is gone
    without a word.
    """
    if not 0.01 <= interval <= 86400:
        raise click.UsageError(f"--interval {interval:g}: it is from 0.01 to 86400 seconds.")
    wanted = read_kinds(kinds)
    as_text = json_output if as_json else text_output
    try:
        reason = watch(
            path,
            wanted,
            None if once else interval,
            lambda when, maps: show_line(as_text.watched_map(path, when, maps)),
            lambda when, spaces: show_line(as_text.watched_change(when, spaces)),
        )
    except QmpError as error:
        complain(f"{path}: {error}")
        return 2
    if reason is not None:
        complain(f"{path}: QEMU shut down: {reason}")
    return 0
