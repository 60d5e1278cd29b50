"""Tests the advice to the host about memory, through /proc/self/smaps and a child process."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from memslots import Backing

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
