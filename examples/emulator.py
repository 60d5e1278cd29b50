"""The same memory under an emulator: a 16-bit guest on Unicorn, which needs no /dev/kvm.

    python examples/emulator.py

Slot 0 holds the guest's code and is READONLY. Slot 1 begins with an A and slot 2 with a B; both log
the guest's writes. The emulator maps a slot when the guest first touches it. It unmaps a slot that
is about to move or be deleted, as KVM does for a processor.
"""

from __future__ import annotations

from typing import Any

from unicorn import (
    UC_ARCH_X86,
    UC_ERR_WRITE_PROT,
    UC_HOOK_INSN,
    UC_HOOK_MEM_UNMAPPED,
    UC_HOOK_MEM_WRITE,
    UC_HOOK_MEM_WRITE_PROT,
    UC_MODE_16,
    UC_PROT_ALL,
    UC_PROT_WRITE,
    Uc,
    UcError,
)
from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_REG_IP

from memslots import PAGE_SHIFT, PAGE_SIZE, Backing, Change, Flags, GuestMemory, Memslots, Slot

# Real mode: an address is its segment * 16 + the offset, so ds = 0x1000 reaches gpa 0x10000.
GUEST = bytes.fromhex(
    "b8 00 10"  #    mov ax, 0x1000
    "8e d8"  #       mov ds, ax
    "a0 00 00"  #    mov al, [0]       ; A
    "e6 e9"  #       out 0xe9, al      ; print it
    "a2 00 10"  #    mov [0x1000], al  ; write to page 1
    "f4"  #          hlt               ; the VMM moves slot 1 to 0x20000
    "a2 00 20"  #    mov [0x2000], al  ; lost: no slot is here any more
    "b8 00 20"  #    mov ax, 0x2000
    "8e d8"  #       mov ds, ax
    "a0 00 00"  #    mov al, [0]       ; slot 1 is here now: A
    "e6 e9"  #       out 0xe9, al
    "a2 00 30"  #    mov [0x3000], al  ; write to page 3
    "e6 10"  #       out 0x10, al      ; ask the VMM to swap slots 1 and 2
    "a0 00 00"  #    mov al, [0]       ; slot 2 is here now: B
    "e6 e9"  #       out 0xe9, al
    "a2 00 20"  #    mov [0x2000], al  ; write to page 2
    "2e a2 00 00"  # mov cs:[0], al    ; READONLY: this ends the run
)


