"""Tests devices: functions that answer where there is no slot."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from threading import Thread
from typing import Any

import numpy as np
import pytest
from atline import AtLine
from livekernel import guest
from needs import needs_kvm

from memslots import (
    Backing,
    Flags,
    GuestMemory,
    InvalidRegionError,
    Memslots,
    NotMappedError,
    ReadOnlyError,
)
from memslots.kvm import HltExit
from memslots.memory.mmio import Mmio

PAGE = 4096


class Registers:
    """A device that records its reads and writes."""

    def __init__(self, value: Any = 0x41) -> None:
        self.value = value
        self.seen: list[tuple[int, ...]] = []

    def read(self, gpa: int, size: int) -> Any:
        self.seen.append((gpa, size))
        return self.value

    def write(self, gpa: int, size: int, value: int) -> None:
        self.seen.append((gpa, size, value))


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory(Memslots(8, address_spaces=2))
    memory.place(0, 0, Backing.anonymous(PAGE))
    memory.place(1, 0x10000, Backing.anonymous(PAGE), flags=Flags.READONLY)
    return memory


def test_accesses_by_number(memory: GuestMemory) -> None:
    device = Registers()
    with memory.on_mmio(0x2000, 0x3000, read=device.read, write=device.write) as handle:
        assert memory.read_u8(0x2000) == 0x41
        assert memory.read_u64(0x2FF8) == 0x41
        memory.write_u32(0x2010, 7)
        assert device.seen == [(0x2000, 1), (0x2FF8, 8), (0x2010, 4, 7)]
        for gpa in (0x1FFF, 0x2FFD):  # not all of the access is in the device's range
            with pytest.raises(NotMappedError):
                memory.read_u32(gpa)
        with pytest.raises(NotMappedError):
            memory.read(0x2000, 4)  # only memory answers reads of bytes
        with pytest.raises(NotMappedError):
            memory.address_space(1).read_u8(0x2000)
    handle.close()
    with pytest.raises(NotMappedError):
        memory.read_u8(0x2000)
    with pytest.raises(NotMappedError):
        memory.write_u8(0x2000, 1)


def test_memory_comes_first(memory: GuestMemory) -> None:
    device = Registers()
    memory.on_mmio(0, 1 << 32, read=device.read, write=device.write)
    memory.write_u32(0x10, 5)
    assert memory.read_u32(0x10) == 5
    assert memory.read_u32(0x10000) == 0
    assert device.seen == []
    memory.write_u32(0x10000, 6)  # the device gets writes to memory that cannot be written
    assert device.seen == [(0x10000, 4, 6)]


def test_the_smallest_range_is_asked(memory: GuestMemory) -> None:
    bus, device = Registers(1), Registers(2)
    memory.on_mmio(0x2000, 0x9000, read=bus.read, write=bus.write)
    inner = memory.on_mmio(0x3000, 0x4000, read=device.read)
    assert memory.read_u8(0x3000) == 2
    assert memory.read_u8(0x4000) == 1
    assert memory.read_u32(0x3FFE) == 1  # across the device's end: only the bus has all of it
    with pytest.raises(NotMappedError):
        memory.write_u8(0x3000, 1)  # the device takes no writes
    inner.close()
    assert memory.read_u8(0x3000) == 1


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_last_byte_of_all(memory: GuestMemory, size: int) -> None:
    device = Registers()
    with memory.on_mmio(2**64 - 8, 2**64, read=device.read, write=device.write):
        gpa = 2**64 - size
        assert getattr(memory, f"read_u{8 * size}")(gpa) == 0x41
        getattr(memory, f"write_u{8 * size}")(gpa, 3)
        assert device.seen == [(gpa, size), (gpa, size, 3)]
        if size > 1:
            with pytest.raises(InvalidRegionError, match="beyond the last guest address"):
                getattr(memory, f"read_u{8 * size}")(gpa + 1)


def test_a_handle_says_what_it_is_of(memory: GuestMemory) -> None:
    there = memory.address_space(1)
    with there.on_mmio(0x2000, 0x3000) as handle:
        assert repr(handle) == "<MmioHandle: gpa [0x2000, 0x3000) of address space 1>"
        with there.on_mmio(0x2000, 0x3001) as other:
            pass
        assert repr(other) == "<MmioHandle: gpa [0x2000, 0x3001) of address space 1, closed>"


def test_one_way(memory: GuestMemory) -> None:
    device = Registers()
    memory.on_mmio(0x2000, 0x3000, write=device.write)
    memory.write_u8(0x2000, 9)
    with pytest.raises(NotMappedError):
        memory.read_u8(0x2000)
    memory.on_mmio(0x5000, 0x6000, read=device.read)
    with pytest.raises(NotMappedError):
        memory.write_u8(0x5000, 9)


def test_what_a_device_raises_comes_out(memory: GuestMemory) -> None:
    def fails(gpa: int, size: int) -> int:
        raise ZeroDivisionError

    memory.on_mmio(0x2000, 0x3000, read=fails)
    with pytest.raises(ZeroDivisionError):
        memory.read_u8(0x2000)
    large = Registers(256)
    memory.on_mmio(0x2000, 0x2010, read=large.read)
    with pytest.raises(InvalidRegionError, match="returned 0x100, which does not fit 1 bytes"):
        memory.read_u8(0x2000)
    assert memory.read_u16(0x2000) == 256


def test_ranges_that_cannot_be(memory: GuestMemory) -> None:
    memory.on_mmio(0x2000, 0x3000)
    for wrong in ((0x2000, 0x3000), (5, 5), (6, 5)):
        with pytest.raises(ValueError, match=r"an end above its start|callbacks already"):
            memory.on_mmio(*wrong)
    with pytest.raises(TypeError, match="callable"):
        memory.on_mmio(0, 1, read=5)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="end does not fit its 64 bits: 0x10000000000000001"):
        memory.on_mmio(0, (1 << 64) + 1)
    with pytest.raises(TypeError, match="end must be an integer, not 'ndarray'"):
        memory.on_mmio(0, np.array([1, 2]))
    with pytest.raises(ReadOnlyError):
        memory.write_u8(0x10000, 1)


class Index:
    def __index__(self) -> int:
        return 0x41


@pytest.mark.parametrize("value", [np.uint8(0x41), np.int64(0x41), Index()])
def test_anything_with_index_is_an_answer(memory: GuestMemory, value: Any) -> None:
    with memory.on_mmio(0x2000, 0x3000, read=Registers(value).read):
        assert memory.read_u8(0x2000) == 0x41


@pytest.mark.parametrize("value", [1.5, None, "A", b"A"])
def test_answers_that_are_no_integers(memory: GuestMemory, value: Any) -> None:
    kind = type(value).__name__
    text = f"the device at gpa 0x2000 must return an integer, not {kind!r}"
    with (
        memory.on_mmio(0x2000, 0x3000, read=Registers(value).read),
        pytest.raises(TypeError, match=text),
    ):
        memory.read_u8(0x2000)


def test_two_threads_register_the_first_devices(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread is still at the start of the first call while the other makes a whole one."""
    made: list[Thread] = []

    def meanwhile() -> Mmio:
        if not made:
            answer = {"read": lambda gpa, size: 2}
            made.append(Thread(target=memory.on_mmio, args=(0x3000, 0x4000), kwargs=answer))
            made[0].start()
            made[0].join()
        return Mmio()

    monkeypatch.setattr("memslots.memory.mmio.Mmio", meanwhile)
    memory.on_mmio(0x2000, 0x3000, read=lambda gpa, size: 1)
    assert len(made) == 1
    assert (memory.read_u8(0x2000), memory.read_u8(0x3000)) == (1, 2)


