"""Compares every answer of the structures that memslots is measured against."""

from __future__ import annotations

import random
from array import array
from importlib.util import find_spec
from itertools import pairwise

import pytest

from memslots import Memslots, Slot
from memslots.bench import (
    CASES,
    QUICK,
    STRUCTURES,
    WrongAnswerError,
    rivals,
)
from memslots.bench.questions import RUN, Questions, layout
from memslots.bench.structures import Finder, Structure

# --- questions and structures


@pytest.mark.parametrize("slots", [2, 10, 509])
def test_questions(slots: int) -> None:
    laid_out = layout(slots)
    assert laid_out == layout(slots)  # the same layout every time
    vm = Memslots()
    for slot in laid_out:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    vm.check()
    assert sorted(slot.id for slot in laid_out) == list(range(slots))
    assert any(low.end_gfn < high.base_gfn for low, high in pairwise(laid_out))
    questions = Questions(laid_out)

    def ids(gfns: list[int]) -> list[int]:
        answers = [questions.answer(gfn) for gfn in gfns]
        assert list(vm.lookup_many(array("Q", gfns))) == answers
        return answers

    hot, miss = ids(questions.hot(100)), ids(questions.miss(300))
    assert len(set(hot)) == 1
    assert -1 not in hot
    assert set(miss) == {-1}
    assert -1 not in ids(questions.random(300))
    first, end = laid_out[0].base_gfn, laid_out[-1].end_gfn
    sequential = questions.sequential(end - first + 10)
    assert sequential == [*range(first, end), *range(first, first + 10)]
    assert -1 in ids(sequential)
    local = questions.local(3 * RUN + 5)
    assert len(local) == 3 * RUN + 5
    answers = ids(local)
    for start in (0, RUN, 2 * RUN):
        assert [gfn - local[start] for gfn in local[start : start + RUN]] == list(range(RUN))
        assert len(set(answers[start : start + RUN])) == 1
        assert answers[start] != -1


def requires(structure: Structure) -> None:
    for name in structure.requires:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.usefixtures("foreign_warnings")
@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
@pytest.mark.parametrize("slots", [2, 60])
def test_every_structure_answers_as_memslots(structure: Structure, slots: int) -> None:
    requires(structure)
    laid_out = layout(slots)
    vm = Memslots()
    for slot in laid_out:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    finder = structure.make(laid_out)
    gfns = list(range(laid_out[-1].end_gfn + 300))  # holes, and below and above all
    compare(finder, vm, gfns)
    if finder.delete is None or finder.create is None:
        assert structure.name == "superintervals"
        return
    dice = random.Random(1)
    gone: list[Slot] = []
    for _ in range(30):
        if gone and dice.random() < 0.5:
            slot = gone.pop()
            finder.create(slot)
            vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
        elif len(gone) < slots - 1:  # BTrees and columns keep at least one slot
            slot = dice.choice(list(vm))
            finder.delete(slot)
            vm.delete(slot.id)
            gone.append(slot)
        compare(finder, vm, gfns)


def compare(finder: Finder, vm: Memslots, gfns: list[int]) -> None:
    wanted = list(vm.lookup_many(array("Q", gfns)))
    assert finder.find is not None or finder.find_many is not None
    if finder.find is not None:
        assert [finder.find(gfn) for gfn in gfns] == wanted
    if finder.find_many is not None:
        assert list(finder.find_many(rivals.buffer_of(gfns))) == wanted


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.test}-{case.name}")
def test_a_rival_that_is_wrong_is_not_timed(case: rivals.RivalCase) -> None:
    laid_out = layout(20)
    right, other = (STRUCTURES[0].make(laid_out) for _ in range(2))
    wrong = other._replace(
        find=lambda gfn: 1000,
        find_many=lambda gfns: array("i", [1000]) * len(gfns),
    )
    questions = Questions(laid_out)
    entrants = [(STRUCTURES[0], right)]
    assert rivals.measure(case, entrants, questions, QUICK).results[0].ratio == 1
    entrants.append((Structure("wrong", STRUCTURES[0].make), wrong))
    with pytest.raises(WrongAnswerError, match=r"^wrong"):
        rivals.measure(case, entrants, questions, QUICK)
