from typing import Self, SupportsIndex

import numpy as np
from _typeshed import ReadableBuffer
from numpy.typing import NDArray

from memslots.baseline.reader import ArrayAddressSpace, ArrayReader, ArrayVcpu
from memslots.values.records import Change, Slot

class ArrayMemslots(ArrayReader):
    """Memslots as KVM kept them until Linux 5.16, to measure against.

    Every change copies a whole array. The API is that of memslots.Memslots, for one thread at a
    time, and for ids below 2**20.
    """

    def __new__(
        cls,
        max_slots: SupportsIndex = 32764,
        *,
        address_spaces: SupportsIndex = 1,
        max_gfn: SupportsIndex = ...,
        max_hva: SupportsIndex = ...,
        manual_dirty_log: SupportsIndex = 0,
    ) -> Self: ...
    def set_region(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex,
    ) -> Change: ...
    def create(
        self,
        slot: SupportsIndex,
        base_gfn: SupportsIndex,
        npages: SupportsIndex,
        userspace_addr: SupportsIndex,
        flags: SupportsIndex = 0,
        as_id: SupportsIndex = 0,
    ) -> Slot: ...
    def move(
        self, slot: SupportsIndex, base_gfn: SupportsIndex, as_id: SupportsIndex = 0
    ) -> Slot: ...
    def set_flags(
        self, slot: SupportsIndex, flags: SupportsIndex, as_id: SupportsIndex = 0
    ) -> Slot: ...
    def delete(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> Slot: ...
    def mark_dirty(self, gfn: SupportsIndex, as_id: SupportsIndex = 0) -> None: ...
    def mark_dirty_many(
        self, gfns: ReadableBuffer | NDArray[np.uint64], as_id: SupportsIndex = 0
    ) -> None: ...
    def get_dirty_log(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> bytearray: ...
    def clear_dirty_log(
        self,
        slot: SupportsIndex,
        first_page: SupportsIndex,
        num_pages: SupportsIndex,
        bitmap: ReadableBuffer,
        as_id: SupportsIndex = 0,
    ) -> None: ...
    def address_space(self, as_id: SupportsIndex) -> ArrayAddressSpace: ...
    def vcpu(self, as_id: SupportsIndex = 0) -> ArrayVcpu: ...
    def check(self) -> None: ...
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
