"""The JSON documents of the `memslots` command; docs/command.md describes them.

Addresses are hexadecimal strings, because not every JSON reader keeps 64-bit numbers. Sizes,
counts, ids and lines are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memslots import PAGE_SHIFT, MapDiff, Plan, Slot, __version__
from memslots.bench import Report as BenchReport
from memslots.bench import RivalsResult, Row, Timing
from memslots.maps import Map
from memslots.maps.changes import Part
from memslots.maps.documents import document
from memslots.maps.entries import machines
from memslots.read.document import slot_document
from memslots.read.table import flag_names
from memslots.replay import Disagreement, Report, VmReport, errno_name
from memslots.replay.costs import Cost, Costs
from memslots.replay.live import Live
from memslots.traces import RegionCall, TraceError
from memslots.traces.gaps import Gap
from memslots.traces.samples import SAMPLES

if TYPE_CHECKING:
    from memslots.cli.lookup import Answer
    from memslots.cli.watch import SpaceChange

Document = dict[str, Any]


def replay(reports: Sequence[Report | TraceError]) -> Document:
    """Returns one document for all inputs."""
    usable = [report for report in reports if isinstance(report, Report)]
    return {
        "memslots": __version__,
        "agree": len(usable) == len(reports) and all(report.agree for report in usable),
        "files": [_file(report) for report in reports],
    }


def _file(report: Report | TraceError) -> Document:
    if isinstance(report, TraceError):
        return {"file": report.name, "error": {"line": report.line, "reason": report.reason}}
    counts = report.counts
    return {
        "file": report.name,
        "format": report.format,
        "agree": report.agree,
        "lines": {"all": counts.lines, "unrelated": counts.unrelated},
        "calls": counts.calls,
        "lost": {
            "all": counts.lost_total,
            "may_have_changed_the_map": counts.lost_unknown,
            "by_reason": dict(counts.lost),
            "first": [
                {
                    "line": lost.line,
                    "reason": lost.reason,
                    "result": None if lost.errno is None else errno_name(lost.errno),
                    "text": lost.text,
                }
                for lost in counts.first_lost
            ],
        },
        "notes": report.notes,
        "vms": [_vm(vm) for vm in report.vms],
    }


def _vm(vm: VmReport) -> Document:
    gaps = vm.gaps
    times = [gap.duration_ns for gap in gaps if gap.duration_ns is not None]
    return {
        **_vm_name(vm),
        "created_line": vm.born_line,
        "address_spaces": vm.memslots.address_spaces,
        "max_slots": vm.memslots.max_slots,
        "calls": vm.calls,
        "operations": dict(vm.operations),
        "refused": dict(vm.refused),
        "refused_outside_the_rules": vm.outside,
        "most_slots": vm.most_slots,
        "disagreements": [_disagreement(each) for each in vm.disagreements],
        "gaps": {
            "all": len(gaps),
            "total_ns": sum(times) if times else None,
            "longest_ns": max(times) if times else None,
            "ranges": [_gap(gap) for gap in gaps],
        },
        "times": None if vm.costs is None else costs(vm.costs),
        "final_map": [_slot(slot) for slot in vm.final_map],
        "differ": dict(vm.pairs),
        "this_kernel": None if vm.live is None else _live(vm.live),
    }


def costs(costs: Costs) -> Document:
    """Returns what the calls of a VM took in the kernel; the report's page shows the same."""
    return {
        **_cost(costs.all),
        "by_kind": {kind: _cost(cost) for kind, cost in costs.by_kind.items()},
        "slowest": [
            {"kind": kind, "duration_ns": call.duration_ns, **_call(call)}
            for call, kind in costs.slowest
        ],
    }


def _cost(cost: Cost) -> Document:
    return {"calls": cost.calls, "total_ns": cost.total_ns, "longest_ns": cost.longest_ns}


def _live(live: Live) -> Document:
    """Returns the VM of this machine's kernel; max_gfn and max_hva are hexadecimal strings."""
    limits: Document = dict(live.limits)
    for name in ("max_gfn", "max_hva"):
        limits[name] = hex(limits[name])
    return {
        "limits": limits,
        "slots": len(live.slots),
        "missing": [_slot(slot) for slot in live.missing],
        "others": [_slot(slot) for slot in live.others],
    }


def _vm_name(vm: VmReport) -> Document:
    return {"vm": vm.name, "process": vm.process, "fd": vm.fd}


