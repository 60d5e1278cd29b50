"""Copies of all guest memory at one moment, and the way back: GuestMemory.checkpoint."""

from __future__ import annotations

import ctypes
import errno
import mmap
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from memslots.dirty.runs import copy_pages, take_logs
from memslots.errors import InvalidRegionError
from memslots.memory.absent import pages_there
from memslots.memory.backing import Backing, address_of
from memslots.memory.marks import return_marks, without_changes
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE
from memslots.values.records import Flags, Slot

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory

_STEP = 1 << 16  # bytes compared at a time
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t


class _Piece(NamedTuple):
    """A run of host memory, and its copy."""

    hva: int
    memory: memoryview
    copy: memoryview
    copy_hva: int


class Checkpoint:
    """The memory of a machine as it was at one moment. GuestMemory.checkpoint makes it.

    One thread at a time may use it.
    """

    def __init__(self, memory: GuestMemory, by_log: bool | None) -> None:
        vm = memory.vm
        self._memory = memory
        spaces = [memory.address_space(as_id) for as_id in range(vm.address_spaces)]
        self._slots: list[list[Slot]] = []
        self._generations: list[int] = []
        self._by_log = False
        self._pieces: list[_Piece] = []
        self._of_files: list[tuple[GuestMemory, Slot]] = []
        # For each slot its parts: the number of pages, the address, the address of the copy.
        self._places: dict[Slot, list[tuple[int, int, int]]] = {}

        logs: list[object] = []
        views: list[tuple[Slot, memoryview]] = []

        def begin() -> None:
            self._slots = [list(vm.address_space(as_id)) for as_id in range(vm.address_spaces)]
            self._generations = [vm.address_space(k).generation for k in range(vm.address_spaces)]
            self._by_log = _all_log(self._slots) if by_log is None else by_log
            if self._by_log and not _all_log(self._slots):
                raise InvalidRegionError(
                    errno.EINVAL, "by_log needs a dirty log on every slot that can be written"
                )
            if self._by_log:
                take_logs(vm, logs)
            for there, slots in zip(spaces, self._slots, strict=True):
                for slot in filter(_is_copied, slots):
                    view = _view(there, slot)
                    views.append((slot, view))
                    if isinstance(view.obj, Backing) and view.obj.kind == "file":
                        self._of_files.append((there, slot))

        try:
            without_changes(vm, begin)
            self._copy_all(views)
        except BaseException:
            return_marks(vm, logs)
            raise

    @property
    def by_log(self) -> bool:
        """Whether dirty logs tell which pages were written; otherwise all memory is compared."""
        return self._by_log

    @property
    def size(self) -> int:
        """The number of bytes of host memory that the checkpoint covers."""
        return sum(len(piece.memory) for piece in self._pieces)

    def _copy_all(self, views: list[tuple[Slot, memoryview]]) -> None:
        """Copies, once, all host memory that can be written through a slot."""
        found = [(slot, address_of(view), view) for slot, view in views]
        end = 0
        for _, hva, view in sorted(found, key=lambda each: (each[1], -len(each[2]))):
            if hva + len(view) <= end:
                continue  # a piece of another slot covers it
            skipped = max(0, end - hva)
            rest = view[skipped:]
            self._pieces.append(_copied(self._memory.backings, hva + skipped, rest))
            end = hva + len(view)
        starts = [piece.hva for piece in self._pieces]
        for slot, hva, view in found:
            parts = self._places[slot] = []
            at, end = hva, hva + len(view)
            while at < end:  # the memory of a slot may be in several pieces
                piece = self._pieces[bisect_right(starts, at) - 1]
                stop = min(end, piece.hva + len(piece.memory))
                parts.append(((stop - at) >> PAGE_SHIFT, at, piece.copy_hva + at - piece.hva))
                at = stop

    def restore(self) -> int:
        """Restores all memory to the state at the checkpoint.

        If `by_log` is true, the dirty logs are empty afterwards. Otherwise each restored page is
        marked, like a written page, in every slot on it that has a log.

        Returns
        -------
        int
            The number of bytes that were restored: whole pages.

        Raises
        ------
        InvalidRegionError
            The slots are not the same as at the checkpoint (ESTALE). Nothing has changed.
        NotMappedError
            A slot's file is shorter than it was. Nothing has changed.
        MemoryError
        """
        return self._restore_by_log() if self._by_log else self._restore_by_comparing()

    def _check(self) -> None:
        """Raises if the slots or their files are not the same.

        O(1) for an address space if no slot was changed, and for a slot on a file.
        """
        vm = self._memory.vm
        for as_id, slots in enumerate(self._slots):
            space = vm.address_space(as_id)
            if space.generation == self._generations[as_id]:
                continue
            if list(space) != slots:
                raise InvalidRegionError(
                    errno.ESTALE, "the slots are not the same as at the checkpoint"
                )
            self._generations[as_id] = space.generation
        for there, slot in self._of_files:
            _view(there, slot)  # raises

    def _restore_by_log(self) -> int:
        vm = self._memory.vm
        logs: list[object] = []

        def work() -> int:
            self._check()
            try:
                take_logs(vm, logs)
                return copy_pages(logs, self._places) << PAGE_SHIFT
            except BaseException:
                return_marks(vm, logs)
                raise

        return without_changes(vm, work)

    def _restore_by_comparing(self) -> int:
        vm = self._memory.vm
        changed: list[tuple[int, int]] = []

        def work() -> None:
            self._check()
            for piece in self._pieces:
                for start, end in _different(piece):
                    # The mark after the bytes is the one that counts. This one is there if a
                    # signal handler raises before the other is made.
                    self._mark(start, end)
                    at = slice(start - piece.hva, end - piece.hva)
                    piece.memory[at] = piece.copy[at]
                    changed.append((start, end))

        without_changes(vm, work)
        for start, end in changed:
            self._mark(start, end)
        return sum(end - start for start, end in changed)

    def _mark(self, start: int, end: int) -> None:
        """Marks host memory in every slot on it that has a log."""
        vm = self._memory.vm
        for as_id in range(vm.address_spaces):
            for slot, first, last in vm.address_space(as_id).in_hva_range(start, end):
                if slot.flags & Flags.LOG_DIRTY_PAGES:
                    vm.mark_dirty_range(first, last, as_id)


