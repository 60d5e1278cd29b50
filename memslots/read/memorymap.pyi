from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Self, SupportsIndex, TypeAlias, TypeVar, final, overload

import numpy as np
from _typeshed import ReadableBuffer, WriteableBuffer
from numpy.typing import NDArray

from memslots.read.diff import MapDiff
from memslots.read.reader import Reader
from memslots.values.records import Slot

_Numbers: TypeAlias = ReadableBuffer | NDArray[np.integer[Any]]
_Input: TypeAlias = ReadableBuffer | NDArray[np.uint64]
_Out = TypeVar("_Out", bound=WriteableBuffer | NDArray[np.int32] | NDArray[np.uint64])
_Default = TypeVar("_Default")
_Fields: TypeAlias = (
    tuple[SupportsIndex, SupportsIndex, SupportsIndex]
    | tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex]
    | tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex]
)

@final
class MemoryMap:
    """The slots of an address space at one moment: an immutable value.

    A tuple is (base_gfn, npages, userspace_addr[, flags[, id]]). Raises OverlapError or
    InvalidRegionError if two slots have a page or an id in common, or if a slot is not allowed.
    """

    def __init__(
        self,
        slots: Iterable[Slot | _Fields] = (),
        as_id: SupportsIndex | None = None,
        generation: SupportsIndex = 0,
    ) -> None: ...
    @staticmethod
    def from_arrays(
        base_gfns: _Numbers,
        npages: _Numbers,
        userspace_addrs: _Numbers,
        flags: SupportsIndex | _Numbers = 0,
        ids: _Numbers | None = None,
        *,
        as_id: SupportsIndex = 0,
        generation: SupportsIndex = 0,
    ) -> MemoryMap:
        """Makes a MemoryMap of slots whose fields are in buffers. Errors as MemoryMap."""
    @staticmethod
    def from_json(text: str | bytes) -> MemoryMap:
        """Returns the map that a JSON text describes. Raises ValueError, OverlapError."""
    def to_json(self) -> str:
        """Returns the map as JSON text."""
    def diff(self, other: MemoryMap) -> MapDiff:
        """Returns the differences to another map: pages and slots that came, went or changed."""
    def merged(self) -> MemoryMap:
        """Returns the map, joining slots adjacent in guest and host memory with equal flags."""
    def svg(self) -> str:
        """Returns the map as a picture: SVG text."""
    def _repr_html_(self) -> str: ...
    def __or__(self, other: MemoryMap, /) -> MemoryMap:
        """Returns the map with `other` laid over it: if both have a page, `other`'s counts."""
    def __sub__(self, other: MemoryMap, /) -> MemoryMap:
        """Returns the part of the map on pages that `other` does not have."""
    def __and__(self, other: MemoryMap, /) -> MemoryMap:
        """Returns the part of the map on pages that `other` has, too."""
    def __ror__(self, other: MemoryMap, /) -> MemoryMap: ...
    def __rsub__(self, other: MemoryMap, /) -> MemoryMap: ...
    def __rand__(self, other: MemoryMap, /) -> MemoryMap: ...
    def __reduce__(self) -> tuple[object, ...]: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, object], /) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def lookup(self, gfn: SupportsIndex, /) -> Slot | None:
        """Returns the slot that holds a guest page. O(log n)."""
    @overload
    def lookup_many(self, gfns: _Input, out: _Out) -> _Out: ...
    @overload
    def lookup_many(  # type: ignore[overload-overlap, unused-ignore]
        self, gfns: NDArray[np.uint64], out: None = None
    ) -> NDArray[np.int32]: ...
    @overload
    def lookup_many(self, gfns: ReadableBuffer, out: None = None) -> array[int]:
        """Returns the ids of the slots that hold many guest pages, as Memslots.lookup_many."""
    def gpa_to_hva(self, gpa: SupportsIndex, write: bool = False) -> int:
        """Returns the host address of a guest address.

        Raises NotMappedError, ReadOnlyError. O(log n).
        """
    @overload
    def translate(self, gpas: _Input, out: _Out, write: bool = False) -> _Out: ...
    @overload
    def translate(  # type: ignore[overload-overlap, unused-ignore]
        self, gpas: NDArray[np.uint64], out: None = None, write: bool = False
    ) -> NDArray[np.uint64]: ...
    @overload
    def translate(self, gpas: ReadableBuffer, out: None = None, write: bool = False) -> array[int]:
        """Returns the host addresses of many guest addresses, as Memslots.translate."""
    def in_gfn_range(self, start: SupportsIndex, end: SupportsIndex) -> list[Slot]:
        """Returns the slots that overlap the pages [start, end) in gfn order. Raises ValueError."""
    def in_hva_range(self, start: SupportsIndex, end: SupportsIndex) -> list[tuple[Slot, int, int]]:
        """Returns every overlap with the host bytes [start, end), by userspace_addr.

        An overlap is (slot, start_gfn, end_gfn). Raises ValueError.
        """
    def floor(self, gfn: SupportsIndex) -> Slot | None:
        """Returns the last slot that begins at a guest page or before it. O(log n)."""
    def ceil(self, gfn: SupportsIndex) -> Slot | None:
        """Returns the first slot that begins at a guest page or after it. O(log n)."""
    def holes(
        self, start: SupportsIndex = 0, end: SupportsIndex | None = None
    ) -> list[tuple[int, int]]:
        """Returns the runs [start, end) of guest pages that no slot holds.

        Raises ValueError. O(log n + k).
        """
    def find_hole(
        self,
        npages: SupportsIndex,
        start: SupportsIndex = 0,
        end: SupportsIndex | None = None,
        align: SupportsIndex = 1,
    ) -> int | None:
        """Returns the first page of the lowest run that no slot holds.

        Raises ValueError. O(log n + k).
        """
    def is_mapped(self, start: SupportsIndex, end: SupportsIndex) -> bool:
        """Returns whether each guest page of [start, end) is in a slot.

        Raises ValueError. O(log n + k).
        """
    @property
    def span(self) -> tuple[int, int] | None:
        """The first page that a slot holds and the page after the last."""
    def hva_to_gpa(self, hva: SupportsIndex) -> int:
        """Returns the lowest guest address of a host address.

        Raises NotMappedError. O(log n + k).
        """
    @overload
    def get(self, id: SupportsIndex, default: None = None) -> Slot | None: ...
    @overload
    def get(self, id: SupportsIndex, default: _Default) -> Slot | _Default:
        """Returns the slot of an id, or `default`."""
    def __getitem__(self, id: SupportsIndex, /) -> Slot: ...
    def __contains__(self, slot: Slot, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Slot]: ...
    def __reversed__(self) -> Iterator[Slot]: ...
    @property
    def as_id(self) -> int:
        """The number of the address space."""
    @property
    def generation(self) -> int:
        """The generation of the Memslots that the map was made of."""
    @property
    def nr_pages(self) -> int:
        """The number of guest pages that the slots hold."""

def map_of(reader: Reader, as_id: SupportsIndex) -> MemoryMap:
    """Returns the MemoryMap of what an address space holds now."""

def changes_between(
    now: MemoryMap, wanted: MemoryMap
) -> tuple[list[Slot], list[tuple[Slot, bool]]]:
    """Returns the slots to remove, and those to add, each with whether it may have any id."""
