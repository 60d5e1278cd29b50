"""Files of guest memory as a map knows them: a size, an owner, the ranges that are bound."""

from __future__ import annotations

import errno
import os
import re
import weakref
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

from memslots.errors import InvalidRegionError
from memslots.values.forks import lock_across_forks
from memslots.values.integers import field

if TYPE_CHECKING:
    from memslots.values.records import Slot

Key = tuple[int, int]  # as_id, id

_PAGE = 4096
_MOST_BYTES = (1 << 63) - _PAGE
# The names of a guest_memfd in /proc, by version of Linux.
_NAME = re.compile(r"(anon_inode:|/)\[(kvm-gmem|guest[-_]memfd)\]( \(deleted\))?")

#: In place of a GuestMemfd's number: the descriptor is not open, or is of another kind of file.
NOT_OPEN = 0xFFFFFFFF
NO_GUEST_MEMFD = 0xFFFFFFFE


class _Bound(NamedTuple):
    """A range of a file that is bound to a slot."""

    start: int
    end: int
    key: Key
    memfd: GuestMemfd  # kept alive while the range is bound


class _File:
    """The state that all descriptors of one file share."""

    def __init__(self, size: int) -> None:
        self.size = size
        # The numbers of the open GuestMemfds. Adding and removing are single operations of the
        # interpreter, so no other thread and no signal handler can spoil them.
        self.open: set[int] = set()
        self.owner: Bindings | None = None  # of the Memslots that bound it first
        # In order, without overlaps. A change replaces the list.
        self.bound: list[_Bound] = []


class GuestMemfd:
    """A file of guest memory (KVM's guest_memfd) for use without a kernel.

    `Memslots.set_region2` binds a slot to a range of the file. The file belongs to the Memslots
    that binds a range of it first: no other can bind one.

    Parameters
    ----------
    size : int
        In bytes.

    Raises
    ------
    InvalidRegionError
        The size is 0, not a multiple of the page size, or above 2**63 - 4096 (EINVAL, as from
        KVM_CREATE_GUEST_MEMFD).

    Notes
    -----
    Two GuestMemfds are equal only if they are the same object. Unpickling makes another file of the
    same size; copying returns the same object.
    """

    def __init__(self, size: SupportsIndex) -> None:
        length = field(size, "size", 64)
        if length == 0 or length % _PAGE or length > _MOST_BYTES:
            raise InvalidRegionError(
                errno.EINVAL,
                f"rule G12: size {length:#x} of a guest_memfd is not a multiple of 4096 from 4096"
                " to 2**63 - 4096",
                "G12",
            )
        self._begin(_File(length), None)

    def _begin(self, file: _File, descriptor: int | None) -> None:
        self._file = file
        self._descriptor = descriptor
        self._number = next(_numbers)
        _known[self._number] = self
        file.open.add(self._number)

    @property
    def size(self) -> int:
        """The size in bytes; it never changes."""
        return self._file.size

    @property
    def closed(self) -> bool:
        """Whether this descriptor is closed. Others of the same file may be open."""
        if self._number not in self._file.open:
            return True
        return self._descriptor is not None and _file_of(self._descriptor) is not self._file

    def fileno(self) -> int:
        """Returns the kernel's descriptor.

        Raises
        ------
        InvalidRegionError
            There is none, because the file is not a kernel's (EBADF).
        """
        if self._descriptor is None:
            raise InvalidRegionError(errno.EBADF, f"{self!r} is not a file of the kernel", "G7")
        return self._descriptor

    def dup(self) -> GuestMemfd:
        """Returns another descriptor of the same file; both share the bindings (rule G10).

        Raises
        ------
        ValueError
            This one is closed, or it is a kernel's: use os.dup for those.
        """
        if self._descriptor is None:
            other = GuestMemfd.__new__(GuestMemfd)
            other._begin(self._file, None)
            # Only now: if another thread closes this one from here on, the file stays open.
            if not self.closed:
                return other
            other.close()
        raise ValueError(f"dup: {self!r} is closed, or a kernel's: use os.dup for those")

    def close(self) -> None:
        """Closes the descriptor. Closing the last one of a file removes its bindings (rule G10).

        The slots stay, and others still cannot overlap them; they can only be deleted. Closing
        again does nothing. A descriptor that was given as a number is only forgotten: its owner
        closes it.
        """
        self._file.open.discard(self._number)
        if not self._file.open and self._descriptor is None:
            self._file.bound = []

    def __enter__(self) -> GuestMemfd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "" if self._descriptor is None else f", descriptor {self._descriptor}"
        return f"<GuestMemfd of {self.size:#x} bytes{what}{', closed' if self.closed else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        return GuestMemfd, (self.size,), self.closed

    def __setstate__(self, closed: bool) -> None:
        if closed:
            self.close()

    def __copy__(self) -> GuestMemfd:
        return self

    def __deepcopy__(self, memo: object) -> GuestMemfd:
        return self


