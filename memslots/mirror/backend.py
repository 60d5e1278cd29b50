"""Mirroring: every change of a Memslots is made in a backend too, or in neither.

A backend is whatever has KVM's call, `set_region`, and does what it says or refuses: then it has
done nothing, and raises a MemslotError. A `memslots.kvm.KvmVM` is one. What else it may have is in
`Backend`.

One change of a Memslots is one call, made when everybody has agreed to the change and nothing else
can fail. A transaction is several calls, since a backend cannot change several slots at once:
planner.py puts them in order. Where one of them is refused, those before it are undone.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Iterable, Mapping, Sized
from types import EllipsisType
from typing import TYPE_CHECKING, Protocol, SupportsIndex

from memslots.dirty.logs import take_over_log
from memslots.errors import MemslotError
from memslots.mirror.planner import Call, Step, calls_of_steps
from memslots.values.integers import field
from memslots.values.limits import DEFAULT_LIMITS
from memslots.values.records import Flags, Slot, deletion_arguments, region_arguments

if TYPE_CHECKING:
    from memslots.memslots import Memslots

_MOST_IDS = 1 << 16


class Backend(Protocol):
    """What a Memslots can be mirrored in.

    It may also have

    - ``limits``, a mapping with the arguments of Memslots: no change is made that is beyond them;
    - ``slots``, which must be empty when it is given to a Memslots;
    - ``set_slot(before, after)``, called in place of set_region, with Slots: make of `before`
      (None: no slot is there) `after` (None: it is to go);
    - ``set_region2``, as Memslots has it, for slots of a guest_memfd; it gets the GuestMemfd;
    - ``keep(vm)``, which is called with the Memslots: it has to last as long as the backend's
      slots, since it is what keeps the memory that they are on;
    - ``get_dirty_log(slot, as_id)``, ``clear_dirty_log(slot, first_page, num_pages, bitmap,
      as_id)``, as in Memslots: then the dirty logs of the Memslots have its marks as well;
    - ``runs()``, for one that has dirty logs: how often a guest has begun to run, or None while one
      runs. Its log is taken just before a call that loses it; what a guest writes in between is in
      neither, so if one ran, every page is marked that is to keep its mark. A backend that has no
      `runs` is taken at its word: its log is all that was written.
    """

    def set_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        /,
    ) -> object:
        """Do what Memslots.set_region would do; or refuse: raise a MemslotError, and do nothing.

        After any other exception, a signal's handler's, say, it is not known what was done: then it
        is asked for what there was before.
        """


def limits_with(
    backend: object, given: Mapping[str, SupportsIndex | EllipsisType]
) -> dict[str, int]:
    """The limits of a Memslots: its backend's or the usual ones where `given` has ..."""
    offered: dict[str, int] = dict(getattr(backend, "limits", {}))
    limits = DEFAULT_LIMITS | offered
    for name, value in given.items():
        if value is ...:
            continue
        limits[name] = number = field(value, name, 64)
        most = offered.get(name, number)
        if name == "manual_dirty_log" and number != most:
            raise ValueError(f"manual_dirty_log {number} is not the backend's, {most}")
        if number > most:
            raise ValueError(f"{name} {number:#x} is above the backend's, {most:#x}")
    if limits["max_slots"] > _MOST_IDS:
        raise ValueError(f"max_slots must be at most {_MOST_IDS} with a backend: ids have 16 bits")
    return limits


#: By the id of a backend: the backend, and the Memslots that is mirrored in it. Two backends that
#: are equal are two.
_mirrored: dict[int, tuple[weakref.ref[object], weakref.ref[Memslots]]] = {}


def _take(backend: object, vm: Memslots) -> None:
    """Make it this Memslots' backend. ValueError if it is another's."""
    number = id(backend)
    try:
        # Gone, so another may come to have its id.
        known = weakref.ref(backend, lambda _: _mirrored.pop(number, None))
    except TypeError:
        return  # it takes no weak references, so nobody can tell
    other = _mirrored.get(number)
    if other is not None and other[0]() is backend and other[1]() is not None:
        raise ValueError("the backend is another Memslots' already: one cannot know of the other")
    _mirrored[number] = known, weakref.ref(vm)


