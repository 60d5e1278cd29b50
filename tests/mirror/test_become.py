"""become and apply on a Memslots that is mirrored: the backend is asked for the plan's calls."""

from __future__ import annotations

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
    # No mark is lost, whatever became of the backend's logs on the way (T1).
    taken = {gfn for run in vm.take_dirty_runs() for gfn in range(run.start_gfn, run.end_gfn)}
    assert expected <= taken


@given(maps(), maps())
def test_readers_miss_no_page_and_windows_are_as_told(now: MemoryMap, wanted: MemoryMap) -> None:
    """Seen from the backend, between its calls."""
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
