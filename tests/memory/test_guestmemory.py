"""Tests guest memory: reading and writing, views, files."""

from __future__ import annotations

import copy
import gc
import mmap
import os
import pickle
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fresh import run_fresh
from guest import LOG, LONG, PAGE, READONLY, TOP, dirty, filled, known, pattern

from memslots import (
    Backing,
    Flags,
    GuestMemory,
    InvalidRegionError,
    Memslots,
    NoSuchSlotError,
    NotMappedError,
    ReadOnlyError,
)
from memslots.memory.backing import address_of


def row(mem: GuestMemory, count: int, flags: int = 0) -> Backing:
    """Returns adjacent slots of one page from gpa 0 on, in reverse order in host memory."""
    backing = filled(count)
    for id in range(count):
        mem.place(id, id * PAGE, backing, (count - 1 - id) * PAGE, PAGE, flags)
    return backing


# Reading and writing


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_across_slots(mem: GuestMemory, count: int) -> None:
    backing = row(mem, count)
    pages = [bytes(backing)[n * PAGE : (n + 1) * PAGE] for n in reversed(range(count))]
    memory = bytearray(b"".join(pages))
    assert mem.read(0, count * PAGE) == memory
    for gpa, size in ((1, count * PAGE - 1), (0, count * PAGE - 1), (PAGE // 2, PAGE)):
        if gpa + size > count * PAGE:
            continue
        assert mem.read(gpa, size) == memory[gpa : gpa + size]
        into = bytearray(size)
        assert mem.readinto(gpa, into) == size
        assert into == memory[gpa : gpa + size]
        data = pattern(size, seed=size)
        assert mem.write(gpa, data) == size
        memory[gpa : gpa + size] = data
        assert mem.read(0, count * PAGE) == memory
        mem.fill(gpa, size, 0xA5)
        memory[gpa : gpa + size] = b"\xa5" * size
        assert mem.read(0, count * PAGE) == memory
    mem.fill(1, 3)
    assert mem.read(0, 5) == memory[:1] + bytes(3) + memory[4:5]


def test_long_copies(vm: Memslots, mem: GuestMemory) -> None:
    size = (LONG // PAGE + 1) * PAGE
    for id in range(6):
        mem.place(id, id * size, Backing.anonymous(size), flags=LOG)
    data = pattern(6 * size - 7)
    assert mem.write(3, data) == len(data)
    assert mem.read(3, len(data)) == data
    into = bytearray(LONG)
    mem.readinto(size - 5, into)
    assert into == data[size - 8 :][:LONG]
    mem.fill(size - 5, LONG, 7)
    assert (
        mem.read(size - 6, LONG + 2)
        == data[size - 9 :][:1] + b"\7" * LONG + (data[size - 8 + LONG :][:1])
    )
    assert all(dirty(vm, id) == set(range(size // PAGE)) for id in range(6))


def test_buffers(mem: GuestMemory) -> None:
    row(mem, 2)
    into = np.zeros((4, 8), np.uint32)
    assert mem.write(PAGE - 64, array("Q", range(16))) == 128
    assert mem.readinto(PAGE - 64, into) == 128
    assert into.ravel().view(np.uint64).tolist() == list(range(16))
    assert mem.write(0, np.arange(3, dtype=np.uint16)) == 6
    assert mem.read(0, 6) == b"\0\0\1\0\2\0"
    for wrong in (into[::2], "text", 8, None):
        for call in (mem.write, mem.readinto):
            with pytest.raises((TypeError, BufferError, ValueError)):
                call(0, wrong)  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError)):
        mem.readinto(0, b"1234")
    assert mem.read(0, 6) == b"\0\0\1\0\2\0"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_numbers(vm: Memslots, mem: GuestMemory, size: int) -> None:
    row(mem, 3, LOG)
    read: Callable[[int], int] = getattr(mem, f"read_u{8 * size}")
    write: Callable[[int, int], None] = getattr(mem, f"write_u{8 * size}")
    for gpa in (0, 8, 1, 3, 5, *range(PAGE - 8, PAGE + 2), 2 * PAGE - 1, 3 * PAGE - size):
        for value in (0, 1, (1 << 8 * size) - 1, 0x0123456789ABCDEF >> (64 - 8 * size)):
            before = mem.read(0, 3 * PAGE)
            dirty(vm, gpa // PAGE)
            write(gpa, value)
            data = value.to_bytes(size, "little")
            assert read(gpa) == value
            assert mem.read(0, 3 * PAGE) == before[:gpa] + data + before[gpa + size :]
    for value in (1 << 8 * size, -1, 1 << 70):
        before = mem.read(0, 3 * PAGE)
        with pytest.raises(OverflowError, match="value"):
            write(0, value)
        assert mem.read(0, 3 * PAGE) == before
    with pytest.raises(TypeError, match="value must be an integer"):
        write(0, "1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gpa must be an integer"):
        read("1")  # type: ignore[arg-type]
    with pytest.raises(NotMappedError, match="gpa 0x3000 "):
        read(3 * PAGE - size + 1)
    with pytest.raises(NotMappedError, match="gpa 0x3000 "):
        write(3 * PAGE - size + 1, 0)


def test_every_call_refuses_the_wrong_type(mem: GuestMemory, tmp_path: Path) -> None:
    row(mem, 1)
    (tmp_path / "file").write_bytes(b"x")
    for gpa in ("0", None, 1.0):
        for call in (
            lambda gpa: mem.read(gpa, 0),
            lambda gpa: mem.readinto(gpa, bytearray()),
            lambda gpa: mem.write(gpa, b""),
            lambda gpa: mem.fill(gpa, 0),
            lambda gpa: mem.view(gpa, 0),
            lambda gpa: mem.views(gpa, 0),
            lambda gpa: mem.mark_dirty(gpa, 0),
            lambda gpa: mem.load(tmp_path / "file", gpa),
        ):
            with pytest.raises(TypeError, match="gpa must be an integer"):
                call(gpa)
    for n in ("0", None, 1.0):
        for method in (mem.read, mem.fill, mem.view, mem.views, mem.mark_dirty):
            with pytest.raises(TypeError, match="n must be an integer"):
                method(0, n)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="value does not fit its 8 bits"):
        mem.fill(0, 1, 256)
    with pytest.raises(OverflowError, match="gpa must not be negative"):
        mem.read(-1, 1)
    assert mem.read(np.uint64(0), np.int8(2)) == mem.read(0, 2)


def test_no_bytes_are_everywhere(mem: GuestMemory) -> None:
    for gpa in (0, 5, TOP - 1):
        assert mem.read(gpa, 0) == b""
        assert mem.readinto(gpa, bytearray()) == mem.write(gpa, b"") == 0
        mem.fill(gpa, 0)
        mem.mark_dirty(gpa, 0)
        assert mem.views(gpa, 0) == mem.views(gpa, 0, write=True) == []
        assert mem.view(gpa, 0).nbytes == 0


def refusals(mem: GuestMemory, gpa: int, n: int) -> Iterator[Callable[[], object]]:
    yield lambda: mem.read(gpa, n)
    yield lambda: mem.view(gpa, n)
    yield lambda: mem.views(gpa, n)
    yield from writes(mem, gpa, n)


def writes(mem: GuestMemory, gpa: int, n: int) -> Iterator[Callable[[], object]]:
    yield lambda: mem.fill(gpa, n, 1)
    yield lambda: mem.views(gpa, n, write=True)
    if n < 1 << 20:
        yield lambda: mem.write(gpa, bytes(n))


@pytest.mark.parametrize("before", range(8))
def test_a_hole(vm: Memslots, mem: GuestMemory, before: int) -> None:
    row(mem, before, LOG) if before else None
    mem.place(60, (before + 1) * PAGE, filled(1), flags=LOG)
    hole = before * PAGE
    kept = mem.read(0, hole)
    into = bytearray(b"kept" * PAGE * 4)
    for gpa in {0, max(hole - 5, 0), hole, hole + 7}:
        bad = max(gpa, hole)
        for n in (bad - gpa + 1, bad - gpa + PAGE + 100, 1 << 40, 1 << 63):
            for call in refusals(mem, gpa, n):
                with pytest.raises(NotMappedError, match=f"gpa {bad:#x} .* is in no slot"):
                    call()
        with pytest.raises(NotMappedError, match=f"gpa {bad:#x} "):
            mem.readinto(gpa, memoryview(into)[: bad - gpa + 1])
    assert into == b"kept" * PAGE * 4
    assert mem.read(0, hole) == kept
    assert all(dirty(vm, slot.id) == set() for slot in vm)


@pytest.mark.parametrize("before", range(8))
def test_readonly(vm: Memslots, mem: GuestMemory, before: int) -> None:
    row(mem, before, LOG) if before else None
    rom = filled(1, seed=2)
    mem.place(60, before * PAGE, rom, flags=LOG | READONLY)
    kept = mem.read(0, (before + 1) * PAGE)
    assert kept.endswith(bytes(rom))
    for gpa in {0, max(before * PAGE - 5, 0), before * PAGE + 9}:
        bad = max(gpa, before * PAGE)
        for call in writes(mem, gpa, bad - gpa + 8):
            with pytest.raises(ReadOnlyError, match=f"gpa {bad:#x} "):
                call()
    for write in (mem.write_u8, mem.write_u16, mem.write_u32, mem.write_u64):
        with pytest.raises(ReadOnlyError):
            write(before * PAGE, 0)
    assert mem.read(0, (before + 1) * PAGE) == kept
    assert all(dirty(vm, slot.id) == set() for slot in vm)
    view = mem.views(0, (before + 1) * PAGE)[-1]
    assert view.readonly
    assert bytes(view) == bytes(rom)


@pytest.mark.parametrize("before", range(7))
def test_the_first_that_is_in_the_way_is_named(vm: Memslots, mem: GuestMemory, before: int) -> None:
    """Good slots, one on unknown memory, a hole, and a READONLY slot."""
    row(mem, before) if before else None
    unknown = filled(1)
    slot = vm.create(60, before, 1, unknown.hva)
    mem.place(61, (before + 2) * PAGE, filled(1), flags=READONLY)
    kept = bytes(unknown)
    gpa = max(before * PAGE - 1, 0)
    for n in (2, PAGE, PAGE + 2, 3 * PAGE):
        for call in refusals(mem, gpa, n):
            with pytest.raises(NotMappedError, match="host memory is not known") as caught:
                call()
            assert f"gpa {before * PAGE:#x} is in {slot}" in str(caught.value)
    assert bytes(unknown) == kept


def unknown_memory() -> None:
    """Touching memory that a slot only names would kill the process."""
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(PAGE))
    for id, hva in enumerate((0, PAGE, 0x1000_0000_0000), 1):
        vm.create(id, id, 1, hva)
    for gpa in (PAGE - 1, PAGE, 2 * PAGE, 3 * PAGE):
        for call in refusals(mem, gpa, 8):
            with pytest.raises(NotMappedError, match="host memory is not known"):
                call()
    print("well", end="")


def test_unknown_memory_is_never_touched() -> None:
    assert run_fresh(unknown_memory) == "well"


def test_a_slot_that_is_not_all_on_known_memory(vm: Memslots, mem: GuestMemory) -> None:
    room = memoryview(mmap.mmap(-1, 4 * PAGE))
    backing = Backing(room[PAGE : 3 * PAGE])
    mem.add(backing)
    vm.create(0, 0x10, 4, backing.hva - PAGE)
    mem.write(0x11000, b"ab")
    assert bytes(backing)[:2] == b"ab"
    with pytest.raises(NotMappedError, match=r"gpa 0x10ffe .*not known"):
        mem.read(0x10FFE, 4)
    with pytest.raises(NotMappedError, match=r"gpa 0x13000 .*is beyond <Backing"):
        mem.fill(0x12FF0, 17)
    assert mem.read(0x12FF0, 16) == bytes(16)


def test_the_end_of_guest_memory(vm: Memslots, mem: GuestMemory) -> None:
    backing = filled(2)
    mem.place(0, TOP - 3 * PAGE, backing, flags=LOG)  # no slot can have the very last page
    assert mem.read(TOP - 3 * PAGE, 2 * PAGE) == bytes(backing)
    mem.write_u64(TOP - PAGE - 8, 1)
    assert dirty(vm, 0) == {1}
    for gpa, n in ((TOP - PAGE - 1, 2), (TOP - PAGE, 1), (TOP - 1, 1), (TOP - 3 * PAGE, 3 * PAGE)):
        for call in refusals(mem, gpa, n):
            with pytest.raises(NotMappedError, match=f"gpa {max(gpa, TOP - PAGE):#x} "):
                call()
    for gpa, n in ((TOP - 1, 2), (TOP - PAGE, TOP - 1), (2, TOP - 1), (TOP - 3 * PAGE, 4 * PAGE)):
        for call in refusals(mem, gpa, n):
            with pytest.raises(InvalidRegionError, match="go beyond the last guest address"):
                call()
        with pytest.raises(InvalidRegionError, match="go beyond the last guest address"):
            mem.mark_dirty(gpa, n)
    with pytest.raises(InvalidRegionError):
        mem.read_u64(TOP - 4)
    with pytest.raises(OverflowError):
        mem.read(TOP, 1)
    with pytest.raises(OverflowError):
        mem.read(0, TOP)


# Overlap


@pytest.mark.parametrize("pages", [None, [0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [1, 0, 3, 2, 1]])
@pytest.mark.parametrize(("source", "target"), [(0, 100), (100, 0), (0, PAGE), (PAGE, 0), (7, 7)])
def test_guest_memory_copied_onto_itself(
    mem: GuestMemory, pages: list[int] | None, source: int, target: int
) -> None:
    """Through one slot or several, whose copies overwrite bytes that are yet to be copied."""
    n = 3 * PAGE
    backing = filled(5)
    if pages is None:
        mem.place(0, 0, backing)
    else:
        for id, page in enumerate(pages):
            mem.place(id, id * PAGE, backing, page * PAGE, PAGE)
    there = memoryview(backing)[source : source + n]
    # The result with a copy in between: guest memory is written in order.
    data = bytes(there)
    before = bytes(backing)
    want = bytearray(before)
    for gpa in range(target, target + n):
        page = gpa // PAGE if pages is None else pages[gpa // PAGE]
        want[page * PAGE + gpa % PAGE] = data[gpa - target]
    assert mem.write(target, there) == n
    assert bytes(backing) == want
    memoryview(backing)[:] = before
    wanted = mem.read(target, n)
    assert mem.readinto(target, there) == n
    assert bytes(backing) == before[:source] + wanted + before[source + n :]


# Views


def test_views(vm: Memslots, mem: GuestMemory) -> None:
    backing = row(mem, 3)
    view = mem.view(PAGE - 10, 10)
    assert address_of(view) == backing.hva + 3 * PAGE - 10
    view[0] = 1
    assert mem.read_u8(PAGE - 10) == 1
    mem.write_u8(PAGE - 9, 2)
    assert view[1] == 2
    with pytest.raises(InvalidRegionError, match="0xb bytes from gpa 0xff6 are in 2 slots"):
        mem.view(PAGE - 10, 11)
    views = mem.views(PAGE - 10, PAGE + 20, write=True)
    assert [len(view) for view in views] == [10, PAGE, 10]
    assert b"".join(views) == mem.read(PAGE - 10, PAGE + 20)
    assert not any(view.readonly for view in views)
    read, write = os.pipe()
    try:
        os.write(write, b"from a pipe")
        assert os.readv(read, mem.views(2 * PAGE - 4, 11, write=True)) == 11
    finally:
        os.close(read)
        os.close(write)
    assert mem.read(2 * PAGE - 4, 11) == b"from a pipe"


def views_outlive_all() -> None:
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(PAGE))
    mem.place(1, PAGE, Backing.memfd(2 * PAGE))
    mem.write(0, pattern(3 * PAGE))
    whole, parts = mem.view(PAGE, 2 * PAGE), mem.views(5, 2 * PAGE)
    array = np.frombuffer(mem.view(0, PAGE), np.uint64)
    vm.delete(0)
    vm.delete(1)
    assert known(mem) == []
    del vm, mem
    gc.collect()
    room = [mmap.mmap(-1, PAGE) for _ in range(100)]  # would reuse the memory if it were freed
    assert bytes(whole) == pattern(3 * PAGE)[PAGE:]
    assert array.tobytes() == pattern(3 * PAGE)[:PAGE]
    whole[:5] = b"12345"
    assert b"".join(parts)[PAGE - 5 : PAGE] == b"12345"
    array[:] = 7
    assert bytes(parts[0])[3] == 7
    assert not any(bytes(mapping).strip(b"\0") for mapping in room)
    print("well", end="")


def test_views_outlive_all() -> None:
    assert run_fresh(views_outlive_all) == "well"


def memory_stays_for_the_guest() -> None:
    """Memory that was placed stays as long as the slot, with or without a GuestMemory."""
    vm = Memslots()
    GuestMemory(vm).place(0, 0, Backing.anonymous(PAGE))
    gc.collect()
    hva = vm[0].userspace_addr
    assert any(
        int(line.split("-")[0], 16) <= hva < int(line.split("-")[1].split()[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
    )
    copied = copy.copy(vm)
    mem = GuestMemory(copied)
    with pytest.raises(NotMappedError):
        mem.read(0, 1)  # a copy of the Memslots has the slots, not the memory
    print("well", end="")


def test_memory_stays_for_the_guest() -> None:
    assert run_fresh(memory_stays_for_the_guest) == "well"


# Files


def shortened() -> None:
    """A file that is made shorter raises a NotMappedError and does not kill the process."""
    import tempfile

    vm = Memslots()
    mem = GuestMemory(vm)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pattern(4 * PAGE))
        file.flush()
        mem.place(0, 0, Backing.anonymous(PAGE))
        mem.place(1, PAGE, Backing.file(file.name, shared=True))
        mem.place(2, 5 * PAGE, Backing.file(file.name, PAGE, 2 * PAGE))
        assert mem.read(PAGE, 4 * PAGE) == pattern(4 * PAGE)
        os.truncate(file.name, 3 * PAGE)
        for call in refusals(mem, 5, 5 * PAGE - 5):
            with pytest.raises(NotMappedError, match=r"gpa 0x1000 is in .*file is shorter now"):
                call()
        assert mem.read(5 * PAGE, 2 * PAGE) == pattern(4 * PAGE)[PAGE : 3 * PAGE]
        os.truncate(file.name, 3 * PAGE - 1)
        with pytest.raises(NotMappedError, match=r"gpa 0x5001 is in .*file is shorter now"):
            mem.read_u16(5 * PAGE + 1)
        os.truncate(file.name, 4 * PAGE)
        assert mem.read(4 * PAGE, PAGE) == bytes(PAGE)
    print("well", end="")


def test_a_file_that_is_made_shorter() -> None:
    assert run_fresh(shortened) == "well"


def test_load(vm: Memslots, mem: GuestMemory, tmp_path: Path) -> None:
    row(mem, 3, LOG)
    kept = mem.read(0, 3 * PAGE)
    path = tmp_path / "kernel"
    path.write_bytes(b"kernel" * 1000)
    assert mem.load(path, 10) == mem.load(os.fspath(path), 10) == 6000
    with path.open("rb") as file:
        with pytest.raises(TypeError):  # a descriptor: loading would close it
            mem.load(file.fileno(), 10)  # type: ignore[arg-type]
        assert file.read(1)
    assert mem.read(0, 3 * PAGE) == kept[:10] + b"kernel" * 1000 + kept[6010:]
    assert [dirty(vm, id) for id in range(3)] == [{0}, {0}, set()]
    with pytest.raises(NotMappedError, match="gpa 0x3000 "):
        mem.load(path, 2 * PAGE)
    with pytest.raises(FileNotFoundError):
        mem.load(tmp_path / "nothing", 0)
    assert mem.read(2 * PAGE, PAGE) == kept[2 * PAGE :]
    path.write_bytes(b"")
    assert mem.load(path, 0) == 0


@pytest.mark.parametrize("how", ["large", "endless", "readonly"])
def test_no_more_is_read_of_a_file_than_has_a_place(
    vm: Memslots, mem: GuestMemory, tmp_path: Path, how: str
) -> None:
    """A file with more bytes than there is memory, and one that never ends."""
    mem.place(0, 0, filled(3), flags=Flags.READONLY if how == "readonly" else 0)
    before = mem.read(0, 3 * PAGE)
    path = tmp_path / "large"
    if how == "endless":
        path = Path("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    with pytest.raises((NotMappedError, ReadOnlyError)):
        mem.load(path, PAGE)
    assert mem.read(0, 3 * PAGE) == before


def test_a_pipe_is_read_to_its_end(mem: GuestMemory, tmp_path: Path) -> None:
    mem.place(0, 0, filled(3))
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = pattern(2 * PAGE + 5)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    assert mem.load(path, 7) == len(data)
    writer.join()
    assert mem.read(7, len(data)) == data


# The object


def test_what_it_is_of() -> None:
    vm = Memslots(address_spaces=2)
    for wrong in (None, 8, vm.address_space(0), vm.vcpu(), Memslots):
        with pytest.raises(TypeError, match="vm must be a Memslots"):
            GuestMemory(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        GuestMemory()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        GuestMemory(vm, 1)  # type: ignore[call-arg]
    mem = GuestMemory(vm)
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            way(mem)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        pickle.dumps(mem.address_space(1))


def test_a_slot_by_place_is_deleted_as_any(vm: Memslots, mem: GuestMemory) -> None:
    row(mem, 2)
    vm.delete(0)
    with pytest.raises(NoSuchSlotError):
        vm.delete(0)
    with pytest.raises(NotMappedError):
        mem.read(0, 1)
    assert len(mem.read(PAGE, PAGE)) == PAGE
