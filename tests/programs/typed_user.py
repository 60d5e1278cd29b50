"""Uses every public name from outside; assert_type fails if a stub says otherwise, or Any."""

from __future__ import annotations

import copy
import pickle
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt

from memslots import (
    BAD_HVA,
    PAGE_SHIFT,
    PAGE_SIZE,
    AddressSpace,
    Backing,
    BusyError,
    Change,
    DirtyRun,
    Flags,
    FlagsChange,
    GuestMemfd,
    GuestMemory,
    InvalidRegionError,
    InvariantError,
    KvmClosedError,
    KvmError,
    KvmUnavailableError,
    MapDiff,
    MemoryChange,
    MemoryMap,
    MemslotError,
    Memslots,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    NoWindowError,
    OverlapError,
    Plan,
    ReadOnlyError,
    SetRegion,
    SetRegion2,
    Slot,
    SlotChange,
    SnapshotError,
    TraceError,
    Transaction,
    Vcpu,
    VcpuStats,
    Window,
    __version__,
    plan,
)
from memslots.baseline import ArrayAddressSpace, ArrayMemslots, ArrayVcpu
from memslots.write.listeners import Subscription

Reader = Memslots | AddressSpace | Vcpu
AnyMap = Memslots | MemoryMap


class Everything:
    def prepare(self, change: Change, old: Slot | None, new: Slot | None) -> None: ...
    def invalidate(self, slot: Slot) -> None: ...
    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None: ...


class OnlyCommit:
    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None: ...


def constants() -> None:
    assert_type(PAGE_SHIFT + PAGE_SIZE + BAD_HVA, int)
    assert_type(__version__, str)
    assert_type(Flags.LOG_DIRTY_PAGES | Flags.READONLY, Flags)
    changes = [Change.CREATE, Change.DELETE, Change.MOVE, Change.FLAGS_ONLY, Change.NONE]
    assert_type(changes, list[Change])


def slots(slot: Slot) -> None:
    assert_type(Slot(0, 0, 0, 1, 0), Slot)
    assert_type(Slot(id=0, as_id=0, base_gfn=0, npages=1, userspace_addr=0, flags=1), Slot)
    assert_type(slot.id + slot.as_id + slot.base_gfn + slot.end_gfn + slot.npages, int)
    assert_type(slot.userspace_addr + slot.guest_phys_addr + slot.memory_size, int)
    assert_type(slot.flags, Flags)
    assert_type(slot.gfn_to_hva(0), int)
    assert_type(0 in slot, bool)
    assert_type(hash(slot), int)
    slot.npages = 2  # type: ignore[misc]


def reading(face: Reader, slot: Slot) -> None:
    assert_type(face.lookup(0), Slot | None)
    assert_type(face.gpa_to_hva(0), int)
    assert_type(face.gpa_to_hva(0, write=True), int)
    assert_type(face.in_gfn_range(0, 1), list[Slot])
    assert_type(face.in_hva_range(0, 1), list[tuple[Slot, int, int]])
    assert_type(face.floor(0), Slot | None)
    assert_type(face.ceil(0), Slot | None)
    assert_type(face.holes(end=9), list[tuple[int, int]])
    assert_type(face.find_hole(1, align=512), int | None)
    assert_type(face.is_mapped(0, 1), bool)
    assert_type(face.span, tuple[int, int] | None)
    assert_type(face.hva_to_gpa(0), int)
    assert_type(face[0], Slot)
    assert_type(face.get(0), Slot | None)
    assert_type(face.get(0, "none"), Slot | str)
    assert_type(len(face), int)
    assert_type(iter(face), Iterator[Slot])
    assert_type(reversed(face), Iterator[Slot])
    assert_type(slot in face, bool)
    assert_type(face.generation + face.nr_pages + face.as_id, int)
    face.lookup("0")  # type: ignore[arg-type]


def plans(vm: Memslots, m: MemoryMap) -> None:
    made = plan(vm, m, max_slots=5, keep=[(0, 1)])
    assert_type(made, Plan)
    assert_type(made.calls, list[SetRegion | SetRegion2])
    assert_type(vm.set_region2(*made.calls[0]), Change)
    assert_type(made.windows, tuple[Window, ...])
    assert_type(vm.become([(0, 1, 0)], as_id=0), Plan)
    assert_type(Memslots(m), Memslots)
    assert_type(Memslots(5, map=m), Memslots)
    assert_type(vm.create_many(m), list[Slot])
    assert_type(vm.split(0, 5), tuple[Slot, Slot])
    assert_type(vm.merge(0, 1), Slot)
    vm.unmap(0, 1)
    vm.protect(0, 1, Flags.READONLY, as_id=0)
    try:
        vm.apply(made)
        made.check()
    except NoWindowError:
        pass
    plan(5, m)  # type: ignore[arg-type]


