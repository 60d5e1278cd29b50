"""The text that the `memslots` command prints for people.

Columns are plain, without rules, so they read the same on a terminal and in a file. Text is never
cut or wrapped to a width. Only terminals get colours.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memslots import PAGE_SHIFT, MapDiff, Plan, __version__
from memslots.bench import CASES, TESTS, RivalsResult, Row
from memslots.bench import Report as BenchReport
from memslots.cli.json_output import BENCH_LIMITS
from memslots.maps import Map, write
from memslots.maps.changes import Part, Run
from memslots.maps.entries import machines
from memslots.maps.writing import HEADS, cells
from memslots.read.table import flag_names, lines, slot_lines
from memslots.replay import Report, VmReport, errno_name
from memslots.replay.costs import Costs
from memslots.replay.live import Live, number_of, slot_name
from memslots.traces import Counts, LostCall, RegionCall
from memslots.traces.gaps import Gap
from memslots.traces.samples import SAMPLES
from memslots.values.records import size_text

if TYPE_CHECKING:
    from memslots.cli.lookup import Answer
    from memslots.cli.watch import SpaceChange

#: Number of gaps listed; --json lists all.
GAPS_SHOWN = 20


def time_text(nanoseconds: int | None) -> str:
    """Formats a duration with three digits after the point, in s, ms or us; `-` for None."""
    if nanoseconds is None:
        return "-"
    for unit, scale in (("s", 10**9), ("ms", 10**6)):
        if nanoseconds >= scale:
            return f"{nanoseconds / scale:.3f} {unit}"
    return f"{nanoseconds / 1000:.3f} us".replace(".000 us", " us")


class _Page:
    """Collects text as rich prints it, with colours only if standard output is a terminal."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        terminal = sys.stdout.isatty()
        self._console = Console(
            file=self._text,
            width=10_000,
            force_terminal=terminal,
            no_color=None if terminal else True,
            markup=False,
            highlight=False,
            emoji=False,
        )

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def table(self, table: Table, indent: int = 2) -> None:
        self._console.print(Padding(table, (0, 0, 0, indent), expand=False))

    def text(self) -> str:
        lines = self._text.getvalue().split("\n")
        return "\n".join(line.rstrip(" ") for line in lines)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in right else "left")
    return table


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def warnings(report: Report) -> Iterator[str]:
    """Yields one line for each reason to doubt the final map."""
    counts = report.counts
    if counts.lost_total:
        verb = "was" if counts.lost_total == 1 else "were"
        doubt = (
            f"{counts.lost_unknown} of them may have changed the map, "
            "so the map may be wrong from there on"
            if counts.lost_unknown
            else "all of them failed, so the map does not depend on them"
        )
        yield f"{_count(counts.lost_total, 'memslot call')} {verb} lost; {doubt}"
    for vm in report.vms:
        if vm.disagreements:
            yield f"{len(vm.disagreements)} of {vm.calls} results disagree ({vm.name})"


def replay(report: Report) -> str:
    """Returns the whole report of one input."""
    page = _Page()
    counts = report.counts
    page.line(f"{report.name}: {report.format}", "bold")
    page.line(
        f"  {_count(counts.lines, 'line')}: {_count(counts.calls, 'memslot call')}, "
        f"{counts.lost_total} lost, {_count(counts.unrelated, 'unrelated line')}"
    )
    for note in report.notes:
        page.line(f"  note: {note}", "dim")
    if counts.lost_total:
        _show_lost(page, next(warnings(report)), counts)
    for number, vm in enumerate(report.vms, 1):
        page.line()
        _show_vm(page, vm, f"VM {number} of {len(report.vms)}" if len(report.vms) > 1 else "VM")
    page.line()
    return page.text()


def _show_lost(page: _Page, warning: str, counts: Counts) -> None:
    page.line()
    page.line(f"LOST: {warning}", "bold yellow")
    for reason, count in sorted(counts.lost.items()):
        page.line(f"  {count} x {reason}")
    table = _table("line", "result", "text", right=("line",))
    for lost in counts.first_lost:
        result = "unknown" if lost.errno is None else errno_name(lost.errno)
        table.add_row(str(lost.line), result, Text(lost.text))
    page.table(table)
    if (more := counts.lost_total - len(counts.first_lost)) > 0:
        page.line(f"  and {more} more")


