"""Guest memory slots as KVM keeps them.

A Memslots holds the slots of a virtual machine. It answers which slot holds a guest page, while
other threads change the slots:

>>> from memslots import Memslots
>>> vm = Memslots()
>>> ram = vm.create(0, base_gfn=0x100, npages=64, userspace_addr=0x7F00_0000_0000)
>>> vm.lookup(0x13F) is ram
True
>>> hex(vm.gpa_to_hva(0x100_123))
'0x7f0000000123'

GuestMemory reads and writes the memory behind the slots. MemoryMap is a map as a value.
memslots.kvm has the virtual machines of /dev/kvm, memslots.maps reads maps of guest memory, and
memslots.replay replays traces of VMMs.
"""

from memslots.errors import (
    BusyError,
    InvalidRegionError,
    InvariantError,
    KvmClosedError,
    KvmError,
    KvmUnavailableError,
    MemslotError,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    NoWindowError,
    OverlapError,
    ReadOnlyError,
    SnapshotError,
    TraceError,
)
from memslots.memslots import Memslots
from memslots.read.reader import AddressSpace, Vcpu
from memslots.values.integers import BAD_HVA, PAGE_SHIFT, PAGE_SIZE
from memslots.values.records import Change, Flags, Slot, VcpuStats

TYPE_CHECKING = False  # what type checkers take for true; typing takes long to import
if TYPE_CHECKING:
    from memslots.dirty.runs import DirtyRun
    from memslots.memory.backing import Backing
    from memslots.memory.guestmemory import GuestMemory
    from memslots.mirror.plan import Plan, SetRegion, SetRegion2, Window
    from memslots.planning import plan
    from memslots.read.diff import FlagsChange, MapDiff, MemoryChange, SlotChange
    from memslots.read.memorymap import MemoryMap
    from memslots.values.guestmemfd import GuestMemfd
    from memslots.write.transaction import Transaction

__version__ = "0.2.0"

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
    "FlagsChange",
    "GuestMemfd",
    "GuestMemory",
    "InvalidRegionError",
    "InvariantError",
    "KvmClosedError",
    "KvmError",
    "KvmUnavailableError",
    "MapDiff",
    "MemoryChange",
    "MemoryMap",
    "MemslotError",
    "Memslots",
    "NoRoomError",
    "NoSuchSlotError",
    "NoWindowError",
    "NotMappedError",
    "OverlapError",
    "Plan",
    "ReadOnlyError",
    "SetRegion",
    "SetRegion2",
    "Slot",
    "SlotChange",
    "SnapshotError",
    "TraceError",
    "Transaction",
    "Vcpu",
    "VcpuStats",
    "Window",
    "plan",
]

# What many programs never use is imported when it is first asked for.
_LATE = {
    "Backing": "memslots.memory.backing",
    "DirtyRun": "memslots.dirty.runs",
    "GuestMemfd": "memslots.values.guestmemfd",
    "GuestMemory": "memslots.memory.guestmemory",
    "FlagsChange": "memslots.read.diff",
    "MapDiff": "memslots.read.diff",
    "MemoryChange": "memslots.read.diff",
    "MemoryMap": "memslots.read.memorymap",
    "Plan": "memslots.mirror.plan",
    "SetRegion": "memslots.mirror.plan",
    "SetRegion2": "memslots.mirror.plan",
    "SlotChange": "memslots.read.diff",
    "Transaction": "memslots.write.transaction",
    "Window": "memslots.mirror.plan",
    "plan": "memslots.planning",
}


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(__import__(_LATE[name], None, None, [name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # The modules that are loaded are no part of the public face.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
