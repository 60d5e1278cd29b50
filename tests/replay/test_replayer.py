"""Replays short traces: refusals, gaps, limits, machines."""

from __future__ import annotations

import gc
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replays import CREATE, Row, check, qemu, rows, strace

from memslots.replay import Report, VmReport, replay
from memslots.traces import TraceError, open_trace


def replay_text(text: str) -> Report:
    with open_trace("trace", "auto", io.BytesIO(text.encode())) as trace:
        report = replay(trace)
    check(report)
    return report


def one_vm(text: str) -> VmReport:
    (vm,) = replay_text(text).vms
    return vm


def test_every_change_and_every_refusal_that_agrees() -> None:
    vm = one_vm(
        CREATE
        + qemu(0, 0, 0, 0x10000)  # nothing differs
        + qemu(0, 1, 0, 0x10000)  # flags
        + qemu(0, 1, 0x20000, 0x10000)  # move
        + qemu(1, 0, 0x28000, 0x10000, ret=-17)  # overlap
        + qemu(1, 4, 0, 0x1000, ret=-22)  # unknown flag
        + qemu(9, 0, 0, 0, ret=-22)  # no such slot
        + qemu(0, 0, 0, 0)  # delete
    )
    assert vm.disagreements == []
    assert vm.operations == {"CREATE": 1, "NONE": 1, "FLAGS_ONLY": 1, "MOVE": 1, "DELETE": 1}
    assert vm.refused == {"EEXIST": 1, "EINVAL": 2}
    assert (vm.calls, vm.most_slots, vm.final_map) == (8, 1, [])


def test_a_refusal_outside_of_the_rules_is_not_made() -> None:
    vm = one_vm(CREATE + qemu(1, 0, 0x10000, 0x1000, ret=-12) + qemu(1, 0, 0x10000, 0x1000, ret=-4))
    assert (vm.disagreements, vm.outside) == ([], 2)
    assert vm.refused == {"ENOMEM": 1, "EINTR": 1}
    assert len(vm.final_map) == 1


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (qemu(1, 0, 0x20000, 0x1000, ret=-17), "CREATE"),
        (qemu(0, 0, 0, 0, ret=-22), "DELETE"),
        (qemu(0, 1, 0, 0x10000, ret=-22), "FLAGS_ONLY"),
        (qemu(0, 1, 0x8000, 0x10000, ret=-22), "MOVE"),
        (qemu(0, 0, 0, 0x10000, ret=-22), "NONE"),
    ],
)
def test_refused_by_the_kernel_alone(call: str, kind: str) -> None:
    report = replay_text(CREATE + call)
    assert not report.agree
    (vm,) = report.vms
    (found,) = vm.disagreements
    assert (found.call.line, found.ours) == (2, 0)
    assert found.recorded in (17, 22)
    assert kind in found.why
    assert found.followed == f"the {kind} was undone"
    assert rows(vm) == [(0, 0, 0, 0x10000, 0x7F0000000000, 0)]
    assert vm.operations == {"CREATE": 1}
    assert vm.gaps == []


@pytest.mark.parametrize(
    ("call", "ours", "followed", "final"),
    [
        # The call overlaps slot 0, so slot 0 must have gone.
        (
            qemu(1, 0, 0x8000, 0x10000),
            17,
            "slot 0 dropped, then CREATE",
            [(0, 1, 0x8000, 0x10000, 0x7F0000000000, 0)],
        ),
        # The size differs, so the slot must have been deleted and created anew.
        (
            qemu(0, 0, 0, 0x8000),
            22,
            "slot 0 dropped, then CREATE",
            [(0, 0, 0, 0x8000, 0x7F0000000000, 0)],
        ),
        (qemu(5, 0, 0, 0), 22, "there was nothing to delete", None),
        # Flags of a newer kernel, with others or alone; in the way of existing slots.
        (
            qemu(5, 9, 0x40000, 0x1000),
            22,
            "CREATE without flags 0x8",
            [(0, 0, 0, 0x10000, 0x7F0000000000, 0), (0, 5, 0x40000, 0x1000, 0x7F0000000000, 1)],
        ),
        (qemu(0, 8, 0, 0x10000), 22, "NONE without flags 0x8", None),
        (
            qemu(5, 8, 0, 0x1000),
            22,
            "slot 0 dropped, then CREATE without flags 0x8",
            [(0, 5, 0, 0x1000, 0x7F0000000000, 0)],
        ),
    ],
)
def test_refused_by_us_alone(call: str, ours: int, followed: str, final: list[Row] | None) -> None:
    (vm,) = replay_text(CREATE + call).vms
    (found,) = vm.disagreements
    assert (found.recorded, found.ours, found.followed) == (0, ours, followed)
    assert "rule" in found.why
    assert rows(vm) == (final or [(0, 0, 0, 0x10000, 0x7F0000000000, 0)])


