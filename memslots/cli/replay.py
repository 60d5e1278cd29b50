"""`memslots replay`: makes the calls of traces again, and reports on each."""

from __future__ import annotations

import click

from memslots.cli import json_output, text_output
from memslots.cli.fleet import ClusterError, connected, replayed_on
from memslots.cli.kernel_memory import kvm_maker
from memslots.cli.options import file_names, force_option, format_option, json_option, sample_option
from memslots.cli.output import complain, show
from memslots.cli.progress import awaited
from memslots.cli.replaying import name_of, replayed_by_others, replayed_here
from memslots.cli.tables import TableError, Tables
from memslots.errors import KvmError
from memslots.replay import Report
from memslots.traces import Format, TraceError
from memslots.traces.threads import grouped


@click.command("replay", short_help="Make the calls of a trace again, and compare the results.")
@click.argument("files", metavar="[FILE]...", nargs=-1, shell_complete=file_names)
@sample_option
@click.option("--list-samples", is_flag=True, help="List the samples, and exit.")
@format_option
@click.option(
    "--kvm",
    is_flag=True,
    help="Make every call on this machine's kernel too, and compare all three results.",
)
@force_option
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
    shell_complete=file_names,
    help="Write two tables too, a row a VM and a row a gap: PLACE is a directory or a prefix.",
)
@click.option(
    "--parquet",
    metavar="PLACE",
    shell_complete=file_names,
    help="The same tables as Parquet; needs pyarrow.",
)
@json_option
def command(
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
        show(shown)
        return 0
    if bool(files) == (sample is not None):
        raise click.UsageError("name one or more FILEs, or one --sample (see --list-samples)")
    if kvm and jobs > 1:
        raise click.UsageError(f"--kvm replays one FILE at a time: --jobs must be 1, not {jobs}")
    if dask is not None and (kvm or jobs > 1 or sample is not None or "-" in files):
        raise click.UsageError("--dask takes FILEs, without --kvm, --jobs, --sample and -")
    status = 0
    live = None
    if kvm:
        try:
            live = kvm_maker(force)
        except KvmError as error:
            complain(error.strerror or error)
            return 2
    paths = [group[0] if len(group) == 1 else group for group in grouped(files)]
    names = [name_of(path) for path in paths]
    if dask is not None:
        try:
            replayed = awaited(replayed_on(connected(dask), paths, format), names)
        except ClusterError as error:
            complain(error)
            return 2
    elif jobs > 1 and len(paths) > 1:
        replayed = awaited(replayed_by_others(paths, format, jobs), names)
    else:
        replayed = replayed_here(paths or [sample or ""], format, sample is not None, live)
    places = {"csv": csv, "parquet": parquet}
    reports: list[Report | TraceError] = []
    try:
        with Tables({name: place for name, place in places.items() if place is not None}) as tables:
            for report in replayed:
                if isinstance(report, TraceError):
                    complain(report)
                    status = 2
                else:
                    status = max(status, 0 if report.agree else 1)
                    tables.add(report)
                    if not as_json:
                        show(text_output.replay(report))
                if as_json:
                    reports.append(report)
    except TableError as error:
        complain(error)
        return 2
    if as_json:
        show(json_output.replay(reports))
    return status