class Mirror:
    """A backend, and what it could not be made to undo. Used by the writer of one Memslots."""

    def __init__(self, backend: Backend, vm: Memslots) -> None:
        if not callable(getattr(backend, "set_region", None)):
            raise TypeError(f"a backend has set_region; {type(backend).__name__!r} has not")
        slots: Sized = getattr(backend, "slots", ())
        if len(slots):
            raise ValueError(f"the backend has {len(slots)} slots already; a Memslots begins empty")
        _take(backend, vm)
        self.backend = backend
        self._vm = weakref.ref(vm)  # whoever makes a change has it
        # Calls that were begun, and do not stay: to be undone, the last first. The writer has it.
        self.journal: list[Call] = []
        keep = getattr(backend, "keep", None)
        if keep is not None:
            keep(vm)

    @property
    def vm(self) -> Memslots:
        """The Memslots that is mirrored."""
        vm = self._vm()
        assert vm is not None
        return vm

    def get_dirty_log(self, id: int, as_id: int) -> bytes | None:
        """The backend's own dirty log of a slot, or None where it keeps none."""
        get = getattr(self.backend, "get_dirty_log", None)
        return None if get is None else bytes(get(id, as_id))

    def clear_dirty_log(
        self, id: int, first_page: int, num_pages: int, bitmap: object, as_id: int
    ) -> None:
        """Clear part of it, where it keeps one."""
        clear = getattr(self.backend, "clear_dirty_log", None)
        if clear is not None:
            clear(id, first_page, num_pages, bitmap, as_id)

    def calls_of(self, before: Slot | None, after: Slot | None) -> tuple[Call]:
        """What is to be called for one change."""
        return (Call(before, after),)

    def plan(self, steps: Iterable[Step]) -> list[Call]:
        """What is to be called for a transaction's steps, in order."""
        return calls_of_steps(self.vm, steps)

    def make(self, calls: Iterable[Call]) -> None:
        """Make these calls, each noted in the journal before.

        When all of them stay, whoever calls this empties the journal; else it calls `undo`. It does
        so in C: in Python there is no place where a signal's handler might not raise.
        """
        self._pay()
        for call in calls:
            began = self._runs() if call.lost else 0
            before = call.before
            if (call.lost or call.renews) and before and before.flags & Flags.LOG_DIRTY_PAGES:
                self._take_log(before, call.renews)
            self.journal.append(call)
            try:
                self._put(call.before, call.after)
            except MemslotError:
                self.journal.pop()  # nothing was done; of anything else that is not known
                raise
            if call.lost and (began is None or began != self._runs()):
                for first, end in call.lost:
                    self._mark(call.slot.as_id, first, end)

    def undo(self, error: BaseException) -> None:
        """Undo what is in the journal, after an error; should that be refused, it gets a note."""
        try:
            self._pay()
        except MemslotError as refused:
            error.add_note(
                f"the backend does not undo what it did before: {refused};"
                " the next change tries again, before anything else"
            )

    def _pay(self) -> None:
        """Undo what is in the journal, the last first; it may be undone already."""
        while self.journal:
            call = self.journal[-1]
            try:
                self._put(call.after, call.before)
            except MemslotError as error:
                # Deleting what is not there: it was never made.
                if call.before is not None or error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
            if call.loses_log():
                slot = self.vm.address_space(call.slot.as_id).get(call.slot.id)
                if slot is not None:
                    self._mark(slot.as_id, slot.base_gfn, slot.end_gfn)
            self.journal.pop()

    def _take_log(self, slot: Slot, renews: bool) -> None:
        """Take over what the backend's log has of a slot; have it empty after, if it `renews`."""
        log = self.get_dirty_log(slot.id, slot.as_id)
        if log is None:
            return
        take_over_log(self.vm, slot.id, slot.as_id, log)
        if renews and self.vm.manual_dirty_log:
            # Reading it has not cleared it.
            self.clear_dirty_log(slot.id, 0, slot.npages, log, slot.as_id)

    def _runs(self) -> int | None:
        """How often the backend's guests have begun to run, or None: one runs."""
        runs = getattr(self.backend, "runs", None)
        if runs is None:
            return 0
        count: int | None = runs()
        return count

    def _mark(self, as_id: int, first: int, end: int) -> None:
        """Mark pages [first, end) whose marks the backend lost and the Memslots keeps.

        What the guest wrote since it was last read is not known any more, and must not be missed.
        After the loss: whoever takes the marks before it reads the pages before it, too.
        """
        if hasattr(self.backend, "get_dirty_log"):  # else it had none
            self.vm.mark_dirty_range(first, end, as_id)

    def _put(self, before: Slot | None, after: Slot | None) -> None:
        """Have the backend make of `before` what is after. One of the two is there."""
        set_slot = getattr(self.backend, "set_slot", None)
        if set_slot is not None:
            set_slot(before, after)
        elif after is not None and after.flags & Flags.GUEST_MEMFD:
            self.backend.set_region2(*region_arguments(after))  # type: ignore[attr-defined]
        elif after is not None:
            self.backend.set_region(*region_arguments(after))
        elif before is not None:
            self.backend.set_region(*deletion_arguments(before))
