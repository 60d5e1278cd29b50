"""plan: the public door to the planner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, SupportsIndex

from memslots.memslots import Memslots
from memslots.mirror.plan import Plan, plan_between
from memslots.read.memorymap import MemoryMap
from memslots.values.records import Slot

if TYPE_CHECKING:
    from memslots.read.memorymap import _Fields


def plan(
    current: Memslots | MemoryMap,
    wanted: MemoryMap | Iterable[Slot | _Fields],
    *,
    max_slots: SupportsIndex | None = None,
    max_gfn: SupportsIndex | None = None,
    keep: Iterable[tuple[SupportsIndex, SupportsIndex]] = (),
) -> Plan:
    """The fewest calls of set_region from one map to another.

    Among plans of as few calls it is one with the fewest pages absent in between. A slot that is in
    both maps is not touched. A slot that is wanted elsewhere, or with other flags, is moved or
    changed where rule 5 allows it, and keeps its dirty log. No two slots overlap on the way; where
    slots wait for each other's places, one steps aside.

    Parameters
    ----------
    current : Memslots or MemoryMap
        What there is.
    wanted : MemoryMap, or what makes one
        What there is to be, in the same address space; of a Memslots, in that of `wanted`. A slot
        without an id of its own keeps the id that the slot in its place has, else it gets the
        lowest that is free.
    max_slots, max_gfn : int, optional
        Ids are below, pages at most; if left out, those of `current`, or of a Memslots by default.
    keep : iterable of (int, int), optional
        Runs of pages [start_gfn, end_gfn) that are to be there all the time if both maps have them,
        even at the price of more calls.

    Returns
    -------
    Plan

    Raises
    ------
    NoRoomError
        `wanted` has more slots than there may be.
    NoWindowError
        A page that is to be kept cannot be: its slot must be replaced.
    InvalidRegionError, OverlapError
        `wanted` cannot be: an id that is not below max_slots (rule 2), a page above max_gfn
        (rule 7), another address space; or, where it is not a MemoryMap, as MemoryMap.

    Notes
    -----
    O(n + m + k log k) for k slots that change. Where several slots on the same host memory are to
    be in several places, a thousand ways to pair them are compared, fewer if there are many; and
    slots that wait for each other in a circle take longer (docs/kvm.md).
    """
    return plan_between(current, wanted, max_slots, max_gfn, keep, Memslots)
