from array import array
from collections.abc import Iterator
from typing import Self, SupportsIndex, TypeAlias, TypeVar, final, overload

import numpy as np
from _typeshed import ReadableBuffer, WriteableBuffer
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from memslots.values.records import Slot, VcpuStats

# numpy says that its arrays are buffers only from Python 3.12 on.
_Input: TypeAlias = ReadableBuffer | NDArray[np.uint64]
_Out = TypeVar("_Out", bound=WriteableBuffer | NDArray[np.int32] | NDArray[np.uint64])
_Default = TypeVar("_Default")

@disjoint_base
class Reader:
    """The look-ups that Memslots, AddressSpace and Vcpu share. All read one address space.

    n is the number of slots. Any thread may look up; look-ups never wait.
    """

    def __reduce__(self) -> tuple[object, ...]: ...
    def lookup(self, gfn: SupportsIndex, /) -> Slot | None:
        """Returns the slot that holds a guest page.

        O(log n), O(1) if the last-used slot holds it. Allocates nothing.
        """
    @overload
    def lookup_many(self, gfns: _Input, out: _Out) -> _Out: ...
    @overload
    def lookup_many(  # type: ignore[overload-overlap, unused-ignore]
        self, gfns: NDArray[np.uint64], out: None = None
    ) -> NDArray[np.int32]: ...
    @overload
    def lookup_many(self, gfns: ReadableBuffer, out: None = None) -> array[int]:
        """Returns the ids of the slots that hold many guest pages, -1 where there is none.

        uint64 in, int32 out. Raises TypeError or ValueError if a buffer has another element type or
        length, or is not contiguous or not writable. O(m log n) for m pages, without the GIL.
        """
    def gpa_to_hva(self, gpa: SupportsIndex, write: bool = False) -> int:
        """Returns the host address of a guest address, both in bytes.

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
        """Returns the host addresses of many guest addresses, BAD_HVA where gpa_to_hva would raise.

        uint64 in and out, in bytes. Raises TypeError or ValueError as lookup_many. O(m log n) for m
        addresses, without the GIL.
        """
    def in_gfn_range(self, start: SupportsIndex, end: SupportsIndex) -> list[Slot]:
        """Returns the slots that overlap the guest pages [start, end), in gfn order.

        Raises ValueError if start > end. O(log n + k).
        """
    def in_hva_range(self, start: SupportsIndex, end: SupportsIndex) -> list[tuple[Slot, int, int]]:
        """Returns every overlap with the host bytes [start, end), by userspace_addr.

        An overlap is (slot, start_gfn, end_gfn). Raises ValueError if start > end. O(log n + k) for
        slots that do not overlap in host memory, at most O(k log n).
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
        """Returns the slot of an id, or `default`. O(1)."""
    def __getitem__(self, id: SupportsIndex, /) -> Slot: ...
    def __contains__(self, slot: Slot, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Slot]: ...
    def __reversed__(self) -> Iterator[Slot]: ...
    @property
    def generation(self) -> int:
        """A number that no earlier state of the address space had.

        Bit 63 is set while a swap waits for readers.
        """
    @property
    def nr_pages(self) -> int:
        """The number of guest pages that the slots hold."""
    @property
    def as_id(self) -> int:
        """The number of the address space."""

@final
class AddressSpace(Reader):
    """The reader of one address space. Raises InvalidRegionError if there is no such space."""

    def __new__(cls, vm: Reader, as_id: SupportsIndex) -> Self: ...

@final
class Vcpu(Reader):
    """The reader of one address space with a last-used slot of its own.

    Use it from one thread at a time.
    """

    def __new__(cls, vm: Reader, as_id: SupportsIndex = 0) -> Self: ...
    @property
    def stats(self) -> VcpuStats:
        """Hits and misses of the last-used slot."""
