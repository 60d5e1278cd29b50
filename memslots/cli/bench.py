"""`memslots bench`: measures the trees against the array and other structures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import click

from memslots import bench
from memslots.cli import json_output, text_output
from memslots.cli.options import json_option
from memslots.cli.output import complain, show
from memslots.cli.plots import draw
from memslots.cli.progress import counted

#: The tests that `bench --test` can name.
_BENCH_TESTS = list(dict.fromkeys([*bench.TESTS, *(case.test for case in bench.CASES)]))
_PLOT_MISSING = "--plot needs matplotlib: pip install 'memslots[plot]'"


@click.command("bench", short_help="Measure the trees against an array and other structures.")
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
@json_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Also draw a figure to FILE, which ends in .svg or .png. Needs matplotlib.",
)
def command(
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
    try:
        draw = None if plot is None else _plotter(plot)
    except OSError as error:
        return _unwritten(plot, error)
    if plot is not None and draw is None:
        complain(_PLOT_MISSING)
        return 2
    try:
        with counted(len(chosen)) as progress:
            report = bench.run(chosen, bench.QUICK if quick else bench.FULL, progress)
    except bench.WrongAnswerError as wrong:
        complain(f"a wrong answer: {wrong}")
        return 1
    show(json_output.bench(report) if as_json else text_output.bench(report))
    try:
        if draw is not None:
            draw(report)
    except OSError as error:
        return _unwritten(plot, error)
    return 0


def _unwritten(plot: str | None, error: OSError) -> int:
    complain(f"{plot}: {error.strerror}")
    return 2


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

    Raises OSError if the file cannot be written. Called before anything is measured, so these
    faults cost no time.
    """
    file = Path(path)
    if file.suffix.lower() not in (".svg", ".png"):
        raise click.UsageError(f"--plot {path}: FILE must end in .svg or .png")
    if not file.absolute().parent.is_dir():
        raise click.UsageError(f"--plot {path}: the directory does not exist")
    try:
        import_module("matplotlib")
    except ModuleNotFoundError:
        return None
    new = not os.path.lexists(file)
    file.open("ab").close()
    if new:
        file.unlink()
    return lambda report: draw(report, path)
