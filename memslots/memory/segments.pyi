from collections.abc import Iterable
from typing import NoReturn, Self, final

from memslots.memory.guestmemory import GuestMemory

@final
class Batch:
    """Memory of segments that is side by side in the file."""

    def __new__(cls) -> Self: ...
    @property
    def offset(self) -> int: ...
    @property
    def views(self) -> list[memoryview]: ...
    @property
    def zeros(self) -> bool:
        """The views are to be zeros, and nothing of the file."""
    def mark(self) -> None:
        """Mark all of it as written. Cannot fail."""

@final
class Segments:
    """Runs of guest memory, in the order of a file. For one thread."""

    def __new__(cls, mem: GuestMemory) -> Self: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> NoReturn: ...
    @property
    def parts(self) -> int:
        """Of 1,024 segments each, but for the last."""
    @property
    def size(self) -> int:
        """Of the memory in the file, in bytes."""
    def lay_out(self, runs: Iterable[tuple[int, int, int]]) -> list[memoryview]:
        """Add segments of runs of guest pages, (as_id, start_gfn, end_gfn); their memory.

        NotMappedError.
        """
    def sparse(
        self, mem: GuestMemory, views: list[memoryview]
    ) -> tuple[Segments, list[memoryview]]:
        """The same without what is zeros, and the memory that is in the file."""
    def table(self, begin: int) -> bytes:
        """Their program headers, for a file whose memory begins at `begin`."""
    def take(self, table: bytes, length: int) -> None:
        """Add those of a file of `length` bytes, of its program headers. ValueError."""
    def refuse_overlaps(self) -> None:
        """ValueError where two have different bytes of the file for the same memory."""
    def places(self, fd: int, number: int, zeros: int = -1) -> list[Batch]:
        """Where the segments of a part are to be read to.

        NotMappedError, ReadOnlyError, OSError.
        """
