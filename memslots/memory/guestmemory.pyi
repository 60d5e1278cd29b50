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
    """The memory of a guest, accessed by guest address in bytes.

    An access that fails raises for the first address that it cannot reach, and has done nothing.
    Writes are marked in the dirty logs.
    """

    def __new__(cls, vm: Memslots) -> Self: ...
    def __reduce__(self) -> tuple[object, ...]: ...
    @property
    def vm(self) -> Memslots: ...
    @property
    def as_id(self) -> int: ...
    @property
    def backings(self) -> tuple[Backing, ...]:
        """The known host memory, in order of host address."""
    def address_space(self, as_id: SupportsIndex) -> GuestMemory:
        """Returns the GuestMemory of another address space. InvalidRegionError: there is none."""
    def place(
        self,
        slot: SupportsIndex,
        gpa: SupportsIndex,
        backing: Backing,
        offset: SupportsIndex = 0,
        size: SupportsIndex | None = None,
        flags: SupportsIndex = 0,
    ) -> Slot:
        """Creates a slot on host memory, or on the part [offset, offset + size) of it.

        InvalidRegionError, OverlapError. O(log n).
        """
    def add(self, backing: Backing) -> None:
        """Makes host memory known, for slots that are created on the Memslots itself.

        ValueError: it shares memory with another known Backing.
        """
    def remove(self, backing: Backing) -> None:
        """Forgets host memory. BusyError: a slot is on it."""
    def read(self, gpa: SupportsIndex, n: SupportsIndex) -> bytes:
        """Reads `n` bytes. NotMappedError."""
    def readinto(self, gpa: SupportsIndex, buffer: WriteableBuffer | NDArray[Any]) -> int:
        """Fills a buffer from guest memory. Returns the number of bytes. NotMappedError."""
    def write(self, gpa: SupportsIndex, data: ReadableBuffer | NDArray[Any]) -> int:
        """Writes bytes. Returns the number of bytes. NotMappedError, ReadOnlyError."""
    def fill(self, gpa: SupportsIndex, n: SupportsIndex, value: SupportsIndex = 0) -> None:
        """Writes the same byte `n` times. NotMappedError, ReadOnlyError."""
    def read_u8(self, gpa: SupportsIndex) -> int:
        """Reads a byte. NotMappedError."""
    def read_u16(self, gpa: SupportsIndex) -> int:
        """Reads a little-endian number of 2 bytes, atomically if aligned. NotMappedError."""
    def read_u32(self, gpa: SupportsIndex) -> int:
        """Reads 4 bytes, as read_u16. NotMappedError."""
    def read_u64(self, gpa: SupportsIndex) -> int:
        """Reads 8 bytes, as read_u16. NotMappedError."""
    def write_u8(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """Writes a byte. NotMappedError, ReadOnlyError, OverflowError."""
    def write_u16(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """Writes a little-endian number of 2 bytes, atomically if aligned.

        NotMappedError, ReadOnlyError, OverflowError.
        """
    def write_u32(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """Writes 4 bytes, as write_u16. NotMappedError, ReadOnlyError, OverflowError."""
    def write_u64(self, gpa: SupportsIndex, value: SupportsIndex) -> None:
        """Writes 8 bytes, as write_u16. NotMappedError, ReadOnlyError, OverflowError."""
    def view(self, gpa: SupportsIndex, n: SupportsIndex) -> memoryview:
        """Returns a view of guest memory that is all in one slot and one Backing.

        NotMappedError. InvalidRegionError: the memory is in several of them.
        """
    def views(
        self, gpa: SupportsIndex, n: SupportsIndex, *, write: bool = False
    ) -> list[memoryview]:
        """Returns views of guest memory, part by part. NotMappedError, ReadOnlyError."""
    def _restore_views(self, gpa: SupportsIndex, n: SupportsIndex) -> list[memoryview]: ...
    def mark_dirty(self, gpa: SupportsIndex, n: SupportsIndex) -> None:
        """Marks `n` bytes as written. Needed after writing to a view."""
    @staticmethod
    def open(path: str | os.PathLike[str], *, shared: bool = False) -> GuestMemory:
        """Opens a file as guest memory: maps or copies its parts. SnapshotError, OSError."""
    def checkpoint(self, *, by_log: bool | None = None) -> Checkpoint:
        """Copies all memory so that it can be restored. InvalidRegionError, MemoryError."""
    def write_from(
        self, fd: int, gpa: SupportsIndex, n: SupportsIndex, *, offset: SupportsIndex | None = None
    ) -> int:
        """Reads from a descriptor into guest memory. Returns the number of bytes.

        NotMappedError, ReadOnlyError, OSError.
        """
    def read_into(
        self, fd: int, gpa: SupportsIndex, n: SupportsIndex, *, offset: SupportsIndex | None = None
    ) -> int:
        """Writes guest memory to a descriptor. NotMappedError, OSError."""
    def file_of(self, gpa: SupportsIndex, n: SupportsIndex = 4096) -> tuple[int, int]:
        """Returns the descriptor of memory and its offset in the file. ValueError: no file."""
    def discard(self, gpa: SupportsIndex, n: SupportsIndex) -> None:
        """Zeroes memory and frees its host pages. NotMappedError, ReadOnlyError."""
    def prefault(self, gpa: SupportsIndex, n: SupportsIndex, *, write: bool = True) -> None:
        """Makes the host provide all pages now. NotMappedError, ReadOnlyError, OSError."""
    def writing(self, gpa: SupportsIndex, n: SupportsIndex) -> AbstractContextManager[memoryview]:
        """Returns a context manager: a view to write to, marked at the end. NotMappedError."""
    def is_mapped(self, gpa: SupportsIndex, n: SupportsIndex = 1) -> bool:
        """Returns whether `read` of `n` bytes would succeed."""
    def is_private(self, gpa: SupportsIndex, n: SupportsIndex = 1) -> bool:
        """Returns whether any of `n` bytes is on a page that is private to the guest."""

    def unpack(self, gpa: SupportsIndex, format: str) -> tuple[Any, ...]:
        """Reads the values of a struct at a guest address. NotMappedError, struct.error."""
    def pack(self, gpa: SupportsIndex, format: str, *values: object) -> None:
        """Writes the values of a struct. NotMappedError, ReadOnlyError, struct.error."""
    def array(self, gpa: SupportsIndex, dtype: DTypeLike, n: int) -> NDArray[Any]:
        """Returns guest memory as a numpy array, not a copy. NotMappedError, InvalidRegionError."""
    def on_mmio(
        self,
        start: SupportsIndex,
        end: SupportsIndex,
        *,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], object] | None = None,
    ) -> MmioHandle:
        """Registers the functions of a device. They answer accesses where there is no slot."""
    def _ended_logs(self) -> int: ...
    def _mmio(self) -> Mmio | None:
        """Returns the Mmio of the machine, or None. For kvm/vcpu.py."""
    def load(self, path: str | os.PathLike[str], gpa: SupportsIndex) -> int:
        """Writes a file to guest memory. Returns the number of bytes.

        NotMappedError, ReadOnlyError, OSError.
        """
    def dump(
        self, path: str | os.PathLike[str], *, restart_log: bool = False, sparse: bool = False
    ) -> int:
        """Writes all memory to a snapshot file. Returns the number of bytes.

        `restart_log` takes the marks before, so the next dump_dirty has the writes from now on.
        NotMappedError, OSError.
        """
    def dump_dirty(self, path: str | os.PathLike[str]) -> int:
        """Writes the memory of all dirty pages and takes their marks. Returns the number of bytes.

        NotMappedError, OSError: the marks are restored.
        """
    def restore(self, path: str | os.PathLike[str]) -> int:
        """Writes the memory of a snapshot file back. Returns the number of bytes.

        NotMappedError, ReadOnlyError, SnapshotError: nothing was written. OSError.
        """
