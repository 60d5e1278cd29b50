"""Changes that cut and join slots. Each is a series of deletes and creates in a transaction.

Rule T1 (docs/changes.md) keeps the marks of the pages that stay.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

from memslots.errors import InvalidRegionError, NoSuchSlotError, NotMappedError
from memslots.values.integers import PAGE_SHIFT, field
from memslots.values.records import Flags, Slot

if TYPE_CHECKING:
    from memslots.write.transaction import Transaction


_FLAGS = Flags.LOG_DIRTY_PAGES | Flags.READONLY
_MOST_PAGES = (1 << 31) - 1  # rule 4


class _Part(NamedTuple):
    """Pages of a slot, and their new flags."""

    start_gfn: int
    end_gfn: int
    flags: int


def unmap(tx: Transaction, start: SupportsIndex, end: SupportsIndex, as_id: SupportsIndex) -> None:
    """Implements Transaction.unmap."""
    first, last, space = field(start, "start", 64), field(end, "end", 64), _space(as_id)
    cut = [
        (slot, list(_outside(slot, first, last)))
        for slot in tx.in_gfn_range(first, last, as_id=space)
    ]
    _refuse_closed(slot for slot, parts in cut if parts)
    tx._check_cut(space, _additions(cut))
    with _AllOrNothing(tx) as steps:
        for slot, parts in cut:
            steps.cut(slot, parts)


def protect(
    tx: Transaction,
    start: SupportsIndex,
    end: SupportsIndex,
    flags: SupportsIndex,
    as_id: SupportsIndex,
) -> None:
    """Implements Transaction.protect."""
    first, last = field(start, "start", 64), field(end, "end", 64)
    bits, space = field(flags, "flags", 32), _space(as_id)
    if bits & ~_FLAGS:
        known = "LOG_DIRTY_PAGES (1) and READONLY (2)"
        raise InvalidRegionError(errno.EINVAL, f"unknown flags {bits:#x}; known are {known}", 1)
    slots = tx.in_gfn_range(first, last, as_id=space)
    gfn = first
    for slot in slots:
        if slot.flags & Flags.GUEST_MEMFD:
            raise InvalidRegionError(errno.EINVAL, f"the flags of {slot} cannot change", "G5")
        if slot.base_gfn > gfn:
            break
        gfn = max(gfn, slot.end_gfn)
    if gfn < last:
        raise NotMappedError(errno.EFAULT, f"gfn {gfn:#x} is in no slot, so it has no flags")
    cut = []
    for slot in slots:
        if slot.flags != bits:
            inside = _Part(max(first, slot.base_gfn), min(last, slot.end_gfn), bits)
            cut.append((slot, sorted([*_outside(slot, first, last), inside])))
    tx._check_cut(space, _additions(cut))
    with _AllOrNothing(tx) as steps:
        for slot, parts in cut:
            steps.cut(slot, parts)


def split(
    tx: Transaction,
    slot: SupportsIndex,
    gfn: SupportsIndex,
    id: SupportsIndex | None,
    as_id: SupportsIndex,
) -> tuple[Slot, Slot]:
    """Implements Transaction.split."""
    number, page, space = field(slot, "slot", 32), field(gfn, "gfn", 64), _space(as_id)
    new = None if id is None else field(id, "id", 32)
    old = _slot(tx, number, space)
    if not old.base_gfn < page < old.end_gfn:
        why = "each part must have a page"
        raise InvalidRegionError(errno.EINVAL, f"{old} cannot be split at gfn {page:#x}: {why}")
    parts = [_Part(old.base_gfn, page, old.flags), _Part(page, old.end_gfn, old.flags)]
    _refuse_closed([old])
    tx._check_cut(space, 1, new)
    with _AllOrNothing(tx) as steps:
        one, two = steps.cut(old, parts, new)
    return one, two


def merge(
    tx: Transaction, first: SupportsIndex, second: SupportsIndex, as_id: SupportsIndex
) -> Slot:
    """Implements Transaction.merge."""
    numbers, space = (field(first, "first", 32), field(second, "second", 32)), _space(as_id)
    named, other = (_slot(tx, number, space) for number in numbers)
    one, two = sorted((named, other), key=lambda slot: slot.base_gfn)
    why = ""
    if one.end_gfn != two.base_gfn:
        why = "they are not adjacent in guest memory"
    elif one.userspace_addr + one.memory_size != two.userspace_addr:
        why = "they are not adjacent in host memory"
    elif one.flags != two.flags:
        why = "their flags are different"
    elif one.guest_memfd is not two.guest_memfd or (
        one.guest_memfd is not None
        and one.guest_memfd_offset + one.memory_size != two.guest_memfd_offset
    ):
        why = "they are not adjacent in one guest_memfd"
    elif one.npages + two.npages > _MOST_PAGES:
        why = f"a slot has at most {_MOST_PAGES} pages"
    if why:
        raise InvalidRegionError(errno.EINVAL, f"{one} and {two} cannot be merged: {why}")
    _refuse_closed([named, other])
    with _AllOrNothing(tx) as steps:
        steps.change(other, None)
        steps.change(named, None)
        npages = one.npages + two.npages
        return steps.change(
            None,
            Slot(
                named.id,
                one.as_id,
                one.base_gfn,
                npages,
                one.userspace_addr,
                one.flags,
                one.guest_memfd,
                one.guest_memfd_offset,
            ),
        )


def _space(as_id: SupportsIndex) -> int:
    return field(as_id, "as_id", 32)


def _refuse_closed(slots: Iterable[Slot]) -> None:
    """Raises if a slot has a closed guest_memfd: it could be neither made anew nor put back."""
    for slot in slots:
        if slot.guest_memfd is not None and slot.guest_memfd.closed:
            raise InvalidRegionError(
                errno.EBADF, f"{slot} can only be deleted: its guest_memfd is closed", "G7"
            )


def _slot(tx: Transaction, number: int, as_id: int) -> Slot:
    found = tx.get(number, as_id=as_id)
    if found is None:
        raise NoSuchSlotError(errno.EINVAL, f"there is no slot {number}", 3)
    return found


def _additions(cut: Sequence[tuple[Slot, Sequence[_Part]]]) -> int:
    """Returns the largest increase in the number of slots on the way."""
    return max(accumulate((len(parts) - 1 for _, parts in cut), initial=0))


def _outside(slot: Slot, start: int, end: int) -> Iterator[_Part]:
    """Yields the parts of a slot outside [start, end)."""
    if slot.base_gfn < start:
        yield _Part(slot.base_gfn, start, slot.flags)
    if slot.end_gfn > end:
        yield _Part(end, slot.end_gfn, slot.flags)


class _AllOrNothing:
    """Steps of a transaction that are undone if one of them fails."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._made: list[tuple[Slot | None, Slot | None]] = []

    def __enter__(self) -> _AllOrNothing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or not self._made:
            return
        try:
            # No rule can refuse the old state, since it existed before.
            for old, new in reversed(self._made):
                self._step(new, old)
        except BaseException:
            # Out of memory, or a signal handler raised.
            self._tx._spoil()
            raise

    def change(self, old: Slot | None, new: Slot | None) -> Slot:
        """Deletes (`new` is None), creates (`old` is None) or changes the flags of a slot."""
        # Recorded before the step: an interrupted step may have taken effect.
        self._made.append((old, new))
        try:
            return self._step(old, new)
        except BaseException:
            slot = old or new
            assert slot is not None
            if self._tx.get(slot.id, as_id=slot.as_id) == old:
                self._made.pop()
            raise

    def _step(self, old: Slot | None, new: Slot | None) -> Slot:
        if new is None:
            assert old is not None
            return self._tx.delete(old.id, as_id=old.as_id)
        if old is not None:
            return self._tx.set_flags(new.id, new.flags, as_id=new.as_id)
        return self._tx._create_slot(new)

    def cut(self, slot: Slot, parts: Sequence[_Part], id: int | None = None) -> list[Slot]:
        """Replaces a slot by parts of it. The first keeps the id; others get `id` or a free id."""
        if len(parts) == 1 and parts[0][:2] == (slot.base_gfn, slot.end_gfn):
            flags = parts[0].flags
            if not (flags ^ slot.flags) & Flags.READONLY:
                return [self.change(slot, _part(slot, slot.id, parts[0]))]
        self.change(slot, None)
        made = []
        for number, part in enumerate(parts):
            new_id = slot.id
            if number:
                new_id = self._tx.free_id(slot.as_id) if id is None else id
            made.append(self.change(None, _part(slot, new_id, part)))
        return made


def _part(slot: Slot, id: int, part: _Part) -> Slot:
    start, end, flags = part
    skipped = (start - slot.base_gfn) << PAGE_SHIFT
    memfd = slot.guest_memfd
    return Slot(
        id,
        slot.as_id,
        start,
        end - start,
        slot.userspace_addr + skipped,
        flags,
        memfd,
        0 if memfd is None else slot.guest_memfd_offset + skipped,
    )
