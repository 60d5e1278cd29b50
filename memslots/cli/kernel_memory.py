"""How much of the kernel's memory a replay may take for the slots that it makes there.

A kernel with shadow page tables allocates memory for every page of a slot when the slot is created.
A trace may ask for slots of many terabytes, which would exhaust the machine's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from memslots import PAGE_SHIFT, Change, Slot
from memslots.cli.progress import unmetered
from memslots.replay.live import LiveVM

#: Most bytes that a page of a slot may cost. Linux 6.18 took 5.4 to 6.8 bytes with shadow page
#: tables, and far less if the processor translates guest addresses itself.
BYTES_PER_PAGE = 8
#: A replay takes up to 1/SHARE of the available memory without asking.
SHARE = 4
_MOST_PAGES = (1 << 31) - 1  # most pages of a slot: rule 4
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class KernelMemoryError(Exception):
    """The slots would take more memory than the replay may take."""


class Allowance:
    """The memory that all VMs of a replay may take together.

    `ask(wanted, available)` gets both in bytes. If it returns true, it is not asked again.
    """

    def __init__(self, available: int | None, ask: Callable[[int, int], bool]) -> None:
        self.pages = 0
        self._available = available
        self._ask = ask

    def take(self, pages: int) -> None:
        """Takes memory for `pages` more pages. Raises KernelMemoryError if that is too much."""
        wanted = (self.pages + pages) * BYTES_PER_PAGE
        if self._available is not None and wanted > self._available // SHARE:
            if not self._ask(wanted, self._available):
                raise KernelMemoryError(
                    f"its slots would take about {size(wanted)} of this kernel's memory, of which"
                    f" {size(self._available)} is available; --force allows that"
                )
            self._available = None
        self.pages += pages

    def give_back(self, pages: int) -> None:
        """Returns the memory of `pages` pages."""
        self.pages -= pages


class AllowedVM:
    """A VM of the kernel that takes its slots' memory from an Allowance first."""

    def __init__(self, vm: LiveVM, allowance: Allowance) -> None:
        self._vm = vm
        self._allowance = allowance
        self._pages: dict[int, int] = {}  # pages of each slot, by its number

    @property
    def limits(self) -> dict[str, int]:
        """Returns the VM's limits."""
        return self._vm.limits

    @property
    def slots(self) -> Sequence[Slot]:
        """Returns the VM's slots."""
        return self._vm.slots

    def set_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, /
    ) -> Change:
        """Calls the VM's set_region.

        Raises KernelMemoryError and changes nothing if the slot would take too much memory.
        """
        before = self._pages.get(slot, 0)
        # During a move the slot exists twice. The kernel takes no memory for a call that its rules
        # refuse; only the rules about sizes matter here.
        taken = memory_size >> PAGE_SHIFT
        if taken > _MOST_PAGES or (before and taken != before):
            taken = 0
        self._allowance.take(taken)
        try:
            change = self._vm.set_region(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        except BaseException:
            self._allowance.give_back(taken)
            raise
        self._allowance.give_back(before)
        self._pages[slot] = taken
        return change

    def close(self) -> None:
        """Closes the VM and returns its memory to the allowance."""
        self._vm.close()
        self._allowance.give_back(sum(self._pages.values()))
        self._pages.clear()


def available() -> int | None:
    """Returns the bytes available to this process, or None if the kernel does not say."""
    found = [_of_the_machine(), _of_the_cgroup()]
    return min((each for each in found if each is not None), default=None)


def _of_the_machine() -> int | None:
    for line in _read(_MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_the_cgroup() -> int | None:
    """Returns the least memory left in any of this process's control groups (version 2)."""
    left: list[int] = []
    for line in _read(_CGROUP).splitlines():
        if line.startswith("0::/"):
            group = _CGROUPS / line[4:]
            for each in (group, *group.parents):
                most, current = _read(each / "memory.max"), _read(each / "memory.current")
                if most.strip().isdigit() and current.strip().isdigit():
                    left.append(max(int(most) - int(current), 0))
    return min(left, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def size(count: int) -> str:
    """Formats a number of bytes for people."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def kvm_maker(force: bool) -> Callable[[], LiveVM]:
    """Returns a function that makes a VM of this machine's kernel.

    Makes one VM now, and raises KvmError if that fails. Unless `force`, a VM asks the user before
    it takes much of the kernel's memory.
    """
    from memslots.kvm import KvmVM  # needs Linux; nothing else here does

    KvmVM().close()
    if force:
        return KvmVM
    allowance = Allowance(available(), _ask_for_memory)
    return lambda: AllowedVM(KvmVM(), allowance)


def _ask_for_memory(wanted: int, free: int) -> bool:
    """Asks the user whether to go on. Returns False without asking if there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    takes = f"The slots would take about {size(wanted)} of this kernel's memory"
    with unmetered():
        return click.confirm(f"{takes}, of which {size(free)} is available. Go on?", err=True)
