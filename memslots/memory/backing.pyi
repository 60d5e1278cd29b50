import os
from typing import Any, SupportsIndex, final

from _typeshed import ReadableBuffer
from numpy.typing import NDArray

@final
class Backing:
    """Host memory that slots can be placed on.

    `Backing(buffer)` takes memory that somebody has; `anonymous`, `memfd` and `file` make it. A
    buffer itself.
    """

    def __init__(self, buffer: ReadableBuffer | NDArray[Any]) -> None: ...
    def __reduce__(self) -> tuple[object, ...]: ...
    @staticmethod
    def anonymous(size: SupportsIndex, *, huge_pages: bool = False) -> Backing:
        """Memory of this process alone, zeros to begin with; `size` in bytes, whole pages.

        ValueError, OSError.
        """
    @staticmethod
    def memfd(
        size: SupportsIndex, *, name: str = "guest-memory", huge_pages: bool = False
    ) -> Backing:
        """Memory that other processes can map, by way of its sealed descriptor.

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
        """Memory that holds a file, or the part of it [offset, offset + size) in bytes.

        ValueError: no whole pages, or more than the file has. OSError.
        """
    def fileno(self) -> int:
        """The descriptor of a memfd or a file. ValueError where there is none."""
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
        numa_node: int | None = None,
    ) -> None:
        """Tell the host what it may do with the memory. OSError: the kernel has refused it."""
    @property
    def hva(self) -> int:
        """The host address of its first byte."""
    @property
    def size(self) -> int:
        """In bytes."""
    @property
    def writable(self) -> bool: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def address_of(view: ReadableBuffer) -> int:
    """The host address of a buffer's first byte."""
