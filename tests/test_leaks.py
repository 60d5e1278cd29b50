"""Memory stays flat over very many repetitions; each case runs in a process of its own.

Run as a script with a class and the name of a case, this file does the work and prints what grew.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import json
import mmap
import os
import pickle
import subprocess
import sys
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memslots import Backing, GuestMemfd, GuestMemory, MemslotError, Memslots, NotMappedError

HVA = 0x7000_0000_0000
PAGE = 0x1000
STATM = Path("/proc/self/statm")


class Listener:
    def __init__(self, vm: Memslots, refuses: bool = False) -> None:
        self.vm = vm  # a cycle: vm -> listener -> vm
        self.refuses = refuses

    def prepare(self, change: object, old: object, new: object) -> None:
        if self.refuses:
            raise ValueError("no")

    def invalidate(self, slot: object) -> None:
        self.vm.lookup(0)


def slots_by_set_region(vm: Memslots) -> None:
    for id in range(100):
        vm.set_region(id, 1, id << 13, 4096, HVA)
    for id in range(100):
        vm.set_region(id, 0, 0, 0, 0)


def slots_by_verbs(vm: Memslots) -> None:
    for id in range(100):
        vm.create(id, 2 * id, 2, HVA, id & 1)
    for id in range(99, -1, -1):
        vm.delete(id)


def ids_far_apart(vm: Memslots) -> None:
    for id in range(100):
        vm.create(id * 327, id, 1, HVA)
    for id in range(100):
        vm.delete(id * 327)


def moves_and_flags(vm: Memslots) -> None:
    vm.create(0, 0, 100_000, HVA)
    for n in range(40):
        vm.move(0, 1 + n)
        vm.set_flags(0, 1)
        vm.mark_dirty(50)
        vm.get_dirty_log(0)
        vm.clear_dirty_log(0, 0, 64, bytes(8))
        vm.set_flags(0, 0)
    vm.delete(0)


def refusals(vm: Memslots) -> None:
    vm.create(0, 0, 1000, HVA, 1)
    subscription = vm.subscribe(Listener(vm, refuses=True))
    for call in (
        lambda: vm.create(1, 5, 1, HVA),
        lambda: vm.create(1, 1 << 41, 1, HVA),
        lambda: vm.create(1, 1 << 20, 1, HVA, 1),
        lambda: vm.create(40_000, 0, 1, HVA),
        lambda: vm.create(1, 0, -1, HVA),
        lambda: vm.move(0, 1 << 41),
        lambda: vm.move(0, 1),
        lambda: vm.set_flags(0, 0),
        lambda: vm.set_flags(0, 2),
        lambda: vm.delete(0),
        lambda: vm.delete(1),
        lambda: vm.set_region(0, 8, 0, 0, 0),
        lambda: vm.gpa_to_hva(1 << 40),
        lambda: vm.get_dirty_log(1),
        lambda: vm[1],
    ) * 10:
        try:
            call()
        except (OSError, ValueError, OverflowError):
            continue
        raise AssertionError("not refused")
    subscription.close()
    vm.delete(0)


def listeners(vm: Memslots) -> None:
    for id in range(20):
        with vm.subscribe(Listener(vm)):
            vm.create(id, id, 1, HVA)
            vm.move(id, 1000 + id)
            vm.delete(id)


def machines(vm: Memslots) -> None:
    """Makes whole machines and drops them in use; some are in a cycle with their listener."""
    for n in range(5):
        other = type(vm)(100, address_spaces=2)
        for id in range(10):
            other.create(id, 100 * id, 100, HVA, 1, as_id=id & 1)
        vcpu = other.vcpu(n & 1)
        vcpu.lookup(0)
        if n & 1:
            other.subscribe(Listener(other))
        for twin in (copy.copy(other), pickle.loads(pickle.dumps(other))):
            twin.delete(0)
    gc.collect()


def reading(vm: Memslots) -> None:
    for id in range(50):
        vm.create(id, 2 * id, 1, HVA)
    gfns = array("Q", range(100))
    for _ in range(20):
        vcpu = vm.vcpu()
        assert len(list(vm)) == len(vm.in_gfn_range(0, 100)) == len(vm.in_hva_range(HVA, HVA + 1))
        iterator = iter(vm)
        next(iterator)
        vcpu.lookup(4)
        vcpu.lookup_many(gfns)
        vm.translate(gfns, gfns)
        vm.mark_dirty_many(gfns)
        repr(vm[3])
    for id in range(50):
        vm.delete(id)


def slots_that_are_kept(vm: Memslots) -> None:
    """Keeps Slots longer than their machine; each goes with its last reference."""
    kept = [vm.create(id, id, 1, HVA) for id in range(100)]
    old = [vm.move(id, 1000 + id) for id in range(100)]
    for id in range(100):
        vm.delete(id)
    assert [slot.id for slot in kept] == [slot.id for slot in old]


def transactions(vm: Memslots) -> None:
    """Ends transactions: done, refused by a rule, a listener or an overlap at the end, given up."""
    with vm.transaction() as tx:
        for id in range(30):
            tx.create(id, 2 * id, 2, HVA, id & 1)
    for listener in (None, Listener(vm), Listener(vm, refuses=True)):
        for overlap in (0, 1):
            subscription = vm.subscribe(listener) if listener else None
            try:
                with vm.transaction() as tx:
                    base = vm[0].base_gfn
                    tx.move(0, vm[1].base_gfn)
                    tx.move(1, base + 2 * overlap)
                    tx.set_flags(2, not vm[2].flags)
                    tx.delete(3)
                    tx.create(3, 2 * 3, 1, HVA, 1)
                    for id in range(30, 60):
                        tx.create(id, 2 * id, 2, HVA)
                        tx.delete(id)
            except (OSError, ValueError):
                pass
            if subscription:
                subscription.close()
    try:
        with vm.transaction() as tx:
            for id in range(30):
                tx.delete(id)
                tx.create(100 + id, id, 1, HVA, 1)
            raise OSError
    except OSError:
        pass
    with vm.transaction() as tx:
        tx.create(99, 0, 1000, HVA, 1)
        vm.transaction()  # never begun
        for id in range(30):
            tx.delete(id)
        tx.delete(99)
    vm.transaction().__enter__().create(7, 7, 7, HVA, 1)  # dropped


def guest_memory(vm: Memslots) -> None:
    """Makes places, accesses and refusals of every kind; the memory goes with its slots."""
    global MEMORY
    if MEMORY is None:
        MEMORY = GuestMemory(vm)
    mem = MEMORY
    ram = Backing.anonymous(8 * PAGE)
    for id in range(8):
        mem.place(id, id * PAGE, ram, id * PAGE, PAGE, 1)
    mem.write(5, bytes(7 * PAGE))
    mem.write(PAGE, memoryview(ram)[: 4 * PAGE])
    mem.readinto(5, bytearray(7 * PAGE))
    mem.readinto(5, memoryview(ram)[: 7 * PAGE])
    mem.fill(5, 7 * PAGE, 1)
    mem.write_u64(PAGE - 4, mem.read_u64(PAGE - 1))
    mem.mark_dirty(0, 8 * PAGE)
    assert len(vm.take_dirty_runs()) == 1
    views = mem.views(5, 7 * PAGE, write=True)
    one = mem.address_space(0).view(0, PAGE)
    for call in (
        lambda: mem.place(9, 0, Backing.anonymous(PAGE)),
        lambda: mem.place(9, PAGE + 1, ram),
        lambda: mem.add(Backing(memoryview(ram)[:PAGE])),
        lambda: mem.remove(ram),
        lambda: mem.read(0, 9 * PAGE),
        lambda: mem.write(0, bytes(9 * PAGE)),
        lambda: mem.read_u64(8 * PAGE - 1),
        lambda: mem.view(0, 2 * PAGE),
        lambda: mem.address_space(1),
        lambda: mem.write_u8(0, 256),
        lambda: Backing(bytes(1)),
        lambda: Backing.anonymous(1),
    ):
        try:
            call()
        except (OSError, ValueError, OverflowError):
            continue
        raise AssertionError("not refused")
    with vm.transaction() as tx:
        for id in range(8):
            tx.delete(id)
    assert mem.backings == ()
    assert bytes(one[:5]) == bytes(5)
    assert len(views) == 8


def snapshots(vm: Memslots) -> None:
    """Makes snapshots of two parts of segments, and snapshots that fail."""
    global MEMORY
    if MEMORY is None:
        MEMORY = GuestMemory(vm)
    mem = MEMORY
    ram = Backing.anonymous(3000 * PAGE)
    mem.place(0, 0, ram, flags=1)
    mem.place(1, 3000 * PAGE, ram, size=PAGE, flags=1)
    vm.mark_dirty_many(array("Q", range(0, 3001, 2)))
    mem.dump_dirty("snapshot")
    mem.restore("snapshot")
    vm.mark_dirty(1)
    vm.create(2, 4000, 1, HVA, 1)
    vm.mark_dirty(4000)
    refused: list[Callable[[], object]] = [
        lambda: mem.dump("other"),
        lambda: mem.dump_dirty("other"),
        lambda: mem.dump_dirty("nowhere/other"),
        lambda: mem.address_space(0).restore("nowhere/other"),
        lambda: mem.restore(__file__),
    ]
    for call in refused:
        try:
            call()
        except (OSError, ValueError):
            continue
        raise AssertionError("not refused")
    vm.delete(1)
    try:
        mem.restore("snapshot")  # the snapshot has the slot's page
    except NotMappedError:
        vm.delete(0)
    vm.delete(2)


def backings(vm: Memslots) -> None:
    """Makes and drops memory of every kind, with its mappings and descriptors."""
    path = Path(sys.argv[0])  # any file will do
    for n in range(5):
        made = [
            Backing.anonymous(PAGE),
            Backing.anonymous(PAGE, huge_pages=True),
            Backing.memfd(PAGE),
            Backing.file(path, 0, PAGE),
            Backing.file(path, 0, PAGE, readonly=True),
            Backing(mmap.mmap(-1, PAGE)),
        ]
        views = [memoryview(backing) for backing in made]
        del made[n]
        assert len({view.obj.hva for view in views if isinstance(view.obj, Backing)}) == 6
        refused: list[Callable[[], object]] = [
            lambda: Backing.memfd(1),
            lambda: Backing.memfd(1 << 62),
            lambda: Backing.file(path, 0, 1 << 40),
            lambda: Backing.file(path.parent),
        ]
        for call in refused:
            try:
                call()
            except (OSError, ValueError, OverflowError):
                continue
            raise AssertionError("not refused")


def machines_with_memory(vm: Memslots) -> None:
    """Drops machines with memory in use; most are in a cycle."""

    class Board(Memslots):
        mem: GuestMemory

    for n in range(4):
        board = Board(100, address_spaces=2)
        mem = GuestMemory(board)
        mem.place(0, 0, Backing.memfd(2 * PAGE), flags=1)
        mem.address_space(1).place(0, 0, mem.backings[0])
        mem.add(Backing.anonymous(PAGE))
        mem.write(0, bytes(2 * PAGE))
        if n & 1:
            board.mem = mem
        if n & 2:
            board.subscribe(Listener(board))
    gc.collect()


def files_of_guests(vm: Memslots) -> None:
    """Binds, refuses and closes guest memory files, in a transaction and in a map."""
    file = GuestMemfd(4 * PAGE)
    vm.set_region2(0, 4, 0, 2 * PAGE, 0, file, 0)
    with contextlib.suppress(MemslotError):
        vm.set_region2(1, 4, 8 * PAGE, PAGE, 0, file, 0)
    with contextlib.suppress(ZeroDivisionError), vm.transaction() as tx:
        tx.delete(0)
        tx.set_region2(1, 4, 8 * PAGE, PAGE, 0, file.dup(), PAGE)
        raise ZeroDivisionError
    vm.unmap(0, 1)
    pickle.loads(pickle.dumps(vm.map()))
    vm.become([])


def opened_memory(vm: Memslots) -> None:
    """Opens memory of a file, with a checkpoint, devices and arrays of values."""
    if not Path("opened").exists():
        Path("opened").write_bytes(bytes(8 * PAGE + 5))
    mem = GuestMemory.open("opened")
    checkpoint = mem.checkpoint()
    mem.pack(PAGE, "<I", 7)
    checkpoint.restore()
    with mem.on_mmio(1 << 30, 1 << 31, read=lambda gpa, size: len(mem.vm)):
        mem.read_u8(1 << 30)
    mem.discard(0, 2 * PAGE)
    mem.prefault(0, 2 * PAGE)


# Made once, for the life of the process: a Memslots has one.
MEMORY: GuestMemory | None = None

# Rounds: a million slots made and deleted, if slots are the point of the case.
CASES: dict[Callable[[Memslots], None], int] = {
    slots_by_set_region: 10_000,
    slots_by_verbs: 10_000,
    ids_far_apart: 2000,
    moves_and_flags: 1000,
    refusals: 1000,
    listeners: 2000,
    machines: 1000,  # without the GIL the first hundred rounds fill what CPython keeps for reuse
    reading: 500,
    slots_that_are_kept: 1000,
    transactions: 500,
    guest_memory: 1000,
    snapshots: 400,
    backings: 400,
    machines_with_memory: 600,
    files_of_guests: 1000,
    opened_memory: 1000,
}


MOST_RSS = 512 * 1024
MOST_BLOCKS = 100


def resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def of_the_kernel() -> dict[str, int]:
    """Returns the numbers of open descriptors and of mapped guest memories."""
    maps = Path("/proc/self/maps").read_text().splitlines() if STATM.exists() else []
    guests = [line for line in maps if "/memfd:" in line or sys.argv[0] in line]
    fds = len(list(Path("/proc/self/fd").iterdir())) if STATM.exists() else 0
    return {"fds": fds, "maps": len(maps), "guests": len(guests)}


def forget_names() -> None:
    """Empties CPython's cache of attributes.

    It keeps up to 4,096 names. Unpickling looks names up in strings that it has just made.
    """
    if sys.version_info >= (3, 13):
        sys._clear_internal_caches()
    else:
        sys._clear_type_cache()


def measure(vm: Memslots, case: Callable[[Memslots], None]) -> dict[str, int]:
    """Returns what grew: resident bytes and Python's blocks in all, traced bytes in a few."""

    def repeat(rounds: int) -> None:
        for _ in range(rounds):
            case(vm)
        vm.check()
        gc.collect()
        forget_names()

    rounds = CASES[case]
    repeat(rounds // 10)  # makes the objects that are made once
    # A leak grows each time. Python's own tables and the allocators' slack do not: without the GIL
    # Python's allocator frees memory late, so that it comes and goes by the megabyte.
    for _ in range(10):
        rss, blocks, held = resident(), sys.getallocatedblocks(), of_the_kernel()
        repeat(rounds)
        grown = {"rss": resident() - rss, "blocks": sys.getallocatedblocks() - blocks}
        if grown["rss"] < MOST_RSS and grown["blocks"] < MOST_BLOCKS:
            break
    grown |= {name: count - held[name] for name, count in of_the_kernel().items()}
    tracemalloc.start()
    repeat(rounds // 15)  # until the memory kept for reuse is traced, too
    traced, _ = tracemalloc.get_traced_memory()
    repeat(rounds // 50)
    grown["traced"] = tracemalloc.get_traced_memory()[0] - traced
    return grown


def main(chosen: str, drivers: str) -> None:
    sys.path.append(drivers)
    live = importlib.import_module("alloc_driver").live
    gc.freeze()  # the modules stay: many cases ask for a collection each round
    vm = Memslots()
    grown = measure(vm, globals()[chosen])
    assert live() > 0
    global MEMORY
    MEMORY = None
    del vm
    gc.collect()
    print(json.dumps(grown | {"live": live()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
else:
    import pytest

    @pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm")
    @pytest.mark.parametrize("case", [case.__name__ for case in CASES])
    def test_memory_is_flat(case: str, drivers: Any, tmp_path: Path) -> None:
        result = subprocess.run(
            [sys.executable, __file__, case, str(Path(drivers("alloc").__file__).parent)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        grown = json.loads(result.stdout)
        # A leak of one pointer a round is at least 8 kB, of one slot a round 64 kB and more. The
        # allocators' own slack is in pages.
        assert grown["rss"] < MOST_RSS, grown
        assert grown["blocks"] < MOST_BLOCKS, grown
        assert grown["traced"] < 4096, grown
        # No descriptor or VM is left; the allocators may map a few more regions of their own.
        assert (grown["fds"], grown["guests"]) == (0, 0), grown
        assert grown["maps"] < 20, grown
        # The core has all its memory back, now that the machine is gone.
        assert grown["live"] == 0, grown
