"""Memslots: the slots of one virtual machine, and every change of them."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.dirtylog cimport dirty_mark
from memslots.core.invariants cimport HOLDS, invariants_check_space, report
from memslots.core.lookup cimport lookup_gfn
from memslots.core.lookup_batch cimport MARK_DIRTY
from memslots.core.machine cimport machine
from memslots.core.region cimport limits
from memslots.core.slot cimport slot as slot_t
from memslots.core.space cimport space, space_active
from memslots.core.srcu cimport srcu_reader
from memslots.core.units cimport gfn_t
from memslots.dirty.logs cimport (
    check_log_of,
    clear_log,
    get_log,
    mark_all,
    mark_range,
    merge_log,
)
from memslots.read.batch cimport run_batch
from memslots.read.ranges cimport extent, set_extent
from memslots.read.reader cimport Reader
from memslots.read.sections cimport reader_of, section, section_enter, section_leave
from memslots.values.integers cimport u32, u64
from memslots.values.limits cimport set_limits, with_default_limits
from memslots.values.rules cimport check_as_id, room_for
from memslots.write.operations cimport (
    operation_create,
    operation_create_slot,
    operation_delete,
    operation_move,
    operation_set_flags,
    operation_set_region,
    operation_set_region2,
)
from memslots.write.writer cimport Writer

from memslots.errors import InvariantError, MemslotError
from memslots.read.reader import AddressSpace, Vcpu

cdef enum:
    LAST_ID = 0x7FFFFFFF  # an id fits an int32, the output of lookup_many

# By property_id.
cdef tuple PROPERTY_NAMES = (
    "", "R1", "R2", "R3", "R4", "R5", "H1", "S1", "S2", "S3", "S4", "P1", "P2", "D1", "I1"
)


# What `late` has given.
cdef dict LATE = {}


cdef object late(str module, str name):
    """A function of a module that is imported when it is first used: many programs never do."""
    found = LATE.get(name)
    if found is None:
        found = LATE[name] = getattr(__import__(module, None, None, [name]), name)
    return found


# no_gc_clear: the collector must not take the writer away while the pointers into its machine are
# there. A cycle through a listener is broken where the Subscriptions let theirs go.
@cython.no_gc_clear
cdef class Memslots(Reader):
    """The memory slots of one virtual machine, kept as KVM keeps them since Linux 5.17.

    All ways to look up (see Reader) read address space 0; `address_space` and `vcpu` give the
    same for another.

    Parameters
    ----------
    max_slots : int, default 32764
        Slot ids are below it; 1 to 2**31 - 1. ``Memslots(m)`` for a MemoryMap is
        ``Memslots(map=m)``.
    address_spaces : int, default 1
        How many; 1 to 16. x86 with system management mode has 2.
    max_gfn : int, default 2**40 - 1
        The highest guest page a slot may hold.
    max_hva : int, default 2**47 - 4096
        The end of user space: a slot's last byte is below it.
    manual_dirty_log : {0, 1, 3}, default 0
        As KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 takes it: with bit 0 `get_dirty_log` leaves the log as
        it is, with bit 1 a new log starts with every page marked.
    backend : memslots.mirror.backend.Backend, optional
        Every change is made in it too, or in neither: a memslots.kvm.KvmVM, say. The limits that it
        has are the defaults of those above, and none may be greater. Its dirty logs are read and
        cleared with those here. Nobody else is to change its slots.
    map : MemoryMap, optional
        The slots that there are from the beginning. O(n), in one pass.

    Raises
    ------
    InvalidRegionError
        A slot of the map cannot be here (rules 1, 2 and 7).
    ValueError
        A limit that cannot be, or is above the backend's; a backend that has slots already.
    TypeError
        A backend without set_region.

    Notes
    -----
    Safe to use from any thread: look-ups wait for nobody, changes wait for one another. Pickling
    and copying take the limits, slots, dirty logs and generations; listeners, Vcpus and the backend
    stay behind.
    """

    cdef Writer writer  # owns the machine, and makes every change
    cdef object __weakref__

    def __cinit__(
        self,
        max_slots_or_map=...,
        /,
        *,
        max_slots=...,
        address_spaces=...,
        max_gfn=...,
        max_hva=...,
        manual_dirty_log=...,
        backend=None,
        map=None,
    ):
        cdef limits lim
        if max_slots_or_map is not ...:
            # Without importing MemoryMap, which most do without.
            if type(max_slots_or_map).__name__ == "MemoryMap":
                if map is not None:
                    raise TypeError("there are two maps: one by position, and `map`")
                map = max_slots_or_map
            elif max_slots is not ...:
                raise TypeError("max_slots is there twice: by position, and by name")
            else:
                max_slots = max_slots_or_map
        given = {
            "max_slots": max_slots,
            "address_spaces": address_spaces,
            "max_gfn": max_gfn,
            "max_hva": max_hva,
            "manual_dirty_log": manual_dirty_log,
        }
        if backend is None:
            given = with_default_limits(given)
        else:
            # Here, since most do without: it would be a third of what importing memslots takes.
            from memslots.mirror.backend import Mirror, limits_with

            given = limits_with(backend, given)
        set_limits(
            &lim,
            given["max_slots"],
            given["address_spaces"],
            given["max_gfn"],
            given["max_hva"],
            given["manual_dirty_log"],
            LAST_ID,
        )
        self.writer = Writer.__new__(Writer)
        self.writer.own_machine(&lim)
        self.m = self.writer.m
        self.sp = self.m.spaces[0]
        if backend is not None:
            self.writer.mirror = Mirror(backend, self)
            self.writer.journal = self.writer.mirror.journal
        if map is not None:
            if backend is None:
                late("memslots.write.filling", "fill_with")(self.writer, map)
            else:
                self.create_many(map)

    def set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr):
        """Create, delete, move or change the flags of a slot: the ioctl KVM_SET_USER_MEMORY_REGION.

        Names, order and meaning are those of struct kvm_userspace_memory_region.

        Parameters
        ----------
        slot : int
            The id in bits 0-15, the address space in bits 16-31. Greater ids go by way of create,
            move, set_flags, delete.
        flags : int or Flags
            LOG_DIRTY_PAGES, READONLY.
        guest_phys_addr, memory_size, userspace_addr : int
            In bytes, multiples of 4096. Size 0 deletes.

        Returns
        -------
        Change
            What was done; NONE where the slot was so already.

        Raises
        ------
        InvalidRegionError, OverlapError, NoSuchSlotError
            By the rules of docs/rules.md, whose number is in ``.rule``.
        BusyError
            Called from inside a listener.
        MemoryError
        Exception
            Whatever a listener's ``prepare`` or ``invalidate``, or the backend, raised to refuse.
            What a ``commit`` raises is no refusal: an Exception is reported as unraisable;
            KeyboardInterrupt and the like come out here when the change is done.

        Notes
        -----
        After an error nothing has changed; where a delete or a move was refused by a listener, by
        the backend or by rule 7, the generation has gone on. O(log n).
        """
        return operation_set_region(
            self.writer, slot, flags, guest_phys_addr, memory_size, userspace_addr
        )

    def set_region2(
        self,
        slot,
        flags,
        guest_phys_addr,
        memory_size,
        userspace_addr,
        guest_memfd=None,
        guest_memfd_offset=0,
    ):
        """The ioctl KVM_SET_USER_MEMORY_REGION2: set_region, for slots of a guest_memfd too.

        Parameters
        ----------
        slot, flags, guest_phys_addr, memory_size, userspace_addr : int
            As in set_region. With GUEST_MEMFD (4) in `flags` userspace_addr may be 0.
        guest_memfd : GuestMemfd or int
            The file whose range the slot is bound to; an integer is an open descriptor of a
            guest_memfd. Not looked at without GUEST_MEMFD, nor where memory_size is 0.
        guest_memfd_offset : int
            Where in the file the slot's first page is, in bytes, page aligned.

        Returns
        -------
        Change
            CREATE or DELETE of a slot with GUEST_MEMFD, which can do no other; else as set_region.

        Raises
        ------
        InvalidRegionError
            Rules G1, G2 and G5, or rule G7: no open descriptor (EBADF); another file, one of
            another Memslots, a range that is not inside it, or that meets another slot's (EINVAL).
        OverlapError, NoSuchSlotError, TypeError, OverflowError, MemoryError
            As set_region.

        Notes
        -----
        docs/rules.md has the rules of guest_memfd, G1 to G12. O(log n), and O(k) for k slots that
        the file has.
        """
        return operation_set_region2(
            self.writer,
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd,
            guest_memfd_offset,
        )

    def _create_slot(self, slot):
        """Creates what a Slot says. For mirror/plan.py."""
        return operation_create_slot(self.writer, slot)

    def create(self, slot, base_gfn, npages, userspace_addr, flags=0, as_id=0):
        """Create a slot.

        Parameters
        ----------
        slot : int
            Its id, below max_slots and not in use.
        base_gfn, npages : int
            The guest pages [base_gfn, base_gfn + npages).
        userspace_addr : int
            The host address of the first byte, a multiple of 4096.
        flags : int or Flags
        as_id : int

        Returns
        -------
        Slot

        Raises
        ------
        InvalidRegionError, OverlapError, BusyError, MemoryError, Exception
            As set_region; an id in use and npages 0 are InvalidRegionErrors too.

        Notes
        -----
        O(log n).
        """
        return operation_create(
            self.writer, slot, base_gfn, npages, userspace_addr, flags, as_id
        )

    def create_many(self, slots, *, as_id=None):
        """Create many slots: all of them, or none.

        Parameters
        ----------
        slots : MemoryMap, or what makes one
            Those without an id of their own get the lowest that are free.
        as_id : int, optional
            The address space, where `slots` does not say it.

        Returns
        -------
        list of Slot
            In gfn order.

        Raises
        ------
        InvalidRegionError, OverlapError, NoRoomError, BusyError, MemoryError, Exception
            As create, and as a transaction's end.

        Notes
        -----
        As a transaction: readers see all of them at once. O(m log n) for m slots; where the address
        space is empty, and there is neither a listener nor a backend, in one pass: a fifth of the
        time.
        """
        made = late("memslots.write.filling", "create_at_once")(self.writer, slots, as_id)
        if made is None:
            with self.transaction() as tx:
                made = tx.create_many(slots, as_id)
        return made

    def move(self, slot, base_gfn, as_id=0):
        """Move a slot to another place in guest memory; its dirty log goes with it.

        Parameters
        ----------
        slot, as_id : int
            The slot's id and address space.
        base_gfn : int
            Its first page from now on. The old place does not count as an overlap.

        Returns
        -------
        Slot
            The slot as it is now.

        Raises
        ------
        NoSuchSlotError, InvalidRegionError, OverlapError, BusyError, MemoryError, Exception
            As set_region.

        Notes
        -----
        O(log n). Readers find the slot INVALID before they find it in its new place.
        """
        return operation_move(self.writer, slot, base_gfn, as_id)

    def set_flags(self, slot, flags, as_id=0):
        """Change a slot's flags.

        Turning LOG_DIRTY_PAGES off gives up the dirty log; READONLY cannot be changed.

        Parameters
        ----------
        slot, as_id : int
            The slot's id and address space.
        flags : int or Flags
            All of them, as they are to be.

        Returns
        -------
        Slot
            The slot as it is now.

        Raises
        ------
        NoSuchSlotError, InvalidRegionError, BusyError, MemoryError, Exception
            As set_region.

        Notes
        -----
        O(1), and O(npages / 64) for a dirty log that starts with every page marked.
        """
        return operation_set_flags(self.writer, slot, flags, as_id)

    def delete(self, slot, as_id=0):
        """Delete a slot.

        Parameters
        ----------
        slot, as_id : int
            The slot's id and address space.

        Returns
        -------
        Slot
            The slot as it was.

        Raises
        ------
        NoSuchSlotError, InvalidRegionError, BusyError, MemoryError, Exception
            As set_region.

        Notes
        -----
        O(log n). Readers find the slot INVALID before they find none.
        """
        return operation_delete(self.writer, slot, as_id)

    def unmap(self, start, end, as_id=0):
        """Take pages away from the slots that hold them, and cut these where need be.

        Parameters
        ----------
        start, end : int
            The guest pages [start, end). Holes are nothing to do.
        as_id : int

        Raises
        ------
        NoRoomError
            There is no id for the second part of a slot that is cut.
        ValueError
            start is above end.
        InvalidRegionError, BusyError, MemoryError, Exception
            As set_region.

        Notes
        -----
        All at once for readers, and after an error nothing has changed. Of a slot that is cut in
        two, the first part keeps the id, the second has the lowest that is free. Marks of pages
        that stay are kept. O((k + 1) log n) for k slots.
        """
        with self.transaction() as tx:
            tx.unmap(start, end, as_id)

    def protect(self, start, end, flags, as_id=0):
        """Give pages other flags; slots are cut where need be.

        READONLY too: where rule 5 does not let a slot change, it is made anew.

        Parameters
        ----------
        start, end : int
            The guest pages [start, end).
        flags : int or Flags
            All of them, as they are to be.
        as_id : int

        Raises
        ------
        NotMappedError
            A page is in no slot; nothing is done.
        NoRoomError, ValueError, InvalidRegionError, BusyError, MemoryError, Exception
            As unmap.

        Notes
        -----
        As unmap.
        """
        with self.transaction() as tx:
            tx.protect(start, end, flags, as_id)

    def split(self, slot, gfn, id=None, as_id=0):
        """Make two slots of one.

        Parameters
        ----------
        slot, as_id : int
            The slot's id and address space.
        gfn : int
            The first page of the second; not the first of the slot.
        id : int, optional
            Of the second; the lowest that is free if left out. The first keeps the slot's.

        Returns
        -------
        Slot, Slot

        Raises
        ------
        NoSuchSlotError
        InvalidRegionError
            The slot has no such page, or it is the first; an id that is in use or cannot be.
        NoRoomError, BusyError, MemoryError, Exception
            As unmap.

        Notes
        -----
        Marks are kept. O(log n).
        """
        with self.transaction() as tx:
            return tx.split(slot, gfn, id, as_id)

    def merge(self, first, second, as_id=0):
        """Make one slot of two that are side by side in guest and in host memory.

        Parameters
        ----------
        first, second, as_id : int
            The slots' ids, in any order, and their address space.

        Returns
        -------
        Slot
            With the id of `first`.

        Raises
        ------
        NoSuchSlotError
        InvalidRegionError
            They are not side by side, have different flags, or would be too many pages (rule 4).
        BusyError, MemoryError, Exception
            As unmap.

        Notes
        -----
        Marks are kept. O(log n).
        """
        with self.transaction() as tx:
            return tx.merge(first, second, as_id)

    def transaction(self):
        """Begin changes that readers see all at once, or not at all (Transaction).

        Use it in a with statement: ``with vm.transaction() as tx:``, and make the changes on `tx`.

        Raises
        ------
        BusyError
            When it is begun from inside a listener or another transaction's body.

        Notes
        -----
        O(k log n) for k changes. Other threads' changes wait from its beginning to its end; readers
        wait for nothing.
        """
        return late("memslots.write.transaction", "transaction_of")(self, self.writer)

    def apply(self, plan):
        """Make what a plan comes to (memslots.plan), as one transaction.

        Parameters
        ----------
        plan : Plan
            Of the slots that are here: those that it touches have not changed since it was made.

        Raises
        ------
        InvalidRegionError
            A slot is not as the plan begins with it (ESTALE).
        OverlapError, BusyError, MemoryError, Exception
            As a transaction's end.

        Notes
        -----
        After an error nothing has changed. Readers see all of it at once; a backend is asked for
        the plan's calls. Marks are kept as in any transaction. O(k log n).
        """
        late("memslots.mirror.plan", "apply")(self, plan)

    def become(self, wanted, *, as_id=None, keep=()):
        """Change what differs from a map, and nothing else: `plan` and `apply` in one step.

        Parameters
        ----------
        wanted : MemoryMap, or what makes one
            What its address space is to hold.
        as_id : int, optional
            The address space, where `wanted` does not say it.
        keep : iterable of (int, int), optional
            As for `plan`: pages that a backend is to have all the time. Readers here never miss a
            page that is in both maps.

        Returns
        -------
        Plan
            What was done.

        Raises
        ------
        NoRoomError, NoWindowError, InvalidRegionError, OverlapError
            As `plan`.
        BusyError, MemoryError, Exception
            As a transaction's end.

        Notes
        -----
        After an error nothing has changed. O(n + m + k log n) for k slots that change.
        """
        return late("memslots.mirror.plan", "become")(self, wanted, as_id, keep, Memslots)

    def mark_dirty(self, gfn, as_id=0):
        """Mark a guest page as written, in its slot's dirty log.

        Nothing happens where no slot holds the page, the slot does not log, or it is READONLY:
        nothing can have written it.

        Parameters
        ----------
        gfn, as_id : int

        Notes
        -----
        O(log n), O(1) where the last-used slot holds the page. Any thread may call it; no mark is
        lost.
        """
        cdef gfn_t page = u64(gfn, "gfn")
        cdef space *sp = self.space_of(as_id)
        cdef section at = section_enter(self.m, NULL)
        cdef slot_t *s = lookup_gfn(sp, NULL, page)
        if s is not NULL:
            dirty_mark(s, page)
        section_leave(&at)

    def mark_dirty_many(self, gfns, as_id=0):
        """Mark many guest pages as written; each as mark_dirty does.

        Parameters
        ----------
        gfns : C-contiguous buffer of uint64
            As in lookup_many.
        as_id : int

        Raises
        ------
        TypeError, ValueError
            As lookup_many.

        Notes
        -----
        O(m log n) for m pages; runs without the GIL.
        """
        run_batch(self.m, self.space_of(as_id), NULL, MARK_DIRTY, gfns, "gfns", None)

    def mark_dirty_range(self, start, end, as_id=0):
        """Mark the guest pages [start, end) as written; each as mark_dirty does.

        Parameters
        ----------
        start, end : int
            Gfns.
        as_id : int

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k + p / 64) for p pages in k slots.
        """
        cdef extent e
        cdef space *sp = self.space_of(as_id)
        if set_extent(&e, False, start, end):
            mark_range(self.m, sp.as_id, e.first, e.last)

    def get_dirty_log(self, slot, as_id=0):
        """The dirty log of a slot: the ioctl KVM_GET_DIRTY_LOG.

        Clears the log, unless manual_dirty_log is on: then clear_dirty_log does.

        Parameters
        ----------
        slot, as_id : int
            The slot's id and address space.

        Returns
        -------
        bytearray
            ceil(npages / 64) little-endian 64-bit words; bit n is page base_gfn + n.

        Raises
        ------
        InvalidRegionError
            An id or address space that cannot be (EINVAL).
        NoSuchSlotError
            There is no such slot, or it does not log (ENOENT).

        Notes
        -----
        O(npages / 64). A page marked meanwhile is in this answer or in the next.
        """
        cdef bint take = self.m.lim.manual_dirty_log == 0
        cdef uint32_t id = u32(slot, "slot")
        cdef uint32_t number = u32(as_id, "as_id")
        if self.writer.mirror is not None:
            self.fetch_log(id, number)
        return get_log(self.m, id, number, take)

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """Clear part of a slot's dirty log: the ioctl KVM_CLEAR_DIRTY_LOG.

        Parameters
        ----------
        slot, as_id : int
            The slot's id and address space.
        first_page : int
            The page of the slot that bit 0 of `bitmap` stands for; a multiple of 64.
        num_pages : int
            How many pages; a multiple of 64 unless they reach the slot's end.
        bitmap : bytes-like
            At least ceil(num_pages / 64) little-endian 64-bit words; pages whose bit is set are
            cleared.

        Raises
        ------
        InvalidRegionError
            An id or address space that cannot be, pages that are not in the slot or not whole
            words, or a `bitmap` that is too short (EINVAL).
        NoSuchSlotError
            There is no such slot, or it does not log (ENOENT).

        Notes
        -----
        O(num_pages / 64). A page marked meanwhile stays marked or is cleared, as if before.
        """
        cdef uint32_t id = u32(slot, "slot")
        cdef uint64_t first = u64(first_page, "first_page")
        cdef uint32_t pages = u32(num_pages, "num_pages")
        cdef uint32_t space_id = u32(as_id, "as_id")
        cdef Py_buffer view
        PyObject_GetBuffer(bitmap, &view, PyBUF_SIMPLE)
        try:
            if self.writer.mirror is not None:
                # What is wrong is said here, before anything is cleared there.
                clear_log(self.m, id, space_id, first, pages, &view, False)
                self.writer.mirror.clear_dirty_log(id, first, pages, bitmap, space_id)
            clear_log(self.m, id, space_id, first, pages, &view, True)
        finally:
            PyBuffer_Release(&view)

    def take_dirty_runs(self):
        """The dirty logs of all slots in all address spaces, as runs of pages; takes their marks.

        Returns
        -------
        list of DirtyRun
            (as_id, start_gfn, end_gfn), in order; a run may go on from one slot into the next.

        Raises
        ------
        MemoryError, or what the backend raised
            Then the marks are there again.

        Notes
        -----
        O(n + p / 64) for p pages that are logged. A page marked meanwhile is in this answer or in
        the next: read it after this call, and nothing written to it is missed. Waits for a change
        that another thread is making.
        """
        cdef list logs = []
        try:
            return self.writer.take_dirty_runs(self, logs)
        except BaseException:
            late("memslots.dirty.runs", "return_logs")(self, logs)
            raise

    def free_id(self, as_id=0):
        """The lowest id that no slot has.

        Parameters
        ----------
        as_id : int

        Returns
        -------
        int

        Raises
        ------
        NoRoomError
            All ids below max_slots are in use.
        InvalidRegionError
            There is no such address space.
        BusyError
            Called from inside a listener or beside an open transaction, which has its own.

        Notes
        -----
        O(log n) over many calls, whatever is created and deleted in between; the first takes O(n).
        Waits for a change that another thread is making. Two threads that ask and then create may
        be given the same id: ask in a transaction.
        """
        cdef uint32_t id
        cdef space *sp = self.space_of(as_id)
        self.writer.enter("a free id")
        try:
            id = self.writer.free_ids_of(sp.as_id).lowest(space_active(sp))
        finally:
            self.writer.leave()
        return room_for(id, sp.as_id, self.m.lim.max_slots)

    def map(self, as_id=0):
        """What an address space holds now, as a value (MemoryMap).

        Parameters
        ----------
        as_id : int

        Returns
        -------
        MemoryMap
            It stays as it is, whatever changes here.

        Raises
        ------
        InvalidRegionError
            There is no such address space.
        MemoryError

        Notes
        -----
        O(1) where look-ups have made an index; else it makes one, O(n). No change waits for it, but
        where Python has no GIL and changes come so fast that three tries were spoiled: then one
        change may wait while the slots are read.
        """
        return late("memslots.read.memorymap", "map_of")(self, self.space_of(as_id).as_id)

    def address_space(self, as_id):
        """The reader of an address space (AddressSpace).

        InvalidRegionError where there is none of that number.
        """
        return AddressSpace(self, as_id)

    def vcpu(self, as_id=0):
        """A reader of an address space with a last-used slot of its own (Vcpu).

        InvalidRegionError as address_space.
        """
        return Vcpu(self, as_id)

    def subscribe(self, listener):
        """Have a listener hear of every change from now on.

        Parameters
        ----------
        listener : object
            With any of these methods:

            - ``prepare(change, old, new)`` is asked before a change is made, and refuses by
              raising; `old` and `new` are Slots, None where there is none.
            - ``invalidate(slot)`` is told before a slot goes or moves that look-ups find it INVALID
              from now on, so that cached translations can be dropped. It comes before that change's
              ``prepare``. Raising refuses as well.
            - ``commit(change, old, new)`` is told when a change is done. What it raises is reported
              as unraisable.

            Listeners are called in order of subscription, in the thread that makes the change. They
            may look up; a change is a BusyError.

        Returns
        -------
        Subscription
            Its ``close()`` ends the calls; also a context manager.

        Raises
        ------
        TypeError
            The listener has none of the methods.
        """
        return self.writer.subscriptions.add(listener)

    def check(self):
        """Walk everything, in every address space.

        Raises
        ------
        InvariantError
            With the number of the first property that does not hold in ``.property``.
        BusyError
            Called from inside a listener: the properties hold between changes.

        Notes
        -----
        O(n). Waits for a change that another thread is making.
        """
        cdef report found
        cdef uint32_t as_id
        self.writer.enter("a check")
        try:
            for as_id in range(self.m.lim.nspaces):
                invariants_check_space(self.m.spaces[as_id], &found)
                if found.broken != HOLDS:
                    where = f"in set {found.k} of address space {as_id}"
                    if found.in_hva_tree:
                        where += ", hva tree"
                    if found.id != ~<uint64_t>0:
                        where += f", at slot {found.id}"
                    raise InvariantError(PROPERTY_NAMES[<int>found.broken], where)
        finally:
            self.writer.leave()

    @property
    def max_slots(self):
        """Slot ids are below it."""
        return self.m.lim.max_slots

    @property
    def address_spaces(self):
        """How many there are."""
        return self.m.lim.nspaces

    @property
    def max_gfn(self):
        """The highest guest page a slot may hold."""
        return self.m.lim.max_gfn

    @property
    def max_hva(self):
        """The end of user space: a slot's last byte is below it."""
        return self.m.lim.max_hva

    @property
    def manual_dirty_log(self):
        """0, 1 or 3, as given."""
        return self.m.lim.manual_dirty_log

    @property
    def backend(self):
        """What every change is made in as well, or None."""
        return None if self.writer.mirror is None else self.writer.mirror.backend

    def __repr__(self):
        return (
            f"<Memslots: {len(self)} slots, {self.nr_pages} pages, generation {self.generation}>"
            if self.m.lim.nspaces == 1
            else f"<Memslots: {[len(self.address_space(k)) for k in range(self.address_spaces)]}"
            " slots by address space>"
        )

    def __reduce__(self):
        # The lock: a copy is of one moment, and what making it may run (a finalizer, say) cannot
        # change anything.
        self.writer.enter("a copy")
        try:
            limits_, spaces = late("memslots.write.filling", "state_of")(self)
        finally:
            self.writer.leave()
        # The last: what a subclass has of its own, by Python's own protocol.
        return _restore, (type(self), limits_, spaces), object.__getstate__(self)

    cdef int fetch_log(self, uint32_t id, uint32_t as_id) except -1:
        """Takes over the marks that the backend has for a slot."""
        cdef object log
        # The slot must not become another between the two.
        cdef bint entered = self.writer.enter_again("a dirty log")
        try:
            check_log_of(self.m, id, as_id)
            try:
                log = self.writer.mirror.get_dirty_log(id, as_id)
                if log is not None:
                    merge_log(self.m, id, as_id, log)
            except MemslotError:
                raise  # refused
            except BaseException:
                # A signal, no memory, or no log of this slot. Whether the backend gave up its marks
                # is not known.
                if self.m.lim.manual_dirty_log == 0:
                    mark_all(self.m, id, as_id)
                raise
        finally:
            if entered:
                self.writer.leave()
        return 0

    cdef space *space_of(self, object as_id) except NULL:
        cdef uint32_t number = u32(as_id, "as_id")
        check_as_id(&self.m.lim, number)
        return self.m.spaces[number]


def _restore(cls, limits_, spaces):
    """Makes the Memslots of a pickle. No code of a subclass runs."""
    cdef Memslots vm = Memslots.__new__(cls, **limits_)
    late("memslots.write.filling", "restore")(vm.writer, spaces)
    return vm


cdef Reader any_reader(object reader):
    if not isinstance(reader, Reader):
        raise TypeError(f"not a Memslots, AddressSpace or Vcpu: {type(reader).__name__!r}")
    return <Reader>reader


cdef space *memslots_space(object reader) except NULL:
    return any_reader(reader).sp


cdef srcu_reader *memslots_reader(object reader) except NULL:
    return reader_of(any_reader(reader).m, any_reader(reader).own)


cdef object memslots_writer(object vm):
    return (<Memslots?>vm).writer


cdef machine *memslots_machine(object reader) except NULL:
    return any_reader(reader).m