def test_both_refuse_for_different_reasons() -> None:
    vm = one_vm(CREATE + qemu(1, 0, 0x8000, 0x10000, ret=-22))
    (found,) = vm.disagreements
    assert (found.recorded, found.ours) == (22, 17)
    assert found.followed == "both refuse it: nothing changed"


def test_no_gap_where_a_dropped_slot_was_replaced() -> None:
    vm = one_vm(CREATE + qemu(1, 0, 0x8000, 0x10000) + qemu(2, 0, 0, 0x8000))
    assert [(g.base_gfn, g.end_gfn, g.opened_line, g.closed_line) for g in vm.gaps] == [
        (0, 8, 2, 3)
    ]


def test_a_move_leaves_a_gap_only_where_it_went_from() -> None:
    vm = one_vm(CREATE + qemu(0, 0, 0x8000, 0x10000) + qemu(0, 0, 0, 0x10000))
    assert [(g.base_gfn, g.end_gfn) for g in vm.gaps] == [(0, 8)]


def test_gaps_of_two_spaces_are_two() -> None:
    high = 1 << 16
    vm = one_vm(
        CREATE
        + qemu(high, 0, 0, 0x10000)
        + qemu(0, 0, 0, 0)
        + qemu(high, 0, 0, 0)
        + qemu(high, 0, 0, 0x1000)
        + qemu(1, 0, 0x1000, 0x1000)
    )
    assert vm.memslots.address_spaces == 2
    assert [(g.as_id, g.base_gfn, g.npages, g.opened_line) for g in vm.gaps] == [
        (1, 0, 1, 4),
        (0, 1, 1, 3),
    ]
    assert [row[:2] for row in rows(vm)] == [(0, 1), (1, 0)]


def private(slot: int, gpa: int, size: int, file: int, offset: int, ret: int = 0) -> str:
    memfd = f" guest_memfd={file} guest_memfd_offset={offset:#x} ret="
    return qemu(slot, 4, gpa, size, ret=ret).replace(" ret=", memfd)


def test_guest_memfd() -> None:
    """G5 and G7; a number that names another file later; the errno of a kernel since 7.2."""
    report = replay_text(
        private(0, 0, 0x10000, 9, 0)
        + private(0, 0x100000, 0x10000, 9, 0, ret=-22)
        + private(1, 0x20000, 0x10000, 9, 0x8000, ret=-22)
        + private(2, 0x20000, 0x10000, 9, 0x8000, ret=-17)
        + private(3, 0x20000, 0x10000, 10, 0x8000)
        + private(4, 0x40000, 0x10000, 9, 0)
        + qemu(0, 0, 0, 0)
    )
    assert report.agree
    (vm,) = report.vms
    assert [(slot.id, slot.guest_memfd_offset) for slot in vm.memslots] == [(3, 0x8000), (4, 0)]
    assert report.notes == ["6 calls name a guest_memfd"]