def _disagreement(each: Disagreement) -> Document:
    return {
        **_call(each.call),
        "recorded": errno_name(each.recorded),
        "ours": errno_name(each.ours),
        "why": each.why,
        "followed": each.followed,
        "this_kernel": None if each.live is None else errno_name(each.live),
        "this_kernel_why": each.live_why,
        "this_kernel_followed": each.live_followed,
    }


def _call(call: RegionCall) -> Document:
    return {
        "line": call.line,
        "as_id": call.as_id,
        "id": call.id,
        "flags": call.flags,
        "guest_phys_addr": hex(call.guest_phys_addr),
        "memory_size": call.memory_size,
        "userspace_addr": hex(call.userspace_addr),
    }


def _gap(gap: Gap) -> Document:
    return {
        "as_id": gap.as_id,
        "guest_phys_addr": hex(gap.base_gfn << PAGE_SHIFT),
        "memory_size": gap.npages << PAGE_SHIFT,
        "opened_line": gap.opened_line,
        "closed_line": gap.closed_line,
        "duration_ns": gap.duration_ns,
    }


def _slot(slot: Slot) -> Document:
    return {"as_id": slot.as_id, **slot_document(slot)}


def plan(plans: Sequence[Plan], current: str, wanted: str, checked: str) -> Document:
    """Returns the calls of all address spaces, and the memory that is absent in between."""
    return {
        "memslots": __version__,
        "current": current,
        "wanted": wanted,
        "checked": checked,
        "plans": [
            {
                "as_id": made.wanted.as_id,
                "rebuild_calls": made.rebuild_calls,
                "calls": [
                    {
                        "slot": call.slot,
                        "flags": call.flags,
                        "guest_phys_addr": hex(call.guest_phys_addr),
                        "memory_size": call.memory_size,
                        "userspace_addr": hex(call.userspace_addr),
                    }
                    for call in made.calls
                ],
                "windows": [
                    {
                        **_range(window.start_gfn, window.end_gfn),
                        "from_call": window.from_call,
                        "to_call": window.to_call,
                    }
                    for window in made.windows
                ],
            }
            for made in plans
        ],
    }


def diff(diffs: Mapping[int, MapDiff], first: str, second: str) -> Document:
    """Returns what is different in each address space."""
    return {
        "memslots": __version__,
        "first": first,
        "second": second,
        "different": any(diffs.values()),
        "spaces": [
            {
                "as_id": as_id,
                "slots": [
                    {
                        "change": change.name,
                        "before": None if before is None else slot_document(before),
                        "after": None if after is None else slot_document(after),
                    }
                    for change, before, after in found.slots
                ],
                "went": [_range(*pages) for pages in found.went],
                "came": [_range(*pages) for pages in found.came],
                "memory": [
                    {**_range(start, end), "before": hex(before), "after": hex(after)}
                    for start, end, before, after in found.memory
                ],
                "flags": [
                    {
                        **_range(start, end),
                        "before": flag_names(old).replace("-", ""),
                        "after": flag_names(new).replace("-", ""),
                    }
                    for start, end, old, new in found.flags
                ],
            }
            for as_id, found in diffs.items()
        ],
    }


def _range(start_gfn: int, end_gfn: int) -> Document:
    return _bytes(start_gfn << PAGE_SHIFT, end_gfn << PAGE_SHIFT)


def _bytes(start: int, end: int) -> Document:
    return {"guest_phys_addr": hex(start), "memory_size": end - start}


def lookup(report: Report, answers: Sequence[Sequence[Answer]]) -> Document:
    """Returns the answers of each VM."""
    return {
        "memslots": __version__,
        "file": report.name,
        "agree": report.agree,
        "lost": report.counts.lost_total,
        "answers": [
            _answer(vm, answer)
            for vm, of_vm in zip(report.vms, answers, strict=True)
            for answer in of_vm
        ],
    }


def _answer(vm: VmReport, answer: Answer) -> Document:
    return {
        **_vm_name(vm),
        "as_id": answer.as_id,
        "gpa": hex(answer.gpa),
        "slot": None if answer.slot is None else answer.slot.id,
        "hva": None if answer.hva is None else hex(answer.hva),
        "writable": answer.writable,
        "rule": answer.rule,
    }


def samples() -> Document:
    """Returns the traces that ship with the package."""
    known = [
        {"name": sample.name, "format": sample.format, "about": sample.about}
        for sample in SAMPLES.values()
    ]
    return {"memslots": __version__, "samples": known}


