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

    Look-ups read address space 0. Changes may come from any thread and wait for one another. After
    any error nothing has changed. n is the number of slots. Every change may raise BusyError (from
    inside a listener), MemoryError, and any exception that a listener raises to refuse.
    """

    # Several overloads, so that limits can be given as a dictionary of numbers.
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
        """Makes a change, as the ioctl KVM_SET_USER_MEMORY_REGION does: addresses and size in
        bytes, size 0 deletes; `slot` has the address space in bits 16-31.

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
        """Makes a change, as the ioctl KVM_SET_USER_MEMORY_REGION2 does: as set_region; with
        GUEST_MEMFD (4) the slot is bound to a range of a file.

        InvalidRegionError (EBADF if the file is not open), OverlapError, NoSuchSlotError. O(log n).
        """
    def _create_slot(self, slot: Slot) -> Slot:
        """Creates the slot that a Slot describes. For mirror/plan.py."""
    def create(
        self,
        slot: SupportsIndex,
        base_gfn: SupportsIndex,
        npages: SupportsIndex,
        userspace_addr: SupportsIndex,
        flags: SupportsIndex = 0,
        as_id: SupportsIndex = 0,
    ) -> Slot:
        """Creates the slot of guest pages [base_gfn, base_gfn + npages) at a host address in bytes.

        InvalidRegionError, OverlapError. O(log n).
        """
    def create_many(
        self, slots: MemoryMap | Iterable[Slot | _Fields], *, as_id: SupportsIndex | None = None
    ) -> list[Slot]:
        """Creates all of the slots, or none. Returns them in gfn order. Errors as create, and
        NoRoomError.
        """
    def move(self, slot: SupportsIndex, base_gfn: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """Moves a slot to another first page.

        NoSuchSlotError, InvalidRegionError, OverlapError. O(log n).
        """
    def set_flags(
        self, slot: SupportsIndex, flags: SupportsIndex, as_id: SupportsIndex = 0
    ) -> Slot:
        """Changes a slot's flags. NoSuchSlotError, InvalidRegionError. O(1)."""
    def delete(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """Deletes a slot; returns it as it was. NoSuchSlotError, InvalidRegionError. O(log n)."""
    def unmap(self, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex = 0) -> None:
        """Takes pages away from slots. NoRoomError, ValueError."""
    def protect(
        self,
        start: SupportsIndex,
        end: SupportsIndex,
        flags: SupportsIndex,
        as_id: SupportsIndex = 0,
    ) -> None:
        """Changes the flags of pages. NotMappedError, NoRoomError, ValueError."""
    def split(
        self,
        slot: SupportsIndex,
        gfn: SupportsIndex,
        id: SupportsIndex | None = None,
        as_id: SupportsIndex = 0,
    ) -> tuple[Slot, Slot]:
        """Splits a slot in two. NoSuchSlotError, InvalidRegionError, NoRoomError."""
    def merge(self, first: SupportsIndex, second: SupportsIndex, as_id: SupportsIndex = 0) -> Slot:
        """Merges two slots into one. NoSuchSlotError, InvalidRegionError."""
    def transaction(self) -> Transaction:
        """Returns a transaction for a with statement: readers see all of its changes at once, or
        none.

        BusyError: begun from inside a listener or another transaction. O(k log n) for k changes.
        """
    def apply(self, plan: Plan) -> None:
        """Applies a plan, as one transaction. InvalidRegionError. O(k log n)."""
    def become(
        self,
        wanted: MemoryMap | Iterable[Slot | _Fields],
        *,
        as_id: SupportsIndex | None = None,
        keep: Iterable[tuple[SupportsIndex, SupportsIndex]] = (),
    ) -> Plan:
        """Changes what differs from a map, and nothing else. NoRoomError, NoWindowError,
        InvalidRegionError, OverlapError. O(n + m + k log n).
        """
    def mark_dirty(self, gfn: SupportsIndex, as_id: SupportsIndex = 0) -> None:
        """Marks a guest page as written.

        Does nothing if no slot holds the page, or the slot does not log or is READONLY.
        """
    def mark_dirty_many(
        self, gfns: ReadableBuffer | NDArray[np.uint64], as_id: SupportsIndex = 0
    ) -> None:
        """Marks many guest pages, given as a C-contiguous buffer of uint64.

        TypeError, ValueError. Runs without the GIL.
        """
    def mark_dirty_range(
        self, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex = 0
    ) -> None:
        """Marks the guest pages [start, end), each as mark_dirty does.

        ValueError: start > end. O(log n + k + p / 64) for p pages in k slots.
        """
    def get_dirty_log(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> bytearray:
        """Returns a slot's dirty log: ceil(npages / 64) little-endian 64-bit words. Clears the log
        unless manual_dirty_log is on.

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
        """Clears the pages of a slot, from first_page on, whose bit is set in `bitmap`.

        InvalidRegionError (EINVAL), NoSuchSlotError (ENOENT). O(num_pages / 64).
        """
    def take_dirty_runs(self) -> list[DirtyRun]:
        """Returns the dirty logs of all slots in all address spaces as runs of pages; takes their
        marks.

        O(n + p / 64) for p pages that are logged.
        """
    def set_private(self, start: SupportsIndex, end: SupportsIndex, private: bool = True) -> None:
        """Makes guest pages private to the guest, or shared with the host: memory attributes.

        ValueError: start is above end. InvalidRegionError (EINVAL): no such page.
        KvmUnavailableError: the backend's kernel has no attributes. O(n) for n private runs.
        """

    def is_private(self, gfn: SupportsIndex) -> bool:
        """Returns whether a guest page is private to the guest. O(log n)."""

    def private_runs(
        self, start: SupportsIndex = 0, end: SupportsIndex = ...
    ) -> list[tuple[int, int]]:
        """Returns the runs [start, end) of gfns that are private, in order. O(log n + k)."""

    def free_id(self, as_id: SupportsIndex = 0) -> int:
        """Returns the lowest id that no slot has. NoRoomError, InvalidRegionError, BusyError.

        O(log n) over many calls.
        """
    def map(self, as_id: SupportsIndex = 0) -> MemoryMap:
        """Returns what an address space holds now, as a value. O(1) if there is an index, else
        O(n).

        InvalidRegionError if there is no such address space.
        """
    def address_space(self, as_id: SupportsIndex) -> AddressSpace:
        """Returns the reader of an address space.

        InvalidRegionError if there is no such address space.
        """
    def vcpu(self, as_id: SupportsIndex = 0) -> Vcpu:
        """Returns a reader of an address space with a last-used slot of its own.

        InvalidRegionError if there is no such address space.
        """
    def subscribe(self, listener: object) -> Subscription:
        """Subscribes a listener to every change: prepare(change, old, new), invalidate(slot),
        commit(change, old, new).

        TypeError: it has none of the three.
        """
    def check(self) -> None:
        """Checks every property in every address space.

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