def test_what_no_kernel_with_guest_memfd_does() -> None:
    """It is followed, with the file if that is possible."""
    report = replay_text(
        private(0, 0, 0x10000, 9, 0).replace("flags=0x4", "flags=0x5")
        + private(1, 0x10000, 0x10000, 9, 1)
        + private(1, 0x20000, 0x10000, 9, 0x10000)
    )
    (vm,) = report.vms
    assert [each.followed for each in vm.disagreements] == [
        "CREATE without its guest_memfd",
        "CREATE without its guest_memfd",
        "slot 1 dropped, then CREATE",
    ]
    assert [int(slot.flags) for slot in vm.memslots] == [1, 4]


def test_a_guest_memfd_of_which_no_part_is_named() -> None:
    text = qemu(0, 4, 0, 0x10000)  # as QEMU 9.0 prints it
    report = replay_text(text)
    assert report.agree
    assert rows(report.vms[0]) == [(0, 0, 0, 0x10000, 0x7F0000000000, 0)]
    assert report.notes == [
        "1 call names a guest_memfd; replayed without the file, because the range is not known: 1"
    ]


def test_host_addresses_of_other_machines() -> None:
    """arm64 has 48 bits of user space; addresses beyond them are still refused."""
    vm = one_vm(
        qemu(0, 0, 0, 0x1000, ua=0xFFFF_8000_0000) + qemu(1, 0, 0x1000, 0x1000, 1 << 60, -22)
    )
    assert vm.disagreements == []
    assert vm.memslots.max_hva == 1 << 48


CAP = "100  ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_{}) = {}\n"
BORN = "100  ioctl(3, KVM_CREATE_VM, 0) = 8\n"


def test_limits_from_the_capabilities() -> None:
    text = (
        BORN
        + CAP.format("NR_MEMSLOTS", 509)
        + CAP.format("MULTI_ADDRESS_SPACE", 2)
        + strace(100, 8, 508, 0, 4096, 0)
        + strace(100, 8, 509, 4096, 4096, 0, "-1 EINVAL (Invalid argument)")
        + strace(100, 8, 0x10000, 4096, 4096, 0)
        + strace(100, 8, 0x20000, 4096, 4096, 0, "-1 EINVAL (Invalid argument)")
    )
    (vm,) = replay_text(text).vms
    assert vm.disagreements == []
    assert (vm.memslots.max_slots, vm.memslots.address_spaces) == (509, 2)


def test_a_space_that_the_machine_should_not_have() -> None:
    text = CAP.format("MULTI_ADDRESS_SPACE", 1) + strace(100, 8, 0x10000, 0, 4096, 0)
    (found,) = one_vm(text).disagreements
    assert (found.recorded, found.ours, found.followed) == (0, 22, "the call was left out")


def test_no_multi_address_space_is_one_space() -> None:
    text = CAP.format("MULTI_ADDRESS_SPACE", 0) + strace(100, 8, 0, 0, 4096, 0)
    assert one_vm(text).memslots.address_spaces == 1


def test_two_vms_by_process_and_fd() -> None:
    text = (
        BORN
        + "100  ioctl(3, KVM_CREATE_VM, 0) = 9\n"
        + "200  ioctl(3, KVM_CREATE_VM, 0) = 8\n"
        + strace(100, 8, 0, 0, 4096, 0x1000)
        + strace(100, 9, 0, 0, 8192, 0x1000)
        + strace(200, 8, 0, 0, 16384, 0x1000)
        + "300  ioctl(3, KVM_CREATE_VM, 0) = 8\n"
    )
    report = replay_text(text)
    assert report.agree
    assert [(vm.name, rows(vm)[0][3]) for vm in report.vms] == [
        ("process 100, fd 8", 4096),
        ("process 100, fd 9", 8192),
        ("process 200, fd 8", 16384),
    ]


def test_two_machines_in_one_grepped_trace() -> None:
    """There is no clone and no KVM_CREATE_VM: a thread's first call shows its process."""
    text = (
        strace(100, 8, 0, 0, 4096, 0x7000_0000)
        + strace(200, 8, 0, 0, 8192, 0x7100_0000)
        + strace(201, 8, 0, 0, 0, 0x7100_0000)
        + strace(101, 8, 0, 0, 0, 0x7000_0000)
    )
    report = replay_text(text)
    assert report.agree
    assert [(vm.process, vm.calls, vm.final_map) for vm in report.vms] == [
        (100, 2, []),
        (200, 2, []),
    ]
    assert len(report.notes) == 3


