"""Tests memslots.maps.changes against a comparison byte by byte."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from memslots.maps import Entry, Map
from memslots.maps.changes import Part, Run, changed_runs


@st.composite
def maps(draw: st.DrawFn) -> Map:
    entries = []
    start = 0
    while start < 24 and draw(st.integers(0, 9)):
        size = draw(st.integers(1, 6))
        kind = draw(st.sampled_from(["ram", "ram", "rom", "mmio"]))
        offset = draw(st.sampled_from([start, start, 0])) if kind != "mmio" else None
        if draw(st.integers(0, 3)):
            entries.append(Entry(start, size, kind, draw(st.sampled_from("ab")), offset))
        start += size
    return Map(tuple(entries))


def bytes_of(one: Map) -> dict[int, Part]:
    return {
        at: Part(e.kind, e.name, None if e.offset is None else e.offset + at - e.start)
        for e in one
        for at in range(e.start, e.end)
    }


def moved(part: Part | None, by: int) -> Part | None:
    if part is None or part.offset is None:
        return part
    return part._replace(offset=part.offset + by)


@given(maps(), maps())
def test_every_byte(first: Map, second: Map) -> None:
    old, new = bytes_of(first), bytes_of(second)
    runs = changed_runs(first, second)
    found = {
        at: (moved(run.before, at - run.start), moved(run.after, at - run.start))
        for run in runs
        for at in range(run.start, run.end)
    }
    wanted = {
        at: (old.get(at), new.get(at)) for at in old.keys() | new if old.get(at) != new.get(at)
    }
    assert found == wanted
    for one, then in pairwise(runs):  # in order, and as few as possible
        size = one.end - one.start
        assert one.end <= then.start
        assert one.end < then.start or (
            (moved(one.before, size), moved(one.after, size)) != (then.before, then.after)
        )


def test_an_entry_that_is_cut_in_two() -> None:
    whole = Map((Entry(0, 0x3000, "ram", "pc.ram", 0),))
    cut = Map(
        (
            Entry(0, 0x1000, "ram", "pc.ram", 0),
            Entry(0x1000, 0x1000, "rom", "pc.rom", 0),
            Entry(0x2000, 0x1000, "ram", "pc.ram", 0x2000),
        )
    )
    run = Run(0x1000, 0x2000, Part("ram", "pc.ram", 0x1000), Part("rom", "pc.rom", 0))
    assert changed_runs(whole, cut) == [run]
    assert changed_runs(whole, whole) == []
    assert changed_runs(Map(()), whole) == [Run(0, 0x3000, None, Part("ram", "pc.ram", 0))]
