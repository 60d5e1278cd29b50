"""KVM's ioctls: their numbers, structs and capabilities, from its API documentation."""

from __future__ import annotations

import enum
import struct

#: The answer of KVM_GET_API_VERSION since Linux 2.6.22. No other version may be used.
API_VERSION = 12

_KVMIO = 0xAE


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _io(number)


class Cap(enum.IntEnum):
    """Names for some capabilities; `check_extension` takes any other number as well."""

    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    NR_MEMSLOTS = 10
    SYNC_MMU = 16
    SET_IDENTITY_MAP_ADDR = 37
    MAX_VCPUS = 66
    READONLY_MEM = 81
    CHECK_EXTENSION_VM = 105
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    IMMEDIATE_EXIT = 136
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    VM_TYPES = 235


# struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
REGION = struct.Struct("=IIQQQ")
# struct kvm_userspace_memory_region2: the same, guest_memfd_offset, guest_memfd, padding
REGION2 = struct.Struct("=IIQQQQI4x112x")
# struct kvm_create_guest_memfd: size, flags, reserved
GUEST_MEMFD = struct.Struct("=QQ48x")
# struct kvm_memory_attributes: address, size, attributes, flags
ATTRIBUTES = struct.Struct("=QQQQ")
# struct kvm_dirty_log: slot, padding, the address of the bitmap
DIRTY_LOG = struct.Struct("=I4xQ")
# struct kvm_clear_dirty_log: slot, num_pages, first_page, the address of the bitmap
CLEAR_DIRTY_LOG = struct.Struct("=IIQQ")
# struct kvm_enable_cap: cap, flags, args[4], padding
ENABLE_CAP = struct.Struct("=II4Q64x")
# struct kvm_msrs with one entry: nmsrs, padding, index, reserved, data
ONE_MSR = struct.Struct("=I4xI4xQ")

REGS_NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
# struct kvm_regs of x86
REGS = struct.Struct(f"={len(REGS_NAMES)}Q")

_SEGMENT_FIELDS = (
    "base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable",
)  # fmt: skip
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
SREGS_NAMES = (
    *(f"{segment}_{field}" for segment in _SEGMENTS for field in _SEGMENT_FIELDS),
    *(f"{table}_{field}" for table in ("gdt", "idt") for field in ("base", "limit")),
    "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base",
    *(f"interrupt_bitmap_{n}" for n in range(4)),
)  # fmt: skip
# struct kvm_sregs of x86: segments (padded), descriptor tables (padded), control registers
SREGS = struct.Struct("=" + "QIH9Bx" * len(_SEGMENTS) + "QH6x" * 2 + "7Q4Q")

_SEGMENT_BITS = dict(zip(_SEGMENT_FIELDS, (64, 32, 16, *[8] * 9), strict=True))
_TABLE_BITS = {"base": 64, "limit": 16}
# The number of bits of each register's field in these structs.
REGISTER_BITS = (
    dict.fromkeys((*REGS_NAMES, *SREGS_NAMES), 64)
    | {f"{s}_{field}": bits for s in _SEGMENTS for field, bits in _SEGMENT_BITS.items()}
    | {f"{t}_{field}": bits for t in ("gdt", "idt") for field, bits in _TABLE_BITS.items()}
)

# Ioctls of /dev/kvm
GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
CHECK_EXTENSION = _io(0x03)  # of a VM, too
GET_VCPU_MMAP_SIZE = _io(0x04)
# Ioctls of a VM
CREATE_VCPU = _io(0x41)
GET_DIRTY_LOG = _iow(0x42, DIRTY_LOG.size)
SET_USER_MEMORY_REGION = _iow(0x46, REGION.size)
SET_TSS_ADDR = _io(0x47)
SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
SET_USER_MEMORY_REGION2 = _iow(0x49, REGION2.size)
CREATE_IRQCHIP = _io(0x60)
ENABLE_CAP_OF_VM = _iow(0xA3, ENABLE_CAP.size)
CLEAR_DIRTY_LOG_OF_VM = _iowr(0xC0, CLEAR_DIRTY_LOG.size)
SET_MEMORY_ATTRIBUTES = _iow(0xD2, ATTRIBUTES.size)
CREATE_GUEST_MEMFD = _iowr(0xD4, GUEST_MEMFD.size)
# Ioctls of a vCPU
RUN = _io(0x80)
GET_REGS = _ior(0x81, REGS.size)
SET_REGS = _iow(0x82, REGS.size)
GET_SREGS = _ior(0x83, SREGS.size)
SET_SREGS = _iow(0x84, SREGS.size)
GET_MSRS = _iowr(0x88, 8)
SET_MSRS = _iow(0x89, 8)

#: KVM_MEM_GUEST_MEMFD, a flag of KVM_SET_USER_MEMORY_REGION2 alone.
MEM_GUEST_MEMFD = 1 << 2

# struct kvm_run: the fields that run() reads and writes
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = struct.Struct("=8xI")
RUN_EXIT = 32  # the offset of the union, whose contents depend on the kind of exit
EXIT_IO = struct.Struct("=BBHIQ")  # direction, size, port, count, data_offset
EXIT_MMIO = struct.Struct("=Q8sIB")  # phys_addr, data, len, is_write
EXIT_MMIO_DATA = 8  # the offset of data
EXIT_FAIL_ENTRY = struct.Struct("=QI")  # hardware_entry_failure_reason, cpu
EXIT_INTERNAL_ERROR = struct.Struct("=II16Q")  # suberror, ndata, data
EXIT_SYSTEM_EVENT = struct.Struct("=I")  # type
EXIT_MEMORY_FAULT = struct.Struct("=QQQ")  # flags, gpa, size