def test_a_fork_while_another_thread_registers(memory: GuestMemory) -> None:
    """The child can register devices, wherever the other thread was."""

    def fork() -> int:
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends the child if it waits for ever
            memory.on_mmio(0x4000, 0x5000).close()
            os._exit(0)
        return os.waitpid(child, 0)[1]

    for number in count(1):
        forks: list[Future[int]] = []
        with ThreadPoolExecutor(1) as pool:

            def meanwhile(pool: ThreadPoolExecutor = pool, forks: list[Any] = forks) -> None:
                forks.append(pool.submit(fork))
                wait(forks, 0.2)  # the fork may wait for this thread

            with (
                AtLine(number, meanwhile, Mmio.add, Mmio.remove) as at,
                memory.on_mmio(0x2000, 0x3000),
            ):
                pass
        assert [one.result() for one in forks] == [0] * len(forks)
        if at.lines < number:
            break
    assert number > 8


@needs_kvm
def test_a_guest() -> None:
    """The guest reads a byte of a device, adds one and writes it back: mov, inc, mov."""
    code = bytes.fromhex("8a07 fec0 8807 f4")
    with guest(code, rbx=0x9000) as (_, vcpu, _):
        devices = GuestMemory(Memslots())
        device = Registers()
        devices.on_mmio(0x9000, 0x9010, read=device.read, write=device.write)
        assert isinstance(next(vcpu.run(devices)), HltExit)
        assert device.seen == [(0x9000, 1), (0x9000, 1, 0x42)]
    with guest(code, rbx=0x9000) as (_, vcpu, _):
        device = Registers(np.uint8(0x41))
        with devices.on_mmio(0x9000, 0x9008, read=device.read, write=device.write):
            assert isinstance(next(vcpu.run(devices)), HltExit)
        assert device.seen == [(0x9000, 1), (0x9000, 1, 0x42)]
    with guest(code, rbx=0x9000) as (_, vcpu, _):
        exit = next(vcpu.run(GuestMemory(Memslots())))
        assert type(exit).__name__ == "MmioExit"
