"""A small virtual machine monitor: a 16-bit guest on /dev/kvm, its memory moved while it runs.

    python examples/vmm.py

Slot 0 holds the guest's code. Slot 1 begins with an A, slot 2 with a B, and what the guest writes
to them is logged. The guest prints the letters that it finds, wherever the slots are by then.
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

# Real mode: an address is its segment * 16 + the offset, so ds = 0x1000 reaches gpa 0x10000.
GUEST = bytes.fromhex(
    "b8 00 10"  #           mov ax, 0x1000
    "8e d8"  #              mov ds, ax
    "a0 00 00"  #           mov al, [0]           ; A
    "e6 e9"  #              out 0xe9, al          ; print it
    "2e ff 06 00 08"  # spin: inc word cs:[0x800] ; gpa 0x800, in slot 0
    "80 3e 00 00 ff"  #     cmp byte [0], 0xff    ; what a bus gives where nobody answers
    "75 f4"  #              jne spin              ; until slot 1 is not there any more
    "b8 00 20"  #           mov ax, 0x2000
    "8e d8"  #              mov ds, ax
    "a0 00 00"  #           mov al, [0]           ; slot 1 is here now: A
    "e6 e9"  #              out 0xe9, al
    "a2 00 10"  #           mov [0x1000], al      ; write to its page 1
    "e6 10"  #              out 0x10, al          ; ask the VMM for the trade
    "a0 00 00"  #           mov al, [0]           ; slot 2 is here now: B
    "e6 e9"  #              out 0xe9, al
    "a2 00 20"  #           mov [0x2000], al      ; write to its pages 2 and 3
    "a2 00 30"  #           mov [0x3000], al
    "f4"  #                 hlt
)


def show(vm: Memslots) -> None:
    """Print where the slots are."""
    places = ", ".join(f"slot {slot.id} at {slot.guest_phys_addr:#x}" for slot in vm)
    print(f"VMM:   {places}")


def run(vcpu: KvmVcpu, vm: Memslots, moving: threading.Lock) -> None:
    """Run the guest until it halts, and do what it asks for."""
    for reason in vcpu.run():
        match reason:
            case IoExit(port=0xE9, write=True, data=data):
                print(f"guest: {data.decode()}")
            case IoExit(port=0x10, write=True):
                # Readers of `vm` see both moves or neither. The kernel is told slot by slot; the
                # guest does not run meanwhile.
                with vm.transaction() as tx:
                    one, two = vm[1].base_gfn, vm[2].base_gfn
                    tx.move(1, two)
                    tx.move(2, one)
                show(vm)
            case MmioExit(gpa=gpa, write=False):
                # KVM takes a slot away before it puts it elsewhere. A guest that runs can see it
                # nowhere; this one goes on when the move is done.
                with moving:
                    print(f"VMM:   the guest reads {gpa:#x}, where no slot is")
                # A device would call vcpu.answer(). Nobody does, so the guest reads ones.
            case HltExit() | InterruptedExit():
                return
            case _:
                raise RuntimeError(f"the guest cannot go on: {reason}")


def monitor(kvm: KvmVM) -> None:
    """Make the guest's memory and its vCPU, and move the memory while the vCPU runs."""
    vm = Memslots(backend=kvm)  # every change is made in the kernel too, or not at all
    memory = GuestMemory(vm)
    memory.place(0, 0x0, Backing.anonymous(0x1000))
    memory.place(1, 0x10000, Backing.anonymous(0x4000), flags=Flags.LOG_DIRTY_PAGES)
    memory.place(2, 0x30000, Backing.anonymous(0x4000), flags=Flags.LOG_DIRTY_PAGES)
    memory.write(0x0, GUEST)
    memory.write(0x10000, b"A")
    memory.write(0x30000, b"B")
    vm.take_dirty_runs()  # what the VMM writes is marked as well: only the guest is to be seen
    show(vm)

    kvm.set_tss_addr(0x4000_0000)  # older Intel processors keep three pages there for real mode
    vcpu = kvm.create_vcpu()
    vcpu.set_sregs(cs_base=0, cs_selector=0)
    vcpu.set_regs(rip=0, rflags=2)

    # KVM_RUN lets the GIL go, so the guest has a thread of its own. A signal that is handled gets
    # it out of there.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    with ThreadPoolExecutor(1) as pool:
        moving = threading.Lock()
        guest = pool.submit(run, vcpu, vm, moving)
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
    # The A was written at 0x21000, and went with slot 1.
    print(f"VMM:   at 0x31000 is {memory.read(0x31000, 1).decode()}")


def main() -> int:
    """Run it; the process's status."""
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
