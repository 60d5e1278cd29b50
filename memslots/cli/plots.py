"""Drawing for `memslots bench --plot`, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from memslots import __version__
from memslots.bench import STRUCTURES, TESTS, Report, RivalsResult, Row

#: The (test, case) pairs against rivals that are drawn: one case of each test.
DRAWN = (("single", "random"), ("batch", "random"), ("changes", "pair"))
#: Text and lines that are read on white and on dark pages alike: an .svg has no background.
INK = "#7a7a7a"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def draw(report: Report, path: str) -> None:
    """Draws a figure of up to four panels to `path`, in the format of its suffix."""
    with import_module("matplotlib").rc_context(
        {**dict.fromkeys(INKED, INK), "legend.frameon": False}
    ):
        _figure(report).savefig(path, transparent=path.endswith(".svg"))


def _figure(report: Report) -> Any:
    drawn = [[each for each in report.against if (each.test, each.case) == case] for case in DRAWN]
    panels: list[tuple[Any, Any]] = [(_improvements, report.rows)] if report.rows else []
    panels += [(_costs, results) for results in drawn if results]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    size = (7.5 * columns, 5.2 * lines)
    figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (paint, figures) in zip(grid, panels, strict=False):
        paint(axes, figures)
    for axes in list(grid)[len(panels) :]:
        axes.axis("off")
    machine = report.machine
    figure.suptitle(f"memslots {__version__}, {machine.python}, {machine.cpu}", fontsize=10)
    return figure


def _slots_axis(axes: Any, slots: Sequence[int]) -> None:
    ticker = import_module("matplotlib.ticker")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("slots")
    known = sorted(set(slots))
    axes.set_xticks(known, [str(number) for number in known], rotation=45)
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    # Label ticks between powers of ten only if the axis spans few powers of ten.
    axes.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(1, 0.4)))
    axes.grid(True, alpha=0.3)


def _improvements(axes: Any, rows: Sequence[Row]) -> None:
    """Draws a line for each test, and a star in its colour for each figure of Linux's series."""
    for number, test in enumerate(TESTS.values()):
        ours = [row for row in rows if row.test == test.name]
        if not ours:
            continue
        colour = f"C{number}"
        slots = [row.slots for row in ours]
        improvements = [row.improvement for row in ours]
        # matplotlib skips a point that is None.
        reported = [row.reported for row in ours]
        axes.plot(slots, improvements, "o-", color=colour, markersize=4, label=test.title)
        axes.plot(slots, reported, "*", color=colour, markersize=11)
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.plot([], [], "*", color=INK, markersize=11, label="reported by Linux's series")
    axes.set_title("Array of Linux 5.16 over trees")
    axes.set_ylabel("times as fast")
    _slots_axis(axes, [row.slots for row in rows])
    axes.legend(fontsize=8)


def _style(structure: str) -> dict[str, Any]:
    """Returns a structure's style, the same in every panel; memslots has a thicker line."""
    names = [each.name for each in STRUCTURES]
    if structure not in names:  # the empty loop, which is no structure
        return {"color": INK, "linestyle": "--"}
    number = names.index(structure)
    return {"color": f"C{number}", "marker": "o", "linewidth": 1.3 if number else 2.8}


def _costs(axes: Any, results: Sequence[RivalsResult]) -> None:
    """Draws a line for each structure."""
    slots = [result.slots for result in results]
    for number, each in enumerate(results[0].results):
        costs = [result.results[number].timing.median * 1e9 for result in results]
        axes.plot(slots, costs, markersize=4, label=each.structure, **_style(each.structure))
    axes.set_title(f"{results[0].title}: {results[0].of}")
    axes.set_ylabel("ns")
    _slots_axis(axes, slots)
    axes.legend(fontsize=8)
