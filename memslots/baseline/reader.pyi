from array import array
from collections.abc import Iterator
from typing import Self, SupportsIndex, TypeAlias, TypeVar, final, overload

import numpy as np
from _typeshed import ReadableBuffer, WriteableBuffer
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from memslots.values.records import Slot, VcpuStats

# numpy declares its arrays as buffers only from Python 3.12 on.
_Input: TypeAlias = ReadableBuffer | NDArray[np.uint64]
_Out = TypeVar("_Out", bound=WriteableBuffer | NDArray[np.int32] | NDArray[np.uint64])
_Default = TypeVar("_Default")

@disjoint_base
class ArrayReader:
    """The base class of ArrayMemslots, ArrayAddressSpace and ArrayVcpu.

    It has the API of memslots.read.reader.Reader, for one thread at a time.
    """

    def __reduce__(self) -> tuple[object, ...]: ...
    def lookup(self, gfn: SupportsIndex, /) -> Slot | None: ...
    @overload
    def lookup_many(self, gfns: _Input, out: _Out) -> _Out: ...
    @overload
    def lookup_many(  # type: ignore[overload-overlap, unused-ignore]
        self, gfns: NDArray[np.uint64], out: None = None
    ) -> NDArray[np.int32]: ...
    @overload
    def lookup_many(self, gfns: ReadableBuffer, out: None = None) -> array[int]: ...
    def gpa_to_hva(self, gpa: SupportsIndex, write: bool = False) -> int: ...
    @overload
    def translate(self, gpas: _Input, out: _Out, write: bool = False) -> _Out: ...
    @overload
    def translate(  # type: ignore[overload-overlap, unused-ignore]
        self, gpas: NDArray[np.uint64], out: None = None, write: bool = False
    ) -> NDArray[np.uint64]: ...
    @overload
    def translate(
        self, gpas: ReadableBuffer, out: None = None, write: bool = False
    ) -> array[int]: ...
    def in_gfn_range(self, start: SupportsIndex, end: SupportsIndex) -> list[Slot]: ...
    def in_hva_range(
        self, start: SupportsIndex, end: SupportsIndex
    ) -> list[tuple[Slot, int, int]]: ...
    @overload
    def get(self, id: SupportsIndex, default: None = None) -> Slot | None: ...
    @overload
    def get(self, id: SupportsIndex, default: _Default) -> Slot | _Default: ...
    def __getitem__(self, id: SupportsIndex, /) -> Slot: ...
    def __contains__(self, slot: Slot, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Slot]: ...
    def __reversed__(self) -> Iterator[Slot]: ...
    @property
    def generation(self) -> int: ...
    @property
    def nr_pages(self) -> int: ...
    @property
    def as_id(self) -> int: ...

@final
class ArrayAddressSpace(ArrayReader):
    """The reader of one address space. InvalidRegionError if there is no such address space."""

    def __new__(cls, vm: ArrayReader, as_id: SupportsIndex) -> Self: ...

@final
class ArrayVcpu(ArrayReader):
    """The reader of one address space with a last-used slot of its own."""

    def __new__(cls, vm: ArrayReader, as_id: SupportsIndex = 0) -> Self: ...
    @property
    def stats(self) -> VcpuStats:
        """Hits and misses of the last-used slot."""