def maps(vm: Memslots, slot: Slot, out: npt.NDArray[np.int32]) -> None:
    m = vm.map(as_id=1)
    assert_type(m, MemoryMap)
    assert_type(MemoryMap([slot, (0, 1, 0), (1, 1, 0, Flags.READONLY), (2, 1, 0, 0, 7)]), MemoryMap)
    assert_type(m.lookup(0), Slot | None)
    assert_type(m.gpa_to_hva(0, write=True), int)
    assert_type(m.lookup_many(array("Q", [1])), "array[int]")
    assert_type(m.lookup_many(np.zeros(2, np.uint64), out), npt.NDArray[np.int32])
    assert_type(m.translate(np.zeros(2, np.uint64)), npt.NDArray[np.uint64])
    assert_type(m.in_gfn_range(0, 1), list[Slot])
    assert_type(m.in_hva_range(0, 1), list[tuple[Slot, int, int]])
    assert_type(m[0], Slot)
    assert_type(m.get(0, "none"), Slot | str)
    assert_type(list(m) + list(reversed(m)), list[Slot])
    assert_type(len(m) + m.generation + m.nr_pages + m.as_id + hash(m), int)
    assert_type(slot in m, bool)
    assert_type((m | m) - (m & m), MemoryMap)
    assert_type(MemoryMap.from_arrays(array("Q"), np.zeros(2, np.int32), array("q"), 1), MemoryMap)
    assert_type(MemoryMap.from_json(m.to_json()).merged(), MemoryMap)
    assert_type(m.svg(), str)
    assert_type(m.diff(m).memory, list[MemoryChange])
    assert_type(m.diff(m).flags, list[FlagsChange])
    assert_type(m.diff(m).slots, list[SlotChange])
    diff = m.diff(m)
    assert_type(diff, MapDiff)
    assert_type(diff.came + diff.went, list[tuple[int, int]])
    assert_type(diff.slots[0].before, Slot | None)
    m | 5  # type: ignore[operator]
    m.generation = 2  # type: ignore[misc]
    try:
        vm.set_private(3, 5)
        vm.set_private(3, 5, private=False)
        assert_type(vm.is_private(3), bool)
        assert_type(vm.private_runs(end=9), list[tuple[int, int]])
        assert_type(GuestMemory(vm).is_private(0x3000, 2), bool)
        assert_type(vm.free_id(as_id=1), int)
        with vm.transaction() as tx:
            assert_type(tx.free_id(), int)
    except NoRoomError as error:
        assert_type(error.errno, int | None)
    MemoryMap([(0, 1)])  # type: ignore[list-item]


def batches(face: Reader, out: npt.NDArray[np.int32]) -> None:
    gfns = array("Q", [1, 2])
    assert_type(face.lookup_many(gfns), "array[int]")
    assert_type(face.translate(gfns), "array[int]")
    assert_type(face.translate(gfns, write=True), "array[int]")
    numpy_gfns = np.array([1, 2], dtype=np.uint64)
    assert_type(face.lookup_many(numpy_gfns), npt.NDArray[np.int32])
    assert_type(face.translate(numpy_gfns), npt.NDArray[np.uint64])
    assert_type(face.lookup_many(gfns, out), npt.NDArray[np.int32])
    assert_type(face.lookup_many(numpy_gfns, out=array("i", [0, 0])), "array[int]")


