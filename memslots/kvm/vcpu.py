"""A virtual processor of /dev/kvm: its registers, and the calls that run it."""

from __future__ import annotations

import errno
import mmap
import signal
import threading
from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from memslots.errors import KvmError
from memslots.kvm import ioctls
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
from memslots.kvm.fd import Answer, Fd
from memslots.values.integers import field

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory
    from memslots.memory.mmio import Mmio

_IO, _HLT, _MMIO, _SHUTDOWN, _FAIL_ENTRY, _INTR = 2, 5, 6, 8, 9, 10
_INTERNAL_ERROR, _SYSTEM_EVENT, _MEMORY_FAULT = 17, 24, 39


def _check_memory(given: object) -> None:
    # Imported here: a vCPU that runs without devices needs no GuestMemory.
    from memslots.memory.guestmemory import GuestMemory

    if not isinstance(given, GuestMemory):
        raise TypeError(f"memory must be a GuestMemory, not {type(given).__name__!r}")


class KvmVcpu:
    """A virtual processor. Made by `KvmVM.create_vcpu`; a context manager that closes it.

    One thread at a time may run it. Any thread may call `request_exit`. Its registers are those of
    x86. `id` is its number.
    """

    def __init__(self, fd: Fd, run_size: int, id: int, kept: Callable[[], object]) -> None:
        self.id = id
        self._kept = kept  # a method of the VM: keeps the VM as long as the vCPU
        self._fd = fd
        # The memory that it shares with the kernel; None if it is closed. Each user holds a
        # reference.
        self._run: mmap.mmap | None = mmap.mmap(fd.fileno(), run_size)
        self._answer: slice | None = None  # the place in _run of the data that the guest reads
        self._runner: int | None = None  # the thread that is in run_once
        self._runs = 0  # how often the guest has begun to run; written with _runner
        # A runner does not leave run_once while this is held. A signal's handler may take it a
        # second time.
        self._runner_lock = threading.RLock()

    def __enter__(self) -> KvmVcpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KvmVcpu cannot be pickled or copied: it belongs to its KvmVM")

    def __repr__(self) -> str:
        return f"<KvmVcpu {self.id}{': closed' if self._fd.closed else ''}>"

    def close(self) -> None:
        """Closes the vCPU. Closing again does nothing."""
        self._run = None
        self._fd.close()
        self._kept = list  # the VM refers to the vCPU: this breaks the cycle

    def fileno(self) -> int:
        """Returns the descriptor's number, for ioctls that this binding does not have."""
        return self._fd.fileno()

    # Registers

    def get_regs(self) -> dict[str, int]:
        """Returns the general registers by name: rax ... r15, rip, rflags."""
        return self._get("KVM_GET_REGS", ioctls.GET_REGS, ioctls.REGS, ioctls.REGS_NAMES)

    def set_regs(self, **registers: SupportsIndex) -> None:
        """Sets some of the registers that `get_regs` returns. TypeError for any other name."""
        values = self.get_regs()
        self._set("KVM_SET_REGS", ioctls.SET_REGS, ioctls.REGS, values, registers)

    def get_sregs(self) -> dict[str, int]:
        """Returns the special registers: `cs_base`, `cs_limit`, ..., `cr0`, `efer`, ...

        Each segment (cs ds es fs gs ss tr ldt) has base, limit, selector, type, present, dpl, db,
        s, l, g, avl and unusable. gdt and idt have base and limit.
        """
        return self._get("KVM_GET_SREGS", ioctls.GET_SREGS, ioctls.SREGS, ioctls.SREGS_NAMES)

    def set_sregs(self, **registers: SupportsIndex) -> None:
        """Sets some of the registers that `get_sregs` returns. TypeError for any other name.

        KvmError (EINVAL) for values that no processor can have together.
        """
        values = self.get_sregs()
        self._set("KVM_SET_SREGS", ioctls.SET_SREGS, ioctls.SREGS, values, registers)

    def _get(
        self, name: str, request: int, struct: Struct, names: tuple[str, ...]
    ) -> dict[str, int]:
        values = bytearray(struct.size)
        self._fd.ioctl(name, request, values)
        return dict(zip(names, struct.unpack(values), strict=True))

    def _set(
        self,
        name: str,
        request: int,
        struct: Struct,
        values: dict[str, int],
        changes: dict[str, SupportsIndex],
    ) -> None:
        if unknown := changes.keys() - values.keys():
            raise TypeError(f"there is no register {sorted(unknown)[0]!r}")
        for register, value in changes.items():
            values[register] = field(value, register, ioctls.REGISTER_BITS[register])
        self._fd.ioctl(name, request, struct.pack(*values.values()))

    def get_msr(self, index: SupportsIndex) -> int:
        """Returns a model-specific register. KvmError (EINVAL) if KVM has none of this number."""
        index = field(index, "index", 32)
        msr = bytearray(ioctls.ONE_MSR.pack(1, index, 0))
        if self._fd.ioctl("KVM_GET_MSRS", ioctls.GET_MSRS, msr) != 1:
            raise KvmError(errno.EINVAL, f"KVM_GET_MSRS: KVM refuses to read MSR {index:#x}")
        _, _, value = ioctls.ONE_MSR.unpack(msr)
        return int(value)

    def set_msr(self, index: SupportsIndex, value: SupportsIndex) -> None:
        """Writes a model-specific register. KvmError (EINVAL) if KVM refuses it."""
        index, value = field(index, "index", 32), field(value, "value", 64)
        msr = ioctls.ONE_MSR.pack(1, index, value)
        if self._fd.ioctl("KVM_SET_MSRS", ioctls.SET_MSRS, msr) != 1:
            text = f"KVM_SET_MSRS: KVM refuses to write {value:#x} to MSR {index:#x}"
            raise KvmError(errno.EINVAL, text)

    # Running

    def run(self, memory: GuestMemory | None = None) -> Iterator[Exit]:
        """Runs the guest and yields each exit; goes on when the next exit is asked for.

        It never ends by itself: leave the loop. Other Python threads run meanwhile. Python handles
        a signal, and the guest goes on. If the signal's handler raises (KeyboardInterrupt), another
        call can run the guest again.

        Parameters
        ----------
        memory : GuestMemory, optional
            Its `on_mmio` functions answer accesses: a MmioExit that one of them takes is not
            yielded. An exception of a function is raised here.

        Yields
        ------
        Exit

        Raises
        ------
        TypeError
            memory is not a GuestMemory.
        KvmError
            The kernel refuses to run the guest.
        KvmClosedError
            The vCPU is closed, or was closed while it ran.
        """
        mmio = None
        if memory is not None:
            _check_memory(memory)  # before the guest runs
        while True:
            exit = self.run_once()
            if memory is not None:
                mmio = memory._mmio()
            if mmio is None or not isinstance(exit, MmioExit) or not self._answered(mmio, exit):
                yield exit

    def _answered(self, mmio: Mmio, exit: MmioExit) -> bool:
        """Returns whether a device took the access."""
        if exit.write:
            return mmio.write(exit.gpa, exit.size, int.from_bytes(exit.data, "little"), 0)
        value = mmio.read(exit.gpa, exit.size, 0)
        if value is None:
            return False
        self.answer(value.to_bytes(exit.size, "little"))
        return True

    def run_once(self) -> Exit:
        """Runs the guest until its next exit."""
        run = self._shared()
        self._answer = None
        # If another thread closes the VM, the guest's memory is still needed until this returns.
        _kept = self._kept()
        try:
            with self._runner_lock:
                self._runs += 1
                self._runner = threading.get_ident()
            while not self._fd.ioctl_once("KVM_RUN", ioctls.RUN, 0, Answer()):
                if self._fd.closed:
                    raise self._fd.closed_error()
                # A request that comes now is not lost: the next KVM_RUN returns at once.
                if run[ioctls.RUN_IMMEDIATE_EXIT]:
                    run[ioctls.RUN_IMMEDIATE_EXIT] = 0
                    return InterruptedExit()
        except KvmError as error:
            if self._fd.closed:
                raise
            (reason,) = ioctls.RUN_EXIT_REASON.unpack_from(run)
            if error.errno != errno.EFAULT or reason != _MEMORY_FAULT:
                raise
        finally:
            with self._runner_lock:
                self._runner = None
        if self._fd.closed:
            raise self._fd.closed_error()
        return self._take(run)

    def runs(self) -> int | None:
        """Returns how often the guest has begun to run, or None while it runs."""
        with self._runner_lock:
            return self._runs if self._runner is None else None

    def request_exit(self, signum: int | None = None) -> None:
        """Makes `run` yield an InterruptedExit, at the latest when the guest exits next.

        Parameters
        ----------
        signum : int, optional
            A signal that the process handles (signal.signal). It is sent to the thread that runs
            the guest, if there is one. Nothing else stops a guest that does not exit by itself.

        Raises
        ------
        KvmClosedError
            The vCPU is closed, and no thread runs it any more.
        """
        run = self._run
        if run is not None:
            run[ioctls.RUN_IMMEDIATE_EXIT] = 1
        with self._runner_lock:
            running = self._runner
            if signum is not None and running is not None:
                signal.pthread_kill(running, signum)
        if run is None and running is None:
            raise self._fd.closed_error()

    def answer(self, data: bytes) -> None:
        """Answers the guest's read, after an IoExit or a MmioExit that is not a write.

        Parameters
        ----------
        data : bytes
            size * count bytes for an IoExit, size bytes for a MmioExit, little-endian. Without an
            answer the guest reads ones, as from a bus where no device answers.

        Raises
        ------
        ValueError
            The last exit was not a read, or is of another size.
        """
        if self._answer is None:
            raise ValueError("the guest is not reading anything")
        length = self._answer.stop - self._answer.start
        content = memoryview(data).tobytes()
        if len(content) != length:
            raise ValueError(f"the guest reads {length} bytes, not {len(content)}")
        self._shared()[self._answer] = content

    def _shared(self) -> mmap.mmap:
        run = self._run
        if run is None:
            raise self._fd.closed_error()
        return run

    def _reads(self, run: mmap.mmap, at: int, length: int) -> None:
        self._answer = slice(at, at + length)
        run[self._answer] = b"\xff" * length

    def _take(self, run: mmap.mmap) -> Exit:
        """Returns the exit that the kernel reported."""
        (reason,) = ioctls.RUN_EXIT_REASON.unpack_from(run)
        if reason == _IO:
            out, size, port, count, at = ioctls.EXIT_IO.unpack_from(run, ioctls.RUN_EXIT)
            if out:
                return IoExit(port, size, count, True, run[at : at + size * count])
            self._reads(run, at, size * count)
            return IoExit(port, size, count, False, b"")
        if reason == _MMIO:
            gpa, data, size, write = ioctls.EXIT_MMIO.unpack_from(run, ioctls.RUN_EXIT)
            if write:
                return MmioExit(gpa, size, True, data[:size])
            self._reads(run, ioctls.RUN_EXIT + ioctls.EXIT_MMIO_DATA, size)
            return MmioExit(gpa, size, False, b"")
        if reason == _HLT:
            return HltExit()
        if reason == _SHUTDOWN:
            return ShutdownExit()
        if reason == _INTERNAL_ERROR:
            suberror, count, *data = ioctls.EXIT_INTERNAL_ERROR.unpack_from(run, ioctls.RUN_EXIT)
            return InternalErrorExit(suberror, tuple(data[: min(count, len(data))]))
        if reason == _FAIL_ENTRY:
            return FailEntryExit(ioctls.EXIT_FAIL_ENTRY.unpack_from(run, ioctls.RUN_EXIT)[0])
        if reason == _SYSTEM_EVENT:
            return SystemEventExit(ioctls.EXIT_SYSTEM_EVENT.unpack_from(run, ioctls.RUN_EXIT)[0])
        if reason == _MEMORY_FAULT:
            flags, gpa, size = ioctls.EXIT_MEMORY_FAULT.unpack_from(run, ioctls.RUN_EXIT)
            return MemoryFaultExit(gpa, size, flags)
        return InterruptedExit() if reason == _INTR else OtherExit(reason)
