"""Tests memslots.core.slot: the memory layout that the searches rely on."""

from __future__ import annotations

from typing import Any


def test_a_search_by_gfn_reads_one_cache_line(drivers: Any) -> None:
    size, members = drivers("update").slot_layout()
    assert size <= 192
    assert members == {"gfn_node": (0, 48), "base_gfn": (48, 56), "npages": (56, 64)}


def test_slots_begin_on_a_cache_line(drivers: Any) -> None:
    space = drivers("update").Space()
    for id in range(20):
        space.change(id, 16 * id, 1, 0)
        assert space.alignment(id) == 0
