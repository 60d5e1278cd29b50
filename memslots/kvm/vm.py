"""A virtual machine of /dev/kvm."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from memslots.errors import KvmClosedError, KvmError, MemslotError, busy
from memslots.kvm import ioctls
from memslots.kvm.device import DEVICE, missing_capability, open_device
from memslots.kvm.fd import Answer
from memslots.kvm.ioctls import Cap
from memslots.kvm.probe import ends, slots_and_spaces
from memslots.kvm.refusals import (
    IDENTITY,
    IDENTITY_MAP,
    TSS,
    Binding,
    Call,
    Private,
    outside_of_rules,
    overlaps_private,
    why_log,
    why_memfd,
)
from memslots.kvm.vcpu import KvmVcpu
from memslots.memslots import Memslots
from memslots.values.guestmemfd import GuestMemfd, StandIns, number_of
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE, field, slot_number
from memslots.values.records import (
    Change,
    Flags,
    Slot,
    deletion_arguments,
    region_arguments,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MOST_PAGES = (1 << 31) - 1  # per slot: rule 4
_NO_DESCRIPTOR = 0xFFFFFFFF  # -1 in the struct's field
_NOWHERE = (1 << 64) - PAGE_SIZE  # an address that no process has


class KvmVM:
    """A virtual machine of the kernel, with its memory slots and vCPUs.

    A context manager that closes it. Every call asks the kernel; its answer is never guessed.

    Parameters
    ----------
    vm_type : int, default 0
        The argument of KVM_CREATE_VM.
    manual_dirty_log : {0, 1, 3}
        The argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; 0 leaves it off.
    device : str, default "/dev/kvm"

    Raises
    ------
    KvmUnavailableError
        There is no usable KVM, or it lacks what is asked for; the message says what to do.
    KvmError
        The kernel refuses to make a VM.

    Notes
    -----
    Safe to use from any thread. After a fork the child cannot use it and gets KvmError (EIO).
    """

    def __init__(
        self,
        vm_type: SupportsIndex = 0,
        *,
        manual_dirty_log: SupportsIndex = 0,
        device: str = DEVICE,
    ) -> None:
        vm_type = field(vm_type, "vm_type", 64)
        manual_dirty_log = field(manual_dirty_log, "manual_dirty_log", 32)
        if manual_dirty_log not in (0, 1, 3):
            raise ValueError(f"manual_dirty_log must be 0, 1 or 3, not {manual_dirty_log}")
        self._ends_of = device, vm_type
        self._process = os.getpid()
        # While this lock is free, the slots here are the kernel's. A signal's handler may take it a
        # second time.
        self._own_lock = threading.RLock()
        self._changing = False  # the thread that holds the lock is making a change
        self._slots: dict[int, Slot] = {}  # by the kernel's slot number
        self._room: dict[int, int] = {}  # by the same number: the most pages that the slot may have
        self._bound: dict[int, Binding] = {}  # by the same number: its range of a guest_memfd
        self._private: dict[int, Private] = {}  # slots that the kernel keeps for itself
        self._vcpus: list[KvmVcpu] = []
        self._kept: list[object] = []  # objects that keep the memory under the slots alive
        self.manual_dirty_log = manual_dirty_log
        opened = open_device(device)
        try:
            self._run_size = opened.ioctl("KVM_GET_VCPU_MMAP_SIZE", ioctls.GET_VCPU_MMAP_SIZE)
            self._fd = opened.create("KVM_CREATE_VM", ioctls.CREATE_VM, vm_type, "KvmVM")
        finally:
            opened.close()
        try:
            self._max_slots, self._spaces = slots_and_spaces(self._fd)
            if manual_dirty_log:
                self._enable_manual_dirty_log()
        except BaseException:
            self._fd.close()
            raise

    def __enter__(self) -> KvmVM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KvmVM cannot be pickled or copied: it is a VM of the kernel")

    def __repr__(self) -> str:
        state = "closed" if self._fd.closed else f"{len(self._slots)} slots"
        return f"<KvmVM: {state}>"

    def close(self) -> None:
        """Closes the VM and its vCPUs. Closing again does nothing.

        A vCPU that another thread runs goes on until its next exit.
        """
        if os.getpid() == self._process:
            with self._own_lock:
                self._close()
        else:  # the thread that held the lock, if any, is not in this process
            self._close()

    def _close(self) -> None:
        for vcpu in list(self._vcpus):
            vcpu.close()
        self._vcpus.clear()
        self._slots.clear()
        self._fd.close()
        # This comes last: now no guest can reach the memory. A vCPU that still runs holds the list.
        self._kept = []

    def runs(self) -> int | None:
        """Returns how often the VM's vCPUs have begun to run in total, or None while one runs."""
        counts = [vcpu.runs() for vcpu in list(self._vcpus)]
        return None if None in counts else sum(filter(None, counts))

    @property
    def _lock(self) -> threading.RLock:
        """The lock to hold while using the slots.

        After a fork, no thread may be left to release it, so another process gets KvmError (EIO). A
        signal's handler may run while this thread holds the lock. It may close the VM and read
        `slots`; a change from it is a BusyError. (No handler can run between the test of
        `_changing` and the `try` that follows: nothing is called there.)
        """
        if os.getpid() != self._process:
            raise KvmError(errno.EIO, "a KvmVM can be used only in the process that made it")
        return self._own_lock

    def fileno(self) -> int:
        """Returns the descriptor's number, for ioctls that this binding does not have."""
        return self._fd.fileno()

    def keep(self, kept: object) -> None:
        """Keeps an object alive until the VM is closed: one that owns the memory of slots.

        A Memslots that is mirrored in the VM is kept this way. If that memory were freed, a running
        guest would write to whatever takes its place.
        """
        self._kept.append(kept)

    def kept(self) -> list[object]:
        """Returns the list of kept objects. It keeps them alive even after the VM is closed."""
        return self._kept

    # Capabilities and limits

    def check_extension(self, cap: SupportsIndex) -> int:
        """Returns the answer of this VM to KVM_CHECK_EXTENSION.

        Parameters
        ----------
        cap : int or Cap

        Returns
        -------
        int
            0 if the VM lacks the capability.
        """
        number = field(cap, "cap", 32)
        return self._fd.ioctl("KVM_CHECK_EXTENSION", ioctls.CHECK_EXTENSION, number)

    @property
    def limits(self) -> dict[str, int]:
        """The limits of the kernel, as the arguments of Memslots.

        max_gfn and max_hva are found by making slots of another VM, once in a process.
        """
        max_gfn, max_hva = ends(*self._ends_of)
        return {
            "max_slots": self._max_slots,
            "address_spaces": self._spaces,
            "max_gfn": max_gfn,
            "max_hva": max_hva,
            "manual_dirty_log": self.manual_dirty_log,
        }

    @property
    def slots(self) -> Sequence[Slot]:
        """The VM's slots, in order of address space and id."""
        with self._lock:
            # A handler's close() may run between these lines, or may have run inside a change.
            slots = {} if self._fd.closed else self._slots.copy()
            return [slots[slot] for slot in sorted(slots)]

    def _enable_manual_dirty_log(self) -> None:
        known = self.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2)
        if self.manual_dirty_log & ~known:
            needed = f"manual_dirty_log={self.manual_dirty_log}"
            raise missing_capability("MANUAL_DIRTY_LOG_PROTECT2", needed, "Linux 5.7 or later")
        cap = ioctls.ENABLE_CAP.pack(
            Cap.MANUAL_DIRTY_LOG_PROTECT2, 0, self.manual_dirty_log, 0, 0, 0
        )
        self._fd.ioctl("KVM_ENABLE_CAP", ioctls.ENABLE_CAP_OF_VM, cap)

    # Slots

    def set_region(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex,
    ) -> Change:
        """Creates, deletes, moves or changes a slot: KVM_SET_USER_MEMORY_REGION.

        Arguments, results and errors are those of `Memslots.set_region`. If the kernel refuses for
        a reason outside the rules (no memory, a guest_memfd), KvmError has its errno.

        Raises
        ------
        InvalidRegionError, OverlapError, NoSuchSlotError
            A rule of docs/rules.md refused the call. `OverlapError.existing` may be a slot that the
            kernel keeps for itself: its id is not below max_slots, and its userspace_addr is 0.
        KvmError
        """
        call = Call.of(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        name, request = "KVM_SET_USER_MEMORY_REGION", ioctls.SET_USER_MEMORY_REGION
        return self._set(call, name, request, ioctls.REGION.pack(*call))

    def set_slot(self, before: Slot | None, after: Slot | None) -> Change:
        """Turns the slot `before` into `after`; None stands for no slot.

        A Memslots that is mirrored here calls this.

        Raises
        ------
        ValueError
            Both are None.
        InvalidRegionError, OverlapError, NoSuchSlotError, KvmError
            As `set_region`.
        """
        if after is not None and after.guest_memfd is not None:
            *region, offset = region_arguments(after)
            return self._set_private(Call(*region[:5]), after.guest_memfd.fileno(), offset, after)
        if after is not None:
            call = Call(*region_arguments(after))
        elif before is not None:
            call = Call(*deletion_arguments(before))
        else:
            raise ValueError("a call needs a slot before or after it; both are None")
        name, request = "KVM_SET_USER_MEMORY_REGION", ioctls.SET_USER_MEMORY_REGION
        return self._set(call, name, request, ioctls.REGION.pack(*call), new=after)

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
        """Does what `set_region` does, for guest_memfd slots too: KVM_SET_USER_MEMORY_REGION2.

        The arguments are those of `Memslots.set_region2`.

        Parameters
        ----------
        slot, flags, guest_phys_addr, memory_size, userspace_addr : int
            As in `set_region`.
        guest_memfd : GuestMemfd or int, optional
            Ignored unless `flags` has Flags.GUEST_MEMFD. The result of `create_guest_memfd`. Such a
            slot can be deleted, but not moved or changed.
        guest_memfd_offset : int
            The offset of the slot's first page in the file, in bytes.

        Returns
        -------
        Change

        Raises
        ------
        InvalidRegionError, OverlapError, NoSuchSlotError, KvmError
            As `set_region`.
        KvmUnavailableError
            The kernel lacks this call, or has no guest_memfd for this type of VM.
        """
        if not self.check_extension(Cap.USER_MEMORY2):
            raise missing_capability("USER_MEMORY2", "set_region2", "Linux 6.8 or later")
        call = Call.of(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        if call.flags & Flags.GUEST_MEMFD:
            self._need_guest_memfd()
            memfd = _NO_DESCRIPTOR
            if isinstance(guest_memfd, GuestMemfd):
                memfd = guest_memfd.fileno()
            elif not (guest_memfd is None or (isinstance(guest_memfd, int) and guest_memfd == -1)):
                memfd = field(guest_memfd, "guest_memfd", 32)
            offset = field(guest_memfd_offset, "guest_memfd_offset", 64)
            return self._set_private(call, memfd, offset)
        name, request = "KVM_SET_USER_MEMORY_REGION2", ioctls.SET_USER_MEMORY_REGION2
        return self._set(call, name, request, ioctls.REGION2.pack(*call, 0, 0))

    def _set_private(self, call: Call, memfd: int, offset: int, new: Slot | None = None) -> Change:
        """Makes a call for a slot of a guest_memfd. `new` is the slot, if the caller knows it."""
        name, request = "KVM_SET_USER_MEMORY_REGION2", ioctls.SET_USER_MEMORY_REGION2
        region = ioctls.REGION2.pack(*call, offset, memfd)
        bound = Binding.of(memfd, offset, call.memory_size)
        return self._set(call, name, request, region, bound, new)

    def set_memory_attributes(
        self, address: SupportsIndex, size: SupportsIndex, attributes: SupportsIndex
    ) -> None:
        """Sets the attributes of guest pages, for all address spaces: KVM_SET_MEMORY_ATTRIBUTES.

        Parameters
        ----------
        address, size : int
            Bytes, multiples of the page size. The size is not 0.
        attributes : int
            8 (KVM_MEMORY_ATTRIBUTE_PRIVATE) makes the pages private to the guest, 0 shared.

        Raises
        ------
        KvmUnavailableError
            This kernel has no memory attributes for this type of VM.
        KvmError
            The kernel refuses: EINVAL for a range or attributes that it does not know.
        """
        if not self.check_extension(Cap.MEMORY_ATTRIBUTES):
            since = "Linux 6.8 or later, for types of VM with private memory,"
            raise missing_capability("MEMORY_ATTRIBUTES", "private pages", since)
        numbers = (field(address, "address", 64), field(size, "size", 64))
        call = ioctls.ATTRIBUTES.pack(*numbers, field(attributes, "attributes", 64), 0)
        self._fd.ioctl("KVM_SET_MEMORY_ATTRIBUTES", ioctls.SET_MEMORY_ATTRIBUTES, call)

    def create_guest_memfd(self, size: SupportsIndex, flags: SupportsIndex = 0) -> int:
        """Creates a file of guest memory: KVM_CREATE_GUEST_MEMFD. Returns its descriptor.

        The caller must close the descriptor.

        Raises
        ------
        KvmUnavailableError
            The kernel has no guest_memfd for this type of VM.
        KvmError
        """
        self._need_guest_memfd()
        memfd = ioctls.GUEST_MEMFD.pack(field(size, "size", 64), field(flags, "flags", 64))
        return self._fd.ioctl("KVM_CREATE_GUEST_MEMFD", ioctls.CREATE_GUEST_MEMFD, memfd)

    def _need_guest_memfd(self) -> None:
        if not self.check_extension(Cap.GUEST_MEMFD):
            since = "Linux 6.8 or later built with CONFIG_KVM_GUEST_MEMFD, for some types of VM,"
            raise missing_capability("GUEST_MEMFD", "a guest_memfd", since)

    def _set(
        self,
        call: Call,
        name: str,
        request: int,
        region: bytes,
        bound: Binding | None = None,
        new: Slot | None = None,
    ) -> Change:
        """Makes a call. `new` is the slot after the call, if the caller knows it already.

        `bound` is the range of a guest_memfd that the call names.
        """
        answer = Answer()
        with self._lock:
            if self._changing:
                raise busy("a change of a KvmVM")
            self._changing = True
            try:
                old = self._slots.get(call.slot)
                # Set before the call, so that a log always fits into this room. This holds even if
                # the outcome of the call becomes unknown.
                npages = min(call.memory_size >> PAGE_SHIFT, _MOST_PAGES)
                self._room[call.slot] = max(self._room.get(call.slot, 0), npages)
                while not self._fd.ioctl_once(name, request, region, answer):
                    pass
            except KvmClosedError:
                raise
            except KvmError as refused:
                self._keep(call.slot, old)
                raise self._explain(call, refused, bound) from None
            finally:  # a signal's handler may raise once the kernel is done
                try:
                    if answer.done:
                        if new is None and call.memory_size:
                            new = call.record(bound)
                        self._keep(call.slot, new)
                        if new is not None and bound is not None:
                            self._bound[call.slot] = bound
                finally:  # last: no other change may begin before this one is noted
                    self._changing = False
        if new is None:
            return Change.DELETE
        if old is None:
            return Change.CREATE
        if old.base_gfn != new.base_gfn:
            return Change.MOVE
        return Change.NONE if old.flags == new.flags else Change.FLAGS_ONLY

    def _keep(self, slot: int, held: Slot | None) -> None:
        """Notes the slot that the kernel has under that number, once it has answered."""
        if held is None:
            self._slots.pop(slot, None)
            self._room.pop(slot, None)
            self._bound.pop(slot, None)
        else:
            self._slots[slot] = held
            self._room[slot] = held.npages

    def _explain(self, call: Call, refused: KvmError, bound: Binding | None) -> MemslotError:
        """Returns the error of the rule that refused the call, or of the kernel's own reason."""
        verb = "set_region" if bound is None else "set_region2"
        by_rule = self._by_rule(refused, call, verb, *call, bound=bound)
        if by_rule:
            return by_rule
        reason = why_memfd(refused, bound, self._bound)
        if reason is None and refused.errno == errno.EEXIST:
            return overlaps_private(call, self._max_slots, self._private)
        return outside_of_rules(refused, call.slot, reason)

    def _by_rule(
        self,
        refused: KvmError,
        about: Call,
        verb: str,
        *args: object,
        bound: Binding | None = None,
    ) -> MemslotError | None:
        """Returns the error of a Memslots with these slots, or None unless its errno is the same.

        The Memslots gets the slots that matter to `about`: the slot with its id, slots in its
        place, and slots of guest_memfds.
        """
        try:
            twin = Memslots(**self.limits)
        except KvmError:  # no memory for another VM, say: then the error is not known
            return None
        own = StandIns()  # a file can belong to one Memslots only
        try:
            for number, held in list(self._slots.items()):  # a handler may close the VM
                if number == about.slot or about.overlaps(held) or held.guest_memfd is not None:
                    twin._create_slot(own.slot(held))
            if bound is not None:
                memfd = number_of(bound.memfd)[1]
                args += (bound.memfd if memfd is None else own.memfd(memfd), bound.offset)
            getattr(twin, verb)(*args)
        except MemslotError as error:
            if error.errno == refused.errno:
                return error
        return None

    # Dirty logs

    def get_dirty_log(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> bytearray:
        """Returns the pages of a slot that the guest or the kernel wrote: KVM_GET_DIRTY_LOG.

        Arguments, result and errors are those of `Memslots.get_dirty_log`.
        """
        number = _number(slot, as_id)
        with self._lock:
            if self._changing:
                raise busy("a dirty log of a KvmVM")
            self._changing = True
            try:
                bitmap = bytearray(8 * -(-self._room.get(number, 1) // 64))
                log = ioctls.DIRTY_LOG.pack(number, _address(bitmap))
                self._fd.ioctl("KVM_GET_DIRTY_LOG", ioctls.GET_DIRTY_LOG, log)
            except KvmClosedError:
                raise
            except KvmError as refused:
                error = self._by_rule(refused, Call(number), "get_dirty_log", slot, as_id)
                raise error or outside_of_rules(refused, number, why_log(refused)) from None
            finally:
                self._changing = False
            held = self._slots.get(number)
        if held is not None:
            del bitmap[8 * -(-held.npages // 64) :]
        return bitmap

    def clear_dirty_log(
        self,
        slot: SupportsIndex,
        first_page: SupportsIndex,
        num_pages: SupportsIndex,
        bitmap: ReadableBuffer,
        as_id: SupportsIndex = 0,
    ) -> None:
        """Clears part of a slot's dirty log: KVM_CLEAR_DIRTY_LOG.

        Arguments and errors are those of `Memslots.clear_dirty_log`. KvmUnavailableError if the
        kernel is older than 5.2, which has no such call.
        """
        number = _number(slot, as_id)
        first = field(first_page, "first_page", 64)
        pages = field(num_pages, "num_pages", 32)
        bits = bytearray(memoryview(bitmap))
        if not self.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2):
            needed = "clear_dirty_log"
            raise missing_capability("MANUAL_DIRTY_LOG_PROTECT2", needed, "Linux 5.2 or later")
        short = len(bits) < 8 * -(-pages // 64)
        # The kernel must not see a bitmap that is too short, since it would read past the end. It
        # still judges the other values.
        where = _NOWHERE if short else _address(bits)
        clear = ioctls.CLEAR_DIRTY_LOG.pack(number, pages, first, where)
        with self._lock:
            if self._changing:
                raise busy("a dirty log of a KvmVM")
            self._changing = True
            try:
                self._fd.ioctl("KVM_CLEAR_DIRTY_LOG", ioctls.CLEAR_DIRTY_LOG_OF_VM, clear)
            except KvmClosedError:
                raise
            except KvmError as refused:
                if short and refused.errno == errno.EFAULT:
                    refused = KvmError(errno.EINVAL, "a bitmap that is too short")
                args = slot, first, pages, bits, as_id
                error = self._by_rule(refused, Call(number), "clear_dirty_log", *args)
                raise error or outside_of_rules(refused, number, why_log(refused)) from None
            finally:
                self._changing = False

    # What x86 needs before the first vCPU

    def set_tss_addr(self, gpa: SupportsIndex) -> None:
        """Places the three pages that Intel's KVM keeps for itself: KVM_SET_TSS_ADDR."""
        address = field(gpa, "gpa", 64)
        self._fd.ioctl("KVM_SET_TSS_ADDR", ioctls.SET_TSS_ADDR, address)
        self._private[TSS] = Private("the TSS", address, 3)

    def set_identity_map_addr(self, gpa: SupportsIndex) -> None:
        """Places the one page that Intel's KVM keeps for itself: KVM_SET_IDENTITY_MAP_ADDR."""
        address = field(gpa, "gpa", 64)
        given = address.to_bytes(8, sys.byteorder)
        self._fd.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ioctls.SET_IDENTITY_MAP_ADDR, given)
        self._private[IDENTITY] = Private("the identity map", address or IDENTITY_MAP, 1)

    def create_irqchip(self) -> None:
        """Makes KVM emulate the interrupt controllers: KVM_CREATE_IRQCHIP."""
        self._fd.ioctl("KVM_CREATE_IRQCHIP", ioctls.CREATE_IRQCHIP)

    def create_vcpu(self, id: SupportsIndex = 0) -> KvmVcpu:
        """Creates a vCPU. Closing the VM closes it. The VM lasts as long as the vCPU.

        Raises
        ------
        KvmError
            EEXIST if there is a vCPU with this id, EINVAL if the id is out of range.
        """
        wanted = field(id, "id", 32)
        with self._lock:
            fd = self._fd.create("KVM_CREATE_VCPU", ioctls.CREATE_VCPU, wanted, "KvmVcpu")
            try:
                vcpu = KvmVcpu(fd, self._run_size, wanted, self.kept)
                self._vcpus.append(vcpu)
                if self._fd.closed:  # closed by a signal's handler
                    raise self._fd.closed_error()
            except BaseException:
                fd.close()
                raise
        return vcpu


def _number(slot: SupportsIndex, as_id: SupportsIndex) -> int:
    """Returns an id and its address space as one number.

    Values above 0xffff become 0xffff, which the kernel refuses.
    """
    most = 0xFFFF
    return slot_number(min(field(slot, "slot", 32), most), min(field(as_id, "as_id", 32), most))


def _address(memory: bytearray) -> int:
    """Returns the memory's address, valid as long as the bytearray is not resized."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) if memory else 0
