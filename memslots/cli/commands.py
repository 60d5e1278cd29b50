"""The commands: demo, record, replay, report, plan, diff, map, watch, lookup and bench."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
)

import memslots.maps as formats
from memslots import PAGE_SHIFT, MemslotError, Plan, __version__, bench, plan
from memslots.cli import json_output, text_output
from memslots.cli.beside import Beside
from memslots.cli.demo import tour
from memslots.cli.fleet import ClusterError, connected, replayed_on
from memslots.cli.kernel_memory import (
    Allowance,
    AllowedVM,
    KernelMemoryError,
    available,
    size,
)
from memslots.cli.map_arguments import Maps, read_maps
from memslots.cli.plots import draw
from memslots.cli.qmp import QmpError
from memslots.cli.record import record
from memslots.cli.replaying import replay_input, replayed_by_others, replayed_here
from memslots.cli.report import html
from memslots.cli.tables import TableError, Tables
from memslots.cli.watch import watch
from memslots.errors import KvmError, KvmUnavailableError
from memslots.maps.reading import recognised
from memslots.replay import Report
from memslots.replay.live import LiveVM
from memslots.traces import FORMATS, Format, LostCall, RegionCall, TraceError
from memslots.traces.samples import SAMPLES
from memslots.traces.threads import grouped

_FORMAT_HELP = "The format of FILE; auto recognises it by content."
_JSON_HELP = "Print one JSON document instead of tables."


class OutputClosedError(Exception):
    """The reader of standard output closed it. Click would handle a BrokenPipeError itself."""


def _kvm(force: bool) -> Callable[[], LiveVM]:
    """Returns a function that makes a VM of this machine's kernel.

    Makes one VM now, and raises KvmError if that fails. Unless `force`, a VM asks the user before
    it takes much of the kernel's memory.
    """
    from memslots.kvm import KvmVM  # needs Linux; nothing else here does

    KvmVM().close()
    if force:
        return KvmVM
    allowance = Allowance(available(), _ask_for_memory)
    return lambda: AllowedVM(KvmVM(), allowance)


def _ask_for_memory(wanted: int, free: int) -> bool:
    """Asks the user whether to go on. Returns False without asking if there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    takes = f"The slots would take about {size(wanted)} of this kernel's memory"
    return click.confirm(f"{takes}, of which {size(free)} is available. Go on?", err=True)


def _complain(error: TraceError) -> None:
    click.echo(f"memslots: {error}", err=True)


def _sample_option(function: Any) -> Any:
    return click.option(
        "--sample",
        type=click.Choice(list(SAMPLES)),
        metavar="NAME",
        help="Use a trace that ships with memslots instead of a FILE.",
    )(function)


def _format_option(function: Any) -> Any:
    return click.option(
        "--format", "format", type=click.Choice(FORMATS), default="auto", show_default=True,
        help=_FORMAT_HELP,
    )(function)  # fmt: skip


def _beside_options(function: Any) -> Any:
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
        help="Show the places of the entries of an e820 map or /proc/iomem in RAW, which is the raw"
        " memory of that guest.",
    )(function)
    return click.option(
        "--host",
        "hosts",
        multiple=True,
        metavar="FILE",
        help="What is behind the host addresses: /proc/PID/maps or smaps of the VMM, or QEMU's info"
        " ramblock. Repeatable.",
    )(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="memslots", message="%(prog)s %(version)s")
def command() -> None:
    """KVM's memory slots: replay a VMM's calls, look up guest addresses, plan changes, measure.

    FILE is the output of strace -f, or of QEMU's -trace kvm_set_user_memory; plain, gzip or xz. A
    dash (-) is standard input.

    Exit status: 0 if every call gave the recorded result, 1 if some did not, 2 if an input cannot
    be used, or /dev/kvm with --kvm.
    """


