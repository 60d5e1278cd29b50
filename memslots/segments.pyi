from collections.abc import Iterable
from typing import NoReturn, Self, final

from memslots.guestmemory import GuestMemory

@final
class Batch:
    """Memory of segments that is side by side in the file."""

    @property
    def offset(self) -> int: ...
    @property
    def views(self) -> list[memoryview]: ...
    def __reduce__(self) -> tuple[object, ...]: ...

@final
class Segments:
    """Runs of guest memory, each in one slot, in the order of a file. For one thread."""

    def __new__(cls, mem: GuestMemory) -> Self: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> NoReturn: ...
    @property
    def size(self) -> int:
        """Of the memory in the file, in bytes."""
    def lay_out(self, runs: Iterable[tuple[int, int, int]]) -> list[memoryview]:
        """Segments of runs of guest pages, (as_id, start_gfn, end_gfn); the memory for the file.

        NotMappedError.
        """
    def table(self, begin: int) -> bytes:
        """Their program headers, for a file whose memory begins at `begin`."""
    def take(self, table: bytes, length: int) -> None:
        """The segments that a file of `length` bytes has, of its program headers. ValueError."""
    def places(self, fd: int, most: int) -> list[Batch]:
        """Where all that `take` has found is to be read to; at `most` views a batch is full.

        NotMappedError, ReadOnlyError, OSError.
        """
    def mark(self, batch: Batch) -> None:
        """Mark as written what a batch is of."""