def _is_copied(slot: Slot) -> bool:
    return not slot.flags & (Flags.READONLY | Flags.GUEST_MEMFD)


def _view(memory: GuestMemory, slot: Slot) -> memoryview:
    (view,) = memory._restore_views(slot.guest_phys_addr, slot.memory_size)
    return view


def _all_log(slots: list[list[Slot]]) -> bool:
    return all(
        slot.flags & (Flags.LOG_DIRTY_PAGES | Flags.READONLY) for space in slots for slot in space
    )


def _copied(backings: tuple[Backing, ...], hva: int, memory: memoryview) -> _Piece:
    """Copies the pages that were ever touched. The rest of the copy is zeros and uses no memory."""
    copy = memoryview(mmap.mmap(-1, len(memory), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    n = bisect_right([backing.hva for backing in backings], hva) - 1
    there = pages_there(backings[n], hva, len(memory)) if n >= 0 else None
    if there is None:
        copy[:] = memory
    else:
        at = there.find(1)
        while at >= 0:
            end = there.find(0, at)
            end = len(there) if end < 0 else end
            part = slice(at << PAGE_SHIFT, end << PAGE_SHIFT)
            copy[part] = memory[part]
            at = there.find(1, end)
    return _Piece(hva, memory, copy, address_of(copy))


def _different(piece: _Piece) -> Iterator[tuple[int, int]]:
    """Yields the host addresses of each page that differs from its copy."""
    hva, memory, _, copy_hva = piece
    for step in range(0, len(memory), _STEP):
        size = min(_STEP, len(memory) - step)
        if not _memcmp(hva + step, copy_hva + step, size):
            continue
        for page in range(step, step + size, PAGE_SIZE):
            if _memcmp(hva + page, copy_hva + page, PAGE_SIZE):
                yield hva + page, hva + page + PAGE_SIZE
