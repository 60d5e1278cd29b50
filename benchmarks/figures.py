"""The figures of docs/performance.md, from one run: `python benchmarks/figures.py`.

    python benchmarks/figures.py          measures all (some twenty minutes), writes
                                          docs/performance.json and the page's tables and drawing
    python benchmarks/figures.py --part byhand    measures one part of docs/performance.json
    python benchmarks/figures.py --page   writes the tables from docs/performance.json
    python benchmarks/figures.py --check  measures the figures that any machine can compare, in a
                                          minute or two; status 1 if the page says something else

Needs a checkout built in place, and memslots[bench].
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
FILE = ROOT / "docs" / "performance.json"
DRAWING = ROOT / "docs" / "performance.svg"

#: KVM's largest number of slots; the page says most about it.
LARGEST = 32764
#: The most times by which a ratio may differ between machines.
RATIO = 2.5
#: The most times by which a number of bytes may differ; only the allocator changes it.
SIZE = 1.1


def bench(*options: str) -> dict[str, Any]:
    """Returns a report of `memslots bench`."""
    command = [sys.executable, "-m", "memslots", "bench", "--json", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure_bench() -> Any:
    """Measures what `memslots bench` does."""
    return bench("--plot", str(DRAWING))


# The benchmarks are imported where they run, because --page does not need them.


def measure_goals() -> Any:
    """Measures the goals."""
    import goals

    return [goals.show(row)._asdict() for row in goals.measured(())]


def measure_memory() -> Any:
    """Measures guest memory beside plain slices."""
    import guestmemory

    sizes = map(guestmemory.size_rows, guestmemory.SIZES)
    return [row._asdict() for row in chain(guestmemory.numbers_rows(), *sizes)]


def measure_byhand() -> Any:
    """Measures guest memory beside what people make by hand."""
    import byhand

    rows = list(byhand.measured(byhand.Sizes()))
    goals = [goal._asdict() for goal in byhand.goals(rows)]
    return {"rows": [row._asdict() for row in rows], "goals": goals}


def measure_ablation() -> Any:
    """Measures what each part of a batch's search gains."""
    import ablation

    return ablation.measured()


PARTS: dict[str, Callable[[], Any]] = {
    "bench": measure_bench,
    "goals": measure_goals,
    "memory": measure_memory,
    "byhand": measure_byhand,
    "ablation": measure_ablation,
}


# The tables


def three(number: float) -> str:
    """Formats a number with three digits, or more if it is above 1000."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(found: dict[str, Any]) -> str:
    """Returns the machine and the versions of the run."""
    report = found["bench"]
    where, versions = report["machine"], report["versions"]
    others = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"{where['cpu']}, {where['cpus']} CPUs, {where['memory'] / 2**30:.1f} GiB,"
        f" {where['kernel']}, {where['python']}, memslots {report['memslots']}, {others};"
        f" {report['date'][:10]}."
    )


def series(found: dict[str, Any]) -> str:
    """Returns the table of Linux's own tests."""
    rows = found["bench"]["series"]
    sizes = sorted({row["slots"] for row in rows})
    lines = []
    for test in dict.fromkeys(row["test"] for row in rows):
        by_slots = {row["slots"]: row for row in rows if row["test"] == test}
        last = by_slots[max(by_slots)]
        took = f"{seconds(last['before']['median'])}, {seconds(last['after']['median'])}"
        told = [row["reported"] for row in by_slots.values() if row["reported"]]
        lines.append(
            [
                test,
                *(three(by_slots[n]["improvement"]) if n in by_slots else "" for n in sizes),
                took,
                f"{told[-1]:g}" if told else "",
            ]
        )
    return table(["test", *(f"{n:,}" for n in sizes), "before, after", "reported"], lines)


def seconds(value: float) -> str:
    """Formats a time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{three(value / size)} {unit}"
    return f"{three(value / 1e-9)} ns"


def peers(found: dict[str, Any]) -> str:
    """Returns the table of the structures that people use instead."""
    rows = [row for row in found["bench"]["against"] if row["slots"] == LARGEST]
    names = list(dict.fromkeys(each["structure"] for row in rows for each in row["structures"]))
    took = [
        {each["structure"]: each["seconds_per_operation"] for each in row["structures"]}
        for row in rows
    ]
    lines = [
        [name, *(three(each[name] * 1e9) if name in each else "" for each in took)]
        for name in names
    ]
    cases = (f"{row['test']}, {row['case']}" for row in rows)
    return table([f"ns, {LARGEST:,} slots", *cases], lines)


def goal_rows(found: dict[str, Any], *beginnings: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of goals.py whose names begin with one of `beginnings`."""
    for row in found["goals"]:
        if row["what"].startswith(beginnings):
            yield row


def single(found: dict[str, Any]) -> str:
    """Returns the table of single look-ups of random pages."""
    sizes = sorted({row["slots"] for row in goal_rows(found, "lookup, random")})
    lines = []
    for what in dict.fromkeys(row["what"] for row in goal_rows(found, "lookup, random")):
        by_slots = {row["slots"]: row for row in found["goals"] if row["what"] == what}
        ratio = ": " in what
        name = what.removeprefix("lookup, random").lstrip(":, ")
        lines.append(
            [
                name if ratio else f"{name}, ns",
                *(three(by_slots[n]["figure"]) if n in by_slots else "" for n in sizes),
            ]
        )
    return table(["", *(f"{n:,}" for n in sizes)], lines)


