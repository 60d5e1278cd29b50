"""Tests memslots.core.dirtylog alone: ranges and whole bitmaps, at every border of a word."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model import pages_of, to_bitmap

BASE = 0x1003  # a log's words begin at the slot, not at a multiple of 64 gfns
BORDERS = [0, 1, 31, 62, 63, 64, 65, 126, 127, 128, 129, 190, 191, 192, 193, 199]
NPAGES = 200


@pytest.fixture(scope="module")
def dirtylog(drivers: Any) -> Any:
    return drivers("dirtylog")


def pages(log: Any) -> set[int]:
    return pages_of(log.get())


@pytest.mark.parametrize("first", BORDERS)
def test_ranges_at_the_borders_of_words(dirtylog: Any, first: int) -> None:
    for last in BORDERS:
        if last >= first:
            log = dirtylog.Log(BASE, NPAGES)
            log.mark_range(BASE + first, BASE + last)
            assert pages(log) == set(range(first, last + 1))


@pytest.mark.parametrize("npages", [1, 63, 64, 65, 128, 129])
def test_a_whole_slot(dirtylog: Any, npages: int) -> None:
    log = dirtylog.Log(BASE, npages)
    log.mark_range(BASE, BASE + npages - 1)
    assert pages(log) == set(range(npages))  # D1: and no bit past the last page


@given(ranges=st.lists(st.tuples(st.sampled_from(BORDERS), st.sampled_from(BORDERS))))
def test_what_is_marked_stays(dirtylog: Any, ranges: list[tuple[int, int]]) -> None:
    log, one_by_one = dirtylog.Log(BASE, NPAGES), dirtylog.Log(BASE, NPAGES)
    marked: set[int] = set()
    for ends in ranges:
        first, last = sorted(ends)
        log.mark_range(BASE + first, BASE + last)
        for page in range(first, last + 1):
            one_by_one.mark(BASE + page)
        marked |= set(range(first, last + 1))
        assert pages(log) == pages(one_by_one) == marked
    assert pages_of(log.get(take=True)) == marked
    assert pages(log) == set()


@pytest.mark.parametrize("page", BORDERS)
def test_merging_one_page(dirtylog: Any, page: int) -> None:
    log = dirtylog.Log(BASE, NPAGES)
    log.mark(BASE + 7)
    log.merge(bytes(to_bitmap({page}, NPAGES)))
    assert pages(log) == {7, page}
    log.merge(bytes(to_bitmap(set(), NPAGES)))
    assert pages(log) == {7, page}
    log.merge(bytes(to_bitmap(set(BORDERS), NPAGES)))
    assert pages(log) == {7, *BORDERS}


@given(first=st.sets(st.integers(0, NPAGES - 1)), second=st.sets(st.integers(0, NPAGES - 1)))
def test_merging_is_a_union(dirtylog: Any, first: set[int], second: set[int]) -> None:
    log = dirtylog.Log(BASE, NPAGES)
    for bitmap in (first, second):
        log.merge(bytes(to_bitmap(bitmap, NPAGES)))
    assert log.get() == bytes(to_bitmap(first | second, NPAGES))


def test_no_log_and_no_writer(dirtylog: Any) -> None:
    none = dirtylog.Log(BASE, NPAGES, logs=False)
    none.mark_range(BASE, BASE + NPAGES - 1)
    none.merge(bytes(to_bitmap({1}, NPAGES)))
    assert none.get() == b""
    readonly = dirtylog.Log(BASE, NPAGES, readonly=True)
    readonly.mark_range(BASE, BASE + NPAGES - 1)
    assert pages(readonly) == set()
