"""Copies of all guest memory at one moment, and the way back: GuestMemory.checkpoint."""

from __future__ import annotations

import ctypes
import errno
import mmap
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from memslots.dirty.runs import copy_pages, return_logs, take_logs
from memslots.errors import InvalidRegionError
from memslots.memory.absent import pages_there
from memslots.memory.backing import Backing, address_of, may_go_away
from memslots.memory.marks import without_changes
from memslots.memory.written import mark_memory
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE
from memslots.values.records import Flags, Slot, size_text

if TYPE_CHECKING:
    from memslots.memory.guestmemory import GuestMemory

_STEP = 1 << 16  # bytes compared at a time
_READ = 1 << 20  # bytes copied at a time from memory that may go away
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t


class _Piece(NamedTuple):
    """A run of host memory, and its copy."""

    hva: int
    memory: memoryview
    copy: memoryview
    copy_hva: int
    #: If the memory may go away: where guest accesses, which survive that, find it. Else None.
    guarded: tuple[GuestMemory, int] | None

    def put_back(self, start: int, end: int) -> None:
        """Copies [start, end) of the copy to the memory. NotMappedError."""
        if self.guarded is None:
            self.memory[start:end] = self.copy[start:end]
        else:
            there, gpa = self.guarded
            there.write(gpa + start, self.copy[start:end])


