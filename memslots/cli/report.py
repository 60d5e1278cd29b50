"""`memslots report`: a replay as one HTML file.

It draws the slots over the calls of a trace, and lists gaps, disagreements and times.

The page computes the difference between two moments itself, from the spans: there are too many
pairs of moments to compute here. Plans come from moments.py.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from memslots import Change, Slot
from memslots.cli import json_output
from memslots.cli.moments import plans_document, rearrangements
from memslots.cli.options import file_names, format_option, sample_option
from memslots.cli.output import complain
from memslots.cli.progress import metered
from memslots.cli.replaying import replay_input
from memslots.read.table import flag_names
from memslots.replay import Report, VmReport, errno_name
from memslots.traces import Format, TraceError
from memslots.traces.threads import grouped
from memslots.values.records import size_text

_MOST_CHURN = 20


def html(reports: list[Report], arguments: list[str | None]) -> str:
    """Returns one HTML page of all reports. The page needs no other file and no network.

    `arguments` has for each report how `memslots plan` names its trace in a shell, or None.
    """
    page = files("memslots.cli").joinpath("report.html").read_text(encoding="utf-8")
    document = {
        "name": ", ".join(report.name for report in reports),
        "summary": _summary(reports),
        "files": [report.name for report in reports],
        "arguments": arguments,
        "vms": [
            {"file": number, "number": which, **vm_document(vm)}
            for number, report in enumerate(reports)
            for which, vm in enumerate(report.vms, 1)
        ],
    }
    # A "</script>" in a name must not end the script.
    return page.replace("DATA", json.dumps(document).replace("<", "\\u003c"), 1)


def _summary(reports: list[Report]) -> str:
    calls = sum(report.counts.calls for report in reports)
    lost = sum(report.counts.lost_total for report in reports)
    differ = sum(len(vm.disagreements) for report in reports for vm in report.vms)
    machines = sum(len(report.vms) for report in reports)
    return (
        f"{_count(calls, 'call')}, {lost} lost, {_count(machines, 'VM')}, "
        f"{_count(differ, 'disagreement')}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def vm_document(vm: VmReport) -> dict[str, Any]:
    """Returns what the page draws of a VM.

    Moment n is the map after n changes. `from`, `to` and `at` are moments; `lines`, `times`, `took`
    and the letters of `kinds` are those of change 1, 2, ...
    """
    calls = [call for call, *_ in vm.history]
    unchanged = vm.unchanged or []
    moments = {call.line: at for at, _, call in unchanged}
    moments |= {call.line: at for at, call in enumerate(calls, 1)}
    gaps = [
        {
            "space": gap.as_id,
            "gfn": gap.base_gfn,
            "pages": gap.npages,
            "line": gap.opened_line,
            "end": gap.closed_line,
            "from": moments[gap.opened_line],
            "to": moments[gap.closed_line],
            "ns": gap.duration_ns,
        }
        for gap in vm.gaps
    ]
    disagreements = [
        {
            "space": each.call.as_id,
            "line": each.call.line,
            "recorded": errno_name(each.recorded),
            "ours": errno_name(each.ours),
            "why": each.why,
            "from": moments[each.call.line],
        }
        for each in vm.disagreements
    ]
    spans = _spans(vm)
    rearranged = rearrangements(
        (moments[gap.opened_line], moments[gap.closed_line]) for gap in vm.gaps
    )
    times = None
    if vm.costs is not None:
        times = json_output.costs(vm.costs)
        for each in times["slowest"]:
            each["from"] = moments[each["line"]]
    return {
        "name": vm.name,
        "changes": len(vm.history),
        "kinds": "".join(change.name[0] for _, change, *_ in vm.history),
        "lines": [call.line for call in calls],
        "times": [call.time_ns for call in calls],
        "took": [call.duration_ns for call in calls],
        "unchanged": [
            {
                "at": at,
                "kind": kind,
                "line": call.line,
                "space": call.as_id,
                "id": call.id,
                "gpa": hex(call.guest_phys_addr),
                "size": size_text(call.memory_size),
                "took": call.duration_ns,
            }
            for at, kind, call in unchanged
        ],
        "costs": times,
        "spans": spans,
        "gaps": gaps,
        "rearranged": rearranged,
        "plans": plans_document(vm, rearranged),
        "disagreements": disagreements,
        "churn": _churn(spans),
    }


def _spans(vm: VmReport) -> list[dict[str, Any]]:
    """Returns a bar for each time during which a slot did not change."""
    spans: list[dict[str, Any]] = []
    open_spans: dict[tuple[int, int], dict[str, Any]] = {}

    def end(slot: Slot, at: int, line: int) -> None:
        span = open_spans.pop((slot.as_id, slot.id), None)
        if span is not None:
            span["to"], span["end"] = at, line

    for at, (call, change, gone, new) in enumerate(vm.history, 1):
        line = call.line
        for slot in gone:
            end(slot, at, line)
        if new is None or change is Change.NONE:
            continue
        end(new, at, line)
        span = {
            "space": new.as_id,
            "id": new.id,
            "gfn": new.base_gfn,
            "pages": new.npages,
            "flags": int(new.flags),
            "names": flag_names(new.flags).replace("-", ""),
            "hva": hex(new.userspace_addr),
            "line": line,
            "end": 0,
            "from": at,
            "to": len(vm.history) + 1,
        }
        open_spans[new.as_id, new.id] = span
        spans.append(span)
    return spans


def _churn(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the ranges that became slots most often, at least twice."""
    counts = Counter((span["space"], span["gfn"], span["pages"]) for span in spans)
    first: dict[tuple[int, int, int], int] = {}
    for span in spans:
        first.setdefault((span["space"], span["gfn"], span["pages"]), span["from"])
    return [
        {"space": key[0], "gfn": key[1], "pages": key[2], "changes": count, "from": first[key]}
        for key, count in counts.most_common(_MOST_CHURN)
        if count > 1
    ]


@click.command("report", short_help="Draw replays as one HTML page.")
@click.argument("files", metavar="[FILE]...", nargs=-1, shell_complete=file_names)
@sample_option
@format_option
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="HTML",
    type=click.Path(dir_okay=False, writable=True),
    help="The file to write; an existing file is replaced.",
)
def command(files: tuple[str, ...], sample: str | None, format: Format, output: str) -> int:
    """Draw the replays of all FILEs as one HTML page, which needs no network and no other file.

    Guest addresses over the calls of the trace: a bar for each slot, gaps marked, with the lines.
    The page shows the difference between any two moments, and a plan from one to the other. It
    shows the time that calls took in the kernel (strace -T). It lists gaps and the rearrangements
    that made them, disagreements and what changed most.

    Exit status: that of replay.
    """
    if bool(files) == (sample is not None):
        raise click.UsageError("name one or more FILEs, or one --sample")
    reports: list[Report] = []
    arguments: list[str | None] = []
    for group in grouped(files) if files else [[sample or ""]]:
        try:
            path = group[0] if len(group) == 1 else group
            reports.append(replay_input(path, format, sample is not None, history=True))
            name = path if isinstance(path, str) and path != "-" else None
            arguments.append(f"sample:{sample}" if sample else name and shlex.quote(name))
        except TraceError as error:
            complain(error)
            return 2
    try:
        with metered(f"writing {output}"):
            Path(output).write_text(html(reports, arguments), encoding="utf-8")
    except OSError as error:
        complain(f"{output}: {error.strerror}")
        return 2
    return 0 if all(report.agree for report in reports) else 1