class Emulator:
    """A Unicorn with the slots of a Memslots as its memory, and the listener that keeps them."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.vm = memory.vm
        self.vcpu = self.vm.vcpu()  # has its own last-used slot
        self.mapped: set[int] = set()  # ids of the slots that Unicorn maps
        self.holes: set[int] = set()  # gpas of the pages without a slot that Unicorn maps
        self.uc = Uc(UC_ARCH_X86, UC_MODE_16)
        self.uc.hook_add(UC_HOOK_MEM_UNMAPPED, self.on_unmapped)
        self.uc.hook_add(UC_HOOK_MEM_WRITE, self.on_write)
        self.uc.hook_add(UC_HOOK_MEM_WRITE_PROT, self.on_write_to_readonly)
        self.uc.hook_add(UC_HOOK_INSN, self.on_out, None, 1, 0, UC_X86_INS_OUT)
        self.vm.subscribe(self)

    def run(self) -> None:
        """Runs the guest on until it halts. Raises UcError if the guest cannot go on."""
        self.uc.emu_start(self.uc.reg_read(UC_X86_REG_IP), len(GUEST))

    # Called by the Memslots. These methods map nothing: a change may still be refused, and a
    # transaction has its slots in place only at its end.

    def invalidate(self, slot: Slot) -> None:
        """Unmaps a slot that is about to move or be deleted."""
        if slot.id in self.mapped:
            self.uc.mem_unmap(slot.guest_phys_addr, slot.memory_size)
            self.mapped.remove(slot.id)

    def commit(self, change: Change, old: Slot | None, new: Slot | None) -> None:
        """Unmaps the pages without a slot: a slot may be there now."""
        for gpa in self.holes:
            self.uc.mem_unmap(gpa, PAGE_SIZE)
        self.holes.clear()

    # Called by Unicorn

    def on_unmapped(self, uc: Uc, kind: int, gpa: int, size: int, value: int, _: Any) -> bool:
        """Maps the unmapped page that the guest touches, and lets the guest try again."""
        slot = self.vcpu.lookup(gpa >> PAGE_SHIFT)
        if slot is None:
            page = gpa & -PAGE_SIZE
            uc.mmio_map(page, PAGE_SIZE, self.on_mmio_read, page, self.on_mmio_write, page)
            self.holes.add(page)
        else:
            rights = UC_PROT_ALL & ~(UC_PROT_WRITE if slot.flags & Flags.READONLY else 0)
            uc.mem_map_ptr(slot.guest_phys_addr, slot.memory_size, rights, slot.userspace_addr)
            self.mapped.add(slot.id)
        return True

    def on_mmio_read(self, uc: Uc, offset: int, size: int, page: int) -> int:
        """Answers a read outside all slots with ones, like a bus where no device answers."""
        print(f"VMM:   the guest reads {page + offset:#x}, where no slot is")
        return (1 << 8 * size) - 1

    def on_mmio_write(self, uc: Uc, offset: int, size: int, value: int, page: int) -> None:
        """Ignores a write outside all slots."""
        print(f"VMM:   the guest writes to {page + offset:#x}, where no slot is")

    def on_write(self, uc: Uc, kind: int, gpa: int, size: int, value: int, _: Any) -> None:
        """Marks the written pages dirty; only slots that log keep the mark."""
        self.memory.mark_dirty(gpa, size)

    def on_write_to_readonly(
        self, uc: Uc, kind: int, gpa: int, size: int, value: int, _: Any
    ) -> bool:
        """Ends the run at a write to a READONLY slot; else Unicorn would let the write happen."""
        print(f"VMM:   the guest writes to {gpa:#x}, which is READONLY")
        return False

    def on_out(self, uc: Uc, port: int, size: int, value: int, _: Any) -> None:
        """Does what the guest asks by a write to a port: prints a letter, or swaps the slots."""
        if port == 0xE9:
            print(f"guest: {chr(value)}")
        elif port == 0x10:
            with self.vm.transaction() as tx:
                one, two = self.vm[1].base_gfn, self.vm[2].base_gfn
                tx.move(1, two)
                tx.move(2, one)
            show(self.vm)


def show(vm: Memslots) -> None:
    """Prints where the slots are."""
    places = ", ".join(f"slot {slot.id} at {slot.guest_phys_addr:#x}" for slot in vm)
    print(f"VMM:   {places}")


def make_memory() -> GuestMemory:
    """Returns the guest's memory, with empty dirty logs."""
    vm = Memslots()
    memory = GuestMemory(vm)
    code = Backing.anonymous(0x1000)
    memoryview(code)[: len(GUEST)] = GUEST  # memory.write() is refused too if a slot is READONLY
    memory.place(0, 0x0, code, flags=Flags.READONLY)
    memory.place(1, 0x10000, Backing.anonymous(0x4000), flags=Flags.LOG_DIRTY_PAGES)
    memory.place(2, 0x30000, Backing.anonymous(0x4000), flags=Flags.LOG_DIRTY_PAGES)
    memory.write(0x10000, b"A")
    memory.write(0x30000, b"B")
    vm.take_dirty_runs()  # drop the marks of the VMM's own writes, to see only the guest's
    return memory


def main() -> None:
    """Runs the guest in two parts, and moves a slot between them."""
    memory = make_memory()
    vm = memory.vm
    emulator = Emulator(memory)
    show(vm)
    emulator.run()
    vm.move(1, 0x20)  # to gpa 0x20000
    show(vm)
    try:
        emulator.run()
    except UcError as error:
        if error.errno != UC_ERR_WRITE_PROT:
            raise
    for written in vm.take_dirty_runs():
        print(f"VMM:   the guest wrote to gfn [{written.start_gfn:#x}, {written.end_gfn:#x})")
    # The guest wrote the A at 0x11000, and it moved with slot 1.
    print(f"VMM:   at 0x31000 is {memory.read(0x31000, 1).decode()}")


if __name__ == "__main__":
    main()