def _show_vm(page: _Page, vm: VmReport, title: str) -> None:
    born = "" if vm.fd is None else ", created before the trace began"
    if vm.born_line is not None:
        born = f", created at line {vm.born_line}"
    page.line(f"{title}: {vm.name}{born}" if vm.name != "the VM" else title, "bold")
    if vm.disagreements:
        verdict = f"{len(vm.disagreements)} of {_count(vm.calls, 'result')} DISAGREE"
    else:
        verdict = f"all {_count(vm.calls, 'result')} agree"
    if vm.live is not None:
        verdict += f": {_listed(vm.pairs)}" if vm.pairs else ": recorded, memslots, this kernel"
    page.line(f"  results     {verdict}", "bold red" if vm.disagreements else "green")
    page.line(f"  operations  {_listed(vm.operations)}")
    refused = _listed(vm.refused)
    if vm.outside:
        left_out = "not replayed" if vm.live is None else "not replayed and not made on this kernel"
        refused += f" ({vm.outside} for reasons outside the rules, {left_out})"
    page.line(f"  refused     {refused}")
    page.line(f"  most slots  {vm.most_slots}")
    if vm.live is not None:
        _show_live_summary(page, vm.live)
    gaps = vm.gaps
    _show_gap_summary(page, gaps)
    if vm.costs is not None:
        _show_costs(page, vm.costs)
    _show_disagreements(page, vm)
    _show_gaps(page, gaps)
    _show_map(page, vm)


def _show_live_summary(page: _Page, live: Live) -> None:
    """Shows the slots of this kernel's VM at the end, and each difference from the map."""
    has = f"{_count(len(live.slots), 'slot')} at the end"
    if live.same:
        page.line(f"  this kernel {has}, those of the map", "green")
        return
    page.line(f"  this kernel {has}, NOT those of the map", "bold red")
    for slots, what in ((live.missing, "not in this kernel"), (live.others, "not in the map")):
        for slot in slots:
            end = slot.guest_phys_addr + slot.memory_size
            name = slot_name(number_of(slot))
            page.line(
                f"    {what}: {name}, gpa [{slot.guest_phys_addr:#x}, {end:#x}), "
                f"hva {slot.userspace_addr:#x}, flags {flag_names(slot.flags)}"
            )


def _show_gap_summary(page: _Page, gaps: list[Gap]) -> None:
    times = [gap.duration_ns for gap in gaps if gap.duration_ns is not None]
    text = str(len(gaps)) if gaps else "none"
    if times:
        text += f", {time_text(sum(times))} in all, the longest {time_text(max(times))}"
    page.line(f"  gaps        {text}")


def _show_costs(page: _Page, costs: Costs) -> None:
    """Shows what the calls took in the kernel, and which took longest."""
    calls, total, longest = costs.all
    call, kind = costs.slowest[0]
    page.line(
        f"  in kernel   {_count(calls, 'call')}, {time_text(total)} in all, the longest "
        f"{time_text(longest)}: line {call.line}, {kind} of {slot_name(call.slot)}"
    )


def _call_text(call: RegionCall) -> str:
    return (
        f"slot={call.slot:#x} flags={call.flags:#x} gpa={call.guest_phys_addr:#x} "
        f"size={call.memory_size:#x} hva={call.userspace_addr:#x}"
    )


def live_call(call: RegionCall | LostCall) -> str:
    """Returns the line of a call that `memslots record` has just read."""
    if isinstance(call, LostCall):
        return f"line {call.line}: LOST: {call.reason}"
    when = "" if call.time_ns is None else f"{datetime.fromtimestamp(call.time_ns / 1e9):%T.%f}  "
    thread = "" if call.tid is None else f"thread {call.tid}, "
    vm = "" if call.fd is None else f"fd {call.fd}: "
    return f"{when}{thread}{vm}{_call_text(call)}: {errno_name(call.errno)}"


def _show_disagreements(page: _Page, vm: VmReport) -> None:
    if not vm.disagreements:
        return
    page.line()
    page.line("  disagreements", "bold red")
    for each in vm.disagreements:
        page.line(f"    line {each.call.line}: {_call_text(each.call)}")
        recorded, ours = errno_name(each.recorded), errno_name(each.ours)
        if each.live is None:
            page.line(f"      kernel: {recorded}, memslots: {ours}, because {each.why}")
            page.line(f"      the map: {each.followed}")
            continue
        page.line(f"      recorded: {recorded}")
        page.line(f"      memslots: {ours}, because {each.why}")
        page.line(f"      this kernel: {errno_name(each.live)}, because {each.live_why}")
        page.line(f"      the map: {each.followed}")
        page.line(f"      this kernel's slots: {each.live_followed}")
    if vm.born_line is None:
        page.line(
            "    The trace does not show the creation of this VM: slots from before the trace "
            "began are not known."
        )


