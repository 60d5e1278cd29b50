"""Tests where a snapshot is written, and dumps that fail."""

from __future__ import annotations

import errno
import os
import random
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from needs import need_kvm
from snapshots import (
    DUMPS,
    LOG,
    PAGE,
    READONLY,
    SPACES,
    USUAL,
    Layout,
    Place,
    contents,
    loads_of,
    segments_of,
    untouched,
)

from memslots import Memslots, NotMappedError
from memslots.kvm import KvmVM
from memslots.memory import snapshot
from memslots.memory.backing import Backing
from memslots.memory.guestmemory import GuestMemory
from memslots.memory.marks import take_runs


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# Where it is written


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_of_a_new_file(usual: GuestMemory, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        usual.dump(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o400])
def test_the_mode_of_a_file_that_is_replaced(usual: GuestMemory, path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)
    usual.dump(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert len(segments_of(path)) == 4


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(usual: GuestMemory, tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "target"
    if there:
        target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("folder/target")
    usual.dump(link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert len(segments_of(target)) == 4
    assert list(folder.iterdir()) == [target]


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_the_longest_names(usual: GuestMemory, tmp_path: Path, name: str) -> None:
    usual.dump(tmp_path / name)
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", DUMPS)
def test_a_pipe(usual: GuestMemory, tmp_path: Path, name: str) -> None:
    """The pipe stays a pipe: no file takes its place."""
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    usual.vm.mark_dirty_range(3, 150)
    size = DUMPS[name](usual, pipe)
    reader.join()
    usual.vm.take_dirty_runs()
    usual.vm.mark_dirty_range(3, 150)
    assert DUMPS[name](usual, file) == size
    assert got == [file.read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_over_the_file_that_a_slot_is_on(path: Path) -> None:
    """The slot keeps the memory of the file that was replaced."""
    path.write_bytes(random.Random(0).randbytes(3 * PAGE))
    mem = GuestMemory(Memslots(address_spaces=SPACES))
    mem.place(0, 0, Backing.file(path, shared=True))
    before = contents(mem)
    mem.dump(path)
    assert contents(mem) == before
    mem.fill(0, 3 * PAGE)
    mem.restore(path)
    assert contents(mem) == before


# Failures of a dump


@contextmanager
def failing(mem: GuestMemory, name: str) -> Iterator[Callable[[Any], object]]:
    """Checks that a dump fails, and that the marks are back."""
    mem.vm.take_dirty_runs()
    mem.vm.mark_dirty_range(60, 75)
    mem.vm.mark_dirty_range(6, 7, 1)
    yield lambda path: DUMPS[name](mem, path)
    assert mem.vm.take_dirty_runs() == [(0, 60, 75), (1, 6, 7)]


@pytest.mark.parametrize("name", DUMPS)
def test_a_full_device(usual: GuestMemory, name: str) -> None:
    with failing(usual, name) as dump, pytest.raises(OSError) as caught:
        dump("/dev/full")
    assert caught.value.errno == errno.ENOSPC
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize(
    ("where", "error"),
    [("nowhere/file", FileNotFoundError), ("", IsADirectoryError), ("file/in", NotADirectoryError)],
)
def test_no_such_place(
    usual: GuestMemory, tmp_path: Path, name: str, where: str, error: type[OSError]
) -> None:
    (tmp_path / "file").touch()
    with failing(usual, name) as dump, pytest.raises(error):
        dump(tmp_path / where)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("wrong", [None, 7, b"bytes"])
def test_no_path(usual: GuestMemory, name: str, wrong: Any) -> None:
    with failing(usual, name) as dump, pytest.raises(TypeError):
        dump(wrong)
    with untouched(usual), pytest.raises(TypeError):
        usual.restore(wrong)


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_may_not_be_so_large(
    usual: GuestMemory, path: Path, name: str, there: bool
) -> None:
    if there:
        path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with failing(usual, name) as dump:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * PAGE, limits[1]))
        try:
            with pytest.raises(OSError) as caught:
                dump(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert names_in(path.parent) == ["snapshot"] * there
    if there:
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "no")])
@pytest.mark.parametrize("there", [True, False])
def test_interrupted_while_it_writes(
    usual: GuestMemory,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Any,
    there: bool,
) -> None:
    """The interrupt comes after some of it is written."""
    if there:
        path.write_bytes(b"old")
    writev = os.writev
    sizes: list[int] = []

    def some(fd: int, views: list[memoryview]) -> int:
        if sizes:
            raise error
        sizes.append(writev(fd, [views[0][: PAGE + 100]]))
        return sizes[-1]

    monkeypatch.setattr(os, "writev", some)
    with failing(usual, name) as dump, pytest.raises((KeyboardInterrupt, OSError)):
        dump(path)
    assert sizes
    assert names_in(path.parent) == ["snapshot"] * there
    if there:
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", DUMPS)
def test_written_a_little_at_a_time(
    usual: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pipes and full disks take a little at a time."""
    writev, preadv = os.writev, os.preadv
    dice = random.Random(0)

    def little(views: list[memoryview]) -> list[memoryview]:
        assert 0 < len(views) <= 1024
        whole = views[: dice.randrange(len(views))]
        return [*whole, views[len(whole)][: dice.randrange(1, 9000)]]

    monkeypatch.setattr(os, "writev", lambda fd, views: writev(fd, little(views)))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, little(views), offset))
    usual.vm.mark_dirty_range(0, 1000)
    usual.vm.mark_dirty_range(0, 1000, 1)
    DUMPS[name](usual, path)
    target = USUAL.make()
    target.restore(path)
    assert contents(target) == contents(usual)


def test_a_signal_as_soon_as_the_marks_are_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(vm: Memslots, logs: list[object]) -> Any:
        assert take_runs(vm, logs)
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot, "take_runs", interrupted)
    vm = Memslots()
    mem = GuestMemory(vm)
    mem.place(0, 0, Backing.anonymous(70 * PAGE), flags=LOG)
    mem.write(PAGE, bytes(100))
    with pytest.raises(KeyboardInterrupt):
        mem.dump_dirty(path)
    assert vm.get_dirty_log(0)[0] == 2
    assert not path.exists()


def test_marks_of_readonly_slots_after_a_failure() -> None:
    """Mode 3 marks them at the start: no write can mark them again."""
    mem = Layout([70], [Place(0, 0, 70, 0, 0, LOG | READONLY)]).make(3)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            mem.dump_dirty("/dev/full")
    assert mem.vm.take_dirty_runs() == [(0, 0, 70)]


@pytest.mark.parametrize("name", DUMPS)
def test_memory_that_is_not_known(usual: GuestMemory, path: Path, name: str) -> None:
    usual.vm.create(4, 0x1000, 3, 0x7000_0000_0000, LOG, as_id=1)
    usual.vm.mark_dirty(0x1001, 1)
    path.write_bytes(b"old")
    with pytest.raises(NotMappedError, match="host memory is not known"):
        DUMPS[name](usual, path)
    assert usual.vm.take_dirty_runs() == [(1, 0x1001, 0x1002)]
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == ["snapshot"]


@pytest.mark.parametrize("name", DUMPS)
def test_a_backing_whose_file_is_cut_off(tmp_path: Path, path: Path, name: str) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(3 * PAGE))
    mem = GuestMemory(Memslots())
    mem.place(0, 0, Backing.file(file, shared=True), flags=LOG)
    mem.fill(0, 3 * PAGE, 1)
    os.truncate(file, 2 * PAGE)
    with pytest.raises(NotMappedError, match="shorter"):
        DUMPS[name](mem, path)
    assert mem.vm.take_dirty_runs() == [(0, 0, 3)]
    assert not path.exists()


# The kernel's own writes

WALL_CLOCK = 0x4B56_4D00  # MSR_KVM_WALL_CLOCK_NEW: KVM writes 12 bytes at once


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the MSR is one of x86")
def test_writes_of_the_kernel_are_in_the_diff(path: Path) -> None:
    need_kvm()
    layout = [(0, 0, 70), (1, 70, 10), (2, 100, 130)]
    with KvmVM() as kvm:
        vm = Memslots(backend=kvm)
        mem = GuestMemory(vm)
        for id, base, npages in layout:
            mem.place(id, base * PAGE, Backing.anonymous(npages * PAGE), flags=LOG)
        target = GuestMemory(Memslots())
        for id, base, npages in layout:
            target.place(id, base * PAGE, Backing.anonymous(npages * PAGE))
        vcpu = kvm.create_vcpu()
        vm.take_dirty_runs()
        mem.dump(path)
        target.restore(path)
        for pages in [(3,), (69, 70), (100, 229, 164)]:
            for page in pages:
                vcpu.set_msr(WALL_CLOCK, page * PAGE + 64)
                assert any(mem.read(page * PAGE + 64, 12))
            mem.write(79 * PAGE, b"here")
            with pytest.raises(OSError):
                mem.dump_dirty("/dev/full")
            assert mem.dump_dirty(path) == (len(pages) + 1) * PAGE
            starts = sorted({*pages, 79})
            found = {
                (gpa + at) // PAGE for _, gpa, size in loads_of(path) for at in range(0, size, PAGE)
            }
            assert sorted(found) == starts
            target.restore(path)
            for _, base, npages in layout:
                there = target.read(base * PAGE, npages * PAGE)
                assert there == mem.read(base * PAGE, npages * PAGE)
        assert vm.take_dirty_runs() == []
