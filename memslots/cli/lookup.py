"""`memslots lookup`: which slot holds a guest address, and the rule that decided."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

import memslots.maps as formats
from memslots import PAGE_SHIFT, PAGE_SIZE, Flags, Memslots, Slot
from memslots.cli import json_output, text_output
from memslots.cli.beside import Beside, beside_options
from memslots.cli.map_arguments import mode_of
from memslots.cli.options import file_names, format_option, json_option, read_gpa, sample_option
from memslots.cli.output import complain, show
from memslots.cli.progress import metered
from memslots.cli.replaying import replay_input
from memslots.maps.reading import recognised, unrecognised
from memslots.traces import Format, TraceError
from memslots.traces.samples import SAMPLES
from memslots.traces.source import Source


@dataclass(frozen=True, slots=True)
class Answer:
    """What one address space has at one gpa; `slot` and `hva` are None if it has no slot there."""

    as_id: int
    gpa: int
    slot: Slot | None
    hva: int | None
    writable: bool
    rule: str


def look_up(memslots: Memslots, gpa: int) -> Iterator[Answer]:
    """Yields the answer of each address space for `gpa`.

    O(log n) for an address space with a slot there, else O(n).
    """
    for as_id in range(memslots.address_spaces):
        space = memslots.address_space(as_id)
        slot = space.lookup(gpa >> PAGE_SHIFT)
        if slot is None:
            yield Answer(as_id, gpa, None, None, False, _nothing(list(space), gpa))
            continue
        # Compute in pages first, as KVM does, then add the offset in the page.
        hva = slot.userspace_addr + (((gpa >> PAGE_SHIFT) - slot.base_gfn) << PAGE_SHIFT)
        hva += gpa & (PAGE_SIZE - 1)
        writable = not slot.flags & Flags.READONLY
        start, end = slot.guest_phys_addr, slot.guest_phys_addr + slot.memory_size
        rule = f"{start:#x} <= {gpa:#x} < {end:#x}: "
        rule += f"{slot.userspace_addr:#x} + ({gpa:#x} - {start:#x})"
        if not writable:
            rule += "; read-only: a guest's write exits to the VMM instead (KVM_EXIT_MMIO)"
        yield Answer(as_id, gpa, slot, hva, writable, rule)


def _nothing(slots: list[Slot], gpa: int) -> str:
    """Returns why `gpa` has no slot: names its neighbours."""
    below = [slot for slot in slots if slot.guest_phys_addr <= gpa]
    above = [slot for slot in slots if slot.guest_phys_addr > gpa]
    parts = []
    if below:
        end = below[-1].guest_phys_addr + below[-1].memory_size
        parts.append(f"slot {below[-1].id} below ends at {end:#x}")
    if above:
        parts.append(f"slot {above[0].id} above begins at {above[0].guest_phys_addr:#x}")
    return "no slot: " + (", ".join(parts) or "this address space is empty")


@click.command("lookup")
@click.argument(
    "arguments", metavar="FILE GPA...", nargs=-1, required=True, shell_complete=file_names
)
@sample_option
@format_option
@beside_options
@json_option
def command(
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
    addresses = [read_gpa(text) for text in gpas]
    try:
        with metered(f"reading {path}"):
            maps = None if sample or others or format != "auto" else _maps_of(path)
            if others:
                maps = others.completed(_all_maps_of(path, sample is not None))
        if maps is not None:
            show(
                json_output.lookup_in_maps(path, maps, addresses)
                if as_json
                else text_output.lookup_in_maps(path, maps, addresses)
            )
            return 0
        report = replay_input(path, format, sample is not None)
    except TraceError as error:
        complain(unrecognised(error))
        return 2
    for warning in text_output.warnings(report):
        complain(f"{report.name}: {warning}")
    answers = [
        [answer for gpa in addresses for answer in look_up(vm.memslots, gpa)] for vm in report.vms
    ]
    show(json_output.lookup(report, answers) if as_json else text_output.lookup(report, answers))
    return 0 if report.agree else 1


def _maps_of(path: str) -> list[formats.Map] | None:
    """Returns the maps of a file, or None if it is a trace, standard input or no regular file."""
    if path == "-" or not stat.S_ISREG(mode_of(path) or 0):
        return None
    with Source(path), Path(path).open("rb") as file:  # Source says why a file cannot be opened
        format = recognised(path, file)
        return None if format == "trace" else formats.read(path, format, file)


def _all_maps_of(path: str, sample: bool) -> list[formats.Map]:
    """Returns the maps of a file or a sample; those of a trace are the maps at its end."""
    if not sample:
        return formats.read(path)
    with SAMPLES[path].open() as stream:
        return formats.read(path, "trace", stream)
