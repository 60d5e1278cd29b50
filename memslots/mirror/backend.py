"""Mirroring: every change of a Memslots is made in a backend too, or in neither.

A backend is any object that has KVM's call, `set_region`. It does what the call says, or raises a
MemslotError and does nothing. A `memslots.kvm.KvmVM` is one. `Backend` describes what else a
backend may have.

One change of a Memslots is one call. The call is made when every listener has agreed to the change
and nothing else can fail. A transaction is several calls, since a backend cannot change several
slots at once. planner.py puts them in order. If the backend refuses one of them, those before it
are undone.
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
from memslots.values.integers import PAGE_SHIFT, field
from memslots.values.limits import DEFAULT_LIMITS
from memslots.values.records import Flags, Slot, deletion_arguments, region_arguments

if TYPE_CHECKING:
    from memslots.memslots import Memslots

_MOST_IDS = 1 << 16


#: KVM_MEMORY_ATTRIBUTE_PRIVATE.
PRIVATE_ATTRIBUTE = 1 << 3


class Backend(Protocol):
    """What a Memslots can be mirrored in.

    A backend may also have

    - ``limits``, a mapping with the arguments of Memslots: changes beyond these limits are refused;
    - ``slots``, which must be empty when the backend is given to a Memslots;
    - ``set_slot(before, after)``, called in place of set_region, with Slots: turn `before` into
      `after` (None: no slot);
    - ``set_region2``, as Memslots has it, for slots of a guest_memfd; it gets the GuestMemfd;
    - ``set_memory_attributes(address, size, attributes)``, for `Memslots.set_private`: bytes of
      guest memory, and `PRIVATE_ATTRIBUTE` or 0. A backend without it is not told;
    - ``keep(vm)``, called with the Memslots: the backend must keep it alive as long as its slots,
      since the Memslots keeps the memory under them;
    - ``get_dirty_log(slot, as_id)``, ``clear_dirty_log(slot, first_page, num_pages, bitmap,
      as_id)``, as in Memslots: the dirty logs of the Memslots then include the backend's marks;
    - ``runs()``, if it has dirty logs: how often a guest has begun to run, or None while one runs.
      The backend's log is read just before a call that loses it. A guest's write after that is in
      neither log. If a guest ran then, every page whose mark must survive is marked. A backend
      without `runs` must lose no write: its log counts as complete.
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
        """Does what Memslots.set_region would do, or raises a MemslotError and does nothing.

        After any other exception (of a signal's handler, say) the outcome is unknown. The backend
        is then asked to restore the state from before.
        """


def limits_with(
    backend: object, given: Mapping[str, SupportsIndex | EllipsisType]
) -> dict[str, int]:
    """Returns the limits of a Memslots. Values of ... are the backend's, else the default ones."""
    offered: dict[str, int] = dict(getattr(backend, "limits", {}))
    limits = DEFAULT_LIMITS | offered
    for name, value in given.items():
        if value is ...:
            continue
        limits[name] = number = field(value, name, 64)
        most = offered.get(name, number)
        if name == "manual_dirty_log" and number != most:
            raise ValueError(f"manual_dirty_log must be the backend's, {most}, not {number}")
        if number > most:
            raise ValueError(f"{name} must be at most the backend's, {most:#x}, not {number:#x}")
    if limits["max_slots"] > _MOST_IDS:
        raise ValueError(f"max_slots must be at most {_MOST_IDS} with a backend: ids have 16 bits")
    return limits


#: By the id() of a backend: the backend, and the Memslots that is mirrored in it. Backends that
#: compare equal are still different.
_mirrored: dict[int, tuple[weakref.ref[object], weakref.ref[Memslots]]] = {}


def _take(backend: object, vm: Memslots) -> None:
    """Makes an object this Memslots' backend. ValueError if it is another's."""
    number = id(backend)
    try:
        # When the backend is gone, another object may get its id().
        known = weakref.ref(backend, lambda _: _mirrored.pop(number, None))
    except TypeError:
        return  # without weak references nobody can tell
    other = _mirrored.get(number)
    if other is not None and other[0]() is backend and other[1]() is not None:
        raise ValueError("the backend belongs to another Memslots already")
    _mirrored[number] = known, weakref.ref(vm)


