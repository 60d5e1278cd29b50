"""Helpers for the tests of replays: lines of a trace, and the sums of a report."""

from __future__ import annotations

from memslots.replay import Report, VmReport


def check(report: Report) -> None:
    for vm in report.vms:
        vm.memslots.check()


Row = tuple[int, int, int, int, int, int]  # as_id, id, gpa, size, hva, flags


def rows(vm: VmReport) -> list[Row]:
    return [
        (s.as_id, s.id, s.guest_phys_addr, s.memory_size, s.userspace_addr, int(s.flags))
        for s in vm.final_map
    ]


# --- short traces


def qemu(
    slot: int,
    flags: int,
    gpa: int,
    size: int,
    ua: int = 0x7F0000000000,
    ret: int = 0,
    pre: str = "",
) -> str:
    return (
        f"{pre}kvm_set_user_memory Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} "
        f"ua={ua:#x} ret={ret}\n"
    )


CREATE = qemu(0, 0, 0, 0x10000)


def strace(tid: int, fd: int, slot: int, gpa: int, size: int, ua: int, result: str = "0") -> str:
    return (
        f"{tid}  ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, "
        f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={ua:#x}}}) = {result}\n"
    )
