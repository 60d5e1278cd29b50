from collections.abc import Iterable
from typing import Self, SupportsIndex, overload

import numpy as np
from _typeshed import ReadableBuffer
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from memslots.dirty.runs import DirtyRun
from memslots.mirror.backend import Backend
from memslots.mirror.plan import Plan
from memslots.read.memorymap import MemoryMap, _Fields
from memslots.read.reader import AddressSpace, Reader, Vcpu
from memslots.values.guestmemfd import GuestMemfd
from memslots.values.records import Change, Slot
from memslots.write.listeners import Subscription
from memslots.write.transaction import Transaction

@disjoint_base
class Memslots(Reader):
    """The memory slots of one virtual machine, kept as KVM keeps them since Linux 5.17.

    Looks up in address space 0. Changes may come from any thread and wait for one another. After
    any error nothing has changed. n is the number of slots. Every change may raise BusyError (from
    inside a listener), MemoryError, and whatever a listener raises to refuse.
    """

    # Several, so that limits can be given as a dictionary of numbers.
    @overload
    def __new__(
        cls,
        max_slots: SupportsIndex = ...,
        *,
        address_spaces: SupportsIndex = ...,
        max_gfn: SupportsIndex = ...,
        max_hva: SupportsIndex = ...,
        manual_dirty_log: SupportsIndex = ...,
    ) -> Self: ...
    @overload
    def __new__(
        cls,
        max_slots: SupportsIndex = ...,
        *,
        address_spaces: SupportsIndex = ...,
        max_gfn: SupportsIndex = ...,
        max_hva: SupportsIndex = ...,
        manual_dirty_log: SupportsIndex = ...,
        backend: Backend | None,
    ) -> Self: ...
    @overload
    def __new__(
        cls,
        max_slots: SupportsIndex = ...,
        *,
        address_spaces: SupportsIndex = ...,
        max_gfn: SupportsIndex = ...,
        max_hva: SupportsIndex = ...,
        manual_dirty_log: SupportsIndex = ...,
        backend: Backend | None = ...,
        map: MemoryMap | None,
    ) -> Self: ...
    @overload
    def __new__(
        cls,
        map: MemoryMap,
        /,
        *,
        max_slots: SupportsIndex = ...,
        address_spaces: SupportsIndex = ...,
        max_gfn: SupportsIndex = ...,
        max_hva: SupportsIndex = ...,
        manual_dirty_log: SupportsIndex = ...,
        backend: Backend | None = ...,
    ) -> Self: ...
    def set_region(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex,
    ) -> Change:
        """The ioctl KVM_SET_USER_MEMORY_REGION: addresses and size in bytes, size 0 deletes;
        `slot` has the space in bits 16-31.

        InvalidRegionError, OverlapError, NoSuchSlotError. O(log n).
        """
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
        """The ioctl KVM_SET_USER_MEMORY_REGION2: as set_region; with GUEST_MEMFD (4) the slot is
        bound to a range of a file.

        InvalidRegionError (EBADF for what is not open), OverlapError, NoSuchSlotError. O(log n).
        """
    def _create_slot(self, slot: Slot) -> Slot:
        """Creates what a Slot says. For mirror/plan.py."""
    def create(
        self,
        slot: SupportsIndex,
        base_gfn: SupportsIndex,
        npages: SupportsIndex,
        userspace_addr: SupportsIndex,
        flags: SupportsIndex = 0,
        as_id: SupportsIndex = 0,
    ) -> Slot:
        """Create the slot of guest pages [base_gfn, base_gfn + npages) at a host address in bytes.

        InvalidRegionError, OverlapError. O(log n).
        """
    def create_many(
        self, slots: MemoryMap | Iterable[Slot | _Fields], *, as_id: SupportsIndex | None = None
    ) -> list[Slot]:
        """Create all of the slots, or none; in gfn order. Errors as create, and NoRoomError."""
    def move(self, slot: SupportsIndex, base_gfn: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """Move a slot to another first page.

        NoSuchSlotError, InvalidRegionError, OverlapError. O(log n).
        """
    def set_flags(
        self, slot: SupportsIndex, flags: SupportsIndex, as_id: SupportsIndex = 0
    ) -> Slot:
        """Change a slot's flags. NoSuchSlotError, InvalidRegionError. O(1)."""
    def delete(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """Delete a slot; gives it as it was. NoSuchSlotError, InvalidRegionError. O(log n)."""
    def unmap(self, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex = 0) -> None:
        """Take pages away from slots. NoRoomError, ValueError."""
    def protect(
        self,
        start: SupportsIndex,
        end: SupportsIndex,
        flags: SupportsIndex,
        as_id: SupportsIndex = 0,
    ) -> None:
        """Give pages other flags. NotMappedError, NoRoomError, ValueError."""
    def split(
        self,
        slot: SupportsIndex,
        gfn: SupportsIndex,
        id: SupportsIndex | None = None,
        as_id: SupportsIndex = 0,
    ) -> tuple[Slot, Slot]:
        """Make two slots of one. NoSuchSlotError, InvalidRegionError, NoRoomError."""
    def merge(self, first: SupportsIndex, second: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """Make one slot of two. NoSuchSlotError, InvalidRegionError."""
    def transaction(self) -> Transaction:
        """Begin changes that readers see all at once, or not at all, for a with statement.

        BusyError: begun from inside a listener or another transaction. O(k log n) for k changes.
        """
    def apply(self, plan: Plan) -> None:
        """Make what a plan comes to, as one transaction. InvalidRegionError. O(k log n)."""
    def become(
        self,
        wanted: MemoryMap | Iterable[Slot | _Fields],
        *,
        as_id: SupportsIndex | None = None,
        keep: Iterable[tuple[SupportsIndex, SupportsIndex]] = (),
    ) -> Plan:
        """Change what differs from a map, and nothing else. NoRoomError, NoWindowError,
        InvalidRegionError, OverlapError. O(n + m + k log n).
        """
    def mark_dirty(self, gfn: SupportsIndex, as_id: SupportsIndex = 0) -> None:
        """Mark a guest page as written.

        Nothing happens where its slot does not log, is READONLY, or is not there.
        """
    def mark_dirty_many(
        self, gfns: ReadableBuffer | NDArray[np.uint64], as_id: SupportsIndex = 0
    ) -> None:
        """Mark many guest pages, a C-contiguous buffer of uint64.

        TypeError, ValueError. Without the GIL.
        """
    def mark_dirty_range(
        self, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex = 0
    ) -> None:
        """Mark the guest pages [start, end), each as mark_dirty does.

        ValueError: start > end. O(log n + k + p / 64) for p pages in k slots.
        """
    def get_dirty_log(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> bytearray:
        """ceil(npages / 64) little-endian 64-bit words; cleared by this unless manual_dirty_log
        is on.

        InvalidRegionError (EINVAL), NoSuchSlotError (ENOENT). O(npages / 64).
        """
    def clear_dirty_log(
        self,
        slot: SupportsIndex,
        first_page: SupportsIndex,
        num_pages: SupportsIndex,
        bitmap: ReadableBuffer,
        as_id: SupportsIndex = 0,
    ) -> None:
        """Clear the pages of a slot, from first_page on, whose bit is set in `bitmap`.

        InvalidRegionError (EINVAL), NoSuchSlotError (ENOENT). O(num_pages / 64).
        """
    def take_dirty_runs(self) -> list[DirtyRun]:
        """The dirty logs of all slots in all address spaces as runs of pages; takes their marks.

        O(n + p / 64) for p pages that are logged.
        """
    def free_id(self, as_id: SupportsIndex = 0) -> int:
        """The lowest id that no slot has. NoRoomError, InvalidRegionError, BusyError.

        O(log n) over many calls.
        """
    def map(self, as_id: SupportsIndex = 0) -> MemoryMap:
        """What an address space holds now, as a value. O(1) where there is an index, else O(n).

        InvalidRegionError where there is no such address space.
        """
    def address_space(self, as_id: SupportsIndex) -> AddressSpace:
        """The reader of an address space.

        InvalidRegionError where there is none of that number.
        """
    def vcpu(self, as_id: SupportsIndex = 0) -> Vcpu:
        """A reader with a last-used slot of its own. InvalidRegionError as address_space."""
    def subscribe(self, listener: object) -> Subscription:
        """Have a listener hear of every change: prepare(change, old, new), invalidate(slot),
        commit(change, old, new).

        TypeError: it has none of the three.
        """
    def check(self) -> None:
        """Walk everything.

        InvariantError with the number of the property that broke; BusyError. O(n).
        """
    @property
    def max_slots(self) -> int: ...
    @property
    def address_spaces(self) -> int: ...
    @property
    def max_gfn(self) -> int: ...
    @property
    def max_hva(self) -> int: ...
    @property
    def manual_dirty_log(self) -> int: ...
    @property
    def backend(self) -> Backend | None: ...
    def __reduce__(self) -> tuple[object, ...]: ...
