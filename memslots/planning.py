"""plan: the public function of the planner."""

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
    """Returns the plan with the fewest calls of set_region from one map to another.

    Among plans with equally few calls, `plan` picks one with the fewest pages absent in between. A
    slot that is in both maps is not touched. If rule 5 allows it, a slot that is wanted elsewhere
    or with other flags is moved or changed, and keeps its dirty log. No two slots overlap on the
    way. If slots wait for each other's places, one of them steps aside.

    Parameters
    ----------
    current : Memslots or MemoryMap
        The map to begin with. Of a Memslots, the address space of `wanted`.
    wanted : MemoryMap, or an iterable that makes one
        The map to end with, in the same address space. A slot without an id keeps the id of the
        slot in its place; if there is none, it gets the lowest free id.
    max_slots, max_gfn : int, optional
        Ids are below max_slots, gfns are at most max_gfn. Defaults are those of `current` if it is
        a Memslots, else those of Memslots.
    keep : iterable of (int, int), optional
        Ranges of pages [start_gfn, end_gfn) that stay present all the time if both maps have them,
        even if that costs more calls.

    Returns
    -------
    Plan

    Raises
    ------
    NoRoomError
        `wanted` has more slots than max_slots.
    NoWindowError
        A page in `keep` cannot stay present, because its slot must be replaced.
    InvalidRegionError, OverlapError
        `wanted` has an id that is not below max_slots (rule 2), a page above max_gfn (rule 7), or
        another address space. If `wanted` is not a MemoryMap, also the errors of making one.

    Notes
    -----
    O(n + m + k log k) for k slots that change. If several slots on the same host memory move, at
    most a thousand ways to pair them with places are compared, fewer for many slots. Slots that
    wait for each other in a circle take longer. Beyond the bounds of these searches
    (docs/plans.md) a plan may have more calls than needed, at most one for each slot that steps
    aside.
    """
    return plan_between(current, wanted, max_slots, max_gfn, keep, Memslots)
