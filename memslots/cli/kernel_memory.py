"""How much of the kernel's memory a replay may take for the slots that it makes there.

A kernel that keeps shadow page tables takes memory for every page of a slot as soon as that is
made. A trace may ask for slots of many terabytes, and what is short of memory then is the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from memslots import PAGE_SHIFT, Change, Slot
from memslots.replay.live import LiveVM

#: What a page of a slot may cost. Linux 6.18 took 5.4 to 6.8 bytes with shadow page tables, and
#: far less where the processor translates guest addresses itself.
BYTES_PER_PAGE = 8
#: One part in so many of what is available is taken without a word.
SHARE = 4
_MOST_PAGES = (1 << 31) - 1  # of a slot: rule 4
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class KernelMemoryError(Exception):
    """The slots would take more than may be taken."""


class Allowance:
    """What all VMs of a replay may take together.

    `ask` is told what they would take and what is available, in bytes, and decides once for all.
    """

    def __init__(self, available: int | None, ask: Callable[[int, int], bool]) -> None:
        self.pages = 0
        self._available = available
        self._ask = ask

    def take(self, pages: int) -> None:
        """So many more; KernelMemoryError if that is too much."""
        wanted = (self.pages + pages) * BYTES_PER_PAGE
        if self._available is not None and wanted > self._available // SHARE:
            if not self._ask(wanted, self._available):
                raise KernelMemoryError(
                    f"its slots take some {size(wanted)} of this machine's kernel, where"
                    f" {size(self._available)} are available; --force goes on"
                )
            self._available = None
        self.pages += pages

    def give_back(self, pages: int) -> None:
        """So many fewer."""
        self.pages -= pages


class AllowedVM:
    """A VM of the kernel that takes its slots' memory from an Allowance first."""

    def __init__(self, vm: LiveVM, allowance: Allowance) -> None:
        self._vm = vm
        self._allowance = allowance
        self._pages: dict[int, int] = {}  # of each slot, by its number

    @property
    def limits(self) -> dict[str, int]:
        """As the VM's."""
        return self._vm.limits

    @property
    def slots(self) -> Sequence[Slot]:
        """As the VM's."""
        return self._vm.slots

    def set_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, /
    ) -> Change:
        """As the VM's; KernelMemoryError, and nothing is done, where it would take too much."""
        before = self._pages.get(slot, 0)
        # A slot that is moved is there twice for a moment. For what its rules refuse the kernel
        # takes nothing: sizes are all of that that matters here.
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
        """As the VM's."""
        self._vm.close()
        self._allowance.give_back(sum(self._pages.values()))
        self._pages.clear()


def available() -> int | None:
    """Bytes that the kernel says are available to this process; None where it does not say."""
    found = [_of_the_machine(), _of_the_cgroup()]
    return min((each for each in found if each is not None), default=None)


def _of_the_machine() -> int | None:
    for line in _read(_MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_the_cgroup() -> int | None:
    """What is left of the least of the limits of this process's groups (version 2 of these)."""
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
    """A number of bytes, for people."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"