@command.command("demo")
def demo_command() -> int:
    """Show in half a minute what memslots does, on a trace that ships with it.

    In a terminal it waits for a key after each step.
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    tour(run, _print, click.pause if interactive else lambda: None)
    return 0


@command.command("replay")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@_sample_option
@click.option("--list-samples", is_flag=True, help="List the samples, and exit.")
@_format_option
@click.option(
    "--kvm",
    is_flag=True,
    help="Make every call on this machine's kernel too, and compare all three results.",
)
@click.option(
    "--force",
    is_flag=True,
    help="With --kvm: take as much of the kernel's memory as the slots need, without asking.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Replay N FILEs at a time, each in its own process; the order of the reports stays.",
)
@click.option(
    "--dask",
    metavar="ADDRESS",
    help="Replay on the workers of the dask scheduler there, a task a FILE; the order stays.",
)
@click.option(
    "--csv",
    metavar="PLACE",
    help="Write two tables too, a row a VM and a row a gap: PLACE is a directory or a prefix.",
)
@click.option("--parquet", metavar="PLACE", help="The same tables as Parquet; needs pyarrow.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def replay_command(
    files: tuple[str, ...],
    sample: str | None,
    list_samples: bool,
    format: Format,
    kvm: bool,
    force: bool,
    jobs: int,
    dask: str | None,
    csv: str | None,
    parquet: str | None,
    as_json: bool,
) -> int:
    """Make every memslot call of FILE again and compare the results with the recorded ones.

    Prints for each VM the operations, the most slots in use at one time, each call whose result
    differs, the gaps and the final map. A gap is a range of guest memory that had a slot, then
    none, then a slot again.

    With --kvm each VM of FILE also gets a VM of this machine's kernel, without vCPUs. That VM gets
    the same calls, and all three answers must agree. A new slot may take 8 bytes of the kernel's
    memory for each page. Before all slots take over a quarter of the available memory, it asks.
    """
    if list_samples:
        shown = json_output.samples() if as_json else text_output.samples()
        _print(shown)
        return 0
    if bool(files) == (sample is not None):
        raise click.UsageError("name either FILEs or one --sample (see --list-samples)")
    if kvm and jobs > 1:
        raise click.UsageError(f"--kvm replays one FILE at a time: --jobs must be 1, not {jobs}")
    if dask is not None and (kvm or jobs > 1 or sample is not None or "-" in files):
        raise click.UsageError("--dask takes FILEs, without --kvm, --jobs, --sample and -")
    status = 0
    live = None
    if kvm:
        try:
            live = _kvm(force)
        except KvmError as error:
            click.echo(f"memslots: {error.strerror}", err=True)
            return 2
    paths = [group[0] if len(group) == 1 else group for group in grouped(files)]
    if dask is not None:
        try:
            replayed = replayed_on(connected(dask), paths, format)
        except ClusterError as error:
            click.echo(f"memslots: {error}", err=True)
            return 2
    elif jobs > 1 and len(paths) > 1:
        replayed = replayed_by_others(paths, format, jobs)
    else:
        replayed = replayed_here(paths or [sample or ""], format, sample is not None, live)
    places = {"csv": csv, "parquet": parquet}
    reports: list[Report | TraceError] = []
    try:
        with Tables({name: place for name, place in places.items() if place is not None}) as tables:
            for report in replayed:
                if isinstance(report, TraceError):
                    _complain(report)
                    status = 2
                else:
                    status = max(status, 0 if report.agree else 1)
                    tables.add(report)
                    if not as_json:
                        _print(text_output.replay(report))
                if as_json:
                    reports.append(report)
    except TableError as error:
        click.echo(f"memslots: {error}", err=True)
        return 2
    if as_json:
        _print(json_output.replay(reports))
    return status


@contextmanager
def _counted(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the next step in a progress bar.

    The bar is on standard error. If that is no terminal, the function does nothing.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    # The bar is drawn only at a step. A thread that redraws it would take time from what is
    # measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, completed=-1)

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what, refresh=True)

        yield step


#: The tests that `bench --test` can name.
_BENCH_TESTS = list(dict.fromkeys([*bench.TESTS, *(case.test for case in bench.CASES)]))
_PLOT_MISSING = "memslots: --plot needs matplotlib: pip install 'memslots[plot]'"


@command.command("bench")
@click.option(
    "--test",
    "tests",
    type=click.Choice(_BENCH_TESTS),
    multiple=True,
    metavar="NAME",
    help="Run only this test; repeatable. Tests of Linux's series: "
    f"{', '.join(bench.TESTS)}. Tests against other structures: "
    f"{', '.join(dict.fromkeys(case.test for case in bench.CASES))}.",
)
@click.option(
    "--slots",
    type=click.IntRange(2, max(bench.SERIES_SLOTS)),
    multiple=True,
    metavar="N",
    help="Use N slots (2 to 32764) instead of the usual numbers; repeatable.",
)
@click.option("--against/--no-against", default=True, help="Compare with other structures, or not.")
@click.option(
    "--quick", is_flag=True, help="Take a few seconds: shows that it works, measures nothing."
)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Also draw a figure to FILE, which ends in .svg or .png. Needs matplotlib.",
)
def bench_command(
    tests: tuple[str, ...],
    slots: tuple[int, ...],
    against: bool,
    quick: bool,
    as_json: bool,
    plot: str | None,
) -> int:
    """Measure the trees against the array of Linux 5.16, and against other Python structures.

    Repeats the tests of the Linux series that brought the trees (5.17). Compares memslots with
    sorted lists, sortedcontainers, BTrees, superintervals, numpy and numba, if they are installed.
    It takes a minute or two.

    Exit status: 0, or 1 if a structure gave a wrong answer (each is checked before it is timed).
    """  # fmt: skip
    chosen = _bench_plan(tests, sorted(set(slots)), against, quick)
    draw = None if plot is None else _plotter(plot)
    if plot is not None and draw is None:
        click.echo(_PLOT_MISSING, err=True)
        return 2
    try:
        with _counted(len(chosen)) as progress:
            report = bench.run(chosen, bench.QUICK if quick else bench.FULL, progress)
    except bench.WrongAnswerError as wrong:
        click.echo(f"memslots: a wrong answer: {wrong}", err=True)
        return 1
    _print(json_output.bench(report) if as_json else text_output.bench(report))
    try:
        if draw is not None:
            draw(report)
    except OSError as error:
        click.echo(f"memslots: {plot}: {error.strerror}", err=True)
        return 2
    return 0


def _bench_plan(
    tests: Sequence[str], slots: Sequence[int], against: bool, quick: bool
) -> bench.Plan:
    chosen = bench.plan(
        tests,
        slots or (bench.QUICK_SLOTS if quick else bench.SERIES_SLOTS),
        (slots or (bench.QUICK_SLOTS if quick else bench.AGAINST_SLOTS)) if against else (),
    )
    if not len(chosen):
        raise click.UsageError("--no-against leaves out every test that --test names")
    return chosen


def _plotter(path: str) -> Callable[[bench.Report], None] | None:
    """Returns a function that draws a report to `path`, or None if matplotlib is missing.

    Called before anything is measured, so a missing matplotlib costs no time.
    """
    if Path(path).suffix.lower() not in (".svg", ".png"):
        raise click.UsageError(f"--plot {path}: FILE must end in .svg or .png")
    if not Path(path).absolute().parent.is_dir():
        raise click.UsageError(f"--plot {path}: the directory does not exist")
    try:
        import_module("matplotlib")
    except ModuleNotFoundError:
        return None
    return lambda report: draw(report, path)


def _two_maps(first: str, second: str, vm: int) -> tuple[Maps, Maps] | None:
    """Returns the maps that the arguments name, or prints an error and returns None."""
    try:
        return read_maps(first, vm), read_maps(second, vm)
    except TraceError as error:
        _complain(error)
        return None


def _read_range(text: str) -> tuple[int, int]:
    """Converts guest addresses `START-END` to a half-open range of gfns."""
    start, _, end = text.partition("-")
    first, last = _read_gpa(start), _read_gpa(end)
    if first > last:
        raise click.UsageError(f"--keep {text}: the range ends before it starts")
    return first >> PAGE_SHIFT, -(-last >> PAGE_SHIFT)


_vm_option = click.option(
    "--vm",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The number of the VM, if a trace has several, or of the boot, if a log has several.",
)


@command.command("plan")
@click.argument("current", metavar="CURRENT")
@click.argument("wanted", metavar="WANTED")
@_vm_option
@click.option(
    "--keep",
    "keep",
    metavar="START-END",
    multiple=True,
    help="Guest addresses that must be present all the time; repeatable.",
)
@click.option(
    "--max-slots",
    type=click.IntRange(1),
    default=32764,
    show_default=True,
    help="Every id is below this.",
)
@click.option("--check", is_flag=True, help="Make the calls by the rules, and compare the result.")
@click.option("--kvm", is_flag=True, help="Make the calls on this machine's kernel too.")
@click.option(
    "--force",
    is_flag=True,
    help="With --kvm: take as much of the kernel's memory as the slots need, without asking.",
)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def plan_command(
    current: str,
    wanted: str,
    vm: int,
    keep: tuple[str, ...],
    max_slots: int,
    check: bool,
    kvm: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Plan the fewest memslot calls from the map CURRENT to the map WANTED.

    Prints the calls, in order, and the guest memory that is absent between two of them.

    A map is a file that memslots map reads, a file in JSON (MemoryMap.to_json, or memslots replay
    --json), or a trace: its map at the end, or after a line (FILE:LINE). sample:NAME is a trace
    that ships with memslots.

    Exit status: 0; 1 if there is no such plan or a check fails; 2 if an input or /dev/kvm cannot
    be used.
    """
    ranges = [_read_range(text) for text in keep]
    both = _two_maps(current, wanted, vm)
    if both is None:
        return 2
    now, then = both
    plans = []
    try:
        for as_id in sorted({*now.spaces, *then.spaces, 0}):
            made = plan(now.of(as_id), then.of(as_id), max_slots=max_slots, keep=ranges)
            if len(made.current) or len(made.wanted) or as_id == 0:
                plans.append(made)
            if check or kvm:
                made.check()
        if kvm:
            opened = _kvm(force)
            for made in plans:
                _check_on(opened, made)
    except (KvmUnavailableError, KernelMemoryError) as error:
        click.echo(f"memslots: {getattr(error, 'strerror', None) or error}", err=True)
        return 2
    except MemslotError as error:
        click.echo(f"memslots: {error.strerror}", err=True)
        return 1
    checked = "by the rules and on this kernel" if kvm else "by the rules" if check else ""
    _print(
        json_output.plan(plans, now.name, then.name, checked)
        if as_json
        else text_output.plan(plans, now.name, then.name, checked)
    )
    return 0


