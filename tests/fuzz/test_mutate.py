"""Runs the mutator of traces for a while; `python tests/fuzz/mutate.py 20000` runs it for long."""

from __future__ import annotations

import pytest
from fuzz import mutate

from memslots.traces import Counts


@pytest.mark.parametrize("block", range(10))
def test_examples(block: int) -> None:
    for number in range(100 * block, 100 * block + 100):
        text, mutant, ways = mutate.example(number)
        assert mutate.fault(text, mutant) is None, (number, [way.__name__ for way in ways])


#: Numbers of examples that once were read wrong.
FOUND = (
    10, 36, 58, 313, 529, 611, 678, 752, 1182, 1450, 1531, 1588, 1767, 1860, 3268, 3762, 4228, 4542,
    4888, 4944, 7200, 7618, 8054, 8511, 8953, 9390, 9651, 10443, 11162, 11296, 11897, 12509, 13407,
    13522, 13807, 14668, 16224, 16394, 16502, 18538, 19328, 19511,
)  # fmt: skip


@pytest.mark.parametrize("number", FOUND)
def test_found_once(number: int) -> None:
    text, mutant, _ = mutate.example(number)
    assert mutate.fault(text, mutant) is None


def test_three_ways_at_once() -> None:
    several = [ways for _, _, ways in map(mutate.example, range(200)) if len(ways) == 3]
    assert len(several) > 60
    assert {way for ways in several for way in ways} == set(mutate.WAYS)


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text, mutant, _ = mutate.example(0)
    assert mutate.fault(text, mutant) is None
    lines = [line for line in text.splitlines() if not any(word in line for word in mutate.CALLED)]
    assert "0 lost of" in str(mutate.fault(text, "\n".join(lines) + "\n"))
    monkeypatch.setattr(mutate, "read", lambda text: (Counts(calls=len(text)), None))
    assert mutate.fault("a", "aa") == "2 calls and 0 lost of 1"
