"""Readers beside a writer that re-arranges everything: no reader sees a broken invariant.

The slots always tile one range of gfns. Transactions make slots trade places, split and merge
them. Single changes toggle flags, and make and delete slots elsewhere. MEMSLOTS_STRESS_SECONDS is
the length of the run; the default is short.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from fresh import run_fresh

from memslots import BAD_HVA, Flags, Memslots, Slot

SECONDS = float(os.environ.get("MEMSLOTS_STRESS_SECONDS", "2"))
TILES = 8  # slots in the range, of UNIT pages each at first
UNIT = 8
TOP = TILES * UNIT  # 64, the look-ups that a batch makes in one generation
ELSEWHERE = 0x10000


def hva_of(id: int) -> int:
    """Returns a host address that names the slot."""
    return (id + 1) << 32


class Scene:
    """A Memslots whose slots tile [0, TOP), and the threads that use it."""

    def __init__(self) -> None:
        self.vm = Memslots()
        for id in range(TILES):
            self.vm.create(id, UNIT * id, UNIT, hva_of(id))
        self.start = threading.Barrier(10)
        self.failures: list[BaseException] = []
        self.rounds: dict[str, int] = {}

    def run(self, name: str, once: Callable[[], None]) -> None:
        try:
            self.start.wait()
            end = time.monotonic() + SECONDS
            count = 0
            # At least once: on a busy machine a thread may get no time until the end.
            while (time.monotonic() < end or not count) and not self.failures:
                once()
                count += 1
            self.rounds[name] = count
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
            self.failures.append(failure)


def check_tiles(slots: list[Slot]) -> None:
    gfn = 0
    for slot in slots:
        assert slot.base_gfn == gfn
        assert slot.userspace_addr == hva_of(slot.id)
        gfn = slot.end_gfn
    assert gfn == TOP
    assert len({slot.id for slot in slots}) == len(slots)


def readers(vm: Memslots) -> dict[str, Callable[[], None]]:
    gfns = array("Q", range(TOP))
    gpas = array("Q", [gfn << 12 for gfn in gfns])
    # A longer batch: every stretch is of one generation, the batch is not.
    many = gfns * 50
    dice = random.Random(1)
    vcpus = {
        name: vm.vcpu() for name in ("single", "batch", "translate", "ranges", "iterate", "room")
    }

    def single() -> None:
        for face in (vm, vcpus["single"]):
            for _ in range(50):
                gfn = dice.randrange(TOP)
                slot = face.lookup(gfn)
                assert slot is not None
                assert gfn in slot
                assert face.gpa_to_hva(gfn << 12) != BAD_HVA

    def batch() -> None:
        # One stretch, of one generation: every page is held, and each slot's pages are one run.
        for face in (vm, vcpus["batch"]):
            ids = face.lookup_many(gfns)
            assert min(ids) >= 0
            runs = [id for n, id in enumerate(ids) if n == 0 or ids[n - 1] != id]
            assert len(set(runs)) == len(runs)
            assert min(face.lookup_many(many)) >= 0

    def translate() -> None:
        hvas = vcpus["translate"].translate(gpas)
        for n, hva in enumerate(hvas):
            assert hva != BAD_HVA
            first = n == 0 or hvas[n - 1] >> 32 != hva >> 32
            assert hva & 0xFFFF_FFFF == (0 if first else (hvas[n - 1] & 0xFFFF_FFFF) + 0x1000)

    def ranges() -> None:
        check_tiles(vcpus["ranges"].in_gfn_range(0, TOP))
        found = vm.in_hva_range(0, hva_of(1 << 12))
        for slot, start, end in found:
            assert (start, end) == (slot.base_gfn, slot.end_gfn)
        tiles = [slot for slot, _, _ in found if slot.base_gfn < ELSEWHERE]
        check_tiles(sorted(tiles, key=lambda slot: slot.base_gfn))

    def iterate() -> None:
        for face in (vm, vcpus["iterate"]):
            check_tiles([slot for slot in face if slot.base_gfn < ELSEWHERE])

    def room() -> None:
        for face in (vm, vcpus["room"], vm.map()):
            assert face.is_mapped(0, TOP)
            assert face.holes(0, TOP) == []
            assert face.find_hole(1, dice.randrange(TOP), TOP) is None

    def maps() -> None:
        m = vm.map()
        tiles = [slot for slot in m if slot.base_gfn < ELSEWHERE]
        check_tiles(tiles)
        assert min(m.lookup_many(gfns)) >= 0
        assert all(m[slot.id] is slot for slot in tiles)

    def mark() -> None:
        vm.mark_dirty_many(gfns)
        vm.mark_dirty(dice.randrange(TOP))

    return {
        "single": single,
        "batch": batch,
        "translate": translate,
        "ranges": ranges,
        "iterate": iterate,
        "room": room,
        "maps": maps,
        "mark": mark,
    }


def writers(vm: Memslots) -> dict[str, Callable[[], None]]:
    dice = random.Random(2)

    def transactions() -> None:
        slots = [slot for slot in vm if slot.base_gfn < ELSEWHERE]
        a, b = sorted(dice.sample(slots, 2), key=lambda slot: slot.base_gfn)
        with vm.transaction() as tx:
            if a.npages == b.npages:  # trade places
                tx.move(a.id, b.base_gfn)
                tx.move(b.id, a.base_gfn)
            elif a.end_gfn == b.base_gfn and len(slots) > TILES // 2:  # merge
                tx.delete(b.id)
                tx.delete(a.id)
                tx.create(a.id, a.base_gfn, a.npages + b.npages, hva_of(a.id))
            if a.npages > 1 and len(slots) < 2 * TILES:  # split
                free = next(id for id in range(3 * TILES) if tx.get(id) is None)
                now = tx.get(a.id)
                assert now is not None
                tx.delete(a.id)
                tx.create(a.id, now.base_gfn, now.npages - 1, hva_of(a.id))
                tx.create(free, now.end_gfn - 1, 1, hva_of(free), Flags.LOG_DIRTY_PAGES)

    def single_changes() -> None:
        id = 1000 + dice.randrange(8)
        if vm.get(id) is None:
            vm.create(id, ELSEWHERE + 16 * id, 4, hva_of(id))
        elif dice.random() < 0.5:
            vm.move(id, ELSEWHERE + 16 * id + dice.randrange(8))
        else:
            vm.delete(id)
        some = dice.choice([slot for slot in vm if slot.base_gfn < ELSEWHERE])
        with contextlib.suppress(KeyError):  # the other writer may have been quicker
            vm.set_flags(some.id, dice.choice([0, Flags.LOG_DIRTY_PAGES]))

    return {"transactions": transactions, "single changes": single_changes}


def resident() -> int:
    """Returns the bytes of memory that this process has, or 0 if they are not known."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if statm.exists() else 0


def stress() -> None:
    scene = Scene()
    roles = readers(scene.vm) | writers(scene.vm)
    threads = [
        threading.Thread(target=scene.run, args=(name, once), name=name)
        for name, once in roles.items()
    ]
    assert len(threads) == scene.start.parties
    for thread in threads:
        thread.start()
    time.sleep(SECONDS / 4)
    early = resident()
    for thread in threads:
        thread.join()
    if scene.failures:
        raise scene.failures[0]
    scene.vm.check()
    check_tiles([slot for slot in scene.vm if slot.base_gfn < ELSEWHERE])
    assert set(scene.rounds) == set(roles)
    assert min(scene.rounds.values()) > 0
    print(*(f"{name}: {count} rounds" for name, count in scene.rounds.items()), sep=", ")
    # A sanitizer does not free memory at once.
    grown = resident() - early
    print(f"memory: {grown / 2**20:+.1f} MiB")
    assert grown < 16 << 20 or "MEMSLOTS_SANITIZE" in os.environ


def test_no_reader_sees_a_change_half_made() -> None:
    print(run_fresh(stress, timeout=10 * SECONDS + 600))
