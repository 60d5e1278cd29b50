"""A snapshot shows one moment of the map; also tests the marks that end with it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from memslots import Backing, Flags, GuestMemory, Memslots

PAGE = 4096
LOG = Flags.LOG_DIRTY_PAGES


def logging(pages: int = 8) -> GuestMemory:
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.anonymous(pages * PAGE), flags=LOG)
    return mem


@pytest.mark.parametrize("dirty", [False, True])
def test_beside_a_writer(path: Path, dirty: bool) -> None:
    """It may or may not have slots that come and go meanwhile, and misses none that was listed."""
    vm = Memslots()
    mem = GuestMemory(vm)
    ram = Backing.anonymous(600 * PAGE)
    for id in range(600):
        mem.place(id, 2 * id * PAGE, ram, id * PAGE, PAGE, flags=LOG)
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            for id in (0, 300, 599):
                vm.delete(id)
                mem.place(id, 2 * id * PAGE, ram, id * PAGE, PAGE, flags=LOG)

    before = sys.getswitchinterval()
    thread = threading.Thread(target=churn)
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        for _ in range(20):
            vm.mark_dirty_range(0, 1200)
            size = mem.dump_dirty(path) if dirty else mem.dump(path)
            assert 597 * PAGE <= size <= 600 * PAGE
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)


def test_in_the_body_of_a_transaction(path: Path) -> None:
    """It shows what readers find."""
    mem = logging()
    with mem.vm.transaction() as tx:
        tx.delete(0)
        assert mem.dump(path) == 8 * PAGE


def test_the_next_diff_after_a_full_dump(path: Path) -> None:
    mem = logging()
    mem.write(PAGE, b"before")
    assert mem.dump(path) == 8 * PAGE
    assert mem.dump_dirty(path) == PAGE
    mem.write(PAGE, b"before")
    assert mem.dump(path, restart_log=True) == 8 * PAGE
    mem.write(3 * PAGE, b"after")
    assert mem.vm.take_dirty_runs() == [(0, 3, 4)]


def test_marks_that_a_failed_dump_took_are_there_again(tmp_path: Path) -> None:
    mem = logging()
    mem.write(PAGE, b"before")
    with pytest.raises(OSError, match="No such file"):
        mem.dump(tmp_path / "nowhere" / "snapshot", restart_log=True)
    mem.vm.create(1, 100, 1, 0x1000)  # on memory that is not known
    with pytest.raises(OSError, match="not known here"):
        mem.dump(tmp_path / "snapshot", restart_log=True)
    assert mem.vm.take_dirty_runs() == [(0, 1, 2)]