class Mirror:
    """A backend, and the calls that could not be undone. Used by the writer of one Memslots."""

    def __init__(self, backend: Backend, vm: Memslots) -> None:
        if not callable(getattr(backend, "set_region", None)):
            raise TypeError(f"a backend must have set_region; {type(backend).__name__!r} has none")
        slots: Sized = getattr(backend, "slots", ())
        if len(slots):
            raise ValueError(f"the backend of a new Memslots must have no slots, not {len(slots)}")
        _take(backend, vm)
        self.backend = backend
        self._vm = weakref.ref(vm)  # a change holds a reference to it
        # Calls that were begun and do not stay, to be undone in reverse order. The writer shares
        # it.
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

    def set_private(
        self, start: int, end: int, private: bool, before: list[tuple[int, int]]
    ) -> None:
        """Makes the pages [start, end) private or shared in the backend, if it keeps attributes.

        `before` has the private runs there. If the outcome is unknown, they are set again.
        """
        change = getattr(self.backend, "set_memory_attributes", None)
        if change is None:
            return

        def make(start: int, end: int, private: bool) -> None:
            address, size = start << PAGE_SHIFT, (end - start) << PAGE_SHIFT
            change(address, size, PRIVATE_ATTRIBUTE if private else 0)

        try:
            make(start, end, private)
        except MemslotError:
            raise  # the backend has changed nothing
        except BaseException:
            make(start, end, False)
            for first, last in before:
                make(first, last, True)
            raise

    def get_dirty_log(self, id: int, as_id: int) -> bytes | None:
        """Returns the backend's own dirty log of a slot, or None if it keeps none."""
        get = getattr(self.backend, "get_dirty_log", None)
        return None if get is None else bytes(get(id, as_id))

    def clear_dirty_log(
        self, id: int, first_page: int, num_pages: int, bitmap: object, as_id: int
    ) -> None:
        """Clears part of the backend's dirty log of a slot, if it keeps one."""
        clear = getattr(self.backend, "clear_dirty_log", None)
        if clear is not None:
            clear(id, first_page, num_pages, bitmap, as_id)

    def calls_of(self, before: Slot | None, after: Slot | None) -> tuple[Call]:
        """Returns the calls for one change."""
        return (Call(before, after),)

    def plan(self, steps: Iterable[Step]) -> list[Call]:
        """Returns the calls for a transaction's steps, in order."""
        return calls_of_steps(self.vm, steps)

    def make(self, calls: Iterable[Call]) -> None:
        """Makes the calls. Notes each one in the journal first.

        If all of them stay, the caller empties the journal; else it calls `undo`. The caller does
        so in C: in Python a signal's handler could raise at any place.
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
                self.journal.pop()  # nothing was done; after other exceptions that is not known
                raise
            if call.lost and (began is None or began != self._runs()):
                for first, end in call.lost:
                    self._mark(call.slot.as_id, first, end)

    def undo(self, error: BaseException) -> None:
        """Undoes the journal after `error`. If the backend refuses, `error` gets a note."""
        try:
            self._pay()
        except MemslotError as refused:
            error.add_note(
                f"the backend does not undo what it did before: {refused};"
                " the next change tries again, before anything else"
            )

    def _pay(self) -> None:
        """Undoes the journal, from the last call to the first. It may already be undone in part."""
        while self.journal:
            call = self.journal[-1]
            try:
                self._put(call.after, call.before)
            except MemslotError as error:
                # The slot to delete is not there: the call was never made.
                if call.before is not None or error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
            if call.loses_log():
                slot = self.vm.address_space(call.slot.as_id).get(call.slot.id)
                if slot is not None:
                    self._mark(slot.as_id, slot.base_gfn, slot.end_gfn)
            self.journal.pop()

    def _take_log(self, slot: Slot, renews: bool) -> None:
        """Takes over the backend's log of a slot; if it `renews`, empties that log."""
        log = self.get_dirty_log(slot.id, slot.as_id)
        if log is None:
            return
        take_over_log(self.vm, slot.id, slot.as_id, log)
        if renews and self.vm.manual_dirty_log:
            # Reading the log did not clear it.
            self.clear_dirty_log(slot.id, 0, slot.npages, log, slot.as_id)

    def _runs(self) -> int | None:
        """Returns how often the backend's guests have begun to run, or None while one runs."""
        runs = getattr(self.backend, "runs", None)
        if runs is None:
            return 0
        count: int | None = runs()
        return count

    def _mark(self, as_id: int, first: int, end: int) -> None:
        """Marks pages [first, end) whose marks the backend lost and the Memslots keeps.

        What the guest wrote since the log was last read is unknown, and must not be missed. The
        marks are set after the loss: code that takes the marks earlier also reads the pages
        earlier.
        """
        if hasattr(self.backend, "get_dirty_log"):  # else it had no marks to lose
            self.vm.mark_dirty_range(first, end, as_id)

    def _put(self, before: Slot | None, after: Slot | None) -> None:
        """Makes the backend turn `before` into `after`. At least one of them is not None."""
        set_slot = getattr(self.backend, "set_slot", None)
        if set_slot is not None:
            set_slot(before, after)
        elif after is not None and after.flags & Flags.GUEST_MEMFD:
            self.backend.set_region2(*region_arguments(after))  # type: ignore[attr-defined]
        elif after is not None:
            self.backend.set_region(*region_arguments(after))
        elif before is not None:
            self.backend.set_region(*deletion_arguments(before))