def test_two_threads_of_qemu_are_one_machine() -> None:
    """The number in front of QEMU's lines is that of a thread."""
    text = (
        qemu(0, 0, 0, 0x10000, pre="100@1.000000:")
        + qemu(0, 0, 0, 0, pre="102@2.000000:")
        + qemu(0, 0, 0, 0x8000, pre="102@2.500000:")
    )
    (vm,) = replay_text(text).vms
    assert vm.disagreements == []
    assert [gap.duration_ns for gap in vm.gaps] == [500_000_000]


def test_two_logs_of_qemu_in_one_are_two_machines() -> None:
    text = qemu(0, 0, 0, 0x10000, pre="100@1.0:") + qemu(0, 0, 0, 0x20000, pre="200@1.0:")
    assert [vm.process for vm in replay_text(text).vms] == [100, 200]


def test_nothing_but_lost_calls() -> None:
    with pytest.raises(
        TraceError, match=r"line 1: none of its 2 memslot calls can be read; strace"
    ):
        replay_text("ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffd) = 0\n" * 2)


def test_watch() -> None:
    seen: list[tuple[int, int]] = []
    with open_trace("x", "qemu", io.BytesIO((CREATE * 5000).encode())) as trace:
        replay(trace, lambda done, calls: seen.append((done, calls)))
    assert seen == [(0, 5000), (4096, 5000)]


# --- whatever results were recorded, the map follows them and the numbers add up

some_calls = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 0x10000, 0x10001]),
        st.sampled_from([0, 1, 2]),
        st.integers(0, 6).map(lambda n: n * 0x1000),
        st.integers(0, 3).map(lambda n: n * 0x1000),
        st.sampled_from([0x7F0000000000, 0x7F0000100000]),
        st.sampled_from([0, 0, 0, -17, -22, -12]),
    ),
    min_size=1,
    max_size=30,
)


@given(some_calls)
def test_any_results(made: list[tuple[int, int, int, int, int, int]]) -> None:
    report = replay_text("".join(qemu(*call) for call in made))
    (vm,) = report.vms
    succeeded = [call for call in made if not call[5]]
    assert vm.calls == len(made)
    assert sum(vm.refused.values()) == len(made) - len(succeeded)
    left_out = sum(
        not found.recorded and "then" not in found.followed and found.followed != "CREATE"
        for found in vm.disagreements
    )
    assert sum(vm.operations.values()) == len(succeeded) - left_out
    for slot, flags, gpa, size, hva, _ in succeeded[-1:]:
        found = vm.memslots.address_space(slot >> 16).get(slot & 0xFFFF)
        if size:
            assert found is not None
            assert (found.guest_phys_addr, found.memory_size) == (gpa, size)
            assert (found.userspace_addr, int(found.flags)) == (hva, flags)
        else:
            assert found is None
    assert report.agree == (not vm.disagreements)


def test_no_call_makes_a_cycle_of_references() -> None:
    """The command pauses the collector, so what only the collector frees would stay."""

    def left_to_the_collector(times: int) -> int:
        text = CREATE + times * (
            qemu(0, 1, 0, 0x10000)
            + qemu(1, 0, 0x8000, 0x10000, ret=-17)
            + qemu(1, 0, 0x8000, 0x10000)  # the rules refuse it
            + qemu(0, 0, 0, 0x10000, ret=-22)  # only the kernel refuses it
            + "kvm_set_user_memory Slot#lost\n"
        )
        gc.collect()
        gc.disable()
        try:
            with open_trace("trace", "qemu", io.BytesIO(text.encode())) as trace:
                report = replay(trace)
            left = gc.collect()
            assert report.counts.lost_total == times
            return left
        finally:
            gc.enable()

    few = left_to_the_collector(10)
    assert left_to_the_collector(1000) <= few + 10
