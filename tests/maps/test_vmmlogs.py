"""Reads programs of syzkaller with several VMs, as mails and documents print them."""

from __future__ import annotations

import io

from memslots.maps import read

PROGRAM = """\
r1 = ioctl$KVM_CREATE_VM(r0, 0xae01, 0x0)
r2 = dup(r1)
r3 = dup(r2)
r4 = ioctl$KVM_CREATE_VM(r0, 0xae01, 0x0)
ioctl$KVM_SET_USER_MEMORY_REGION(r3, 0x4020ae46,
&(0x7f0000000180)={0x0, 0x0, 0x0, 0x2000,
&(0x7f0000000000/0x2000)=nil})
ioctl$KVM_SET_USER_MEMORY_REGION(r4, 0x4020ae46, &(0x7f0000000400)={0x0, 0x0, 0x0, 0x3000, \
&(0x7f0000001000/0x3000)=nil}) (async)
ioctl$KVM_SET_USER_MEMORY_REGION(r1, AUTO, &AUTO={0x1ff, 0x2, 0x9000, AUTO, \
&(0x7f0000010000/0x1000)=nil})
ioctl$KVM_SET_USER_MEMORY_REGION(0xffffffffffffffff, 0x4020ae46, 0x0)
ioctl$KVM_SET_USER_MEMORY_REGION(0xffffffffffffffff, 0x4020ae46, &(0x7f0000000400)={0x5, 0x0, \
0x0, 0x4000, &(0x7f0000001000/0x4000)=nil})
ioctl$KVM_SET_USER_MEMORY_REGION(r1, 0x4020ae46, &(0x7f0000000400)={0x6, 0x4, 0x50000, 0x1000, \
&(0x7f0000001000/0x1000)=nil})
ioctl$KVM_SET_USER_MEMORY_REGION2(r4, 0x40a0ae49, &(0x7f0000000000)={0x10005, 0x4, 0x10000, \
0x2000, &(0x7f0000df0000/0x2000)=nil, 0x1000, r2})
"""


def test_the_vms_of_a_program() -> None:
    """A VM has the calls on its descriptors; those on -1, or with wrong flags, make no slot."""
    found = read("program", stream=io.BytesIO(PROGRAM.encode()))
    assert [(one.as_id, [(*entry[:3], entry.id) for entry in one]) for one in found] == [
        (0, [(0, 0x2000, "ram", 0), (0x9000, 0x1000, "rom", 0x1FF)]),
        (0, [(0, 0x3000, "ram", 0)]),
        (1, [(0x10000, 0x2000, "ram", 5)]),
    ]
