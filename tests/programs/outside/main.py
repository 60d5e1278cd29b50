"""Asks outside.pyx, the example of docs/reference.md, for the answers of a Memslots."""

from array import array

import outside

import memslots
from memslots import AddressSpace, Memslots, Vcpu


def walk(reader: Memslots | AddressSpace | Vcpu) -> list[int]:
    bases = array("Q", [0] * 10)
    return list(bases[: outside.walk(reader, bases)])


vm = Memslots(address_spaces=2)
vm.create(7, base_gfn=0x100, npages=64, userspace_addr=0x7F00_0000_0000)
vm.create(3, base_gfn=0x10, npages=8, userspace_addr=0x7F00_0000_0000)
vm.create(1, base_gfn=0x100, npages=1, userspace_addr=0x7E00_0000_0000, as_id=1)

for reader in (vm, vm.address_space(0), vm.vcpu()):
    assert walk(reader) == [0x10, 0x100]
    for gfn in (0xF, 0x10, 0x17, 0x18, 0xFF, 0x100, 0x13F, 0x140, 2**64 - 1):
        slot = reader.lookup(gfn)
        assert outside.page_hva(reader, gfn) == (slot.gfn_to_hva(gfn) if slot else memslots.BAD_HVA)
assert walk(vm.address_space(1)) == walk(vm.vcpu(as_id=1)) == [0x100]

vm.move(7, base_gfn=0x200)
vm.delete(3)
assert walk(vm) == [0x200]
assert outside.page_hva(vm, 0x201) == 0x7F00_0000_1000

try:
    walk("a machine")  # type: ignore[arg-type]
except TypeError:
    print("done")