def between(found: dict[str, Any]) -> str:
    """Returns the table of single look-ups between changes."""
    rows = [row for row in found["goals"] if row["what"].endswith("for each change")]
    sizes = sorted({row["slots"] for row in rows})
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        by_slots = {row["slots"]: row for row in rows if row["what"] == what}
        count = what.removeprefix("lookup, ").removesuffix(" for each change")
        lines.append([count, *(three(by_slots[n]["figure"]) for n in sizes)])
    head = ["look-ups for each change", *(f"{n:,} slots" for n in sizes)]
    return table(head, lines)


def memory(found: dict[str, Any]) -> str:
    """Returns the table of guest memory."""
    return memory_table(found["memory"], "plain")


def byhand(found: dict[str, Any]) -> str:
    """Returns the table of guest memory beside what people make by hand."""
    return memory_table(found["byhand"]["rows"], "the other")


def memory_table(rows: list[dict[str, Any]], other: str) -> str:
    """Returns a table of guest memory beside something else."""
    lines = [
        [
            row["call"],
            row["size"],
            row["beside"],
            f"{three(row['ours'])} {row['unit']}",
            f"{three(row['plain'])} {row['unit']}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return table(["call", "size", "beside", "memslots", other, "times the speed"], lines)


def parts(found: dict[str, Any]) -> str:
    """Returns the table of what each part of a batch's search gains."""
    rows = found["ablation"]
    asked = list(next(iter(rows.values())))
    lines = [[case, *(f"{row[case]:.2f}" for row in rows.values())] for case in asked]
    return table(["look-ups, slots", *rows], lines)


def goals_table(found: dict[str, Any]) -> str:
    """Returns the table of all figures that have a goal."""
    lines = []
    for row in [*found["goals"], *found["byhand"]["goals"]]:
        if row["goal"] is None:
            continue
        most = "at least" if row["at_least"] else "at most"
        unit = "" if row["unit"] == "x" else f" {row['unit']}"
        reached = (row["figure"] >= row["goal"]) is row["at_least"]
        figure = f"{three(row['figure'])}{unit}"
        lines.append(
            [
                f"{row['slots']:,}" if row["slots"] else "",
                row["what"],
                f"{most} {row['goal']:g}{unit}",
                figure if reached else f"**{figure}**",
            ]
        )
    return table(["slots", "what", "goal", "here"], lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "series": series,
    "peers": peers,
    "single": single,
    "between": between,
    "memory": memory,
    "byhand": byhand,
    "parts": parts,
    "goals": goals_table,
}
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- end of figures -->\n)", re.DOTALL)


def page_of(text: str, found: dict[str, Any]) -> str:
    """Returns the page with its figures from a run."""
    return PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]](found)}\n\n{place[4]}", text)


# The check


def compared() -> Iterator[tuple[str, float, float, float]]:
    """Yields the figures that any machine can compare.

    Each is a name, the page's figure, this machine's figure, and how many times they may differ.
    """
    import goals

    found = json.loads(FILE.read_text(encoding="utf-8"))
    said = {(row["slots"], row["what"]): row for row in found["goals"]}
    measured = chain(
        goals.hot(LARGEST),
        goals.single_random(509),
        goals.batches(LARGEST),
        goals.memory(LARGEST),
        goals.importing(),
    )
    for row in measured:
        before = said.get((row.slots, row.what))
        if before is None:
            yield f"{row.what} ({row.slots} slots)", 0.0, row.figure, 1.0
            continue
        limits = {"x": RATIO, "bytes": SIZE, "modules": 1.0}
        if row.unit in limits:
            name = f"{row.what} ({row.slots} slots)" if row.slots else row.what
            yield name, before["figure"], row.figure, limits[row.unit]


def check() -> bool:
    """Prints each comparison. Returns whether all figures agree with the page."""
    good = True
    for name, said, here, times in compared():
        same = said > 0 and 1 / times <= here / said <= times
        good &= same
        print(f"{name:<72}{said:>9.4g}{here:>9.4g}  {'' if same else 'NOT SO'}", flush=True)
    return good


def main() -> None:
    """Measures and writes, or checks."""
    parser = argparse.ArgumentParser(description="The figures of docs/performance.md.")
    parser.add_argument("--part", choices=PARTS, help="measure one part, keep the others")
    parser.add_argument("--page", action="store_true", help="write the tables, measure nothing")
    parser.add_argument("--check", action="store_true", help="compare what the page says")
    options = parser.parse_args()
    if options.check:
        raise SystemExit(0 if check() else 1)
    if not options.page:
        found = json.loads(FILE.read_text(encoding="utf-8")) if options.part else {}
        for part in [options.part] if options.part else PARTS:
            found[part] = PARTS[part]()
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(FILE.read_text(encoding="utf-8"))
    PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
