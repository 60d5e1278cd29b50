"""`memslots demo`: what the package does, shown on a trace that ships with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from memslots.cli.output import show

SAMPLE = "qemu-q35-ovmf"


@dataclass(frozen=True)
class Step:
    """A question, and the commands or the Python statements that answer it."""

    #: The question, a heading.
    question: str
    #: What the answer shows, in a sentence.
    shows: str
    #: Arguments of `memslots`, one list for each call.
    commands: tuple[tuple[str, ...], ...] = ()
    #: Python statements; those of all steps share one namespace.
    statements: tuple[str, ...] = ()


STEPS = (
    Step(
        "What did a VMM do with its guest's memory?",
        "strace recorded QEMU while it booted UEFI firmware. Every memslot call is made again, and"
        " each result is compared with the kernel's.",
        commands=(("replay", "--sample", SAMPLE),),
    ),
    Step(
        "Which slot holds a guest address?",
        "The first address is in slot 2. The second is above the guest's RAM, in no slot.",
        commands=(("lookup", "--sample", SAMPLE, "0xc1000", "0x30000000"),),
    ),
    Step(
        "Why had some memory no slot for a while?",
        "Between these two lines of the trace, QEMU cut the RAM in two around the VGA hole.",
        commands=(("diff", f"sample:{SAMPLE}:123", f"sample:{SAMPLE}:126"),),
    ),
    Step(
        "Which calls does that take, and what is absent meanwhile?",
        "A plan has the fewest calls, and names the memory that is in no slot between two of them.",
        commands=(("plan", f"sample:{SAMPLE}:123", f"sample:{SAMPLE}:126"),),
    ),
    Step(
        "How does that look in Python?",
        "Readers see the change in one step: no page is ever absent for them.",
        statements=(
            "from memslots import MemoryMap, Memslots",
            "vm = Memslots(MemoryMap([(0, 0x20000, 0x7F00_0000_0000)]))  # 512 MiB",
            "vm.unmap(0xA0, 0xC0)",
            "print(vm.map())",
            "hex(vm.gpa_to_hva(0xC_1000))",
            "vm.create(7, base_gfn=0xB0, npages=0x20, userspace_addr=0x7E00_0000_0000)",
        ),
    ),
)

LAST = f"""\
Next:
  memslots replay FILE                                   reads a trace of yours
  memslots report --sample {SAMPLE} -o report.html  draws this one as a page
  python -c "import memslots; help(memslots.Memslots)"
"""


def tour(run: Callable[[Sequence[str]], object], write: Callable[[str], None], wait: Any) -> None:
    """Shows each step: `run` runs a command, `write` prints, `wait` is called between steps."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, step in enumerate(STEPS, start=1):
        write(f"[{number}/{len(STEPS)}] {step.question}\n{step.shows}\n\n")
        for arguments in step.commands:
            write(f"$ memslots {' '.join(arguments)}\n")
            run(arguments)
        for statement in step.statements:
            write(f">>> {statement}\n")
            _execute(statement, namespace, write)
        write("\n")
        wait()
    write(LAST)


def _execute(statement: str, namespace: dict[str, Any], write: Callable[[str], None]) -> None:
    """Runs a statement as an interactive Python does: the value of an expression is printed."""
    try:
        exec(compile(statement, "<demo>", "single"), namespace)  # noqa: S102 (a statement of STEPS)
    except Exception as error:  # noqa: BLE001 (shown, as an interactive Python does)
        write(f"{type(error).__name__}: {error}\n")


@click.command("demo", short_help="Show in half a minute what memslots does.")
def command() -> int:
    """Show in half a minute what memslots does, on a trace that ships with it.

    In a terminal it waits for a key after each step.
    """
    group = click.get_current_context().find_root().command

    def run(arguments: Sequence[str]) -> None:
        group.main(list(arguments), prog_name="memslots", standalone_mode=False)

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    tour(run, show, click.pause if interactive else lambda: None)
    return 0