# Pickles name the class by this module. It stays when the class's own module is moved.
GuestMemfd.__module__ = "memslots"

_numbers = count(1)
_known: weakref.WeakValueDictionary[int, GuestMemfd] = weakref.WeakValueDictionary()
#: The kernel's, by device and inode.
_files: weakref.WeakValueDictionary[tuple[int, int], _File] = weakref.WeakValueDictionary()
_adding = lock_across_forks()  # while a file is added to `_files`


def _file_of(descriptor: int) -> _File | None:
    """Returns the kernel's file of a descriptor.

    None if the descriptor is not open or is not a guest_memfd's.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    try:
        if not _NAME.fullmatch(str(Path(f"/proc/self/fd/{descriptor}").readlink())):
            return None
    except OSError:
        return None  # without /proc nobody can tell
    key = status.st_dev, status.st_ino
    file = _files.get(key)
    if file is None:
        with _adding:
            file = _files.setdefault(key, _File(status.st_size))
    return file


def number_of(given: GuestMemfd | SupportsIndex | None) -> tuple[int, GuestMemfd | None]:
    """Returns the number that a slot keeps of a GuestMemfd or descriptor, and the GuestMemfd.

    The caller must keep the GuestMemfd alive.
    """
    if given is None:
        return NOT_OPEN, None
    if isinstance(given, GuestMemfd):
        return given._number, given
    if isinstance(given, int) and given == -1:  # the usual way to write "no descriptor"
        return NOT_OPEN, None
    descriptor = field(given, "guest_memfd", 32)
    try:
        os.fstat(descriptor)
    except (OSError, OverflowError):
        return NOT_OPEN, None
    file = _file_of(descriptor)
    if file is None:
        return NO_GUEST_MEMFD, None
    made = GuestMemfd.__new__(GuestMemfd)
    made._begin(file, descriptor)
    return made._number, made


def by_number(number: int) -> GuestMemfd:
    """Returns the GuestMemfd of a number, or a closed one in its place if it is gone."""
    return _known.get(number) or _GONE


#: In place of a GuestMemfd that is gone, or never was.
_GONE = GuestMemfd.__new__(GuestMemfd)
_GONE._begin(_File(0), None)
_GONE.close()


def ranges_meet(one: Slot, two: Slot) -> bool:
    """Returns whether two slots of guest_memfds have bytes of a file in common."""
    first, second = one.guest_memfd, two.guest_memfd
    return (
        first is not None
        and second is not None
        and first._file is second._file
        and one.guest_memfd_offset < two.guest_memfd_offset + two.memory_size
        and two.guest_memfd_offset < one.guest_memfd_offset + one.memory_size
    )


def _rebound(slot: Slot, memfd: GuestMemfd) -> Slot:
    """Returns the slot, bound to the same range of another file."""
    return type(slot)(
        slot.id,
        slot.as_id,
        slot.base_gfn,
        slot.npages,
        slot.userspace_addr,
        slot.flags,
        memfd,
        slot.guest_memfd_offset,
    )


class StandIns:
    """Rewrites slots to other files of the same sizes, so that another Memslots can have them.

    `create` makes a file of a given size and returns its descriptor. Without `create` the files are
    not a kernel's.
    """

    def __init__(self, create: Callable[[int], int] | None = None) -> None:
        self._create = create
        self._files: dict[_File, GuestMemfd] = {}

    def memfd(self, given: GuestMemfd) -> GuestMemfd:
        """Returns the file that stands in for `given`."""
        if given._file not in self._files:
            made: GuestMemfd | None
            if self._create is None:
                made = GuestMemfd(given.size)
            else:
                made = number_of(self._create(given.size))[1]
            assert made is not None
            self._files[given._file] = made
        return self._files[given._file]

    def slot(self, slot: Slot) -> Slot:
        """Returns the slot, bound to the stand-in for its file."""
        memfd = slot.guest_memfd
        return slot if memfd is None else _rebound(slot, self.memfd(memfd))


class Copies(StandIns):
    """The files of the slots of a copied Memslots: those that nobody owns yet, or stand-ins.

    A slot whose descriptor is closed gets one that `done` closes: of the same file as others if
    that is still open, else of a file of its own (rule G10).
    """

    def __init__(self) -> None:
        super().__init__()
        self._closed: list[GuestMemfd] = []
        self._free: set[_File] = set()  # files that had no owner

    def slot(self, slot: Slot) -> Slot:
        """Returns the slot to make in the copy."""
        memfd = slot.guest_memfd
        if memfd is None:
            return slot
        if memfd._file.owner is None:
            self._free.add(memfd._file)
        if memfd._file in self._free and not memfd.closed:
            return slot
        if memfd.closed:
            if memfd._file.open and memfd._file not in self._free:
                once = self.memfd(memfd).dup()
            else:
                once = GuestMemfd(slot.guest_memfd_offset + slot.memory_size)
            self._closed.append(once)
            return _rebound(slot, once)
        return super().slot(slot)

    def done(self) -> None:
        """Closes what is closed in the original. Call it once all slots are made."""
        for memfd in self._closed:
            memfd.close()


class _NewBindings:
    """The state of a file after a change; once exchanged, the state before it."""

    def __init__(self, file: _File, owner: Bindings, leaving: Container[Key]) -> None:
        self._file = file
        self._owner: Bindings | None = owner
        self.bound = [bound for bound in file.bound if bound.key not in leaving]

    def add(self, new: _Bound, what: str) -> None:
        """Adds a range, or raises by rule G7d if another slot has a part of it. O(n)."""
        i = bisect_left(self.bound, new.start, key=attrgetter("start"))
        before = i - 1 if i and self.bound[i - 1].end > new.start else i
        if before < len(self.bound) and self.bound[before].start < new.end:
            as_id, id = self.bound[before].key
            raise _refusal(
                errno.EINVAL,
                f"{what}: bytes [{new.start:#x}, {new.end:#x}) of {new.memfd!r} overlap those of"
                f" slot {id} of address space {as_id}",
            )
        self.bound.insert(i, new)

    def exchange(self) -> None:
        """Puts the new state into the file, or takes it out again. Cannot fail."""
        self._file.bound, self.bound = self.bound, self._file.bound
        self._file.owner, self._owner = self._owner, self._file.owner


class Bindings:
    """The ranges that one Memslots has bound, and the files it owns. Only its writer uses them."""

    def __init__(self) -> None:
        self._files: set[_File] = set()  # files that may have bound ranges

    def check(self, number: int, offset: int, end: int, what: str) -> GuestMemfd:
        """Returns the GuestMemfd of a number if rules G7a to G7c allow the range; else raises."""
        if number == NOT_OPEN:
            raise _refusal(errno.EBADF, f"{what}: guest_memfd is not an open descriptor")
        if number == NO_GUEST_MEMFD:
            raise _refusal(errno.EINVAL, f"{what}: the descriptor is not a guest_memfd's")
        found = by_number(number)
        if found.closed:
            raise _refusal(errno.EBADF, f"{what}: guest_memfd must be open, not {found!r}")
        if found._file.owner not in (None, self):
            raise _refusal(errno.EINVAL, f"{what}: {found!r} belongs to another Memslots")
        if end > found.size:
            raise _refusal(
                errno.EINVAL, f"{what}: bytes [{offset:#x}, {end:#x}) are not all in {found!r}"
            )
        return found

    def change(self, leaving: Iterable[Slot], coming: Iterable[Slot]) -> list[_NewBindings]:
        """Returns the new states of the files once `leaving` has gone and `coming` has come.

        The caller exchanges them. Raises if a coming slot breaks rule G7.
        """
        self._files = {file for file in self._files if file.bound}
        gone = {(slot.as_id, slot.id) for slot in leaving}
        news = {file: _NewBindings(file, self, gone) for file in self._files} if gone else {}
        for slot in coming:
            start, what = slot.guest_memfd_offset, f"slot {slot.id} of address space {slot.as_id}"
            end = start + slot.memory_size
            memfd = slot.guest_memfd
            assert memfd is not None
            memfd = self.check(memfd._number, start, end, f"{what}, rule G7")
            file = memfd._file
            if file not in news:
                news[file] = _NewBindings(file, self, gone)
            news[file].add(_Bound(start, end, (slot.as_id, slot.id), memfd), f"{what}, rule G7")
            self._files.add(file)
        return list(news.values())

    def begin_anew(self, slots: Iterable[Slot]) -> None:
        """Binds the ranges of these slots, and no others."""
        for file in self._files:
            file.bound = []
        for slot in slots:
            memfd = slot.guest_memfd
            if memfd is not None and not memfd.closed:
                start = slot.guest_memfd_offset
                end = start + slot.memory_size
                memfd._file.bound.append(_Bound(start, end, (slot.as_id, slot.id), memfd))
        for file in self._files:
            file.bound.sort(key=attrgetter("start"))


def _refusal(number: int, text: str) -> InvalidRegionError:
    return InvalidRegionError(number, text, "G7")
