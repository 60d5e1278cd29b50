"""Virtual machines of Linux's /dev/kvm, with the slots of a Memslots.

    from memslots import Memslots
    from memslots.kvm import KvmVM

    with KvmVM() as kvm:
        vm = Memslots(backend=kvm)  # every change of it is made in the kernel too

Needs only Linux and the standard library. The registers of vCPUs are those of x86.
"""

from memslots.errors import KvmClosedError, KvmError, KvmUnavailableError
from memslots.kvm.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    MemoryFaultExit,
    MmioExit,
    OtherExit,
    ShutdownExit,
    SystemEventExit,
)
from memslots.kvm.ioctls import Cap
from memslots.kvm.vcpu import KvmVcpu
from memslots.kvm.vm import KvmVM

__all__ = [
    "Cap",
    "Exit",
    "FailEntryExit",
    "HltExit",
    "InternalErrorExit",
    "InterruptedExit",
    "IoExit",
    "KvmClosedError",
    "KvmError",
    "KvmUnavailableError",
    "KvmVM",
    "KvmVcpu",
    "MemoryFaultExit",
    "MmioExit",
    "OtherExit",
    "ShutdownExit",
    "SystemEventExit",
]

# Pickles name a value by this module. It stays when the value's own module is moved.
for _value in (
    Cap,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    MemoryFaultExit,
    MmioExit,
    OtherExit,
    ShutdownExit,
    SystemEventExit,
):
    _value.__module__ = __name__
del _value
