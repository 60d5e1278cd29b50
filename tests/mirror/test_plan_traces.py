"""Plans over real traces: from the VMM's map after each tenth call to its last map.

`python tests/mirror/test_plan_traces.py` writes the table of docs/plans.md again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from needs import needs_kvm

from memslots import MemoryMap, Memslots, Plan, plan
from memslots.replay import Replayer
from memslots.traces import RegionCall, open_trace
from memslots.traces.births import BirthsFirst

ROOT = Path(__file__).parent.parent.parent
TRACES = sorted((ROOT / "tests" / "data" / "traces").iterdir())
PAGE = ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- traces -->\n", "<!-- end of traces -->"
EACH = 10
#: The most pages that the kernel may have at once: it takes some bytes for each.
MOST_PAGES = (1 << 30) >> 12


class Way(NamedTuple):
    """The way from one moment of a trace to its end."""

    moment: MemoryMap
    final: MemoryMap
    calls_made: int  # by the VMM

    def plan(self) -> Plan:
        return plan(self.moment, self.final)


def ways(path: Path) -> list[Way]:
    """Yields the ways in each address space of the trace's VM; all calls count in each."""
    with open_trace(path) as trace:
        events = list(BirthsFirst(trace))
    replayer = Replayer(events)
    moments: list[tuple[int, list[MemoryMap]]] = []
    made = 0
    for event in events:
        replayer.feed(event)
        if isinstance(event, RegionCall) and not event.errno:
            made += 1
            if not made % EACH:
                moments.append((made, maps_of(replayer.vms[0].memslots)))
    final = maps_of(replayer.vms[0].memslots)
    return [
        Way(now, then, made - calls)
        for calls, maps in moments
        for now, then in zip(maps, final, strict=True)
        if now.as_id == 0
    ]


def maps_of(vm: Memslots) -> list[MemoryMap]:
    return [vm.map(as_id) for as_id in range(vm.address_spaces)]


def row(path: Path) -> str:
    """Returns the sums over all plans of a trace."""
    plans = [(way, way.plan()) for way in ways(path)]
    made = sum(way.calls_made for way, _ in plans)
    least = sum(len(each) for _, each in plans)
    rebuilt = sum(each.rebuild_calls for _, each in plans)
    windows = sum(window.end_gfn - window.start_gfn for _, each in plans for window in each.windows)
    name = path.name.partition(".")[0]
    return f"| {name} | {len(plans)} | {made} | {rebuilt} | {least} | {windows} |"


def table() -> str:
    head = (
        "| trace | plans | calls that QEMU made | of a rebuild | of the plans | pages absent |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "".join(row(path) + "\n" for path in TRACES)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_from_each_tenth_call_to_the_end(path: Path) -> None:
    found = ways(path)
    assert found
    for way in found:
        made = way.plan()
        made.check()
        assert len(made) <= min(way.calls_made, made.rebuild_calls)
        vm = Memslots(map=way.moment)
        vm.apply(made)
        vm.check()
        assert vm.map() == way.final


@needs_kvm
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_on_this_machines_kernel(path: Path) -> None:
    from memslots.kvm import KvmVM

    tried = 0
    for way in ways(path):
        if max(way.moment.nr_pages, way.final.nr_pages) > MOST_PAGES:
            continue
        made = way.plan()
        with KvmVM() as kernel:
            made.check(kernel)
            assert set(kernel.slots) == set(way.final)
        tried += 1
    if not tried:
        pytest.skip("its maps are too large for the kernel's memory")


def test_the_pages_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(page[:start] + table() + page[end:], encoding="utf-8")
