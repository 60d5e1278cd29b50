"""Tests a vCPU: ports, memory, registers, its end and its life."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from livekernel import CODE, MSR_KVM_WALL_CLOCK, PAGE, guest
from needs import needs_kvm

from memslots import Flags
from memslots.kvm import (
    HltExit,
    InternalErrorExit,
    IoExit,
    KvmError,
    KvmVM,
    MemoryFaultExit,
    MmioExit,
    ShutdownExit,
    ioctls,
)

pytestmark = [needs_kvm, pytest.mark.usefixtures("no_descriptor_left")]

HLT = b"\xf4"
HOLE = 0x9000  # above the guest's RAM


# Ports


def test_out() -> None:
    with guest(b"\xe6\x10" + HLT, rax=0x41) as (_, vcpu, _):  # out 0x10, al
        assert vcpu.run_once() == IoExit(port=0x10, size=1, count=1, write=True, data=b"A")
        assert vcpu.run_once() == HltExit()
    with guest(b"\xef" + HLT, rax=0x1234, rdx=0x3F8) as (_, vcpu, _):  # out dx, ax
        assert vcpu.run_once() == IoExit(0x3F8, 2, 1, True, b"\x34\x12")


def test_how_often_it_ran() -> None:
    with guest(b"\xe6\x10" + HLT) as (vm, vcpu, _):
        assert vm.runs() == vcpu.runs() == 0
        vcpu.run_once()
        assert vm.runs() == vcpu.runs() == 1
        vm.create_vcpu(1)
        assert vm.runs() == 1
        vcpu.run_once()
        assert vm.runs() == 2


def test_out_of_a_string() -> None:
    code = b"\xf3\x6e" + HLT  # rep outsb
    with guest(code, rcx=5, rsi=0x2000, rdx=0x3F8) as (_, vcpu, memory):
        memory.bytes[0x2000:0x2005] = b"hello"
        told = b""
        for stop in vcpu.run():
            if isinstance(stop, HltExit):
                break
            assert isinstance(stop, IoExit)
            assert (stop.port, stop.size, stop.write) == (0x3F8, 1, True)
            assert len(stop.data) == stop.count
            told += stop.data
        assert told == b"hello"
        assert vcpu.get_regs()["rcx"] == 0


def test_in() -> None:
    with guest(b"\xe5\x10" + HLT) as (_, vcpu, _):  # in ax, 0x10
        assert vcpu.run_once() == IoExit(0x10, 2, 1, False, b"")
        vcpu.answer(b"\x34\x12")
        assert vcpu.run_once() == HltExit()
        assert vcpu.get_regs()["rax"] & 0xFFFF == 0x1234


def test_in_of_a_string() -> None:
    code = b"\xf3\x6d" + HLT  # rep insw
    with guest(code, rcx=4, rdi=0x2000, rdx=0x3F8) as (_, vcpu, memory):
        left = b"abcdefgh"
        most = 0
        for stop in vcpu.run():
            if isinstance(stop, HltExit):
                break
            assert isinstance(stop, IoExit)
            length = stop.size * stop.count
            assert (stop.size, stop.write, stop.data) == (2, False, b"")
            vcpu.answer(left[:length])
            left = left[length:]
            most = max(most, stop.count)
        assert most > 1, "KVM asks for several at once"
        assert left == b""
        assert memory.bytes[0x2000:0x2008] == b"abcdefgh"


def test_a_read_that_is_not_answered() -> None:
    """The guest reads ones, even if the answer to an earlier read is still in the same place."""
    code = b"\xe5\x10\xe5\x10" + HLT  # in ax, 0x10, twice
    with guest(code) as (_, vcpu, _):
        vcpu.run_once()
        vcpu.answer(b"\x34\x12")
        vcpu.run_once()
        assert vcpu.run_once() == HltExit()
        assert vcpu.get_regs()["rax"] & 0xFFFF == 0xFFFF


def test_answers_to_nothing() -> None:
    with guest(b"\xe5\x10\xe6\x10" + HLT) as (_, vcpu, _):  # in ax, 0x10; out 0x10, al
        with pytest.raises(ValueError, match="not reading anything"):
            vcpu.answer(b"x")
        vcpu.run_once()
        for wrong in (b"", b"x", b"xyz"):
            with pytest.raises(ValueError, match=f"reads 2 bytes, not {len(wrong)}"):
                vcpu.answer(wrong)
        with pytest.raises(ValueError, match="reads 2 bytes, not 8"):
            vcpu.answer(array("I", [1, 2]))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            vcpu.answer(2)  # type: ignore[arg-type]
        vcpu.answer(array("H", [0x4241]))  # type: ignore[arg-type]
        assert vcpu.run_once() == IoExit(0x10, 1, 1, True, b"\x41")
        with pytest.raises(ValueError, match="not reading anything"):
            vcpu.answer(b"xy")


# Memory


def test_reads_of_a_hole() -> None:
    code = b"\xa1\x00\x90\xa1\x00\x90" + HLT  # mov ax, [0x9000], twice
    with guest(code) as (_, vcpu, _):
        assert vcpu.run_once() == MmioExit(gpa=HOLE, size=2, write=False, data=b"")
        vcpu.answer(b"\x34\x12")
        vcpu.run_once()
        assert vcpu.get_regs()["rax"] & 0xFFFF == 0x1234
        vcpu.run_once()
        assert vcpu.get_regs()["rax"] & 0xFFFF == 0xFFFF, "what nobody answers reads as ones"


def test_a_write_to_a_hole() -> None:
    code = b"\xa3\x10\x90" + HLT  # mov [0x9010], ax
    with guest(code, rax=0x1234) as (_, vcpu, _):
        assert vcpu.run_once() == MmioExit(HOLE + 0x10, 2, True, b"\x34\x12")
        assert vcpu.run_once() == HltExit()


def test_a_readonly_slot() -> None:
    code = b"\xa0\x00\x70\xa2\x00\x90\xa0\x01\x90" + HLT
    # mov al, [0x7000]; mov [0x9000], al; mov al, [0x9001]
    with guest(code) as (vm, vcpu, memory):
        memory.bytes[0x7000:0x7002] = b"ab"
        vm.set_region(1, Flags.READONLY, HOLE, PAGE, memory.address + 0x7000)
        assert vcpu.run_once() == MmioExit(HOLE, 1, True, b"a")
        assert vcpu.run_once() == HltExit()
        assert vcpu.get_regs()["rax"] & 0xFF == ord("b"), "it can be read"


def test_the_guests_writes_are_logged() -> None:
    code = b"\xa2\x00\x20\xa2\x00\x50" + HLT  # mov [0x2000], al; mov [0x5000], al
    with guest(code) as (vm, vcpu, memory):
        vm.set_region(0, Flags.LOG_DIRTY_PAGES, 0, 8 * PAGE, memory.address)
        assert vcpu.run_once() == HltExit()
        (log,) = vm.get_dirty_log(0)[:1]
        assert log & (1 << 2 | 1 << 5) == 1 << 2 | 1 << 5
        assert not log & (1 << 3 | 1 << 4)


def test_memory_that_the_host_does_not_have() -> None:
    """The result depends on how KVM runs real mode: it reports an error, or emulates a hole."""
    code = b"\xa2\x00\x90" + HLT  # mov [0x9000], al
    with guest(code, rax=0x41) as (vm, vcpu, _):
        vm.set_region(1, 0, HOLE, PAGE, 0)
        try:
            stop = vcpu.run_once()
        except KvmError as error:
            assert error.errno == errno.EFAULT
            assert "KVM_RUN" in str(error)
        else:
            if isinstance(stop, MemoryFaultExit):
                assert stop.gpa & -PAGE == HOLE
            else:
                assert stop == MmioExit(HOLE, 1, True, b"A")


def test_a_memory_fault_is_an_exit(fake_run: Any) -> None:
    """KVM_RUN then fails with EFAULT and names the address; without the address it is an error."""
    with fake_run(errno.EFAULT, 39, ioctls.EXIT_MEMORY_FAULT.pack(8, 0x9000, 0x1000)) as vcpu:
        assert vcpu.run_once() == MemoryFaultExit(gpa=0x9000, size=0x1000, flags=8)
    with fake_run(errno.EFAULT, 0, b"") as vcpu, pytest.raises(KvmError, match="KVM_RUN") as caught:
        vcpu.run_once()
    assert caught.value.errno == errno.EFAULT


@pytest.fixture
def fake_run(fake: Any) -> Any:
    @contextmanager
    def vcpu(code: int, reason: int, told: bytes) -> Iterator[Any]:
        with KvmVM(device=fake.device) as vm, vm.create_vcpu() as vcpu:
            fake.fail(ioctls.RUN, code)
            vcpu._shared()[8:12] = reason.to_bytes(4, "little")
            vcpu._shared()[ioctls.RUN_EXIT : ioctls.RUN_EXIT + len(told)] = told
            yield vcpu

    return vcpu


def test_devices_are_of_a_guest_memory() -> None:
    """The guest does not run before the mistake is told."""
    with guest(HLT) as (vm, vcpu, _):
        with pytest.raises(TypeError, match="memory must be a GuestMemory, not 'KvmVM'"):
            next(vcpu.run(vm))  # type: ignore[arg-type]
        assert vcpu.runs() == 0


# Ends


def test_halt_goes_on() -> None:
    with guest(HLT + HLT) as (_, vcpu, _):
        for n in (1, 2):
            assert vcpu.run_once() == HltExit()
            assert vcpu.get_regs()["rip"] == CODE + n


def test_shutdown() -> None:
    with guest(b"\x0f\x0b") as (_, vcpu, _):  # ud2, with no way to handle it: a triple fault
        vcpu.set_sregs(idt_base=HOLE)
        assert vcpu.run_once() == ShutdownExit()


def test_internal_error() -> None:
    code = b"\xea\x00\x90\x00\x00"  # jmp 0:0x9000, where no instruction can be fetched
    with guest(code) as (_, vcpu, _):
        stop = vcpu.run_once()
        assert isinstance(stop, InternalErrorExit)
        assert stop.suberror == 1
        assert all(isinstance(word, int) for word in stop.data)


# Registers


def test_general_registers() -> None:
    with guest(HLT) as (_, vcpu, _):
        names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"]
        names += [f"r{n}" for n in range(8, 16)]
        values = {name: (1 << 63) + n for n, name in enumerate(names)}
        vcpu.set_regs(**values)
        assert vcpu.get_regs() == values | {"rip": CODE, "rflags": 2}
        vcpu.set_regs(rbx=5)
        assert vcpu.get_regs() == values | {"rip": CODE, "rflags": 2, "rbx": 5}


def test_special_registers() -> None:
    with guest(HLT) as (_, vcpu, _):
        before = vcpu.get_sregs()
        assert before["cr0"] & 1 == 0, "real mode"
        assert (before["cs_base"], before["cs_limit"]) == (0, 0xFFFF)
        changes = {"es_base": 0x12340, "es_selector": 0x1234, "gdt_base": 0x500, "gdt_limit": 0x27}
        vcpu.set_sregs(**changes)
        assert vcpu.get_sregs() == before | changes


def test_the_code_sees_the_registers() -> None:
    with guest(b"\x01\xd8" + HLT, rax=40, rbx=2) as (_, vcpu, _):  # add ax, bx
        vcpu.run_once()
        assert vcpu.get_regs()["rax"] == 42


@pytest.mark.parametrize("verb", ["set_regs", "set_sregs"])
def test_unknown_registers(verb: str) -> None:
    with guest(HLT) as (_, vcpu, _), pytest.raises(TypeError, match="no register 'eax'"):
        getattr(vcpu, verb)(eax=1)


@pytest.mark.parametrize(
    ("verb", "name", "bits"),
    [
        ("set_regs", "rax", 64),
        ("set_regs", "rip", 64),
        ("set_sregs", "cs_base", 64),
        ("set_sregs", "ds_limit", 32),
        ("set_sregs", "tr_selector", 16),
        ("set_sregs", "ldt_unusable", 8),
        ("set_sregs", "idt_limit", 16),
        ("set_sregs", "cr0", 64),
    ],
)
def test_registers_that_do_not_fit(verb: str, name: str, bits: int) -> None:
    with guest(HLT) as (_, vcpu, _):
        before = vcpu.get_regs(), vcpu.get_sregs()
        with pytest.raises(OverflowError, match=f"{name} does not fit its {bits} bits"):
            getattr(vcpu, verb)(**{name: 1 << bits})
        with pytest.raises(OverflowError, match=f"{name} must not be negative"):
            getattr(vcpu, verb)(**{name: -1})
        with pytest.raises(TypeError, match=f"{name} must be an integer, not 'float'"):
            getattr(vcpu, verb)(**{name: 1.0})
        assert (vcpu.get_regs(), vcpu.get_sregs()) == before


def test_msrs() -> None:
    efer, nothing = 0xC0000080, 0x12345678
    with guest(HLT) as (_, vcpu, _):
        assert vcpu.get_msr(efer) == vcpu.get_sregs()["efer"]
        vcpu.set_msr(MSR_KVM_WALL_CLOCK, 0x3000)
        assert vcpu.get_msr(MSR_KVM_WALL_CLOCK) == 0x3000
        with pytest.raises(KvmError, match="KVM refuses to read MSR 0x12345678") as caught:
            vcpu.get_msr(nothing)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(
            KvmError, match="KVM refuses to write 0x10000000000 to MSR 0xc0"
        ) as caught:
            vcpu.set_msr(efer, 1 << 40)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OverflowError, match="index does not fit its 32 bits"):
            vcpu.get_msr(1 << 32)
        with pytest.raises(OverflowError, match="value must not be negative"):
            vcpu.set_msr(efer, -1)


# Its life


def test_closed() -> None:
    with KvmVM() as vm:
        vcpu = vm.create_vcpu(3)
        assert (vcpu.id, repr(vcpu)) == (3, "<KvmVcpu 3>")
        assert os.fstat(vcpu.fileno())
        with vcpu:
            pass
        vcpu.close()
        assert repr(vcpu) == "<KvmVcpu 3: closed>"
        calls: list[Callable[[], object]] = [vcpu.fileno, vcpu.run_once, vcpu.request_exit]
        calls += [vcpu.get_regs, vcpu.get_sregs, lambda: vcpu.set_msr(0x10, 0)]
        calls += [lambda: list(vcpu.run())]
        for call in calls:
            with pytest.raises(ValueError, match="KvmVcpu is closed"):
                call()


def test_the_vm_closes_it() -> None:
    with KvmVM() as vm:
        vcpu = vm.create_vcpu()
    with pytest.raises(ValueError, match="KvmVcpu is closed"):
        vcpu.run_once()


def test_one_of_each_id() -> None:
    with KvmVM() as vm:
        vm.create_vcpu(1)
        with pytest.raises(KvmError) as caught:
            vm.create_vcpu(1)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(KvmError) as caught:
            vm.create_vcpu((1 << 32) - 1)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OverflowError, match="id does not fit its 32 bits"):
            vm.create_vcpu(1 << 32)
