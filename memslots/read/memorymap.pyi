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

    A tuple is (base_gfn, npages, userspace_addr[, flags[, id]]). OverlapError,
    InvalidRegionError: two slots have a page or an id in common, or one cannot be.
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
        """A MemoryMap of slots whose fields are in buffers of integers. Errors as MemoryMap."""
    @staticmethod
    def from_json(text: str | bytes) -> MemoryMap:
        """The map that a JSON text is of. ValueError, OverlapError."""
    def to_json(self) -> str:
        """The map as JSON text."""
    def diff(self, other: MemoryMap) -> MapDiff:
        """What is different in another map: pages and slots that came, went or changed."""
    def merged(self) -> MemoryMap:
        """The map with slots joined that go on in guest and host memory with the same flags."""
    def svg(self) -> str:
        """The map as a picture, in SVG."""
    def _repr_html_(self) -> str: ...
    def __or__(self, other: MemoryMap, /) -> MemoryMap:
        """Both, and where both have a page, `other`'s."""
    def __sub__(self, other: MemoryMap, /) -> MemoryMap:
        """What of the map lies on no page of `other`."""
    def __and__(self, other: MemoryMap, /) -> MemoryMap:
        """What of the map lies on pages of `other`."""
    def __ror__(self, other: MemoryMap, /) -> MemoryMap: ...
    def __rsub__(self, other: MemoryMap, /) -> MemoryMap: ...
    def __rand__(self, other: MemoryMap, /) -> MemoryMap: ...
    def __reduce__(self) -> tuple[object, ...]: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, object], /) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def lookup(self, gfn: SupportsIndex, /) -> Slot | None:
        """The slot that holds a guest page. O(log n)."""
    @overload
    def lookup_many(self, gfns: _Input, out: _Out) -> _Out: ...
    @overload
    def lookup_many(  # type: ignore[overload-overlap, unused-ignore]
        self, gfns: NDArray[np.uint64], out: None = None
    ) -> NDArray[np.int32]: ...
    @overload
    def lookup_many(self, gfns: ReadableBuffer, out: None = None) -> array[int]:
        """The ids of the slots that hold many guest pages, as Memslots.lookup_many."""
    def gpa_to_hva(self, gpa: SupportsIndex, write: bool = False) -> int:
        """The host address of a guest address. NotMappedError, ReadOnlyError. O(log n)."""
    @overload
    def translate(self, gpas: _Input, out: _Out, write: bool = False) -> _Out: ...
    @overload
    def translate(  # type: ignore[overload-overlap, unused-ignore]
        self, gpas: NDArray[np.uint64], out: None = None, write: bool = False
    ) -> NDArray[np.uint64]: ...
    @overload
    def translate(self, gpas: ReadableBuffer, out: None = None, write: bool = False) -> array[int]:
        """The host addresses of many guest addresses, as Memslots.translate."""
    def in_gfn_range(self, start: SupportsIndex, end: SupportsIndex) -> list[Slot]:
        """The slots that overlap the guest pages [start, end), in gfn order. ValueError."""
    def in_hva_range(self, start: SupportsIndex, end: SupportsIndex) -> list[tuple[Slot, int, int]]:
        """(slot, start_gfn, end_gfn) of every overlap with the host bytes [start, end), by
        userspace_addr. ValueError.
        """
    def floor(self, gfn: SupportsIndex) -> Slot | None:
        """The last slot that begins at a guest page or before it. O(log n)."""
    def ceil(self, gfn: SupportsIndex) -> Slot | None:
        """The first slot that begins at a guest page or after it. O(log n)."""
    def holes(
        self, start: SupportsIndex = 0, end: SupportsIndex | None = None
    ) -> list[tuple[int, int]]:
        """The runs [start, end) of guest pages that no slot holds. ValueError. O(log n + k)."""
    def find_hole(
        self,
        npages: SupportsIndex,
        start: SupportsIndex = 0,
        end: SupportsIndex | None = None,
        align: SupportsIndex = 1,
    ) -> int | None:
        """The first page of the lowest run that no slot holds. ValueError. O(log n + k)."""
    def is_mapped(self, start: SupportsIndex, end: SupportsIndex) -> bool:
        """Whether each guest page of [start, end) is in a slot. ValueError. O(log n + k)."""
    @property
    def span(self) -> tuple[int, int] | None:
        """The first page that a slot holds and the page after the last."""
    def hva_to_gpa(self, hva: SupportsIndex) -> int:
        """The guest address of a host address: the lowest. NotMappedError. O(log n + k)."""
    @overload
    def get(self, id: SupportsIndex, default: None = None) -> Slot | None: ...
    @overload
    def get(self, id: SupportsIndex, default: _Default) -> Slot | _Default:
        """The slot of an id, or `default`."""
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
        """The generation of the Memslots that it was made of."""
    @property
    def nr_pages(self) -> int:
        """How many guest pages the slots hold."""

def map_of(reader: Reader, as_id: SupportsIndex) -> MemoryMap:
    """The MemoryMap of what an address space holds now."""

def changes_between(
    now: MemoryMap, wanted: MemoryMap
) -> tuple[list[Slot], list[tuple[Slot, bool]]]:
    """What has to go of one map, and what has to come; with it, whether it may have any id."""
