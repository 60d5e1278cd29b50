"""`memslots plan`: the fewest calls from one map to another."""

from __future__ import annotations

from collections.abc import Callable

import click

from memslots import PAGE_SHIFT, MemslotError, Plan, plan
from memslots.cli import json_output, text_output
from memslots.cli.kernel_memory import KernelMemoryError, kvm_maker
from memslots.cli.map_arguments import two_maps
from memslots.cli.options import file_names, force_option, json_option, read_gpa, vm_option
from memslots.cli.output import complain, show
from memslots.cli.progress import metered
from memslots.errors import KvmUnavailableError
from memslots.replay.live import LiveVM


@click.command("plan", short_help="Plan the fewest memslot calls from one map to another.")
@click.argument("current", metavar="CURRENT", shell_complete=file_names)
@click.argument("wanted", metavar="WANTED", shell_complete=file_names)
@vm_option
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
@force_option
@json_option
def command(
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
    both = two_maps(current, wanted, vm)
    if both is None:
        return 2
    now, then = both
    plans = []
    try:
        with metered("planning") as meter:
            for as_id in sorted({*now.spaces, *then.spaces, 0}):
                made = plan(now.of(as_id), then.of(as_id), max_slots=max_slots, keep=ranges)
                if len(made.current) or len(made.wanted) or as_id == 0:
                    plans.append(made)
                if check or kvm:
                    made.check()
            if kvm:
                meter.doing("making the calls on this kernel")
                opened = kvm_maker(force)
                for made in plans:
                    _check_on(opened, made)
    except (KvmUnavailableError, KernelMemoryError) as error:
        complain(getattr(error, "strerror", None) or error)
        return 2
    except MemslotError as error:
        complain(error.strerror or error)
        return 1
    checked = "by the rules and on this kernel" if kvm else "by the rules" if check else ""
    show(
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


def _read_range(text: str) -> tuple[int, int]:
    """Converts guest addresses `START-END` to a half-open range of gfns."""
    start, dash, end = text.partition("-")
    if not (start and dash and end):
        raise click.UsageError(f"--keep {text}: it is not START-END, two guest addresses")
    first, last = read_gpa(start), read_gpa(end)
    if first > last:
        raise click.UsageError(f"--keep {text}: the range ends before it starts")
    return first >> PAGE_SHIFT, -(-last >> PAGE_SHIFT)
