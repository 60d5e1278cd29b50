"""The structures that are compared. Each holds slots and finds the id of the slot that holds a gfn.

Each is written as its users would write it: closures over local names, and the library's own calls.
A function that makes a structure imports the library and returns a Finder.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from memslots import Memslots, Slot
from memslots.baseline import ArrayMemslots


class Finder(NamedTuple):
    """The functions of a structure. A function that it cannot have is None."""

    #: Returns the id of the slot that holds a gfn, or -1.
    find: Callable[[int], int] | None = None
    #: Does the same for a buffer of uint64 gfns. Returns int32 ids.
    find_many: Callable[[Any], Sequence[int]] | None = None
    #: Removes a slot, and adds one.
    delete: Callable[[Slot], object] | None = None
    create: Callable[[Slot], object] | None = None


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure. `requires` names the distributions that must be installed."""

    name: str
    make: Callable[[Sequence[Slot]], Finder]
    requires: tuple[str, ...] = ()


def _memslots_finder(vm: Memslots | ArrayMemslots, slots: Sequence[Slot]) -> Finder:
    def create(slot: Slot) -> None:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)

    def delete(slot: Slot) -> None:
        vm.delete(slot.id)

    for slot in slots:
        create(slot)
    vcpu = vm.vcpu()
    lookup = vcpu.lookup

    def find(gfn: int) -> int:
        slot = lookup(gfn)
        return -1 if slot is None else slot.id

    return Finder(find, vcpu.lookup_many, delete, create)


def make_memslots(slots: Sequence[Slot]) -> Finder:
    """Makes a Memslots: this package."""
    return _memslots_finder(Memslots(), slots)


def make_array(slots: Sequence[Slot]) -> Finder:
    """Makes an ArrayMemslots: the array of Linux 5.16."""
    return _memslots_finder(ArrayMemslots(), slots)


def make_bisect(slots: Sequence[Slot]) -> Finder:
    """Makes three sorted lists for the standard library's bisect."""
    bases = [slot.base_gfn for slot in slots]
    ends = [slot.end_gfn for slot in slots]
    ids = [slot.id for slot in slots]

    def find(gfn: int) -> int:
        index = bisect_right(bases, gfn) - 1
        return ids[index] if index >= 0 and gfn < ends[index] else -1

    def delete(slot: Slot) -> None:
        index = bisect_left(bases, slot.base_gfn)
        del bases[index], ends[index], ids[index]

    def create(slot: Slot) -> None:
        index = bisect_left(bases, slot.base_gfn)
        bases.insert(index, slot.base_gfn)
        ends.insert(index, slot.end_gfn)
        ids.insert(index, slot.id)

    return Finder(find, None, delete, create)


def make_sorteddict(slots: Sequence[Slot]) -> Finder:
    """Makes a SortedDict of sortedcontainers, from base gfn to (end, id)."""
    sorted_dict = import_module("sortedcontainers").SortedDict
    by_base = sorted_dict({slot.base_gfn: (slot.end_gfn, slot.id) for slot in slots})
    bisect, peekitem = by_base.bisect_right, by_base.peekitem

    def find(gfn: int) -> int:
        index = bisect(gfn)
        if not index:
            return -1
        end, id = peekitem(index - 1)[1]
        return int(id) if gfn < end else -1

    def delete(slot: Slot) -> None:
        del by_base[slot.base_gfn]

    def create(slot: Slot) -> None:
        by_base[slot.base_gfn] = (slot.end_gfn, slot.id)

    return Finder(find, None, delete, create)


def make_btree(slots: Sequence[Slot]) -> Finder:
    """Makes an LLBTree of BTrees, from base gfn to id, and a dictionary from id to end."""
    by_base = import_module("BTrees.LLBTree").LLBTree({slot.base_gfn: slot.id for slot in slots})
    ends = {slot.id: slot.end_gfn for slot in slots}
    max_key = by_base.maxKey

    def find(gfn: int) -> int:
        try:
            id: int = by_base[max_key(gfn)]
        except ValueError:  # no key is as small
            return -1
        return id if gfn < ends[id] else -1

    def delete(slot: Slot) -> None:
        del by_base[slot.base_gfn], ends[slot.id]

    def create(slot: Slot) -> None:
        by_base[slot.base_gfn] = slot.id
        ends[slot.id] = slot.end_gfn

    return Finder(find, None, delete, create)


