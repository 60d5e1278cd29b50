"""Rule T1: no transaction loses the mark of a page.

Take a page that logs before and after, at the same guest page and on the same host memory. If it
had a mark, it still has the mark, whatever the transaction did to slots and ids.
"""

from __future__ import annotations

import random
import threading
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model import Model, ModelTransaction, state_of

from memslots import Flags, Memslots

LOG = Flags.LOG_DIRTY_PAGES
HVA = 0x7000_0000_0000
PAGES = 300


class Part(NamedTuple):
    base: int
    pages: int
    shift: int  # of the host memory, in pages; mostly 0
    flags: int


@st.composite
def layouts(draw: st.DrawFn) -> list[Part]:
    """Draws pages [0, PAGES) in adjacent slots, with holes, most on one run of host memory."""
    ends = sorted(draw(st.sets(st.integers(1, PAGES), min_size=1, max_size=6)))
    parts = []
    for base, end in zip([0, *ends], ends, strict=False):
        shift = draw(st.sampled_from([0, 0, 0, 1, 1000]))
        if draw(st.integers(0, 5)):
            parts.append(Part(base, end - base, shift, draw(st.sampled_from([1, 1, 1, 0, 3]))))
    return parts


def hva_of(part: Part) -> int:
    return HVA + (part.base + part.shift) * 4096


@given(
    before=layouts(),
    after=layouts(),
    order=st.randoms(use_true_random=False),
    marks=st.lists(st.integers(0, PAGES - 1), max_size=20),
    late=st.lists(st.integers(0, PAGES - 1), max_size=5),
    mode=st.sampled_from([0, 1, 3]),
)
def test_any_layout_becomes_any_other(
    before: list[Part],
    after: list[Part],
    order: random.Random,
    marks: list[int],
    late: list[int],
    mode: int,
) -> None:
    vm, model = Memslots(64, manual_dirty_log=mode), Model(64, manual_dirty_log=mode)
    for id, part in enumerate(before):
        vm.create(id, part.base, part.pages, hva_of(part), part.flags)
        assert model.create(id, part.base, part.pages, hva_of(part), part.flags).done
    if mode == 3:
        for slot in vm:
            if slot.flags & LOG:
                clear = bytes([255]) * (8 * -(-slot.npages // 64))
                vm.clear_dirty_log(slot.id, 0, slot.npages, clear)
                model.clear_dirty_log(slot.id, 0, slot.npages, clear)
    for gfn in marks:
        vm.mark_dirty(gfn)
        model.mark_dirty(gfn)
    ids = list(range(len(after)))
    order.shuffle(ids)
    with vm.transaction() as tx:
        told = ModelTransaction(model)
        for id in range(len(before)):
            tx.delete(id)
            told.step("delete", id)
        for id, part in zip(ids, after, strict=True):
            tx.create(id, part.base, part.pages, hva_of(part), part.flags)
            told.step("create", id, part.base, part.pages, hva_of(part), part.flags)
        for gfn in late:  # readers still find the old slots
            vm.mark_dirty(gfn)
            model.mark_dirty(gfn)
    assert told.end().done
    vm.check()
    assert state_of(vm) == model.state()


@pytest.mark.parametrize("mode", [0, 1])
def test_marks_made_by_other_threads_meanwhile(mode: int) -> None:
    """Each mark is found in the end, while a slot is split and merged over and over."""
    vm = Memslots(manual_dirty_log=mode)
    pages = 192
    vm.create(0, 0, pages, HVA, LOG)
    done = threading.Event()
    ready = threading.Barrier(2)

    def mark() -> None:
        ready.wait()
        for round_number in range(300):
            for gfn in range(round_number % 7, pages, 7):
                vm.mark_dirty(gfn)
        done.set()

    thread = threading.Thread(target=mark)
    thread.start()
    ready.wait()
    at = 1
    while not done.is_set():
        with vm.transaction() as tx:
            tx.delete(0)
            tx.create(0, 0, at, HVA, LOG)
            tx.create(1, at, pages - at, HVA + 4096 * at, LOG)
        with vm.transaction() as tx:
            tx.delete(0)
            tx.delete(1)
            tx.create(0, 0, pages, HVA, LOG)
        at = at % (pages - 1) + 1
    thread.join()
    assert vm.take_dirty_runs() == [(0, 0, pages)]
    vm.check()
