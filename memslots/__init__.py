"""Guest memory slots as KVM keeps them.

Which slot of guest memory holds this page? Asked while that memory is being re-arranged.
"""

from memslots.errors import (
    BusyError,
    InvalidRegionError,
    InvariantError,
    KvmClosedError,
    KvmError,
    KvmUnavailableError,
    MemslotError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    SnapshotError,
    TraceError,
)
from memslots.memory.backing import Backing
from memslots.memory.guestmemory import GuestMemory
from memslots.memslots import Memslots
from memslots.read.memorymap import MemoryMap
from memslots.read.reader import AddressSpace, Vcpu
from memslots.values.integers import BAD_HVA, PAGE_SHIFT, PAGE_SIZE
from memslots.values.records import Change, DirtyRun, Flags, Slot, VcpuStats
from memslots.write.transaction import Transaction

__version__ = "0.1.0"

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
    "KvmClosedError",
    "KvmError",
    "KvmUnavailableError",
    "MemoryMap",
    "MemslotError",
    "Memslots",
    "NoSuchSlotError",
    "NotMappedError",
    "OverlapError",
    "ReadOnlyError",
    "Slot",
    "SnapshotError",
    "TraceError",
    "Transaction",
    "Vcpu",
    "VcpuStats",
]
