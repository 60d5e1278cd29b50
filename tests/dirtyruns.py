"""Helpers for the tests of dirty runs."""

from __future__ import annotations

from typing import Any

from smallmachine import MAX_GFN, MAX_HVA, SPACES

from memslots import Flags, Memslots

HVA = 0x7000_0000_0000
LOG, READONLY = Flags.LOG_DIRTY_PAGES, Flags.READONLY
MODES = [0, 1, 3]
LIMITS = {"address_spaces": SPACES, "max_gfn": MAX_GFN, "max_hva": MAX_HVA}


def machine(mode: int = 0, **limits: Any) -> Memslots:
    return Memslots(64, address_spaces=2, max_gfn=0xFFFF, manual_dirty_log=mode, **limits)


def fresh(mode: int, *sizes: int) -> Memslots:
    """Returns adjacent logging slots from gfn 0 on, with no marks."""
    vm = machine(mode)
    base = 0
    for id, npages in enumerate(sizes):
        vm.create(id, base, npages, HVA + (base << 12), LOG)
        base += npages
    vm.take_dirty_runs()
    return vm


def check(vm: Memslots, *runs: tuple[int, int, int]) -> None:
    """Checks that these pages are marked, each once."""
    assert vm.take_dirty_runs() == list(runs)
    assert vm.take_dirty_runs() == []
    vm.check()