def _check_on(opened: Callable[[], LiveVM], made: Plan) -> None:
    vm = opened()
    try:
        made.check(vm)
    finally:
        vm.close()


@command.command("diff")
@click.argument("first", metavar="FIRST")
@click.argument("second", metavar="SECOND")
@_vm_option
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def diff_command(first: str, second: str, vm: int, as_json: bool) -> int:
    """Show the differences between two maps: slots and pages that came, went or changed.

    A map is a file that memslots map reads, a file in JSON (MemoryMap.to_json, or memslots replay
    --json), or a trace: its map at the end, or after a line (FILE:LINE). sample:NAME is a trace
    that ships with memslots.

    Exit status: 0 if nothing differs, 1 if something does, 2 if an input cannot be used.
    """
    both = _two_maps(first, second, vm)
    if both is None:
        return 2
    one, two = both
    diffs = {
        as_id: one.of(as_id).diff(two.of(as_id)) for as_id in sorted({*one.spaces, *two.spaces})
    }
    _print(
        json_output.diff(diffs, one.name, two.name)
        if as_json
        else text_output.diff(diffs, one.name, two.name)
    )
    return 1 if any(diffs.values()) else 0


@command.command("record", context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-o",
    "--output",
    default="memslots.strace",
    show_default=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="The file for the trace; an existing file is replaced.",
)
@click.option(
    "--live/--no-live",
    default=None,
    help="Show each call on standard error as it comes. [default: if that is a terminal]",
)
def record_command(words: tuple[str, ...], output: str, live: bool | None) -> int:
    """Run a VMM under strace, and replay its memslot calls.

    COMMAND runs unchanged, on this terminal. The trace stays in FILE, for replay and the others.

    Exit status: that of replay; 2 if strace or COMMAND cannot be run, or no call was recorded.
    """
    strace = shutil.which("strace")
    if strace is None:
        click.echo(
            "memslots: record needs strace, which is not installed (apt install strace)", err=True
        )
        return 2
    if shutil.which(words[0]) is None:
        click.echo(f"memslots: record: there is no command {words[0]!r}", err=True)
        return 2
    terminal = sys.stderr.isatty()
    end = "\r\n" if terminal else "\n"  # a VMM may have the terminal raw

    def show(call: RegionCall | LostCall) -> None:
        click.echo(text_output.live_call(call) + end, nl=False, err=True)

    try:
        status = record(
            strace, words, output, show if live or (live is None and terminal) else None
        )
    except OSError as error:
        click.echo(f"memslots: {error.filename or output}: {error.strerror}", err=True)
        return 2
    if status:
        click.echo(f"memslots: {words[0]} ended with status {status}", err=True)
    try:
        report = replay_input(output, "strace")
    except TraceError as error:
        _complain(error)
        return 2
    _print(text_output.replay(report))
    return 0 if report.agree else 1