def make_superintervals(slots: Sequence[Slot]) -> Finder:
    """Makes an IntervalMap of superintervals: gfns of 31 bits, inclusive ends, no removal."""
    intervals = import_module("superintervals").IntervalMap()
    for slot in slots:
        intervals.add(slot.base_gfn, slot.end_gfn - 1, slot.id)
    intervals.build()
    search = intervals.search_values

    def find(gfn: int) -> int:
        found = search(gfn, gfn)
        return found[0] if found else -1

    return Finder(find)


class _Columns:
    """Sorted columns of numpy, which numpy and numba search.

    The first row is a slot of no page below all others, so every gfn has a row before it.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        import numpy as np

        self.bases = np.array([0, *(slot.base_gfn for slot in slots)], dtype=np.uint64)
        self.ends = np.array([0, *(slot.end_gfn for slot in slots)], dtype=np.uint64)
        self.ids = np.array([-1, *(slot.id for slot in slots)], dtype=np.int32)

    def delete(self, slot: Slot) -> None:
        import numpy as np

        index = np.searchsorted(self.bases, np.uint64(slot.base_gfn))
        self.bases = np.delete(self.bases, index)
        self.ends = np.delete(self.ends, index)
        self.ids = np.delete(self.ids, index)

    def create(self, slot: Slot) -> None:
        import numpy as np

        index = np.searchsorted(self.bases, np.uint64(slot.base_gfn))
        self.bases = np.insert(self.bases, index, slot.base_gfn)
        self.ends = np.insert(self.ends, index, slot.end_gfn)
        self.ids = np.insert(self.ids, index, slot.id)


def make_searchsorted(slots: Sequence[Slot]) -> Finder:
    """Makes sorted columns for numpy's searchsorted, with a mask for the holes."""
    import numpy as np

    columns = _Columns(slots)

    def find_many(gfns: Any) -> Any:
        index = np.searchsorted(columns.bases, gfns, side="right") - 1
        return np.where(gfns < columns.ends[index], columns.ids[index], np.int32(-1))

    return Finder(None, find_many, columns.delete, columns.create)


#: The result of _numba_search, once compiled.
_compiled: list[Any] = []


def _numba_search() -> Any:
    """Returns a compiled binary search that tries the last row first. Compiles once a process."""
    if _compiled:
        return _compiled[0]
    numba = import_module("numba")

    def search(bases: Any, ends: Any, ids: Any, gfns: Any, out: Any) -> None:
        last = 0
        for number in range(len(gfns)):
            gfn = gfns[number]
            if not bases[last] <= gfn < ends[last]:
                low, high = 0, len(bases)
                while high - low > 1:
                    middle = (low + high) // 2
                    if bases[middle] <= gfn:
                        low = middle
                    else:
                        high = middle
                last = low
            out[number] = ids[last] if gfn < ends[last] else -1

    _compiled.append(numba.njit(nogil=True)(search))
    return _compiled[0]


def make_numba(slots: Sequence[Slot]) -> Finder:
    """Makes the same columns for a binary search compiled by numba, without the GIL."""
    import numpy as np

    columns = _Columns(slots)
    search = _numba_search()

    def find_many(gfns: Any) -> Any:
        out = np.empty(len(gfns), np.int32)
        search(columns.bases, columns.ends, columns.ids, gfns, out)
        return out

    return Finder(None, find_many, columns.delete, columns.create)


#: The first is what the others are compared with.
STRUCTURES = (
    Structure("memslots", make_memslots),
    Structure("array of Linux 5.16", make_array),
    Structure("list + bisect", make_bisect),
    Structure("SortedDict", make_sorteddict, ("sortedcontainers",)),
    Structure("LLBTree", make_btree, ("BTrees",)),
    Structure("superintervals", make_superintervals, ("superintervals",)),
    Structure("numpy.searchsorted", make_searchsorted, ("numpy",)),
    Structure("numba binary search", make_numba, ("numpy", "numba")),
)
