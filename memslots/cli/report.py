"""A replay as one HTML file: slots over the calls of a trace, gaps and disagreements."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from importlib.resources import files
from typing import Any

from memslots import Change, Slot
from memslots.read.table import flag_names
from memslots.replay import Report, VmReport, errno_name

_MOST_CHURN = 20


def html(reports: list[Report]) -> str:
    """Returns one HTML page of all reports. The page needs no other file and no network."""
    page = files("memslots.cli").joinpath("report.html").read_text(encoding="utf-8")
    document = {
        "name": ", ".join(report.name for report in reports),
        "summary": _summary(reports),
        "vms": [vm_document(vm) for report in reports for vm in report.vms],
    }
    # A "</script>" in a name must not end the script.
    return page.replace("DATA", json.dumps(document).replace("<", "\\u003c"), 1)


def _summary(reports: list[Report]) -> str:
    calls = sum(report.counts.calls for report in reports)
    lost = sum(report.counts.lost_total for report in reports)
    differ = sum(len(vm.disagreements) for report in reports for vm in report.vms)
    machines = sum(len(report.vms) for report in reports)
    return f"{calls} calls, {lost} lost, {machines} VMs, {differ} disagreements."


def vm_document(vm: VmReport) -> dict[str, Any]:
    """Returns what the page draws of a VM; `from` and `to` are numbers of its changes."""
    lines = [line for line, *_ in vm.history]

    def number(line: int) -> int:
        """Returns the number of changes up to and including a line."""
        return bisect_right(lines, line)

    gaps = [
        {
            "space": gap.as_id,
            "gfn": gap.base_gfn,
            "pages": gap.npages,
            "line": gap.opened_line,
            "end": gap.closed_line,
            "from": number(gap.opened_line),
            "to": number(gap.closed_line),
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
            "from": number(each.call.line),
        }
        for each in vm.disagreements
    ]
    spans = _spans(vm)
    return {
        "name": vm.name,
        "changes": len(vm.history),
        "spans": spans,
        "gaps": gaps,
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

    for at, (line, change, gone, new) in enumerate(vm.history, 1):
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