class _Part(NamedTuple):
    """The memory of a slot, or the part of it that is in one Backing."""

    hva: int
    view: memoryview
    slot: Slot
    gpa: int
    there: GuestMemory


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
        self._ended_logs = 0  # of the machine, when its logs last said all that was written
        self._pieces: list[_Piece] = []
        self._of_files: list[tuple[GuestMemory, int]] = []  # with a guest address in the file
        # For each slot its parts, as copy_pages takes them.
        self._places: dict[Slot, list[tuple[int, int, int, bool]]] = {}

        logs: list[object] = []
        views: list[_Part] = []

        def begin() -> None:
            self._slots = [list(vm.address_space(as_id)) for as_id in range(vm.address_spaces)]
            self._generations = [vm.address_space(k).generation for k in range(vm.address_spaces)]
            self._by_log = _all_log(self._slots) if by_log is None else bool(by_log)
            if self._by_log and not _all_log(self._slots):
                raise InvalidRegionError(
                    errno.EINVAL, "by_log needs a dirty log on every slot that can be written"
                )
            self._ended_logs = memory._ended_logs()
            if self._by_log:
                take_logs(vm, logs)
            for there, slots in zip(spaces, self._slots, strict=True):
                for slot in slots:
                    if not _is_copied(there, slot):
                        continue
                    gpa = slot.guest_phys_addr
                    for view in there._restore_views(gpa, slot.memory_size):
                        views.append(_Part(address_of(view), view, slot, gpa, there))
                        if _backing(view).kind == "file":
                            self._of_files.append((there, gpa))
                        gpa += len(view)
            self._copy_all(views)

        try:
            without_changes(vm, begin)
        except BaseException:
            return_logs(vm, logs)
            raise

    def __repr__(self) -> str:
        count = sum(len(slots) for slots in self._slots)
        how = "by dirty logs" if self._by_log else "by comparing"
        return f"<Checkpoint: {count} slots, {size_text(self.size)}, restored {how}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Checkpoint cannot be pickled or copied: it is memory")

    @property
    def by_log(self) -> bool:
        """Whether dirty logs tell which pages were written; otherwise all memory is compared."""
        return self._by_log

    @property
    def size(self) -> int:
        """The number of bytes of host memory that the checkpoint covers."""
        return sum(len(piece.memory) for piece in self._pieces)

    def _copy_all(self, found: list[_Part]) -> None:
        """Copies, once, all host memory that can be written through a slot."""
        end = 0
        for part in sorted(found, key=lambda part: (part.hva, -len(part.view))):
            if part.hva + len(part.view) <= end:
                continue  # a piece of another slot covers it
            skipped = max(0, end - part.hva)
            self._pieces.append(
                _copied(part.hva + skipped, part.view[skipped:], part.there, part.gpa + skipped)
            )
            end = part.hva + len(part.view)
        self._guarded = any(piece.guarded is not None for piece in self._pieces)
        starts = [piece.hva for piece in self._pieces]
        for hva, view, slot, *_ in found:
            parts = self._places.setdefault(slot, [])
            at, end = hva, hva + len(view)
            while at < end:  # the memory of a slot may be in several pieces
                piece = self._pieces[bisect_right(starts, at) - 1]
                stop = min(end, piece.hva + len(piece.memory))
                copy_at = piece.copy_hva + at - piece.hva
                parts.append(((stop - at) >> PAGE_SHIFT, at, copy_at, piece.guarded is not None))
                at = stop

    def restore(self) -> int:
        """Restores all memory to the state at the checkpoint.

        If `by_log` is true, the dirty logs are empty afterwards. If a log ended meanwhile, because
        its slot was deleted or its flag turned off, this one restore compares all memory, and
        restored pages of files stay marked. If `by_log` is false, each restored page is marked,
        like a written page, in every slot on it that has a log.

        Returns
        -------
        int
            The number of bytes that were restored: whole pages.

        Raises
        ------
        InvalidRegionError
            The slots are not the same as at the checkpoint (ESTALE). Nothing has changed.
        NotMappedError
            A slot's file is shorter than it was. Nothing has changed, unless the file was shortened
            during the call.
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
        for there, gpa in self._of_files:
            there.views(gpa, 1)  # raises

    def _restore_by_log(self) -> int:
        vm = self._memory.vm
        logs: list[object] = []

        def work() -> int:
            self._check()
            ended = self._memory._ended_logs()
            try:
                take_logs(vm, logs)
                if ended == self._ended_logs:
                    return copy_pages(logs, self._places, self._guarded) << PAGE_SHIFT
                # The marks of a log that ended are lost, and only a comparison finds the writes.
                count = sum(1 for _ in self._put_back_differences())
                self._ended_logs = ended
                return count << PAGE_SHIFT
            except BaseException:
                return_logs(vm, logs)
                raise

        return without_changes(vm, work)

    def _restore_by_comparing(self) -> int:
        vm = self._memory.vm
        changed: list[int] = []  # host addresses of pages

        def work() -> None:
            self._check()
            for hva in self._put_back_differences():
                # The mark after the bytes is the one that counts. This one is there if a signal
                # handler raises before the other is made.
                mark_memory(vm, hva, hva + PAGE_SIZE)
                changed.append(hva)

        try:
            without_changes(vm, work)
        finally:
            for hva in changed:
                mark_memory(vm, hva, hva + PAGE_SIZE)
        return len(changed) << PAGE_SHIFT

    def _put_back_differences(self) -> Iterator[int]:
        """Yields the host address of each page that differs from its copy, then puts it back."""
        # Memory that may go away is compared before anything is written.
        found = [
            (piece, list(_different(piece)) if piece.guarded else _different(piece))
            for piece in self._pieces
        ]
        for piece, pages in found:
            for start in pages:
                yield piece.hva + start
                piece.put_back(start, start + PAGE_SIZE)


def _is_copied(there: GuestMemory, slot: Slot) -> bool:
    if slot.flags & Flags.READONLY:
        return False
    # A slot of a guest_memfd need not have host memory.
    private = bool(slot.flags & Flags.GUEST_MEMFD)
    return not private or there.is_mapped(slot.guest_phys_addr, slot.memory_size)


def _backing(view: memoryview) -> Backing:
    assert isinstance(view.obj, Backing)
    return view.obj


def _all_log(slots: list[list[Slot]]) -> bool:
    return all(
        slot.flags & (Flags.LOG_DIRTY_PAGES | Flags.READONLY) for space in slots for slot in space
    )


def _copied(hva: int, memory: memoryview, there: GuestMemory, gpa: int) -> _Piece:
    """Copies the pages that were ever touched. The rest of the copy is zeros and uses no memory."""
    size = len(memory)
    copy = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    guarded = (there, gpa) if may_go_away(_backing(memory)) else None
    touched = pages_there(_backing(memory), hva, size)
    if guarded is not None:
        for at in range(0, size, _READ):
            part = slice(at, min(at + _READ, size))
            copy[part] = there.read(gpa + at, part.stop - at)
    elif touched is None:
        copy[:] = memory
    else:
        at = touched.find(1)
        while at >= 0:
            end = touched.find(0, at)
            end = len(touched) if end < 0 else end
            part = slice(at << PAGE_SHIFT, end << PAGE_SHIFT)
            copy[part] = memory[part]
            at = touched.find(1, end)
    return _Piece(hva, memory, copy, address_of(copy), guarded)


def _different(piece: _Piece) -> Iterator[int]:
    """Yields the offset of each page that differs from its copy. NotMappedError."""
    for step in range(0, len(piece.memory), _STEP):
        size = min(_STEP, len(piece.memory) - step)
        now: bytes | memoryview = piece.memory[step : step + size]
        if piece.guarded is not None:
            there, gpa = piece.guarded
            now = there.read(gpa + step, size)
        at, copy_at = address_of(now), piece.copy_hva + step
        if not _memcmp(at, copy_at, size):
            continue
        for page in range(0, size, PAGE_SIZE):
            if _memcmp(at + page, copy_at + page, PAGE_SIZE):
                yield step + page
