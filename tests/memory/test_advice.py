"""Tests the advice to the host about memory, through /proc/self/smaps and a child process."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import needs_madvise

from memslots import Backing, GuestMemory, Memslots, NotMappedError

PAGE = 4096
SMAPS = Path("/proc/self/smaps")


def flags_of(backing: Backing) -> set[str]:
    """Returns the kernel's flags of the mapping that begins at the memory."""
    found = False
    for line in SMAPS.read_text().splitlines():
        head = line.split("-", 1)[0]
        if len(head) >= 8 and all(letter in "0123456789abcdef" for letter in head):
            end = int(line.split("-", 1)[1].split(" ", 1)[0], 16)
            found = int(head, 16) <= backing.hva < end
        elif found and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("there is no such mapping")


def told(backing: Backing, **advice: bool) -> None:
    try:
        backing.advise(**advice)
    except OSError as error:
        assert error.errno == errno.EINVAL
        pytest.skip("this kernel has no such thing")


@needs_madvise
@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc/self/smaps")
@pytest.mark.parametrize(
    ("name", "flag", "when"), [("dump", "dd", False), ("mergeable", "mg", True)]
)
def test_what_the_kernel_has_noted(name: str, flag: str, when: bool) -> None:
    backing = Backing.anonymous(8 * PAGE)
    told(backing, **{name: when})
    assert flag in flags_of(backing)
    told(backing, **{name: not when})
    assert flag not in flags_of(backing)


@needs_madvise
@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc/self/smaps")
def test_a_child_does_not_have_it() -> None:
    backing = Backing.anonymous(8 * PAGE)
    backing.advise(fork=False)
    assert "dc" in flags_of(backing)
    child = os.fork()
    if child == 0:  # a touch would end the child: look whether the page is mapped
        starts = [line.split("-")[0] for line in Path("/proc/self/maps").read_text().splitlines()]
        os._exit(int(any(int(start, 16) == backing.hva for start in starts)))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    backing.advise(fork=True)
    assert "dc" not in flags_of(backing)


def test_a_node() -> None:
    backing = Backing.anonymous(8 * PAGE)
    try:
        backing.advise(numa_node=0)
    except OSError as error:
        assert error.errno in (errno.ENOSYS, errno.EPERM)
        pytest.skip("this kernel has no NUMA")
    with pytest.raises(OSError, match="Invalid argument"):
        backing.advise(numa_node=1000)
    for wrong in (-1, 1024):
        with pytest.raises(ValueError, match="numa_node"):
            backing.advise(numa_node=wrong)


def test_nothing() -> None:
    Backing.memfd(PAGE).advise()


@pytest.mark.parametrize(
    ("node", "error", "text"),
    [
        (1.5, TypeError, "numa_node must be an integer, not 'float'"),
        ("0", TypeError, "numa_node must be an integer, not 'str'"),
        (-1, ValueError, "numa_node must be 0 to 1023, not -1"),
        (1024, ValueError, "numa_node must be 0 to 1023, not 1024"),
    ],
)
@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc/self/smaps")
def test_a_node_that_cannot_be(node: Any, error: type[Exception], text: str) -> None:
    """The other advice is not given either."""
    backing = Backing.anonymous(8 * PAGE)
    with pytest.raises(error, match=text):
        backing.advise(dump=False, numa_node=node)
    assert "dd" not in flags_of(backing)


def in_a_child(call: Callable[[], None]) -> int:
    """Returns the status of a child that makes the call: 0 if it raised nothing."""
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException:  # noqa: BLE001 (the child ends here)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@needs_madvise
def test_an_access_in_a_child_that_does_not_have_it() -> None:
    memory = GuestMemory(Memslots())
    lost = [Backing.anonymous(8 * PAGE)]
    memory.place(0, 0, lost[0], flags=1)
    memory.place(1, 8 * PAGE, Backing.anonymous(PAGE))
    memory.write(0, b"the parent's")
    hva = lost[0].hva
    lost[0].advise(fork=False)
    lost[0].advise(fork=True)
    assert in_a_child(lambda: memory.fill(0, 9 * PAGE, 1)) == 0
    lost[0].advise(fork=False)

    def access() -> None:
        calls: list[Callable[[], object]] = [
            lambda: memory.read(8 * PAGE - 1, 2),
            lambda: memory.read_u8(0),
            lambda: memory.write_u64(0, 1),
            lambda: memory.fill(0, 9 * PAGE),
            lambda: memory.view(0, 1),
            lambda: memory.discard(0, PAGE),
            lambda: memory.prefault(0, PAGE),
            lambda: memory.dump(os.devnull),
            memory.checkpoint,
        ]
        for call in calls:
            with pytest.raises(NotMappedError, match="whose host memory a fork left to the parent"):
                call()
        assert not memory.is_mapped(0)
        with pytest.raises(BufferError, match=r"a fork left .* to the parent"):
            memoryview(lost[0])
        memory.write(8 * PAGE, b"both have this")
        # Other memory may be at the addresses by now, so nothing may unmap them.
        map_at(hva)
        memory.vm.delete(0)
        del lost[:]
        assert [slot.id for slot in memory.vm] == [1]
        ctypes.string_at(hva, 1)

    assert in_a_child(access) == 0
    assert memory.read(0, 12) == b"the parent's"


def map_at(hva: int) -> None:
    """Maps a page of memory at an address, unless other memory is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (*[ctypes.c_void_p] * 2, *[ctypes.c_int] * 3, ctypes.c_long)
    fixed_noreplace = 0x100000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace
    made = libc.mmap(hva, PAGE, mmap.PROT_READ, flags, -1, 0)
    assert made == hva or ctypes.get_errno() == errno.EEXIST
