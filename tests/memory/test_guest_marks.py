"""Tests the marks of writes to guest memory, also of a mirrored map."""

from __future__ import annotations

import threading

import pytest
from backend import Backend as MirrorBackend
from backend import agree, mirrored
from guest import LOG, LONG, PAGE, dirty, filled, known

from memslots import (
    Backing,
    GuestMemory,
    Memslots,
    NotMappedError,
)

# Marks


def test_marks_are_on_the_pages_that_were_written(vm: Memslots, mem: GuestMemory) -> None:
    mem.place(0, 0, Backing.anonymous(70 * PAGE), flags=LOG)
    mem.place(1, 70 * PAGE, Backing.anonymous(PAGE))
    mem.place(2, 71 * PAGE, Backing.anonymous(2 * PAGE), flags=LOG)
    for call, pages in (
        (lambda: mem.write(5, b"x"), {0}),
        (lambda: mem.write(PAGE - 1, b"xy"), {0, 1}),
        (lambda: mem.fill(63 * PAGE, PAGE + 1), {63, 64}),
        (lambda: mem.write_u64(3 * PAGE - 4, 1), {2, 3}),
        (lambda: mem.write_u8(9 * PAGE, 1), {9}),
        (lambda: mem.write_u16(10 * PAGE - 2, 1), {9}),
        (lambda: mem.write_u32(10 * PAGE - 1, 1), {9, 10}),
        (lambda: mem.mark_dirty(12 * PAGE - 1, PAGE), {11, 12}),
        (lambda: mem.fill(69 * PAGE, 2 * PAGE), {69}),
        (lambda: mem.read(0, 70 * PAGE), set()),
        (lambda: mem.readinto(0, bytearray(PAGE)), set()),
        (lambda: mem.views(0, PAGE, write=True)[0].__setitem__(0, 1), set()),
        (lambda: mem.write(0, b""), set()),
    ):
        call()
        assert dirty(vm, 0) == pages
        assert dirty(vm, 2) == set()
    mem.fill(69 * PAGE + 1, 2 * PAGE)
    assert (dirty(vm, 0), dirty(vm, 2)) == ({69}, {0})
    mem.mark_dirty(0, 1 << 63)
    assert (dirty(vm, 0), dirty(vm, 2)) == (set(range(70)), {0, 1})


def test_marks_of_another_address_space(vm: Memslots, mem: GuestMemory) -> None:
    backing, smm = filled(2), mem.address_space(1)
    mem.place(0, 0, backing, flags=LOG)
    smm.place(0, 0, backing, flags=LOG)
    smm.mark_dirty(PAGE, 1)
    smm.fill(0, 1)
    assert (dirty(vm, 0), dirty(vm, 0, 1)) == (set(), {0, 1})


def test_marks_from_inside_a_listener(vm: Memslots, mem: GuestMemory) -> None:
    """The slot is INVALID while it moves: it can be accessed before and after, but not then."""
    mem.place(0, 0, filled(3), flags=LOG)
    seen: list[object] = []

    class Listener:
        def prepare(self, *args: object) -> None:
            with pytest.raises(NotMappedError, match="being deleted or moved"):
                mem.write(PAGE, b"x")
            mem.mark_dirty(2 * PAGE, 1)
            seen.append(None)

        def commit(self, *args: object) -> None:
            mem.write(0x100000, b"y")
            seen.append(mem.read(0x100000, 1))

    with vm.subscribe(Listener()):
        vm.move(0, 0x100)
    assert seen == [None, b"y"]
    assert dirty(vm, 0) == {0, 2}


def test_marks_while_the_slot_moves(vm: Memslots, mem: GuestMemory) -> None:
    """The write is in the log, wherever the slot is by then."""
    pages = LONG // PAGE + 2
    mem.place(0, 0, Backing.anonymous(pages * PAGE), flags=LOG)
    start, end = threading.Barrier(2), threading.Event()

    def move() -> None:
        start.wait()
        n = 0
        while not end.is_set():
            n += 1
            vm.move(0, (n & 1) * 0x1000)

    thread = threading.Thread(target=move)
    thread.start()
    start.wait()
    written = 0
    try:
        for n in range(100_000):
            value = n % 255 + 1
            try:
                mem.fill((n & 1) * 0x1000 * PAGE, pages * PAGE, value)
            except NotMappedError:
                assert dirty(vm, 0) == set()
            else:
                written += 1
                assert dirty(vm, 0) == set(range(pages))
            if written == 50:
                break
    finally:
        end.set()
        thread.join()
    assert written == 50


# Mirrored


def test_a_mirrored_memslots() -> None:
    vm, backend = mirrored()
    mem = GuestMemory(vm)
    backing = filled(4)
    mem.place(0, 0, backing, flags=LOG)
    mem.address_space(1).place(1, 8 * PAGE, backing, PAGE, PAGE)
    agree(vm, backend)
    backend.write(3)
    mem.write(PAGE, b"x")
    assert vm.take_dirty_runs() == [(0, 1, 2), (0, 3, 4)]
    backend.refused = {len(backend.calls) + 1}
    other = filled(1)
    with pytest.raises(OSError, match="no"):
        mem.place(2, 16 * PAGE, other)
    agree(vm, backend)
    assert known(mem) == [backing]
    backend.refused = {len(backend.calls) + 1, len(backend.calls) + 2}
    with pytest.raises(OSError, match="no"):
        vm.delete(1, as_id=1)
    with pytest.raises(OSError, match="no"):
        vm.move(0, 100)
    agree(vm, backend)
    vm.delete(1, as_id=1)
    assert mem.read(PAGE, 1) == b"x"
    mem.fill(0, 1)
    assert vm.take_dirty_runs() == [(0, 0, 1)]
    vm.delete(0)
    assert known(mem) == []
    assert isinstance(vm.backend, MirrorBackend)
