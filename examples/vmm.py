"""A small virtual machine monitor: a 16-bit guest on /dev/kvm, its memory moved while it runs.

    python examples/vmm.py

Slot 0 holds the guest's code. Slot 1 begins with an A and slot 2 with a B; both log the guest's
writes. The guest prints the letters that it finds, on a serial port, while the slots move.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from memslots import Backing, Flags, GuestMemory, KvmUnavailableError, Memslots
from memslots.kvm import HltExit, InterruptedExit, IoExit, KvmVcpu, KvmVM, MmioExit

COUNTER = 0x800  # a gpa
SERIAL = 0xE0000  # the gpa of the serial port's registers; no slot is there

# Real mode: an address is its segment * 16 + the offset, so ds = 0x1000 reaches gpa 0x10000.
GUEST = bytes.fromhex(
    "b8 00 e0"  #           mov ax, 0xe000
    "8e c0"  #              mov es, ax            ; es is the serial port
    "b8 00 10"  #           mov ax, 0x1000
    "8e d8"  #              mov ds, ax
    "a0 00 00"  #           mov al, [0]           ; A
    "e8 29 00"  #           call print
    "2e ff 06 00 08"  # spin: inc word cs:[0x800] ; gpa 0x800, in slot 0
    "80 3e 00 00 ff"  #     cmp byte [0], 0xff    ; the answer of a bus without a device
    "75 f4"  #              jne spin              ; until slot 1 is gone
    "b8 00 20"  #           mov ax, 0x2000
    "8e d8"  #              mov ds, ax
    "a0 00 00"  #           mov al, [0]           ; slot 1 is here now: A
    "e8 12 00"  #           call print
    "a2 00 10"  #           mov [0x1000], al      ; write to its page 1
    "e6 10"  #              out 0x10, al          ; ask the VMM to swap slots 1 and 2
    "a0 00 00"  #           mov al, [0]           ; slot 2 is here now: B
    "e8 07 00"  #           call print
    "a2 00 20"  #           mov [0x2000], al      ; write to its pages 2 and 3
    "a2 00 30"  #           mov [0x3000], al
    "f4"  #                 hlt
    "26 f6 06 05 00 20"  # print: test byte es:[5], 0x20
    "74 f8"  #              jz print              ; until the port can take a byte
    "26 a2 00 00"  #        mov es:[0], al
    "c3"  #                 ret
)


class Serial:
    """The sending half of a 16550 serial port: data at offset 0, line status at offset 5."""

    def read(self, gpa: int, size: int) -> int:
        """Answers a read of a register."""
        return 0x20 if gpa == SERIAL + 5 else 0  # 0x20: it can take a byte

    def write(self, gpa: int, size: int, value: int) -> None:
        """Takes a write to a register."""
        if gpa == SERIAL:
            print(f"guest: {chr(value)}")


def show(vm: Memslots) -> None:
    """Prints where the slots are."""
    places = ", ".join(f"slot {slot.id} at {slot.guest_phys_addr:#x}" for slot in vm)
    print(f"VMM:   {places}")


def run(vcpu: KvmVcpu, memory: GuestMemory, moving: threading.Lock) -> None:
    """Runs the guest until it halts, and does what it asks for."""
    vm = memory.vm
    for reason in vcpu.run(memory):  # the serial port's exits do not come here
        match reason:
            case IoExit(port=0x10, write=True):
                # Readers of `vm` see both moves or neither. The kernel gets one call after another,
                # but the guest does not run meanwhile.
                with vm.transaction() as tx:
                    one, two = vm[1].base_gfn, vm[2].base_gfn
                    tx.move(1, two)
                    tx.move(2, one)
                show(vm)
            case MmioExit(gpa=gpa, write=False):
                # KVM removes a slot before it puts it elsewhere, so a running guest may find no
                # slot. This guest goes on when the move is done.
                with moving:
                    print(f"VMM:   the guest reads {gpa:#x}, where no slot is")
                # No device answered and vcpu.answer() was not called: the guest reads ones.
            case HltExit() | InterruptedExit():
                return
            case _:
                raise RuntimeError(f"the guest cannot go on: {reason}")


def monitor(kvm: KvmVM) -> None:
    """Makes the guest's memory and its vCPU, and moves the memory while the vCPU runs."""
    vm = Memslots(backend=kvm)  # makes every change in the kernel too, or not at all
    memory = GuestMemory(vm)
    memory.place(0, 0x0, Backing.anonymous(0x1000))
    memory.place(1, 0x10000, Backing.anonymous(0x4000), flags=Flags.LOG_DIRTY_PAGES)
    memory.place(2, 0x30000, Backing.anonymous(0x4000), flags=Flags.LOG_DIRTY_PAGES)
    serial = Serial()
    memory.on_mmio(SERIAL, SERIAL + 8, read=serial.read, write=serial.write)
    memory.write(0x0, GUEST)
    memory.write(0x10000, b"A")
    memory.write(0x30000, b"B")
    vm.take_dirty_runs()  # drop the marks of the VMM's own writes, to see only the guest's
    show(vm)

    kvm.set_tss_addr(0x4000_0000)  # KVM needs three pages there for real mode on older Intel CPUs
    vcpu = kvm.create_vcpu()
    vcpu.set_sregs(cs_base=0, cs_selector=0)
    vcpu.set_regs(rip=0, rsp=0x1000, rflags=2)  # the stack is at the end of slot 0

    # KVM_RUN releases the GIL, so the guest runs in its own thread. A handled signal interrupts
    # KVM_RUN.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    with ThreadPoolExecutor(1) as pool:
        moving = threading.Lock()
        guest = pool.submit(run, vcpu, memory, moving)
        try:
            while not guest.done() and memory.read_u16(COUNTER) == 0:
                time.sleep(0.001)
            with moving:
                vm.move(1, 0x20)  # to gpa 0x20000, while the guest counts
                show(vm)
            guest.result()
        except BaseException:
            vcpu.request_exit(signal.SIGUSR1)
            raise

    for written in vm.take_dirty_runs():
        print(f"VMM:   the guest wrote to gfn [{written.start_gfn:#x}, {written.end_gfn:#x})")
    # The guest wrote the A at 0x21000, and it moved with slot 1.
    print(f"VMM:   at 0x31000 is {memory.read(0x31000, 1).decode()}")


def main() -> int:
    """Runs the example. Returns the process's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="/dev/kvm", help="KVM's device, /dev/kvm")
    arguments = parser.parse_args()
    try:
        with KvmVM(device=arguments.device) as kvm:
            monitor(kvm)
    except KvmUnavailableError as error:
        print(error.strerror, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
