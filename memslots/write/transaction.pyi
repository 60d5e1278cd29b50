from collections.abc import Iterable
from types import TracebackType
from typing import NoReturn, Self, SupportsIndex, TypeVar, final, overload

from memslots.mirror.planner import Call
from memslots.read.memorymap import MemoryMap, _Fields
from memslots.values.guestmemfd import GuestMemfd
from memslots.values.records import Change, Slot

_Default = TypeVar("_Default")

@final
class Transaction:
    """Any number of changes that readers see all at once, or not at all.

    Memslots.transaction makes it. Use it in a with statement, once, in one thread. The rules hold
    for each step, except that slots may overlap until the end. O(k log n) for k changes of n slots.
    """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool: ...
    def __reduce__(self) -> NoReturn: ...
    def set_region(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex,
    ) -> Change:
        """As Memslots.set_region, in this transaction."""
    def set_region2(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex,
        guest_memfd: GuestMemfd | SupportsIndex | None = None,
        guest_memfd_offset: SupportsIndex = 0,
    ) -> Change:
        """As Memslots.set_region2, in this transaction."""
    def _create_slot(self, slot: Slot) -> Slot:
        """Creates a slot from a Slot. For cuts.py."""
    def create(
        self,
        slot: SupportsIndex,
        base_gfn: SupportsIndex,
        npages: SupportsIndex,
        userspace_addr: SupportsIndex,
        flags: SupportsIndex = 0,
        as_id: SupportsIndex = 0,
    ) -> Slot:
        """As Memslots.create, in this transaction."""
    def create_many(
        self, slots: MemoryMap | Iterable[Slot | _Fields], as_id: SupportsIndex | None = None
    ) -> list[Slot]:
        """As Memslots.create_many, in this transaction."""
    def move(self, slot: SupportsIndex, base_gfn: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """As Memslots.move, in this transaction."""
    def set_flags(
        self, slot: SupportsIndex, flags: SupportsIndex, as_id: SupportsIndex = 0
    ) -> Slot:
        """As Memslots.set_flags, in this transaction."""
    def delete(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """As Memslots.delete, in this transaction."""
    def unmap(self, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex = 0) -> None:
        """As Memslots.unmap, in this transaction. NoRoomError, ValueError."""
    def protect(
        self,
        start: SupportsIndex,
        end: SupportsIndex,
        flags: SupportsIndex,
        as_id: SupportsIndex = 0,
    ) -> None:
        """As Memslots.protect, in this transaction. NotMappedError, NoRoomError, ValueError."""
    def split(
        self,
        slot: SupportsIndex,
        gfn: SupportsIndex,
        id: SupportsIndex | None = None,
        as_id: SupportsIndex = 0,
    ) -> tuple[Slot, Slot]:
        """As Memslots.split, in this transaction. NoSuchSlotError, NoRoomError."""
    def merge(self, first: SupportsIndex, second: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """As Memslots.merge, in this transaction. NoSuchSlotError, InvalidRegionError."""
    def in_gfn_range(
        self, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex = 0
    ) -> list[Slot]:
        """Returns the slots that will overlap pages [start, end). ValueError. O(k + log n + m)."""
    def _check_cut(
        self, as_id: SupportsIndex, additions: int, id: SupportsIndex | None = None
    ) -> None:
        """Raises the error that `additions` more slots, one of them with this id, would raise."""
    def _set_calls(self, calls: Iterable[Call]) -> None:
        """Makes the backend make these calls at the end, not those planned from the steps."""
    def _spoil(self) -> None:
        """Spoils the transaction: it can only be rolled back."""
    def lookup(self, gfn: SupportsIndex, as_id: SupportsIndex = 0) -> Slot | None:
        """Returns the slot that will hold a guest page if the transaction ends now, or None.

        O(k + log n).
        """
    def free_id(self, as_id: SupportsIndex = 0) -> int:
        """Returns the lowest id that no slot will have. NoRoomError, InvalidRegionError, BusyError.

        O(log n) amortised.
        """
    @overload
    def get(
        self, id: SupportsIndex, default: None = None, as_id: SupportsIndex = 0
    ) -> Slot | None: ...
    @overload
    def get(
        self, id: SupportsIndex, default: _Default, as_id: SupportsIndex = 0
    ) -> Slot | _Default:
        """Returns the slot that will have an id if the transaction ends now, or `default`. O(1)."""

def transaction_of(owner: object, writer: object) -> Transaction:
    """Returns a Transaction, not begun, on the machine of a Writer."""
