"""Random MemoryMaps, and the host page of each of their pages."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from memslots import MemoryMap

Pages = dict[int, tuple[int, int]]  # gfn: hva and flags of the page
HOST = 1 << 30


@st.composite
def maps(draw: st.DrawFn) -> MemoryMap:
    """Returns a map of few pages, often of slots adjacent in host memory, with or without ids."""
    items: list[Any] = []
    ids = draw(st.permutations(range(12)))
    gfn = draw(st.integers(0, 4))
    while gfn < 40 and len(items) < 8 and draw(st.integers(0, 9)):
        npages = draw(st.integers(1, 6))
        hva = HOST + (gfn << 12) + draw(st.sampled_from([0, 0, 0, 1 << 20]))
        flags = draw(st.sampled_from([0, 0, 0, 1, 2, 3]))
        id = draw(st.sampled_from([(), (ids[len(items)],)]))
        items.append((gfn, npages, hva, flags, *id))
        gfn += npages + draw(st.sampled_from([0, 0, 0, 1, 3]))
    return MemoryMap(draw(st.permutations(items)))


def pages(m: MemoryMap) -> Pages:
    return {
        gfn: (slot.gfn_to_hva(gfn), int(slot.flags))
        for slot in m
        for gfn in range(slot.base_gfn, slot.end_gfn)
    }