def _show_gaps(page: _Page, gaps: list[Gap]) -> None:
    if not gaps:
        return
    page.line()
    page.line("  gaps", "bold")
    table = _table(
        "space", "gpa", "end", "size", "lost at line", "back at line", "for",
        right=("space", "gpa", "end", "size", "lost at line", "back at line", "for"),
    )  # fmt: skip
    for gap in gaps[:GAPS_SHOWN]:
        table.add_row(
            str(gap.as_id),
            hex(gap.base_gfn << PAGE_SHIFT),
            hex(gap.end_gfn << PAGE_SHIFT),
            size_text(gap.npages << PAGE_SHIFT),
            str(gap.opened_line),
            str(gap.closed_line),
            time_text(gap.duration_ns),
        )
    page.table(table, 4)
    if len(gaps) > GAPS_SHOWN:
        page.line(f"    and {len(gaps) - GAPS_SHOWN} more (--json has them all)")


def _show_map(page: _Page, vm: VmReport) -> None:
    slots = vm.final_map
    page.line()
    page.line(f"  final map: {_count(len(slots), 'slot')}", "bold")
    if not slots:
        return
    head, *rows = slot_lines(slots)
    page.line(f"    {head}", "bold")
    for row in rows:
        page.line(f"    {row}")


def plan(plans: Sequence[Plan], current: str, wanted: str, checked: str) -> str:
    """Returns the plans of all address spaces."""
    page = _Page()
    page.line(f"from {current}", "bold")
    page.line(f"to   {wanted}", "bold")
    for made in plans:
        page.line()
        if len(plans) > 1:
            page.line(f"address space {made.wanted.as_id}", "bold")
        for row in str(made).splitlines():
            page.line(row)
    page.line()
    page.line(f"a rebuild would take {_count(sum(made.rebuild_calls for made in plans), 'call')}")
    if checked:
        page.line(f"checked {checked}", "green")
    return page.text()


def diff(diffs: Mapping[int, MapDiff], first: str, second: str) -> str:
    """Returns the differences in all address spaces."""
    page = _Page()
    page.line(f"--- {first}", "bold")
    page.line(f"+++ {second}", "bold")
    different = [str(found) for found in diffs.values() if found]
    _show_signed(page, "\n".join(different or ["no difference"]).splitlines())
    return page.text()


def _show_signed(page: _Page, rows: Sequence[str]) -> None:
    for row in rows:
        page.line(row, {"-": "red", "+": "green", "!": "yellow"}.get(row[:1], ""))


def watched_map(name: str, when: datetime, maps: Sequence[Map]) -> str:
    """Returns the map with which `memslots watch` begins."""
    page = _Page()
    page.line(f"{_local(when)}  {name}", "bold")
    for row in (write(maps, "text") if maps else "no memory").splitlines():
        page.line(row)
    return page.text()


def watched_change(when: datetime, spaces: Sequence[SpaceChange]) -> str:
    """Returns what changed at a time."""
    page = _Page()
    page.line(f"\n{_local(when)}", "bold")
    # A running QEMU does not tell what is behind its host addresses.
    rows: list[tuple[str, ...]] = [(" ", *HEADS[:-1])]
    for each in spaces:
        rows += [("-", *cells(each.as_id, entry)[:-1]) for entry in each.removed]
        rows += [("+", *cells(each.as_id, entry)[:-1]) for entry in each.added]
    _show_signed(page, lines(rows))
    _show_signed(page, [_run_text(run) for each in spaces for run in each.runs])
    return page.text()


def _local(when: datetime) -> str:
    return when.replace(tzinfo=None).isoformat(" ", "milliseconds")


def _run_text(run: Run) -> str:
    where = f"gpa [{run.start:#x}, {run.end:#x}), {size_text(run.end - run.start)}:"
    if run.before is None:
        return f"+ {where} came"
    if run.after is None:
        return f"- {where} went"
    return f"! {where} {_part_text(run.before)} is now {_part_text(run.after)}"


def _part_text(part: Part) -> str:
    place = "" if part.offset is None else f" at offset {part.offset:#x}"
    return f"{part.kind} {part.name}{place}"