@command.command("report")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@_sample_option
@_format_option
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="HTML",
    type=click.Path(dir_okay=False, writable=True),
    help="The file to write; an existing file is replaced.",
)
def report_command(files: tuple[str, ...], sample: str | None, format: Format, output: str) -> int:
    """Draw the replays of all FILEs as one HTML page, which needs no network and no other file.

    Guest addresses over the calls of the trace: a bar for each slot, gaps marked, with the lines.
    The page shows the difference between any two moments, the time that calls took in the kernel
    (strace -T), and lists of gaps, disagreements and what changed most.

    Exit status: that of replay.
    """
    if bool(files) == (sample is not None):
        raise click.UsageError("name either FILEs or one --sample")
    reports: list[Report] = []
    for group in grouped(files) if files else [[sample or ""]]:
        try:
            path = group[0] if len(group) == 1 else group
            reports.append(replay_input(path, format, sample is not None, history=True))
        except TraceError as error:
            _complain(error)
            return 2
    try:
        Path(output).write_text(html(reports), encoding="utf-8")
    except OSError as error:
        click.echo(f"memslots: {output}: {error.strerror}", err=True)
        return 2
    return 0 if all(report.agree for report in reports) else 1


_kind_option = click.option(
    "--kind",
    "kinds",
    default=",".join(formats.MEMORY),
    show_default=True,
    help=f"The kinds to show, separated by commas: {', '.join(formats.KINDS)}; or all.",
)


