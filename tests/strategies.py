"""Arguments that hypothesis draws: values so few that calls collide, and sometimes extremes.

The machine has six slots and two address spaces. Usual gfns and hvas are of a few dozen pages, so
that ranges overlap, touch and coincide in both.
"""

from __future__ import annotations

from hypothesis import strategies as st
from smallmachine import MAX_GFN, MAX_HVA, MAX_SLOTS, SPACES


def mostly(usual: st.SearchStrategy[int], *extremes: int) -> st.SearchStrategy[int]:
    """Draws the usual values, but one in sixteen is any value."""
    pairs = st.tuples(st.integers(0, 15), usual, st.sampled_from(extremes))
    return pairs.map(lambda drawn: drawn[1] if drawn[0] else drawn[2])


ids = mostly(st.integers(0, MAX_SLOTS - 1), MAX_SLOTS, 0xFFFF)
as_ids = mostly(st.integers(0, SPACES - 1), SPACES, 0xFFFF)
good_as_ids = st.integers(0, SPACES - 1)
flags = mostly(st.sampled_from([0, 1, 1, 1, 2, 3]), 4, 1 << 16, 0xFFFFFFFF)
gfns = mostly(
    st.integers(0, 60),
    *(MAX_GFN - 64, MAX_GFN, MAX_GFN + 1, 1 << 28, (1 << 40) - 1, (1 << 52) - 1),
)
npages = mostly(st.integers(1, 10), 64, 65, 100, 0, 1 << 31, (1 << 35) - 2, (1 << 52) - 1)
hvas = mostly(
    st.integers(0, 20).map(lambda page: page << 12),
    *(MAX_HVA - (pages << 12) for pages in (-1, 0, 1, 2, 5)),
    (1 << 64) - 4096,
)
askew = mostly(st.just(0), 1, 2048)  # now and then an unaligned address
marks = st.lists(st.integers(0, 80), max_size=12)
# A verb and its arguments, as Memslots, Transaction and Model all take them.
steps = st.one_of(
    st.tuples(st.just("create"), ids, gfns, npages, hvas, flags, as_ids),
    st.tuples(st.just("move"), ids, gfns, as_ids),
    st.tuples(st.just("move"), ids, gfns, as_ids),
    st.tuples(st.just("set_flags"), ids, flags, as_ids),
    st.tuples(st.just("delete"), ids, as_ids),
    st.builds(
        lambda as_id, id, flags, gfn, n, hva: (
            *("set_region", as_id << 16 | id, flags, gfn << 12, n << 12, hva),
        ),
        *(as_ids, ids, flags, gfns, npages, hvas),
    ),
    st.tuples(st.just("mark_dirty"), st.integers(0, 80), good_as_ids),
)
