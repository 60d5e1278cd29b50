import os
from typing import Any, SupportsIndex, final

from _typeshed import ReadableBuffer
from numpy.typing import NDArray

@final
class Backing:
    """Host memory that slots can be placed on.

    `Backing(buffer)` uses the memory of an existing buffer; `anonymous`, `memfd` and `file`
    allocate or map memory. A Backing is itself a buffer.
    """

    def __init__(self, buffer: ReadableBuffer | NDArray[Any]) -> None: ...
    def __reduce__(self) -> tuple[object, ...]: ...
    @staticmethod
    def anonymous(size: SupportsIndex, *, huge_pages: bool = False) -> Backing:
        """Allocates private memory, filled with zeros. `size` is in bytes, a multiple of 4096.

        ValueError, OSError.
        """
    @staticmethod
    def memfd(
        size: SupportsIndex, *, name: str = "guest-memory", huge_pages: bool = False
    ) -> Backing:
        """Allocates memory that other processes can map through its sealed descriptor.

        ValueError, OSError.
        """
    @staticmethod
    def file(
        path: str | os.PathLike[str],
        offset: SupportsIndex = 0,
        size: SupportsIndex | None = None,
        *,
        shared: bool = False,
        readonly: bool = False,
    ) -> Backing:
        """Maps a file, or the bytes [offset, offset + size) of it.

        ValueError: the part is not whole pages, or goes beyond the file's end. OSError.
        """
    def fileno(self) -> int:
        """Returns the descriptor of a memfd or a file. ValueError if there is none."""
    @property
    def kind(self) -> str:
        """anonymous, memfd, file or buffer."""
    @property
    def huge_pages(self) -> str | None:
        """hugetlb, transparent or None."""
    def advise(
        self,
        *,
        mergeable: bool | None = None,
        fork: bool | None = None,
        dump: bool | None = None,
        numa_node: SupportsIndex | None = None,
    ) -> None:
        """Tells the host how to treat the memory. OSError: the kernel refused."""
    @property
    def hva(self) -> int:
        """The host address of the first byte."""
    @property
    def size(self) -> int:
        """The size in bytes."""
    @property
    def writable(self) -> bool: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def open_regular(path: str | os.PathLike[str], mode: int) -> int:
    """Opens a regular file. Returns a descriptor. Does not wait: a pipe may never get a writer.

    Can be the opener of `open`: no signal handler runs in here once the descriptor is open.

    OSError: it cannot be opened, or is a directory (EISDIR), a device or a pipe (ENODEV).
    """

def address_of(view: ReadableBuffer) -> int:
    """Returns the host address of a buffer's first byte."""

def place_in_file(backing: Backing, hva: int) -> tuple[int, int]:
    """Returns the descriptor of the memory's file, and the file offset of a host address in it.

    ValueError if the memory has no file.
    """

def may_go_away(backing: Backing) -> bool:
    """Returns whether pages of the memory may go away, or may never come."""