def _read_kinds(kinds: str) -> tuple[str, ...]:
    wanted = formats.KINDS if kinds == "all" else tuple(kinds.split(","))
    if unknown := sorted({*wanted} - {*formats.KINDS}):
        known = ", ".join(formats.KINDS)
        raise click.UsageError(f"there is no kind {unknown[0]!r}; there are {known}.")
    return wanted


@command.command("map")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
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
@_kind_option
@_beside_options
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def map_command(
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

    A FILE may be a trace, QEMU's info mtree or info mtree -f, an e820 map in a log, /proc/iomem,
    or a map in JSON or CSV. It may be a LiME file, an ELF core or a full crash dump of Windows. It
    may be LeechCore's memory map, a program of syzkaller, or a log of cloud-hypervisor, dosemu2,
    unidbg or libkrun.

    Exit status: 0, or 2 if a FILE cannot be used.
    """
    wanted = _read_kinds(kinds)
    others = Beside(hosts, raw, layout)
    found: list[tuple[str, list[formats.Map]] | TraceError] = []
    for name in files:
        try:
            maps = others.completed(formats.read(name, format))
            found.append((name, [one.of_kind(*wanted) for one in maps]))
        except TraceError as error:
            found.append(error)
            _complain(error)
    if as_json:
        _print(json_output.maps(found))
    else:
        for one in found:
            if not isinstance(one, TraceError):
                text = formats.write(one[1], written)
                _print(text if written != "text" else f"{one[0]}: {one[1][0].format}\n{text}")
    return 2 if any(isinstance(one, TraceError) for one in found) else 0


@command.command("watch")
@click.option("--qmp", "path", required=True, metavar="SOCKET", help="QEMU's QMP socket.")
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait before the next look.",
)
@click.option("--once", is_flag=True, help="Show the map, and end.")
@_kind_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document a line: map, changes.")
def watch_command(path: str, interval: float, once: bool, kinds: str, as_json: bool) -> int:
    """Watch the memory of a running QEMU: show its map, and then what changes.

    QEMU needs a socket for it: -qmp unix:SOCKET,server=on,wait=off

    Exit status: 0 if QEMU shut down, or with --once; 2 if SOCKET cannot be used or QEMU is gone
    without a word.
    """
    if not 0.01 <= interval <= 86400:
        raise click.UsageError(f"--interval {interval:g}: it is from 0.01 to 86400 seconds.")
    wanted = _read_kinds(kinds)
    as_text = json_output if as_json else text_output
    try:
        reason = watch(
            path,
            wanted,
            None if once else interval,
            lambda when, maps: _print_line(as_text.watched_map(path, when, maps)),
            lambda when, spaces: _print_line(as_text.watched_change(when, spaces)),
        )
    except QmpError as error:
        click.echo(f"memslots: {path}: {error}", err=True)
        return 2
    if reason is not None:
        click.echo(f"memslots: {path}: QEMU shut down: {reason}", err=True)
    return 0


@command.command("lookup")
@click.argument("arguments", metavar="FILE GPA...", nargs=-1, required=True)
@_sample_option
@_format_option
@_beside_options
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def lookup_command(
    arguments: tuple[str, ...],
    sample: str | None,
    format: Format,
    hosts: tuple[str, ...],
    raw: str | None,
    layout: str,
    as_json: bool,
) -> int:
    """Look up guest physical addresses in the map at the end of FILE.

    Prints the slot, the host virtual address and the rule behind the answer, for each GPA (decimal,
    or hexadecimal with 0x), VM and address space. With --sample there is no FILE. FILE may also be
    a map that memslots map reads; then the answers have the offset in the file.
    With --host the answers have what the other file says of the memory there, and with --raw the
    place in the raw memory.
    """
    others = Beside(hosts, raw, layout)
    path, gpas = (sample, arguments) if sample else (arguments[0], arguments[1:])
    if not gpas:
        raise click.UsageError("name at least one GPA after FILE")
    addresses = [_read_gpa(text) for text in gpas]
    try:
        maps = None if sample or others or format != "auto" else _maps_of(path)
        if others:
            maps = others.completed(_all_maps_of(path, sample is not None))
        if maps is not None:
            _print(
                json_output.lookup_in_maps(path, maps, addresses)
                if as_json
                else text_output.lookup_in_maps(path, maps, addresses)
            )
            return 0
        report = replay_input(path, format, sample is not None)
    except TraceError as error:
        _complain(error)
        return 2
    for warning in text_output.warnings(report):
        click.echo(f"memslots: {report.name}: {warning}", err=True)
    _print(
        json_output.lookup(report, addresses) if as_json else text_output.lookup(report, addresses)
    )
    return 0 if report.agree else 1


def _maps_of(path: str) -> list[formats.Map] | None:
    """Returns the maps of a file, or None if it is a trace, standard input or no regular file."""
    if path == "-" or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        format = recognised(path, file)
        return None if format == "trace" else formats.read(path, format, file)


def _all_maps_of(path: str, sample: bool) -> list[formats.Map]:
    """Returns the maps of a file or a sample; those of a trace are the maps at its end."""
    if not sample:
        return formats.read(path)
    with SAMPLES[path].open() as stream:
        return formats.read(path, "trace", stream)


def _read_gpa(text: str) -> int:
    try:
        value = int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        message = f"{text!r} is not an address: write it in decimal, or in hexadecimal with 0x"
        raise click.UsageError(message) from None
    if not 0 <= value < 1 << 64:
        raise click.UsageError(f"{text} is not an address: it does not fit 64 bits")
    return value


def _print_line(shown: str | dict[str, Any]) -> None:
    """Prints a text as it is, or a document on one line."""
    _print(shown if isinstance(shown, str) else json.dumps(shown) + "\n")


def _print(shown: str | dict[str, Any]) -> None:
    text = shown if isinstance(shown, str) else json.dumps(shown, indent=2) + "\n"
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosedError from None


def run(arguments: Sequence[str]) -> int:
    """Runs the command with `arguments`. Returns the exit status.

    Raises KeyboardInterrupt if interrupted, and OutputClosedError if the output was closed.
    """
    try:
        result = command.main(list(arguments), prog_name="memslots", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.Exit as request:
        return request.exit_code
    return result if isinstance(result, int) else 0