#: What the figures of `bench` include and exclude.
BENCH_LIMITS = (
    "the work of the data structure alone, called from Python, the loop around the calls included: "
    "no page tables, no TLB flushes, no guest"
)


def bench(report: BenchReport) -> Document:
    """Returns everything that was measured; times are in seconds."""
    return {
        "memslots": __version__,
        "machine": asdict(report.machine),
        "date": report.date,
        "effort": report.effort.name,
        "seconds": report.seconds,
        "measured": BENCH_LIMITS,
        "versions": report.versions,
        "not_installed": report.absent,
        "series": [_row(row) for row in report.rows],
        "against": [_rivals(result) for result in report.against],
    }


def _row(row: Row) -> Document:
    return {
        "test": row.test,
        "slots": row.slots,
        "seconds_of": row.of,
        "operations": row.operations,
        "before": _timing(row.before, row.operations) | {"share": row.share_before},
        "after": _timing(row.after, row.operations) | {"share": row.share_after},
        "loop": _timing(row.loop, row.operations),
        "improvement": row.improvement,
        "reported": row.reported,
        "above": row.above,
    }


def _timing(timing: Timing, operations: int = 1) -> Document:
    return {
        "median": timing.median,
        "lower_quartile": timing.lower,
        "upper_quartile": timing.upper,
        "rounds": timing.rounds,
        "samples": timing.samples,
        "seconds_per_operation": timing.median / operations,
    }


def _rivals(result: RivalsResult) -> Document:
    return {
        "test": result.test,
        "case": result.case,
        "slots": result.slots,
        "seconds_of": result.of,
        "operations": result.operations,
        "structures": [
            {"structure": each.structure, **_timing(each.timing), "ratio": each.ratio}
            for each in result.results
        ],
    }


def maps(found: Sequence[tuple[str, list[Map]] | TraceError]) -> Document:
    """Returns the document of `memslots map --json`, with slots in the place of `replay --json`."""
    files: list[Document] = []
    for one in found:
        if isinstance(one, TraceError):
            files.append(_file(one))
            continue
        name, read = one
        files.append(
            {"file": name, "format": read[0].format, "vms": [*map(_final_map, machines(read))]}
        )
    return {"memslots": __version__, "files": files}


def _final_map(maps: Sequence[Map]) -> Document:
    return {"final_map": [document(entry, each.as_id) for each in maps for entry in each]}


def watched_map(name: str, when: datetime, maps: Sequence[Map]) -> Document:
    """Returns the first document of `memslots watch --json`, with all of `memslots map --json`."""
    file = {"file": name, "format": "mtree-f", "vms": [_final_map(maps)]}
    return {"memslots": __version__, "time": _utc(when), "files": [file]}


def watched_change(when: datetime, spaces: Sequence[SpaceChange]) -> Document:
    """Returns a later document of `memslots watch --json`."""
    return {
        "memslots": __version__,
        "time": _utc(when),
        "spaces": [
            {
                "as_id": each.as_id,
                "removed": [document(entry, each.as_id) for entry in each.removed],
                "added": [document(entry, each.as_id) for entry in each.added],
                "runs": [
                    {**_bytes(run.start, run.end), "before": _part(run[2]), "after": _part(run[3])}
                    for run in each.runs
                ],
            }
            for each in spaces
        ],
    }


def _utc(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds")


def _part(part: Part | None) -> Document | None:
    if part is None:
        return None
    offset = None if part.offset is None else hex(part.offset)
    return {"kind": part.kind, "name": part.name, "offset": offset}


def lookup_in_maps(name: str, maps: Sequence[Map], addresses: Sequence[int]) -> Document:
    """Returns the document of `memslots lookup --json` for maps that do not come from a trace."""
    answers = []
    for gpa in addresses:
        for one in maps:
            entry = one.get(gpa)
            answer: Document = {"as_id": one.as_id, "gpa": hex(gpa), "hva": None}
            answer |= {"offset": None, "kind": None, "name": None, "slot": None}
            answer["backing"] = None
            if entry is not None:
                inside = gpa - entry.start
                host, offset = entry.userspace_addr, entry.offset
                answer["hva"] = None if host is None else hex(host + inside)
                answer["offset"] = None if offset is None else hex(offset + inside)
                answer |= {"kind": entry.kind, "name": entry.name, "slot": entry.id}
                answer["backing"] = entry.backing or None
            answers.append(answer)
    return {"file": name, "format": maps[0].format, "answers": answers}
