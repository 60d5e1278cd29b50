"""Copies of all guest memory at one moment, and the way back: GuestMemory.checkpoint."""

from __future__ import annotations

import ctypes
import errno
import mmap
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from memslots.errors import InvalidRegionError
from memslots.memory.absent import pages_there
from memslots.memory.backing import Backing, address_of
from memslots.memory.marks import return_marks, take_runs, without_changes
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


class _Place(NamedTuple):
    """Pages of a slot, and the offset of their memory in a piece."""

    base_gfn: int
    end_gfn: int
    piece: _Piece
    offset: int


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
        self._places: list[list[_Place]] = []

        logs: list[object] = []
        views: list[list[tuple[Slot, memoryview]]] = []

        def begin() -> None:
            self._slots = [list(vm.address_space(as_id)) for as_id in range(vm.address_spaces)]
            self._generations = [vm.address_space(k).generation for k in range(vm.address_spaces)]
            self._by_log = _all_log(self._slots) if by_log is None else by_log
            if self._by_log and not _all_log(self._slots):
                raise InvalidRegionError(
                    errno.EINVAL, "by_log needs a dirty log on every slot that can be written"
                )
            if self._by_log:
                take_runs(vm, logs)
            for there, slots in zip(spaces, self._slots, strict=True):
                views.append([(slot, _view(there, slot)) for slot in slots if _is_copied(slot)])

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

    def _copy_all(self, views: list[list[tuple[Slot, memoryview]]]) -> None:
        """Copies, once, all host memory that can be written through a slot."""
        wanted: list[tuple[int, int, memoryview]] = []
        found: list[list[tuple[Slot, int]]] = []
        for slots in views:
            found.append([])
            for slot, view in slots:
                hva = address_of(view)
                wanted.append((hva, hva + len(view), view))
                found[-1].append((slot, hva))
        wanted.sort(key=lambda each: (each[0], -each[1]))
        end = 0
        for first, last, view in wanted:
            if last <= end:
                continue  # a piece of another slot covers it
            skipped = max(0, end - first)
            rest = view[skipped:]
            self._pieces.append(_copied(self._memory.backings, first + skipped, rest))
            end = last
        starts = [piece.hva for piece in self._pieces]
        for slots_at in found:
            places: list[_Place] = []
            for slot, hva in slots_at:
                gfn, at = slot.base_gfn, hva
                while gfn < slot.end_gfn:  # the memory of a slot may be in several pieces
                    piece = self._pieces[bisect_right(starts, at) - 1]
                    offset = at - piece.hva
                    pages = min(slot.end_gfn - gfn, (len(piece.memory) - offset) >> PAGE_SHIFT)
                    places.append(_Place(gfn, gfn + pages, piece, offset))
                    gfn, at = gfn + pages, at + (pages << PAGE_SHIFT)
            self._places.append(places)
        self._bases = [[place.base_gfn for place in places] for places in self._places]

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
        MemoryError
        """
        return self._restore_by_log() if self._by_log else self._restore_by_comparing()

    def _check(self) -> None:
        """Raises if the slots are not the same. O(1) an address space if no slot was changed."""
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

    def _restore_by_log(self) -> int:
        vm = self._memory.vm
        logs: list[object] = []

        def work() -> int:
            self._check()
            runs = take_runs(vm, logs)
            try:
                return self._put_back(runs)
            except BaseException:
                return_marks(vm, logs)
                raise

        return without_changes(vm, work)

    def _put_back(self, runs: Iterable[tuple[int, int, int]]) -> int:
        """Restores runs of pages. Each run is in slots that adjoin; runs come in order."""
        npages = 0
        space, first, last = -1, 0, 0  # the pages whose memory is in `memory`
        for as_id, gfn, end in runs:
            npages += end - gfn
            while gfn < end:
                if as_id != space or not first <= gfn < last:
                    n = bisect_right(self._bases[as_id], gfn) - 1
                    first, last, (_, memory, copy, _), offset = self._places[as_id][n]
                    space, shift = as_id, offset - (first << PAGE_SHIFT)
                stop = end if end < last else last
                a, b = (gfn << PAGE_SHIFT) + shift, (stop << PAGE_SHIFT) + shift
                memory[a:b] = copy[a:b]
                gfn = stop
        return npages << PAGE_SHIFT

    def _restore_by_comparing(self) -> int:
        vm = self._memory.vm

        def work() -> list[tuple[int, int]]:
            self._check()
            return [found for piece in self._pieces for found in _compare(piece)]

        changed = without_changes(vm, work)
        self._mark(changed)
        return sum(end - start for start, end in changed)

    def _mark(self, changed: list[tuple[int, int]]) -> None:
        vm = self._memory.vm
        for start, end in changed:
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
    copy = memoryview(mmap.mmap(-1, len(memory)))
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


def _compare(piece: _Piece) -> list[tuple[int, int]]:
    """Restores the pages that differ, and returns their host address ranges."""
    hva, memory, copy, copy_hva = piece
    changed = []
    for step in range(0, len(memory), _STEP):
        size = min(_STEP, len(memory) - step)
        if not _memcmp(hva + step, copy_hva + step, size):
            continue
        for page in range(step, step + size, PAGE_SIZE):
            if _memcmp(hva + page, copy_hva + page, PAGE_SIZE):
                memory[page : page + PAGE_SIZE] = copy[page : page + PAGE_SIZE]
                changed.append((hva + page, hva + page + PAGE_SIZE))
    return changed
