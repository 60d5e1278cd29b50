import enum
from typing import Any, NamedTuple, SupportsIndex, final

from memslots.values.guestmemfd import GuestMemfd

class Flags(enum.IntFlag):
    """A slot's flags, with KVM's numbers."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2
    GUEST_MEMFD = 4
    INVALID = 65536

class Change(enum.Enum):
    """What a call changed."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags_only"
    NONE = "none"

class VcpuStats(NamedTuple):
    """Counts of look-ups: those that a Vcpu's last-used slot answered, and those that searched."""

    hits: int
    misses: int

@final
class Slot:
    """A run of guest pages and where the host keeps them.

    Immutable; compares and hashes by value.
    """

    def __init__(
        self,
        id: SupportsIndex,
        as_id: SupportsIndex,
        base_gfn: SupportsIndex,
        npages: SupportsIndex,
        userspace_addr: SupportsIndex,
        flags: SupportsIndex = 0,
        guest_memfd: GuestMemfd | None = None,
        guest_memfd_offset: SupportsIndex = 0,
    ) -> None: ...
    @property
    def id(self) -> int:
        """The slot's number, 32 bits."""
    @property
    def as_id(self) -> int:
        """The address space."""
    @property
    def base_gfn(self) -> int:
        """The first guest page."""
    @property
    def npages(self) -> int:
        """The number of pages."""
    @property
    def userspace_addr(self) -> int:
        """The host address of the first byte."""
    @property
    def flags(self) -> Flags: ...
    @property
    def guest_memfd(self) -> GuestMemfd | None:
        """The file that the slot was bound to, or None."""
    @property
    def guest_memfd_offset(self) -> int:
        """The offset of the first page in the file, in bytes."""
    @property
    def guest_phys_addr(self) -> int:
        """The guest address of the first byte."""
    @property
    def memory_size(self) -> int:
        """The size in bytes."""
    @property
    def end_gfn(self) -> int:
        """The first gfn after the slot."""
    def gfn_to_hva(self, gfn: SupportsIndex) -> int:
        """Returns the host address of a page. Raises NotMappedError if the slot does not hold it.

        O(1).
        """
    def __contains__(self, gfn: SupportsIndex, /) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __copy__(self) -> Slot: ...
    def __deepcopy__(self, memo: object) -> Slot: ...
    def __reduce__(self) -> tuple[type[Slot], tuple[object, ...]]: ...

def region_arguments(slot: Slot) -> tuple[Any, ...]:
    """Returns the arguments of the set_region that makes a slot equal to this Slot.

    If it has a guest_memfd, they are those of set_region2, which has two more.
    """

def deletion_arguments(slot: Slot) -> tuple[int, int, int, int, int]:
    """Returns the arguments of the set_region that deletes a slot."""

def size_text(size: int) -> str:
    """Returns a size in the largest unit that needs at most two digits after the point."""
