from collections.abc import Iterable
from typing import NoReturn, Self, final

from memslots.memory.guestmemory import GuestMemory

@final
class Batch:
    """Memory of segments whose bytes adjoin in the file."""

    def __new__(cls) -> Self: ...
    @property
    def offset(self) -> int: ...
    @property
    def views(self) -> list[memoryview]: ...
    @property
    def zeros(self) -> bool:
        """Whether the views become zeros, and the file has no bytes for them."""
    def mark(self) -> None:
        """Marks all memory of the batch as written. Cannot fail."""

@final
class Segments:
    """Runs of guest memory, in the order of a file. One thread at a time may use it."""

    def __new__(cls, mem: GuestMemory) -> Self: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> NoReturn: ...
    @property
    def parts(self) -> int:
        """The number of parts. Each has 1,024 segments, the last may have fewer."""
    @property
    def size(self) -> int:
        """The number of bytes of memory in the file."""
    def lay_out(self, runs: Iterable[tuple[int, int, int]]) -> list[memoryview]:
        """Adds the segments of runs of guest pages (as_id, start_gfn, end_gfn).

        Returns the memory to write to the file. NotMappedError.
        """
    def sparse(
        self, mem: GuestMemory, views: list[memoryview]
    ) -> tuple[Segments, list[memoryview]]:
        """Returns new Segments without the pages of zeros, and the memory to write to the file."""
    def table(self, begin: int) -> bytes:
        """Returns the program headers, for a file whose memory begins at `begin`."""
    def take(self, table: bytes, length: int) -> None:
        """Adds the segments in the program headers of a file of `length` bytes. ValueError."""
    def refuse_overlaps(self) -> None:
        """Raises ValueError if two segments have different bytes for the same memory."""
    def places(self, fd: int, number: int, zeros: int = -1) -> list[Batch]:
        """Returns the memory that the segments of one part are to be read into.

        NotMappedError, ReadOnlyError, OSError.
        """
