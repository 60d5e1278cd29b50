"""Helpers for the tests of transactions."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from memslots import (
    Flags,
    Memslots,
)

HVA = 0x1000_0000_0000
LOG = Flags.LOG_DIRTY_PAGES


def four_slots() -> Memslots:
    """Returns slots 0 to 3 at gfn 0x00, 0x10, 0x20, 0x30, of 16 pages.

    3 logs, its page 1 is marked.
    """
    vm = Memslots(address_spaces=2)
    for id in range(4):
        vm.create(id, 0x10 * id, 0x10, HVA + (id << 20), LOG if id == 3 else 0)
    vm.mark_dirty(0x31)
    return vm


# For the comparison with a dict.

ids = st.integers(0, 4)
gfns = st.integers(0, 11)
steps = st.one_of(
    st.tuples(st.just("create"), ids, gfns, st.integers(1, 4), st.sampled_from([0, LOG])),
    st.tuples(st.just("move"), ids, gfns),
    st.tuples(st.just("delete"), ids),
    st.tuples(st.just("set_flags"), ids, st.sampled_from([0, LOG])),
)


def step(model: dict[int, tuple[int, int, int]], call: tuple[Any, ...]) -> bool:
    """Makes a step on a dict of (base_gfn, npages, flags), even if slots overlap.

    Returns whether the step is allowed.
    """
    verb, id, *rest = call
    if (verb == "create") == (id in model):
        return False
    if verb == "create":
        model[id] = (rest[0], rest[1], int(rest[2]))
    elif verb == "delete":
        del model[id]
    elif verb == "move":
        model[id] = (rest[0], *model[id][1:])
    else:
        model[id] = (*model[id][:2], int(rest[0]))
    return True
