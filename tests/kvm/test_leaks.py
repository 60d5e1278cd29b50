"""Descriptors, mappings and memory stay flat over 10,000 VMs; each case has its own process.

Run as a script with the name of a case, this file does the work and prints what grew.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

from memslots import Backing, GuestMemory, Memslots, OverlapError
from memslots.kvm import KvmError, KvmVM

PAGE = 4096
LOG = 1


def used(vm: KvmVM) -> None:
    """Uses two slots, a vCPU and a log, and makes a refused call of each kind."""
    vm.set_region(0, LOG, 0, 16 * PAGE, 0)
    vm.set_region(1, 0, 32 * PAGE, PAGE, 0)
    vm.create_vcpu().get_regs()
    vm.get_dirty_log(0)
    try:
        vm.set_region(2, 0, 0, PAGE, 0)
    except OverlapError:
        pass
    else:
        raise AssertionError("not refused")
    try:
        vm.create_vcpu()
    except KvmError:
        pass
    else:
        raise AssertionError("not refused")


def closed(n: int) -> None:
    with KvmVM(manual_dirty_log=(0, 1, 3)[n % 3]) as vm:
        used(vm)


def dropped(n: int) -> None:
    """Drops a VM, with its vCPU before or after it, or in a cycle with it."""
    vm = KvmVM()
    used(vm)
    if n % 3 == 0:
        vcpu = vm.create_vcpu(1)
        del vm
        vcpu.get_regs()
    elif n % 3 == 1:
        vm.itself = vm  # type: ignore[attr-defined]
        del vm
        if n % 10 == 1:
            gc.collect()


def vcpu_closed_first(n: int) -> None:
    with KvmVM() as vm:
        with vm.create_vcpu() as vcpu:
            vcpu.set_regs(rax=n)
        vm.set_region(0, 0, 0, PAGE, 0)


def not_made(n: int) -> None:
    """Asks for a VM of an unknown type, and for a vCPU with an impossible id."""
    try:
        KvmVM(0xFFFF)
    except KvmError:
        pass
    else:
        raise AssertionError("made")
    with KvmVM() as vm:
        try:
            vm.create_vcpu(1 << 30)
        except KvmError:
            return
        raise AssertionError("made")


def mirrored(n: int) -> None:
    """Makes memory, a map and a VM that keep each other; closes them, or drops them with slots."""
    kvm = KvmVM()
    vm = Memslots(backend=kvm)
    memory = GuestMemory(vm)
    memory.place(0, 0, Backing.memfd(16 * PAGE), flags=LOG)
    memory.place(1, 1 << 20, Backing.anonymous(16 * PAGE))
    memory.write(15 * PAGE, b"x")
    with vm.transaction() as tx:
        tx.move(0, 1 << 8)
        tx.move(1, 0)
    vm.take_dirty_runs()
    kvm.create_vcpu().get_regs()
    if n & 1:
        vm.delete(0)
    if n & 2:
        kvm.close()
    if n % 10 == 0:
        gc.collect()


# The number of VMs. A case takes the number of the VM; objects that it leaves behind grow.
CASES: dict[Callable[[int], None], int] = {
    closed: 5_000,
    dropped: 5_000,
    vcpu_closed_first: 1_000,
    not_made: 1_000,
    mirrored: 2_000,
}


MOST_BLOCKS = 100
MOST_RSS = 24 << 20 if sysconfig.get_config_var("Py_GIL_DISABLED") else 512 * 1024


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(case: Callable[[int], None]) -> dict[str, int]:
    """Returns what grew over all rounds: descriptors, mappings, bytes resident, Python's blocks."""

    def state() -> dict[str, int]:
        gc.collect()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
            "rss": resident(),
            "blocks": sys.getallocatedblocks(),
        }

    for n in range(CASES[case] // 10):  # makes the objects that are made once
        case(n)
    # A leak grows each time. Python's own tables and the allocators' slack do not.
    for _ in range(3):
        before = state()
        for n in range(CASES[case]):
            case(n)
        grown = {what: value - before[what] for what, value in state().items()}
        if grown["blocks"] < MOST_BLOCKS and grown["rss"] < MOST_RSS:
            break
    return grown


def leaking(n: int) -> None:
    """Leaks for the self-test: keeps the descriptors of one VM in a hundred."""
    vm = KvmVM()
    used(vm)
    if n % 100:
        vm.close()
    else:
        KEPT.append(vm)


KEPT: list[KvmVM] = []

if __name__ == "__main__":
    CASES[leaking] = 1000
    # Every dropped object warns, and no test reads the warnings here.
    warnings.simplefilter("ignore", ResourceWarning)
    print(json.dumps(measure(globals()[sys.argv[1]])))
else:
    import pytest
    from needs import needs_kvm

    def grown(name: str) -> dict[str, int]:
        result = subprocess.run(
            [sys.executable, "-P", __file__, name],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found: dict[str, int] = json.loads(result.stdout)
        return found

    @needs_kvm
    @pytest.mark.parametrize("case", [case.__name__ for case in CASES])
    def test_nothing_stays(case: str) -> None:
        found = grown(case)
        assert found["descriptors"] == 0, found
        assert found["mappings"] <= 2, found  # the allocators' own mappings come and go
        assert found["blocks"] < MOST_BLOCKS, found
        # A leak of a vCPU's mapping would be 12 kB a VM, and of a KvmVM's dicts and lock 1 kB.
        # (Without a GIL Python's allocator frees memory late: it comes and goes by the megabyte.)
        assert found["rss"] < MOST_RSS, found

    @needs_kvm
    def test_what_stays_is_found() -> None:
        found = grown("leaking")
        assert found["descriptors"] >= 20, found
        assert found["mappings"] >= 10, found
