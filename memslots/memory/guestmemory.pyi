import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self, SupportsIndex, final

from _typeshed import ReadableBuffer, WriteableBuffer
from numpy.typing import DTypeLike, NDArray

from memslots.memory.backing import Backing
from memslots.memory.checkpoint import Checkpoint
from memslots.memory.mmio import Mmio, MmioHandle
from memslots.memslots import Memslots
from memslots.values.records import Slot

@final
class GuestMemory:
    """The memory of a guest, by guest address in bytes: what its slots hold.

    An access that cannot be done raises for the first address that is in the way, and has done
    nothing. What is written is marked in the dirty logs.
    """

    def __new__(cls, vm: Memslots) -> Self: ...
    def __reduce__(self) -> tuple[object, ...]: ...
    @property
    def vm(self) -> Memslots: ...
    @property
    def as_id(self) -> int: ...
    @property
    def backings(self) -> tuple[Backing, ...]:
        """The host memory that is known, by host address."""
    def address_space(self, as_id: SupportsIndex) -> GuestMemory:
        """The same for another address space. InvalidRegionError where there is none."""
    def place(
        self,
        slot: SupportsIndex,
        gpa: SupportsIndex,
        backing: Backing,
        offset: SupportsIndex = 0,
        size: SupportsIndex | None = None,
        flags: SupportsIndex = 0,
    ) -> Slot:
        """Create a slot on host memory, or on the part [offset, offset + size) of it.

        InvalidRegionError, OverlapError. O(log n).
        """
    def add(self, backing: Backing) -> None:
        """Make host memory known, for slots that are made on the Memslots itself.

        ValueError: it shares memory with other that is known.
        """
    def remove(self, backing: Backing) -> None:
        """Let go of host memory. BusyError: a slot is on it."""
    def read(self, gpa: SupportsIndex, n: SupportsIndex) -> bytes:
        """`n` bytes. NotMappedError."""
    def readinto(self, gpa: SupportsIndex, buffer: WriteableBuffer | NDArray[Any]) -> int:
        """Fill a buffer; how many bytes. NotMappedError."""
    def write(self, gpa: SupportsIndex, data: ReadableBuffer | NDArray[Any]) -> int:
        """Write bytes; how many. NotMappedError, ReadOnlyError."""
    def fill(self, gpa: SupportsIndex, n: SupportsIndex, value: SupportsIndex = 0) -> None:
        """Write the same byte `n` times. NotMappedError, ReadOnlyError."""
    def read_u8(self, gpa: SupportsIndex) -> int:
        """A byte. NotMappedError."""
    def read_u16(self, gpa: SupportsIndex) -> int:
        """A little-endian number of 2 bytes; read at once where aligned. NotMappedError."""
    def read_u32(self, gpa: SupportsIndex) -> int:
        """Of 4 bytes. NotMappedError."""
    def read_u64(self, gpa: SupportsIndex) -> int:
        """Of 8 bytes. NotMappedError."""
    def write_u8(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """A byte. NotMappedError, ReadOnlyError, OverflowError."""
    def write_u16(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """A little-endian number of 2 bytes; written at once where aligned.

        NotMappedError, ReadOnlyError, OverflowError.
        """
    def write_u32(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """Of 4 bytes. NotMappedError, ReadOnlyError, OverflowError."""
    def write_u64(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """Of 8 bytes. NotMappedError, ReadOnlyError, OverflowError."""
    def view(self, gpa: SupportsIndex, n: SupportsIndex) -> memoryview:
        """Guest memory itself, where one slot holds all of it.

        NotMappedError; InvalidRegionError: it is in more than one.
        """
    def views(
        self, gpa: SupportsIndex, n: SupportsIndex, *, write: bool = False
    ) -> list[memoryview]:
        """Guest memory itself, slot by slot. NotMappedError, ReadOnlyError."""
    def _restore_views(self, gpa: SupportsIndex, n: SupportsIndex) -> list[memoryview]: ...
    def mark_dirty(self, gpa: SupportsIndex, n: SupportsIndex) -> None:
        """Mark `n` bytes as written, after writing to a view."""
    @staticmethod
    def open(path: str | os.PathLike[str], *, shared: bool = False) -> GuestMemory:
        """Guest memory of a file, which is mapped and not read. SnapshotError, OSError. O(k)."""
    def checkpoint(self, *, by_log: bool | None = None) -> Checkpoint:
        """Memorise what all memory is, to go back to it. InvalidRegionError, MemoryError."""
    def write_from(
        self, fd: int, gpa: SupportsIndex, n: SupportsIndex, *, offset: int | None = None
    ) -> int:
        """Read from a descriptor into guest memory; how many bytes. NotMappedError, OSError."""
    def read_into(
        self, fd: int, gpa: SupportsIndex, n: SupportsIndex, *, offset: int | None = None
    ) -> int:
        """Write guest memory to a descriptor. NotMappedError, OSError."""
    def file_of(self, gpa: SupportsIndex, n: SupportsIndex = 4096) -> tuple[int, int]:
        """The descriptor of memory, and where in its file it is. ValueError: of no memfd."""
    def discard(self, gpa: SupportsIndex, n: SupportsIndex) -> None:
        """Make memory zeros, and give pages back to the host. NotMappedError, ReadOnlyError."""
    def prefault(self, gpa: SupportsIndex, n: SupportsIndex, *, write: bool = True) -> None:
        """Have the host's pages there. NotMappedError, ReadOnlyError, OSError."""
    def writing(self, gpa: SupportsIndex, n: SupportsIndex) -> AbstractContextManager[memoryview]:
        """Guest memory to write to, marked at the end of a with statement. NotMappedError."""
    def is_mapped(self, gpa: SupportsIndex, n: SupportsIndex = 1) -> bool:
        """Whether `read` of so many bytes would find memory."""
    def unpack(self, gpa: SupportsIndex, format: str) -> tuple[Any, ...]:
        """The values of a struct at a guest address. NotMappedError, struct.error."""
    def pack(self, gpa: SupportsIndex, format: str, *values: object) -> None:
        """Write the values of a struct. NotMappedError, ReadOnlyError, struct.error."""
    def array(self, gpa: SupportsIndex, dtype: DTypeLike, n: int) -> NDArray[Any]:
        """Guest memory as a numpy array, not a copy. NotMappedError, InvalidRegionError."""
    def on_mmio(
        self,
        start: SupportsIndex,
        end: SupportsIndex,
        *,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], object] | None = None,
    ) -> MmioHandle:
        """Have functions answer for a device: accesses by number where no slot is."""
    def _mmio(self) -> Mmio | None:
        """The Mmio of the machine, or None. For kvm/vcpu.py."""
    def load(self, path: str | os.PathLike[str], gpa: SupportsIndex) -> int:
        """Write a file to guest memory; how many bytes. NotMappedError, ReadOnlyError, OSError."""
    def dump(
        self, path: str | os.PathLike[str], *, restart_log: bool = False, sparse: bool = False
    ) -> int:
        """Write all memory to a snapshot file; how many bytes. NotMappedError, OSError.

        With `restart_log` the marks are taken before, so the next dump_dirty has what is written
        from now on.
        """
    def dump_dirty(self, path: str | os.PathLike[str]) -> int:
        """Write the memory of all dirty pages, and take their marks; how many bytes.

        NotMappedError, OSError: then the marks are there again.
        """
    def restore(self, path: str | os.PathLike[str]) -> int:
        """Write back what a snapshot file has; how many bytes.

        NotMappedError, ReadOnlyError, SnapshotError: then nothing is written. OSError.
        """