def changes(vm: Memslots) -> None:
    assert_type(vm.set_region(0, Flags(0), 0, 0x1000, 0), Change)
    memfd = GuestMemfd(0x1000)
    assert_type(vm.set_region2(0, Flags.GUEST_MEMFD, 0, 0x1000, 0, memfd, 0), Change)
    assert_type((memfd.size, memfd.closed), tuple[int, bool])
    assert_type(memfd.dup(), GuestMemfd)
    opened = GuestMemory.open("core", shared=True)
    assert_type(opened, GuestMemory)
    assert_type(opened.checkpoint(by_log=False).restore(), int)
    assert_type(opened.write_from(0, 0, 5, offset=3) + opened.read_into(0, 0, 5), int)
    assert_type(opened.file_of(0), tuple[int, int])
    assert_type(opened.is_mapped(0), bool)
    opened.pack(0, "<H", *opened.unpack(0, "<H"))
    opened.on_mmio(0, 8, read=lambda gpa, size: 0, write=lambda gpa, size, value: None).close()
    opened.on_mmio(0, 8, read=lambda gpa: 0)  # type: ignore[misc, arg-type]
    assert_type(
        vm.set_region(slot=0, flags=0, guest_phys_addr=0, memory_size=0, userspace_addr=0), Change
    )
    assert_type(vm.create(0, 0, 1, 0), Slot)
    assert_type(vm.create(0, base_gfn=0, npages=1, userspace_addr=0, flags=1, as_id=1), Slot)
    assert_type(vm.move(0, 1), Slot)
    assert_type(vm.set_flags(0, Flags.LOG_DIRTY_PAGES, as_id=0), Slot)
    assert_type(vm.delete(0), Slot)


def several_changes(vm: Memslots) -> None:
    tx = vm.transaction()
    assert_type(tx, Transaction)
    with tx as same:
        assert_type(same, Transaction)
        assert_type(tx.set_region(0, Flags(0), 0, 0x1000, 0), Change)
        assert_type(tx.create(0, base_gfn=0, npages=1, userspace_addr=0, flags=1, as_id=1), Slot)
        assert_type(tx.move(0, 1), Slot)
        assert_type(tx.set_flags(0, Flags.LOG_DIRTY_PAGES, as_id=0), Slot)
        assert_type(tx.lookup(0, as_id=1), Slot | None)
        assert_type(tx.get(0), Slot | None)
        assert_type(tx.get(0, "none", as_id=1), Slot | str)
        assert_type(tx.delete(0), Slot)


def machine() -> Memslots:
    vm = Memslots(max_slots=8, address_spaces=2, max_gfn=1, max_hva=1 << 40, manual_dirty_log=1)
    assert_type(vm.max_slots + vm.address_spaces + vm.max_gfn + vm.max_hva, int)
    assert_type(vm.manual_dirty_log, int)
    vm.max_slots = 9  # type: ignore[misc]
    vm.check()
    assert_type(vm.address_space(1), AddressSpace)
    vcpu = vm.vcpu(as_id=1)
    assert_type(vcpu, Vcpu)
    assert_type(vcpu.stats, VcpuStats)
    assert_type(vcpu.stats.hits + vcpu.stats.misses, int)
    assert_type(copy.copy(vm), Memslots)
    assert_type(pickle.dumps(vm), bytes)
    return vm


class Kernel:
    # All methods that a backend must have.
    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> object: ...


def mirrored() -> None:
    assert_type(Memslots(backend=None), Memslots)
    vm = Memslots(8, address_spaces=2, backend=Kernel())
    assert_type(vm, Memslots)
    assert vm.backend is not None
    vm.backend.set_region(0, 0, 0, 0, 0)
    Memslots(backend="kvm")  # type: ignore[call-overload]


def backings(path: Path, rows: npt.NDArray[np.uint8]) -> None:
    assert_type(Backing(bytearray(4096)), Backing)
    assert_type(Backing(rows), Backing)
    assert_type(Backing.anonymous(4096), Backing)
    assert_type(Backing.anonymous(4096, huge_pages=True), Backing)
    assert_type(Backing.memfd(4096, name="ram", huge_pages=False), Backing)
    assert_type(Backing.file(path), Backing)
    backing = Backing.file("rom", offset=0, size=None, shared=True, readonly=True)
    assert_type(backing.kind, str)
    assert_type(backing.huge_pages, str | None)
    assert_type(backing.hva + backing.size + len(backing) + backing.fileno(), int)
    assert_type(backing.writable, bool)
    Backing()  # type: ignore[call-arg]
    backing.size = 3  # type: ignore[misc]


