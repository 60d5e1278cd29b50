"""Tests become and apply on a mirrored Memslots: the backend gets the plan's calls."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable

import pytest
from backend import Backend, Interrupt, KernelSaysNo, Logless, agree
from hypothesis import given
from hypothesis import strategies as st
from maps import maps, pages
from model import state_of

from memslots import MemoryMap, Memslots, plan

LIMITS = {"max_gfn": 200}


def at(m: MemoryMap, backend: Logless | None = None) -> tuple[Memslots, Logless]:
    backend = Backend(100, **LIMITS) if backend is None else backend
    vm = Memslots(100, backend=backend, **LIMITS)
    for slot in m:
        vm.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)
    backend.calls.clear()
    return vm, backend


@given(maps(), maps(), st.booleans(), st.lists(st.integers(0, 50), max_size=9))
def test_the_backend_is_asked_for_the_plans_calls(
    now: MemoryMap, wanted: MemoryMap, planned: bool, written: list[int]
) -> None:
    vm, backend = at(now)
    assert isinstance(backend, Backend)
    for gfn in written:
        backend.write(gfn)
    expected = {
        gfn
        for gfn in written
        if pages(now).get(gfn, (0, 0))[1] == 1
        and pages(wanted).get(gfn, (0, 0))[1] & 1
        and pages(wanted)[gfn][0] == pages(now)[gfn][0]
    }
    made = plan(vm, wanted)
    if planned:
        vm.apply(made)
    else:
        vm.become(wanted)
    assert backend.calls == made.calls
    agree(vm, backend)
    assert vm.map() == wanted
    # No mark is lost, whatever the calls did to the backend's logs (T1).
    taken = {gfn for run in vm.take_dirty_runs() for gfn in range(run.start_gfn, run.end_gfn)}
    assert expected <= taken


@given(maps(), maps())
def test_readers_miss_no_page_and_windows_are_as_told(now: MemoryMap, wanted: MemoryMap) -> None:
    """The test watches the backend between its calls."""
    both = pages(now).keys() & pages(wanted).keys()

    class Watching(Logless):
        watched: Memslots | None = None

        def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
            super().set_region(slot, flags, gpa, size, hva)
            if self.watched is None:
                return
            assert all(self.watched.lookup(gfn) is not None for gfn in both)
            held = {g for s in self.model.in_order(0) for g in range(s.base_gfn, s.end_gfn)}
            absent.append(both - held)

    absent: list[set[int]] = []
    backend = Watching(100, **LIMITS)
    vm, _ = at(now, backend)
    backend.watched = vm
    made = vm.become(wanted)
    for number, gone in enumerate(absent):
        assert gone == {
            gfn
            for start, end, first, last in made.windows
            if first <= number < last
            for gfn in range(start, end)
        }


NOW = MemoryMap([(0, 10, 0, 1), (20, 10, 1 << 20), (40, 10, 1 << 21, 2)])
WANTED = MemoryMap([(5, 10, 0, 1), (15, 10, 1 << 20, 1), (40, 5, 1 << 21), (45, 5, 1 << 22)])


@pytest.mark.parametrize("how", ["", "early", "late"])
def test_each_call_refused(how: str) -> None:
    calls = len(plan(NOW, WANTED))
    assert calls > 4
    for refused in range(1, calls + 1):
        vm, backend = at(NOW)
        backend.refused, backend.how = {refused}, how
        before = state_of(vm)
        with pytest.raises((KernelSaysNo, Interrupt)):
            vm.become(WANTED)
        assert state_of(vm) == before
        agree(vm, backend)
        vm.become(WANTED)
        agree(vm, backend)


def test_what_the_backend_is_to_keep() -> None:
    now = MemoryMap([(0, 10, 0), (10, 1, 1 << 20)])
    wanted = MemoryMap([(1, 10, 0), (0, 1, 1 << 20)])
    for keep in ([(1, 10)], []):
        vm, backend = at(now)
        made = vm.become(wanted, keep=keep)
        assert backend.calls == made.calls
        assert all(window.end_gfn <= 1 or window.start_gfn >= 10 for window in made.windows)


def test_readers_beside_become() -> None:
    """No reader misses a page that is in both maps, in any way of asking."""
    here = MemoryMap([(10 * i, 8, i << 30, i % 2) for i in range(40)])
    # Slots are cut, moved up, on other memory, with other flags; pages 2 to 5 of each stay.
    there = MemoryMap([(10 * i + (i % 3), 6, (i + 100 * (i % 4)) << 30, i % 4) for i in range(40)])
    stay = array("Q", [10 * i + page for i in range(40) for page in range(2, 6)])
    vm = Memslots(here, max_slots=50)
    vcpu = vm.vcpu()
    end = time.monotonic() + 1.5
    failures: list[BaseException] = []
    rounds: list[int] = []

    def run(once: Callable[[], None]) -> None:
        count = 0
        try:
            while (time.monotonic() < end or not count) and not failures:
                once()
                count += 1
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
            failures.append(failure)
        rounds.append(count)

    def write() -> None:
        assert len(vm.become(there)) and len(vm.become(here))

    def in_batches() -> None:
        assert min(vm.lookup_many(stay)) >= 0

    def one_by_one() -> None:
        assert all(vm.lookup(gfn) is not None for gfn in stay)

    def by_vcpu() -> None:
        for gfn in stay:
            vcpu.gpa_to_hva(gfn << 12)

    def in_maps() -> None:
        m = vm.map()
        assert m in (here, there) and all(m.lookup(gfn) for gfn in stay)

    threads = [
        threading.Thread(target=run, args=(once,))
        for once in (write, in_batches, one_by_one, by_vcpu, in_maps)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and min(rounds) > 0
    vm.check()