def lookup(report: Report, answers: Sequence[Sequence[Answer]]) -> str:
    """Returns a table of answers for each VM."""
    page = _Page()
    for number, (vm, of_vm) in enumerate(zip(report.vms, answers, strict=True)):
        if number:
            page.line()
        if len(report.vms) > 1:
            page.line(f"VM {number + 1} of {len(report.vms)}: {vm.name}", "bold")
        table = _table("gpa", "space", "slot", "hva", "rule", right=("gpa", "space", "slot", "hva"))
        for answer in of_vm:
            table.add_row(
                hex(answer.gpa),
                str(answer.as_id),
                "-" if answer.slot is None else str(answer.slot.id),
                "-" if answer.hva is None else hex(answer.hva),
                answer.rule,
            )
        page.table(table, 0)
    return page.text()


def samples() -> str:
    """Returns a table of the samples."""
    page = _Page()
    table = _table("name", "format", "what")
    for sample in SAMPLES.values():
        table.add_row(sample.name, sample.format, sample.about)
    page.table(table, 0)
    return page.text()


def seconds_text(seconds: float) -> str:
    """Formats a measured time with three digits: `1.23 s`, `12.3 ms`, `123 us`, `1.23 ns`."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 0.9995:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def bench(report: BenchReport) -> str:
    """Returns the table of the series, and a table for each case against rivals."""
    page = _Page()
    machine = report.machine
    memory = "" if machine.memory is None else f", {machine.memory / 2**30:.1f} GiB"
    page.line(f"memslots {__version__}, {machine.python}, {machine.kernel}", "bold")
    page.line(f"  {machine.cpu}, {_count(machine.cpus, 'CPU')}{memory}")
    page.line(f"  measured: {BENCH_LIMITS}")
    if report.rows:
        page.line()
        page.line("The array of Linux 5.16 (before) and trees (after)", "bold")
        page.table(_series(report.rows))
    for case in CASES:
        results = [
            each for each in report.against if (each.test, each.case) == (case.test, case.name)
        ]
        if results:
            page.line()
            page.line(
                f"{case.title}: the time of {case.of}, and its ratio to that of memslots", "bold"
            )
            page.table(_structures(results))
    if report.absent:
        page.line()
        for name, needs in report.absent.items():
            page.line(f"not installed: {name} (pip install {' '.join(needs)})", "yellow")
    page.line()
    page.line(f"measured in {report.seconds:.0f} s")
    return page.text()


def _series(rows: Sequence[Row]) -> Table:
    columns = ("slots", "before", "after", "improvement", "reported", "above")
    table = _table("test", "time of", *columns, right=columns)
    for row in rows:
        table.add_row(
            TESTS[row.test].title,
            row.of,
            str(row.slots),
            seconds_text(row.before.median),
            seconds_text(row.after.median),
            f"{_three_digits(row.improvement)} x",
            "-" if row.reported is None else f"{_three_digits(row.reported)} x",
            {None: "-", True: "yes", False: "no"}[row.above],
        )
    return table


def _structures(results: Sequence[RivalsResult]) -> Table:
    """Returns a table with a line for each structure and two columns for each number of slots."""
    heads = [head for result in results for head in (f"{result.slots} slots", "ratio")]
    table = _table("structure", *heads, right=heads)
    for number, each in enumerate(results[0].results):
        cells = []
        for result in results:
            there = result.results[number]
            cells += [seconds_text(there.timing.median), _three_digits(there.ratio)]
        table.add_row(each.structure, *cells)
    return table


def lookup_in_maps(name: str, maps: Sequence[Map], addresses: Sequence[int]) -> str:
    """Returns the text of `memslots lookup` for maps that do not come from a trace."""
    lines = [f"{name}: {maps[0].format}"]
    found = machines(maps)
    places = [
        (f" in map {number}" if len(found) > 1 else "")
        + (f" in space {one.as_id}" if len(each) > 1 else "")
        for number, each in enumerate(found, 1)
        for one in each
    ]
    for gpa in addresses:
        for one, space in zip(maps, places, strict=True):
            entry = one.get(gpa)
            if entry is None:
                lines.append(f"gpa {gpa:#x}{space}: nothing")
                continue
            what = f"{entry.kind} {entry.name}".strip()
            inside = gpa - entry.start
            line = f"gpa {gpa:#x}{space}: {what}, [{entry.start:#x}, {entry.end:#x})"
            if entry.id is not None:
                line += f", slot {entry.id}"
            if entry.userspace_addr is not None:
                line += f", hva {entry.userspace_addr + inside:#x}"
            if entry.offset is not None:
                line += f", offset {entry.offset + inside:#x}"
            if entry.backing:
                line += f", backing {entry.backing}"
            lines.append(line)
    return "\n".join(lines) + "\n"
