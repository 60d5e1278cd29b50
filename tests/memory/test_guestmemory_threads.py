"""Reads and writes guest memory while threads re-arrange its slots.

Every word of host memory names its guest page, so a reader sees whether its bytes come from the
right place. Slots are split, merged, moved, put on other memory with the same contents, and deleted
with their memory. MEMSLOTS_STRESS_SECONDS is the length of the run; the default is short.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress

from fresh import run_fresh

from memslots import Backing, Flags, GuestMemory, Memslots, NotMappedError

SECONDS = float(os.environ.get("MEMSLOTS_STRESS_SECONDS", "2"))
PAGE = 0x1000
TOP = 128  # pages that are always there: more than a copy with the GIL takes
IDS = 64  # for their slots
ELSEWHERE = 0x10000  # the first page of the slots that come and go
GUESTS = 4
WORDS = PAGE // 8


def memory_of(gfns: range) -> Backing:
    """Returns host memory in which the upper half of every word is the page's number."""
    backing = Backing.anonymous(len(gfns) * PAGE)
    words = array("Q")
    for gfn in gfns:
        words.extend(array("Q", [gfn << 32]) * WORDS)
    memoryview(backing)[:] = memoryview(words).cast("B")
    return backing


class Scene:
    def __init__(self) -> None:
        self.vm = Memslots(256, address_spaces=2)
        self.mem = GuestMemory(self.vm)
        self.both = [memory_of(range(TOP)), memory_of(range(TOP))]
        for id in range(8):
            self.mem.place(id, id * 16 * PAGE, self.both[0], id * 16 * PAGE, 16 * PAGE, 1)
        self.mem.add(self.both[1])
        # So neither Backing is ever dropped.
        for id, backing in enumerate(self.both):
            self.mem.address_space(1).place(id, id * TOP * PAGE, backing)
        self.failures: list[BaseException] = []
        self.rounds: dict[str, int] = {}

    def run(self, name: str, start: threading.Barrier, once: Callable[[], None]) -> None:
        try:
            start.wait()
            end = time.monotonic() + SECONDS
            count = 0
            # At least once: on a busy machine a thread may get no time until the end.
            while (time.monotonic() < end or not count) and not self.failures:
                once()
                count += 1
            self.rounds[name] = count
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
            self.failures.append(failure)

    # The threads that read and write

    def check(self, gfn: int, data: bytes | bytearray | memoryview) -> None:
        words = memoryview(data).cast("Q")
        for n in range(0, len(words), 61):
            assert words[n] >> 32 == gfn + n // WORDS, (gfn, n, hex(words[n]))

    def readers(self) -> dict[str, Callable[[], None]]:
        mem, dice = self.mem, random.Random(1)
        into = bytearray(TOP * PAGE)

        def read_all() -> None:
            with suppress(NotMappedError):  # the slot moves
                self.check(0, mem.read(0, TOP * PAGE))
            with suppress(NotMappedError):
                mem.readinto(0, into)
                self.check(0, into)

        def read_words() -> None:
            for _ in range(100):
                gfn, word = dice.randrange(TOP), dice.randrange(WORDS)
                with suppress(NotMappedError):
                    assert mem.read_u64(gfn * PAGE + 8 * word) >> 32 == gfn

        def write() -> None:
            for _ in range(20):
                gfn, word = dice.randrange(TOP), dice.randrange(WORDS)
                value = gfn << 32 | dice.getrandbits(32)
                with suppress(NotMappedError):
                    mem.write_u64(gfn * PAGE + 8 * word, value)
            first = dice.randrange(TOP - 2)
            data = b"".join(
                struct.pack("<Q", gfn << 32 | 7) * WORDS for gfn in range(first, first + 3)
            )
            with suppress(NotMappedError):
                mem.write(first * PAGE, data)

        def look_at_guests() -> None:
            for n in range(GUESTS):
                gfn = ELSEWHERE + 100 * n
                with suppress(NotMappedError):
                    self.check(gfn, mem.read(gfn * PAGE, 2 * PAGE))
                with suppress(NotMappedError):
                    view = mem.view(gfn * PAGE, 2 * PAGE)
                    self.check(gfn, view)  # whatever happens to the slot meanwhile

        return {
            "read all": read_all,
            "read words": read_words,
            "write": write,
            "look at guests": look_at_guests,
        }

    # The threads that change

    def writers(self) -> dict[str, Callable[[], None]]:
        vm, mem, dice = self.vm, self.mem, random.Random(2)

        def tiles() -> None:
            """Splits slots, merges them, or puts them on the other memory, which reads the same."""
            slots = vm.in_gfn_range(0, TOP)
            a = dice.choice(slots)
            hva = dice.choice(self.both).hva
            with vm.transaction() as tx:
                free = [id for id in range(IDS) if vm.get(id) is None]
                following = tx.lookup(a.end_gfn) if a.end_gfn < TOP else None
                tx.delete(a.id)
                if following is not None and dice.random() < 0.5:
                    tx.delete(following.id)
                    pages = a.npages + following.npages
                    tx.create(a.id, a.base_gfn, pages, hva + a.base_gfn * PAGE, 1)
                elif a.npages > 1 and free:
                    cut = a.base_gfn + a.npages // 2
                    tx.create(a.id, a.base_gfn, cut - a.base_gfn, hva + a.base_gfn * PAGE, 1)
                    tx.create(free[0], cut, a.end_gfn - cut, hva + cut * PAGE, 1)
                else:
                    tx.create(a.id, a.base_gfn, a.npages, hva + a.base_gfn * PAGE, 1)

        def logs() -> None:
            """Turns logs on and off, and takes them."""
            with suppress(KeyError):  # another thread may have been quicker
                id = dice.choice(vm.in_gfn_range(0, TOP)).id
                vm.set_flags(id, dice.choice([Flags(0), Flags.LOG_DIRTY_PAGES]))
            vm.take_dirty_runs()

        def guests() -> None:
            """Creates and deletes slots, each with memory of its own."""
            for n in range(GUESTS):
                gfn = ELSEWHERE + 100 * n
                if vm.get(100 + n) is None:
                    mem.place(100 + n, gfn * PAGE, memory_of(range(gfn, gfn + 2)))
                elif dice.random() < 0.3:
                    vm.move(100 + n, gfn + 50)
                    vm.move(100 + n, gfn)
                else:
                    vm.delete(100 + n)

        return {"tiles": tiles, "logs": logs, "guests": guests}


def stress() -> None:
    scene = Scene()
    roles = scene.readers() | scene.writers()
    start = threading.Barrier(len(roles))
    threads = [
        threading.Thread(target=scene.run, args=(name, start, once), name=name)
        for name, once in roles.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if scene.failures:
        raise scene.failures[0]
    scene.vm.check()
    assert scene.rounds.keys() == roles.keys()
    assert min(scene.rounds.values()) > 0
    scene.check(0, scene.mem.read(0, TOP * PAGE))
    for backing in scene.both:
        scene.check(0, bytes(backing))
    for slot in list(scene.vm):
        scene.vm.delete(slot.id)
    assert list(scene.mem.backings) == sorted(scene.both, key=lambda backing: backing.hva)
    print(*(f"{name}: {count} rounds" for name, count in scene.rounds.items()), sep=", ")


def test_every_byte_is_of_its_place() -> None:
    print(run_fresh(stress, timeout=10 * SECONDS + 600))