def guest_memory(vm: Memslots, backing: Backing, path: Path) -> None:
    mem = GuestMemory(vm)
    assert_type(mem.vm, Memslots)
    assert_type(mem.as_id, int)
    assert_type(mem.backings, tuple[Backing, ...])
    assert_type(mem.address_space(1), GuestMemory)
    assert_type(mem.place(0, 0, backing), Slot)
    assert_type(mem.place(1, 0, backing, offset=0, size=4096, flags=Flags.READONLY), Slot)
    mem.add(backing)
    mem.remove(backing)
    assert_type(mem.read(0, 8), bytes)
    assert_type(mem.readinto(0, bytearray(8)), int)
    assert_type(mem.readinto(0, np.zeros(8)), int)
    assert_type(mem.write(0, b"data") + mem.write(0, np.zeros(8)), int)
    mem.fill(0, 8)
    mem.fill(0, 8, value=255)
    assert_type(mem.read_u8(0) + mem.read_u16(0) + mem.read_u32(0) + mem.read_u64(0), int)
    mem.write_u8(0, 1)
    mem.write_u16(0, 1)
    mem.write_u32(0, 1)
    mem.write_u64(0, value=1)
    assert_type(mem.view(0, 8), "memoryview[int]")
    assert_type(mem.views(0, 8), "list[memoryview[int]]")
    assert_type(mem.views(0, n=8, write=True), "list[memoryview[int]]")
    mem.mark_dirty(0, 8)
    assert_type(mem.load(path, 0) + mem.load("kernel", gpa=0), int)
    assert_type(mem.dump(path) + mem.dump_dirty("dirty") + mem.restore(path), int)
    mem.write(0, "data")  # type: ignore[arg-type]
    mem.place(0, 0, bytearray(4096))  # type: ignore[arg-type]
    GuestMemory(vm.address_space(0))  # type: ignore[arg-type]


def by_array() -> ArrayMemslots:
    vm = ArrayMemslots(8, address_spaces=2)
    assert_type(vm.create(0, 0, 1, 0, as_id=1), Slot)
    assert_type(vm.set_region(0, Flags(0), 0, 0x1000, 0), Change)
    assert_type(vm.address_space(1), ArrayAddressSpace)
    assert_type(vm.vcpu().stats, VcpuStats)
    faces: list[ArrayMemslots | ArrayAddressSpace | ArrayVcpu] = [vm, vm.vcpu()]
    for face in faces:
        assert_type(face.lookup(0), Slot | None)
        assert_type(face.lookup_many(array("Q", [1])), "array[int]")
        assert_type(face.in_hva_range(0, 1), list[tuple[Slot, int, int]])
    vm.delete("0")  # type: ignore[arg-type]
    return vm


def dirty_logs(vm: Memslots) -> None:
    vm.mark_dirty(0, as_id=0)
    vm.mark_dirty_many(array("Q", [0]))
    assert_type(vm.get_dirty_log(0), bytearray)
    vm.clear_dirty_log(0, 0, 64, b"\\xff" * 8)
    vm.clear_dirty_log(0, 0, 64, vm.get_dirty_log(0), as_id=0)
    vm.mark_dirty_range(0, end=1, as_id=0)
    runs = vm.take_dirty_runs()
    assert_type(runs, list[DirtyRun])
    assert_type(runs[0].as_id + runs[0].start_gfn + runs[0].end_gfn, int)
    as_id, start, end = runs[0]
    assert_type(as_id + start + end, int)


def listening(vm: Memslots) -> None:
    handle = vm.subscribe(Everything())
    assert_type(handle, Subscription)
    handle.close()
    with vm.subscribe(OnlyCommit()):
        pass


def errors(vm: Memslots) -> None:
    try:
        vm.create(0, 0, 1, 0)
    except OverlapError as error:
        assert_type(error.existing, Slot)
        assert_type(error.requested, Slot)
    except NoSuchSlotError as error:
        as_key_error: KeyError = error
    except InvalidRegionError as error:
        as_value_error: ValueError = error
    except KvmUnavailableError as error:
        as_kvm_error: KvmError = error
    except InvariantError as error:
        assert_type(error.property, str)
        as_assertion_error: AssertionError = error
    except TraceError as error:
        assert_type((error.name, error.reason), tuple[str, str])
        assert_type(error.line, int | None)
    except KvmClosedError as error:
        as_closed: tuple[KvmError, ValueError] = (error, error)
    except (NotMappedError, ReadOnlyError, BusyError, KvmError, SnapshotError) as error:
        as_memslot_error: MemslotError = error
    except MemslotError as error:
        assert_type(error.rule, int | str | None)
        as_os_error: OSError = error
