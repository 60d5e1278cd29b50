"""Guest memory slots as KVM keeps them.

Which slot of guest memory holds this page? Asked while that memory is being re-arranged.
"""

from memslots.backing import Backing
from memslots.errors import (
    BusyError,
    InvalidRegionError,
    InvariantError,
    KvmError,
    KvmUnavailableError,
    MemslotError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
)
from memslots.faces import AddressSpace, Vcpu
from memslots.guestmemory import GuestMemory
from memslots.memslots import Memslots
from memslots.records import Change, DirtyRun, Flags, Slot, VcpuStats
from memslots.transaction import Transaction

__version__ = "0.1.0"

PAGE_SHIFT = 12
"""log2 of a page's size in bytes."""
PAGE_SIZE = 1 << PAGE_SHIFT
"""A page's size in bytes."""
BAD_HVA = (1 << 64) - 1
"""What ``translate`` gives for an address that no slot holds."""

__all__ = [
    "BAD_HVA",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "AddressSpace",
    "Backing",
    "BusyError",
    "Change",
    "DirtyRun",
    "Flags",
    "GuestMemory",
    "InvalidRegionError",
    "InvariantError",
    "KvmError",
    "KvmUnavailableError",
    "MemslotError",
    "Memslots",
    "NoSuchSlotError",
    "NotMappedError",
    "OverlapError",
    "ReadOnlyError",
    "Slot",
    "Transaction",
    "Vcpu",
    "VcpuStats",
]
