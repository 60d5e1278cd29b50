"""Files of guest memory, as far as a map has to know them: a size, an owner, what is bound."""

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
from memslots.values.integers import field

if TYPE_CHECKING:
    from memslots.values.records import Slot

Key = tuple[int, int]  # as_id, id

_PAGE = 4096
_MOST_BYTES = (1 << 63) - _PAGE
# What /proc calls one, by version of Linux.
_NAME = re.compile(r"(anon_inode:|/)\[(kvm-gmem|guest[-_]memfd)\]( \(deleted\))?")

#: In place of a GuestMemfd's number: no open descriptor, and one of another file.
NOT_OPEN = 0xFFFFFFFF
NO_GUEST_MEMFD = 0xFFFFFFFE


class _Bound(NamedTuple):
    """A range of a file that a slot has."""

    start: int
    end: int
    key: Key
    memfd: GuestMemfd  # which is kept as long


class _File:
    """What all descriptors of one file share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.open = 0  # how many descriptors are, of a file that no kernel has
        self.owner: Bindings | None = None  # of the Memslots that was the first to bind it
        # In order; they do not overlap. A change puts another list in its place.
        self.bound: list[_Bound] = []


class GuestMemfd:
    """A file of guest memory (KVM's guest_memfd) where there is no kernel to ask for one.

    A slot of `Memslots.set_region2` is bound to a range of it. The file belongs to the Memslots
    that binds a range of it first: no other can.

    Parameters
    ----------
    size : int
        In bytes.

    Raises
    ------
    InvalidRegionError
        The size is 0, no multiple of the page size, or above 2**63 - 4096 (EINVAL, as of
        KVM_CREATE_GUEST_MEMFD).

    Notes
    -----
    Two are equal only if they are the same object. A pickle makes another file, of the same size; a
    copy is the same.
    """

    def __init__(self, size: SupportsIndex) -> None:
        length = field(size, "size", 64)
        if length == 0 or length % _PAGE or length > _MOST_BYTES:
            raise InvalidRegionError(
                errno.EINVAL,
                f"rule G12: size {length:#x} of a guest_memfd is no multiple of 4096 from 4096 to"
                " 2**63 - 4096",
                "G12",
            )
        self._begin(_File(length), None)

    def _begin(self, file: _File, descriptor: int | None) -> None:
        self._file = file
        self._descriptor = descriptor
        self._closed = False
        file.open += 1
        self._number = next(_numbers)
        _known[self._number] = self

    @property
    def size(self) -> int:
        """The size in bytes; it never changes."""
        return self._file.size

    @property
    def closed(self) -> bool:
        """Whether this descriptor is closed. Others of the same file may be open."""
        if self._descriptor is not None and not self._closed:
            return _file_of(self._descriptor) is not self._file
        return self._closed

    def fileno(self) -> int:
        """The kernel's descriptor.

        Raises
        ------
        InvalidRegionError
            There is none (EBADF): the file is not one of a kernel's.
        """
        if self._descriptor is None:
            raise InvalidRegionError(errno.EBADF, f"{self!r} is no file of a kernel's", "G7")
        return self._descriptor

    def dup(self) -> GuestMemfd:
        """Another descriptor of the same file. What one binds is bound for the other (rule G10).

        Raises
        ------
        ValueError
            This one is closed, or a kernel's: os.dup gives another of those.
        """
        if self._closed or self._descriptor is not None:
            raise ValueError(f"{self!r} cannot be copied")
        other = GuestMemfd.__new__(GuestMemfd)
        other._begin(self._file, None)
        return other

    def close(self) -> None:
        """Close the descriptor. With the last of a file its bindings go (rule G10).

        The slots stay, in the way of others; they can only be deleted. Closing again does nothing.
        A descriptor that was given as a number is its owner's to close: it is only forgotten.
        """
        if not self._closed:
            self._closed = True
            self._file.open -= 1
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


def _file_of(descriptor: int) -> _File | None:
    """The kernel's file of a descriptor that is open, or None: of no guest_memfd.

    OSError where it is not open.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    try:
        if not _NAME.fullmatch(str(Path(f"/proc/self/fd/{descriptor}").readlink())):
            return None
    except OSError:
        return None  # no /proc, so nobody can tell
    key = status.st_dev, status.st_ino
    file = _files.get(key)
    if file is None:
        file = _files[key] = _File(status.st_size)
    return file


def number_of(given: GuestMemfd | SupportsIndex | None) -> tuple[int, GuestMemfd | None]:
    """What a slot has of a GuestMemfd or a descriptor, and the GuestMemfd, which is to be kept."""
    if given is None:
        return NOT_OPEN, None
    if isinstance(given, GuestMemfd):
        return given._number, given
    if given == -1:  # as no descriptor is written
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
    """The GuestMemfd of that number; where it is gone, a closed one in its place."""
    return _known.get(number) or _GONE


#: In place of one that is gone, or never was.
_GONE = GuestMemfd.__new__(GuestMemfd)
_GONE._begin(_File(0), None)
_GONE.close()


def ranges_meet(one: Slot, two: Slot) -> bool:
    """Whether two slots of guest_memfds have bytes of a file in common."""
    first, second = one.guest_memfd, two.guest_memfd
    return (
        first is not None
        and second is not None
        and first._file is second._file
        and one.guest_memfd_offset < two.guest_memfd_offset + two.memory_size
        and two.guest_memfd_offset < one.guest_memfd_offset + one.memory_size
    )


class StandIns:
    """Makes of slots such of other files, of the same sizes, for a Memslots of one's own.

    `create` makes a file, of a size, and gives its descriptor; or the files are of no kernel.
    """

    def __init__(self, create: Callable[[int], int] | None = None) -> None:
        self._create = create
        self._files: dict[_File, GuestMemfd] = {}

    def memfd(self, given: GuestMemfd) -> GuestMemfd:
        """What is in its place."""
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
        """The slot on what is in its file's place."""
        memfd = slot.guest_memfd
        if memfd is None:
            return slot
        return type(slot)(
            slot.id,
            slot.as_id,
            slot.base_gfn,
            slot.npages,
            slot.userspace_addr,
            slot.flags,
            self.memfd(memfd),
            slot.guest_memfd_offset,
        )


class Copies(StandIns):
    """What the slots of a copy of a Memslots are bound to: files that are nobody's yet, or copies.

    A slot whose file is closed gets one that is closed when all are there (rule G10).
    """

    def __init__(self) -> None:
        super().__init__()
        self._closed: list[GuestMemfd] = []
        self._free: set[_File] = set()  # that nobody had

    def slot(self, slot: Slot) -> Slot:
        """The slot as it is to be made."""
        memfd = slot.guest_memfd
        if memfd is None:
            return slot
        if memfd._file.owner is None:
            self._free.add(memfd._file)
        if memfd._file in self._free and not memfd.closed:
            return slot
        if memfd.closed:
            once = GuestMemfd(slot.guest_memfd_offset + slot.memory_size)
            self._closed.append(once)
            self._files[memfd._file] = once
        return super().slot(slot)

    def done(self) -> None:
        """All slots are there."""
        for memfd in self._closed:
            memfd.close()


class _NewBindings:
    """A file as it is to be after a change; after it was put in, as it was before."""

    def __init__(self, file: _File, owner: Bindings, leaving: Container[Key]) -> None:
        self._file = file
        self._owner: Bindings | None = owner
        self.bound = [bound for bound in file.bound if bound.key not in leaving]

    def add(self, new: _Bound, what: str) -> None:
        """Rule G7d: no other slot has a part of the range. O(n)."""
        i = bisect_left(self.bound, new.start, key=attrgetter("start"))
        before = i - 1 if i and self.bound[i - 1].end > new.start else i
        if before < len(self.bound) and self.bound[before].start < new.end:
            as_id, id = self.bound[before].key
            raise _refusal(
                errno.EINVAL,
                f"{what}: bytes [{new.start:#x}, {new.end:#x}) of {new.memfd!r} meet those of slot"
                f" {id} of address space {as_id}",
            )
        self.bound.insert(i, new)

    def exchange(self) -> None:
        """Put it in, or take it out again. Cannot fail."""
        self._file.bound, self.bound = self.bound, self._file.bound
        self._file.owner, self._owner = self._owner, self._file.owner


class Bindings:
    """What one Memslots has bound, and which files belong to it. For its writer."""

    def __init__(self) -> None:
        self._files: set[_File] = set()  # those that may have something bound

    def check(self, number: int, offset: int, end: int, what: str) -> GuestMemfd:
        """Rules G7a to G7c for a range of a GuestMemfd."""
        if number == NOT_OPEN:
            raise _refusal(errno.EBADF, f"{what}: guest_memfd is no open descriptor")
        if number == NO_GUEST_MEMFD:
            raise _refusal(errno.EINVAL, f"{what}: the descriptor is not a guest_memfd's")
        found = by_number(number)
        if found.closed:
            raise _refusal(errno.EBADF, f"{what}: {found!r}")
        if found._file.owner not in (None, self):
            raise _refusal(errno.EINVAL, f"{what}: {found!r} belongs to another Memslots")
        if end > found.size:
            raise _refusal(
                errno.EINVAL, f"{what}: bytes [{offset:#x}, {end:#x}) are not all in {found!r}"
            )
        return found

    def change(self, leaving: Iterable[Slot], coming: Iterable[Slot]) -> list[_NewBindings]:
        """What is bound once some slots have gone and others come, to be exchanged.

        Raises what rule G7 says of those that come.
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
        """Bind what these slots have, and nothing else."""
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
