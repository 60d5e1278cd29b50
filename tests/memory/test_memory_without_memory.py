"""Makes every Python allocation of a call of GuestMemory fail in turn.

A call raises MemoryError or succeeds; no written page is without its mark, and nothing is left
locked.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh import run_fresh

from memslots import Backing, GuestMemory, Memslots

PAGE = 4096
PAGES = 8
IN_A_ROW = 30  # successes that mean there are no more: Python goes on after some failures


def machine() -> GuestMemory:
    memory = GuestMemory(Memslots(8))
    memory.place(0, 0, Backing.memfd(PAGES * PAGE), flags=1)
    memory.place(1, PAGES * PAGE, Backing.anonymous(PAGES * PAGE), flags=1)
    memory.fill(0, 2 * PAGES * PAGE, 1)
    return memory


def answers(gpa: int, size: int) -> int:
    return 7


def calls(memory: GuestMemory, folder: Path) -> dict[str, Callable[[], object]]:
    content = folder / "content"
    content.write_bytes(b"x" * 3 * PAGE)
    dump = folder / "dump"
    memory.dump(dump)
    dump_name, content_name = str(dump), str(content)
    fd = os.open(content, os.O_RDONLY)
    null = os.open("/dev/null", os.O_WRONLY)
    checkpoint = memory.checkpoint(by_log=False)
    size = 2 * PAGE
    gpa = PAGES * PAGE - PAGE  # in both slots

    def device() -> None:
        handle = memory.on_mmio(0x50000, 0x60000, read=answers)
        try:
            handle.close()
        except MemoryError:
            handle.close()  # the device was still there

    return {
        "checkpoint": memory.checkpoint,
        "checkpoint by_log=False": lambda: memory.checkpoint(by_log=False),
        "restore by comparing": checkpoint.restore,
        "open": lambda: GuestMemory.open(dump_name),
        "open raw": lambda: GuestMemory.open(content_name),
        "on_mmio": device,
        "pack": lambda: memory.pack(gpa, "<I8000xI", 1 << 30, 1 << 31),
        "unpack": lambda: memory.unpack(gpa, "<I8000xI"),
        "array": lambda: memory.array(0, "<u4", 64),
        "write_from": lambda: memory.write_from(fd, gpa, size, offset=0),
        "read_into": lambda: memory.read_into(null, gpa, size),
        "discard": lambda: memory.discard(gpa + 5, size),
        "prefault": lambda: memory.prefault(gpa, size),
        "file_of": lambda: memory.file_of(0),
        "is_mapped": lambda: memory.is_mapped(gpa, size),
    }


def fail_each(name: str, memory: GuestMemory, call: Callable[[], object]) -> int:
    """Fails one allocation of the call after the other. Returns how many errors there were."""
    import _testcapi  # type: ignore[import-not-found, unused-ignore]

    whole = 2 * PAGES * PAGE
    call()
    failed = row = n = 0
    while row <= IN_A_ROW:
        n += 1 + n // 50  # many allocations are of one loop
        memory.fill(0, whole, n % 256)
        memory.vm.take_dirty_runs()
        before = memory.read(0, whole)
        error = None
        _testcapi.set_nomemory(n, n + 1)
        try:
            call()
        except Exception as raised:  # noqa: BLE001 (which one is looked at below)
            error = raised
        finally:
            _testcapi.remove_mem_hooks()
        # ctypes, os.fspath, open and calls in CPython 3.11 tell of it in their own ways.
        told = r"MemoryError|os\.PathLike|allocate|NULL without"
        assert error is None or re.search(told, repr(error)), error
        row = row + 1 if error is None else 0
        del error
        failed += row == 0
        gc.collect()  # a Memslots and its Backings refer to each other
        after = memory.read(0, whole)
        changed = {
            at // PAGE
            for at in range(0, whole, PAGE)
            if before[at : at + PAGE] != after[at : at + PAGE]
        }
        if not name.startswith("checkpoint") or row == 0:
            runs = memory.vm.take_dirty_runs()
            assert changed <= {gfn for _, start, end in runs for gfn in range(start, end)}, (
                name,
                n,
            )
    return failed


def each_call() -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory = machine()
        for name, call in calls(memory, Path(folder)).items():
            assert fail_each(name, memory, call) > 0, name
            memory.vm.create(7, 0x9000, 1, 0x7000)
            memory.vm.delete(7)
            memory.vm.check()


@pytest.mark.untraced
@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of CPython may crash without memory"
)
def test_each_call() -> None:
    pytest.importorskip("_testcapi")
    run_fresh(each_call, timeout=300)
