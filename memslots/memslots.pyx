"""Memslots: the slots of one virtual machine, and every change to them."""

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
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu_reader
from memslots.core.units cimport LAST_GFN, gfn_t
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

import errno

from memslots.errors import InvalidRegionError, InvariantError, MemslotError
from memslots.read.reader import AddressSpace, Vcpu

cdef enum:
    LAST_ID = 0x7FFFFFFF  # an id fits an int32, the output of lookup_many

# Indexed by property_id.
cdef tuple PROPERTY_NAMES = (
    "", "R1", "R2", "R3", "R4", "R5", "H1", "S1", "S2", "S3", "S4", "P1", "P2", "D1", "I1"
)


# The functions that `late` has imported, by name.
cdef dict LATE = {}


cdef object late(str module, str name):
    """Returns a function of a module that is imported on first use: many programs never use it."""
    found = LATE.get(name)
    if found is None:
        found = LATE[name] = getattr(__import__(module, None, None, [name]), name)
    return found


# no_gc_clear: the collector must not take the writer away while this object points into the
# writer's machine. A cycle through a listener is broken elsewhere: each Subscription lets its
# listener go.
@cython.no_gc_clear
cdef class Memslots(Reader):
    """Memslots(max_slots=32764, *, address_spaces=1, max_gfn=1099511627775, \
max_hva=140737488351232, manual_dirty_log=0, backend=None, map=None)\n--\n
    The memory slots of one virtual machine, kept as KVM keeps them since Linux 5.17.

    All look-ups read address space 0. `address_space` and `vcpu` return readers of the others.

    Parameters
    ----------
    max_slots : int, default 32764
        Slot ids are below it; 1 to 2**31 - 1. ``Memslots(m)`` for a MemoryMap is
        ``Memslots(map=m)``.
    address_spaces : int, default 1
        The number of address spaces, 1 to 16. x86 with system management mode has 2.
    max_gfn : int, default 2**40 - 1
        The highest guest page that a slot may hold.
    max_hva : int, default 2**47 - 4096
        The end of user space: a slot's last byte is below it.
    manual_dirty_log : {0, 1, 3}, default 0
        The argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. With bit 0 `get_dirty_log` leaves the log
        as it is. With bit 1 a new log starts with every page marked.
    backend : memslots.mirror.backend.Backend, optional
        Every change is made in the backend too, or in neither. A memslots.kvm.KvmVM is one. Its
        limits are the defaults of the limits above, and none of those may be greater. Its dirty
        logs are read and cleared together with those of the Memslots. Nothing else may change its
        slots.
    map : MemoryMap, optional
        The slots to begin with. O(n), in one pass.

    Raises
    ------
    InvalidRegionError
        A slot of the map breaks rule 1, 2 or 7.
    ValueError
        A limit is out of range or above the backend's, or the backend already has slots.
    TypeError
        The backend has no set_region.

    Notes
    -----
    Safe to use from any thread. Look-ups wait for nothing; changes wait for one another. Pickling
    and copying take the limits, slots, dirty logs and generations. They leave out listeners, Vcpus
    and the backend.

    Examples
    --------
    >>> vm = Memslots()
    >>> ram = vm.create(0, base_gfn=0x100, npages=64, userspace_addr=0x7F00_0000_0000)
    >>> vm.lookup(0x13F) is ram
    True
    >>> hex(vm.gpa_to_hva(0x100_123))
    '0x7f0000000123'
    """

    cdef Writer writer  # owns the machine, and makes every change
    # The PageRuns of private pages, or None. Any thread may read it while the writer replaces it:
    # use it only in a critical section
    cdef object private_pages
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
            # This test does not import MemoryMap, which most programs do without.
            if type(max_slots_or_map).__name__ == "MemoryMap":
                if map is not None:
                    raise TypeError("the map was given twice: by position and as `map`")
                map = max_slots_or_map
            elif max_slots is not ...:
                raise TypeError("max_slots was given twice: by position and by name")
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
            # Imported here because most programs need no backend: the import would be a third of
            # the time to import memslots.
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
        """Creates, deletes, moves or changes a slot, as the ioctl KVM_SET_USER_MEMORY_REGION does.

        The names, order and meaning of the arguments are those of struct
        kvm_userspace_memory_region.

        Parameters
        ----------
        slot : int
            The id in bits 0-15, the address space in bits 16-31. For greater ids use create, move,
            set_flags and delete.
        flags : int or Flags
            LOG_DIRTY_PAGES, READONLY.
        guest_phys_addr, memory_size, userspace_addr : int
            In bytes, multiples of 4096. Size 0 deletes.

        Returns
        -------
        Change
            The kind of change; NONE if the slot already was as asked.

        Raises
        ------
        InvalidRegionError, OverlapError, NoSuchSlotError
            A rule of docs/rules.md refused the call; ``.rule`` has its number.
        BusyError
            Called from inside a listener.
        MemoryError
        Exception
            What a listener's ``prepare`` or ``invalidate``, or the backend, raised to refuse. What
            a ``commit`` raises refuses nothing: an Exception is reported as unraisable.
            KeyboardInterrupt and the like are raised here once the change is done.

        Notes
        -----
        After an error nothing has changed, with one exception. If a listener, the backend or rule 7
        refused a delete or a move, the generation has advanced. O(log n).
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
        """Does what set_region does, for guest_memfd slots too (ioctl KVM_SET_USER_MEMORY_REGION2).

        Parameters
        ----------
        slot, flags, guest_phys_addr, memory_size, userspace_addr : int
            As in set_region. If `flags` has GUEST_MEMFD (4), userspace_addr may be 0.
        guest_memfd : GuestMemfd or int
            The file that the slot is bound to; an integer is an open descriptor of a guest_memfd.
            Ignored without GUEST_MEMFD, and if memory_size is 0.
        guest_memfd_offset : int
            The offset of the slot's first page in the file, in bytes, page aligned.

        Returns
        -------
        Change
            CREATE or DELETE for a slot with GUEST_MEMFD, which allows no other change; else as
            set_region.

        Raises
        ------
        InvalidRegionError
            By rules G1, G2, G5 and G7. Rule G7 refuses a descriptor that is not open (EBADF). It
            refuses (EINVAL) a file that is no guest_memfd or is another Memslots', and a range that
            is outside the file or meets another slot's.
        OverlapError, NoSuchSlotError, TypeError, OverflowError, MemoryError
            As set_region.

        Notes
        -----
        docs/rules.md has the rules of guest_memfd, G1 to G12. O(log n + k) for k slots that are
        bound to the file.
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
        """Creates the slot that a Slot describes. For mirror/plan.py."""
        return operation_create_slot(self.writer, slot)

    def create(self, slot, base_gfn, npages, userspace_addr, flags=0, as_id=0):
        """Creates a slot.

        Parameters
        ----------
        slot : int
            The id, below max_slots and not in use.
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
            As set_region. An id that is in use, or npages 0, is an InvalidRegionError too.

        Notes
        -----
        O(log n).
        """
        return operation_create(
            self.writer, slot, base_gfn, npages, userspace_addr, flags, as_id
        )

    def create_many(self, slots, *, as_id=None):
        """Creates many slots: all of them, or none.

        Parameters
        ----------
        slots : MemoryMap, or an iterable that makes one
            Slots without an id of their own get the lowest free ids.
        as_id : int, optional
            The address space, if `slots` does not name it.

        Returns
        -------
        list of Slot
            In gfn order.

        Raises
        ------
        InvalidRegionError, OverlapError, NoRoomError, BusyError, MemoryError, Exception
            As create, and as the end of a transaction.

        Notes
        -----
        Readers see all of the slots at once, as with a transaction. O(m log n) for m slots. If the
        address space is empty and there is neither a listener nor a backend, one pass makes them in
        a fifth of the time.
        """
        wanted = late("memslots.write.filling", "map_from")(slots, as_id)
        made = late("memslots.write.filling", "create_at_once")(self.writer, wanted, as_id)
        if made is None:
            with self.transaction() as tx:
                made = tx.create_many(wanted, as_id)
        return made

    def move(self, slot, base_gfn, as_id=0):
        """Moves a slot, with its dirty log, to another place in guest memory.

        Parameters
        ----------
        slot : int
            The slot's id.
        base_gfn : int
            The slot's new first page. The old place does not count as an overlap.
        as_id : int
            The slot's address space.

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
        """Changes a slot's flags.

        Turning LOG_DIRTY_PAGES off frees the dirty log. READONLY cannot be changed.

        Parameters
        ----------
        slot : int
            The slot's id.
        flags : int or Flags
            The new value of all flags.
        as_id : int
            The slot's address space.

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
        O(1), or O(npages / 64) if a dirty log starts with every page marked.
        """
        return operation_set_flags(self.writer, slot, flags, as_id)

    def delete(self, slot, as_id=0):
        """Deletes a slot.

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
        """Takes pages away from the slots that hold them. Cuts a slot if only part of it goes.

        Parameters
        ----------
        start, end : int
            The guest pages [start, end). Pages that no slot holds are skipped.
        as_id : int

        Raises
        ------
        NoRoomError
            There is no free id for the second part of a slot that is cut.
        ValueError
            start is above end.
        InvalidRegionError, BusyError, MemoryError, Exception
            As set_region.

        Notes
        -----
        Readers see the whole change at once. After an error nothing has changed. If a slot is cut
        in two, the first part keeps the id, and the second gets the lowest free id. Pages that stay
        keep their marks. O((k + 1) log n) for k slots.
        """
        # Before the transaction, here and below: __index__ is the caller's code, and other threads
        # wait until a transaction ends.
        start, end, as_id = u64(start, "start"), u64(end, "end"), u32(as_id, "as_id")
        with self.transaction() as tx:
            tx.unmap(start, end, as_id)

    def protect(self, start, end, flags, as_id=0):
        """Changes the flags of pages. Cuts a slot if only part of it changes.

        READONLY can change too: if rule 5 forbids a change, the slot is made anew.

        Parameters
        ----------
        start, end : int
            The guest pages [start, end).
        flags : int or Flags
            The new value of all flags.
        as_id : int

        Raises
        ------
        NotMappedError
            No slot holds one of the pages; nothing is done.
        NoRoomError, ValueError, InvalidRegionError, BusyError, MemoryError, Exception
            As unmap.

        Notes
        -----
        As unmap.
        """
        start, end = u64(start, "start"), u64(end, "end")
        flags, as_id = u32(flags, "flags"), u32(as_id, "as_id")
        with self.transaction() as tx:
            tx.protect(start, end, flags, as_id)

    def split(self, slot, gfn, id=None, as_id=0):
        """Splits a slot in two.

        Parameters
        ----------
        slot : int
            The slot's id.
        gfn : int
            The first page of the second slot; not the first page of the slot.
        id : int, optional
            The id of the second slot; by default the lowest free id. The first keeps the slot's id.
        as_id : int
            The slot's address space.

        Returns
        -------
        Slot, Slot

        Raises
        ------
        NoSuchSlotError
        InvalidRegionError
            `gfn` is not in the slot or is its first page, or `id` is in use or out of range.
        NoRoomError, BusyError, MemoryError, Exception
            As unmap.

        Notes
        -----
        Pages keep their marks. O(log n).
        """
        slot, gfn, as_id = u32(slot, "slot"), u64(gfn, "gfn"), u32(as_id, "as_id")
        id = None if id is None else u32(id, "id")
        with self.transaction() as tx:
            return tx.split(slot, gfn, id, as_id)

    def merge(self, first, second, as_id=0):
        """Merges two slots that are side by side in guest and in host memory.

        Parameters
        ----------
        first, second, as_id : int
            The slots' ids, in any order, and their address space.

        Returns
        -------
        Slot
            The merged slot, with the id of `first`.

        Raises
        ------
        NoSuchSlotError
        InvalidRegionError
            They are not side by side, have different flags, or have too many pages together (rule
            4).
        BusyError, MemoryError, Exception
            As unmap.

        Notes
        -----
        Pages keep their marks. O(log n).
        """
        first, second, as_id = u32(first, "first"), u32(second, "second"), u32(as_id, "as_id")
        with self.transaction() as tx:
            return tx.merge(first, second, as_id)

    def transaction(self):
        """Returns a Transaction: readers see all of its changes at once, or none.

        Use it in a with statement: ``with vm.transaction() as tx:``, and make the changes on `tx`.

        Raises
        ------
        BusyError
            The transaction is begun from inside a listener or another transaction's body.

        Notes
        -----
        O(k log n) for k changes. Changes by other threads wait from the beginning of the
        transaction to its end. Readers wait for nothing.
        """
        return late("memslots.write.transaction", "transaction_of")(self, self.writer)

    def apply(self, plan):
        """Applies a plan (memslots.plan), as one transaction.

        Parameters
        ----------
        plan : Plan
            A plan for the slots of this Memslots. The slots that it touches must not have changed
            since it was made.

        Raises
        ------
        InvalidRegionError
            A slot is not as the plan expects it at the beginning (ESTALE).
        OverlapError, BusyError, MemoryError, Exception
            As the end of a transaction.

        Notes
        -----
        After an error nothing has changed. Readers see the whole change at once; a backend gets the
        calls of the plan. Marks are kept as in any transaction. O(k log n).
        """
        late("memslots.mirror.plan", "apply")(self, plan)

    def become(self, wanted, *, as_id=None, keep=()):
        """Changes what differs from a map, and nothing else: `plan` and `apply` in one step.

        Parameters
        ----------
        wanted : MemoryMap, or an iterable that makes one
            The slots that the address space is to hold.
        as_id : int, optional
            The address space, if `wanted` does not name it.
        keep : iterable of (int, int), optional
            As for `plan`: pages that stay present in the backend all the time. Readers of the
            Memslots never miss a page that is in both maps.

        Returns
        -------
        Plan
            The plan that was applied.

        Raises
        ------
        NoRoomError, NoWindowError, InvalidRegionError, OverlapError
            As `plan`.
        BusyError, MemoryError, Exception
            As the end of a transaction.

        Notes
        -----
        After an error nothing has changed. O(n + m + k log n) for k slots that change.
        """
        return late("memslots.mirror.plan", "become")(self, wanted, as_id, keep, Memslots)

    def mark_dirty(self, gfn, as_id=0):
        """Marks a guest page as written, in its slot's dirty log.

        Does nothing if no slot holds the page, or the slot does not log. The pages of a READONLY
        slot cannot have been written, so they are not marked either.

        Parameters
        ----------
        gfn, as_id : int

        Notes
        -----
        O(log n), or O(1) if the last-used slot holds the page. Any thread may call it; no mark is
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
        """Marks many guest pages as written, each as mark_dirty does.

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
        """Marks the guest pages [start, end) as written, each as mark_dirty does.

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
        """Returns the dirty log of a slot (ioctl KVM_GET_DIRTY_LOG).

        Clears the log unless manual_dirty_log is on. If it is on, use clear_dirty_log.

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
            The id or address space is out of range (EINVAL).
        NoSuchSlotError
            There is no such slot, or it does not log (ENOENT).

        Notes
        -----
        O(npages / 64). A page marked during the call is in this result or in the next.
        """
        cdef bint take = self.m.lim.manual_dirty_log == 0
        cdef uint32_t id = u32(slot, "slot")
        cdef uint32_t number = u32(as_id, "as_id")
        if self.writer.mirror is not None:
            self.fetch_log(id, number)
        return get_log(self.m, id, number, take)

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """Clears part of a slot's dirty log (ioctl KVM_CLEAR_DIRTY_LOG).

        Parameters
        ----------
        slot : int
            The slot's id.
        first_page : int
            The page of the slot that bit 0 of `bitmap` stands for; a multiple of 64.
        num_pages : int
            The number of pages; a multiple of 64 unless they reach the slot's end.
        bitmap : bytes-like
            At least ceil(num_pages / 64) little-endian 64-bit words; pages whose bit is set are
            cleared.
        as_id : int
            The slot's address space.

        Raises
        ------
        InvalidRegionError
            The id or address space is out of range, the pages are not in the slot or not whole
            words, or `bitmap` is too short (EINVAL).
        NoSuchSlotError
            There is no such slot, or it does not log (ENOENT).

        Notes
        -----
        O(num_pages / 64). A page marked during the call either stays marked, or is cleared as if
        marked before it.
        """
        cdef uint32_t id = u32(slot, "slot")
        cdef uint64_t first = u64(first_page, "first_page")
        cdef uint32_t pages = u32(num_pages, "num_pages")
        cdef uint32_t space_id = u32(as_id, "as_id")
        cdef Py_buffer view
        PyObject_GetBuffer(bitmap, &view, PyBUF_SIMPLE)
        try:
            if self.writer.mirror is not None:
                # This call only checks the arguments, and raises before the backend clears
                # anything.
                clear_log(self.m, id, space_id, first, pages, &view, False)
                self.writer.mirror.clear_dirty_log(id, first, pages, bitmap, space_id)
            clear_log(self.m, id, space_id, first, pages, &view, True)
        finally:
            PyBuffer_Release(&view)

    def take_dirty_runs(self):
        """Returns the dirty logs of all address spaces as runs of pages, and takes their marks.

        Returns
        -------
        list of DirtyRun
            (as_id, start_gfn, end_gfn), in order; a run may continue from one slot into the next.

        Raises
        ------
        MemoryError, or an error of the backend
            The marks are put back.

        Notes
        -----
        O(n + p / 64) for p pages that are logged. A page marked during the call is in this result
        or in the next. To miss nothing that is written to a page, read the page after this call.
        Waits for a change that another thread is making.
        """
        cdef list logs = []
        try:
            return self.writer.take_dirty_runs(self, logs)
        except BaseException:
            late("memslots.dirty.runs", "return_logs")(self, logs)
            raise

    def set_private(self, start, end, private=True):
        """Makes guest pages private to the guest, or shared with the host: memory attributes.

        The attribute belongs to the guest page and is the same in all address spaces. A slot need
        not be there, and changes of slots leave the attribute as it is. Look-ups do not depend on
        it: the host address of a private page is that of its shared memory.

        Parameters
        ----------
        start, end : int
            The guest pages [start, end).
        private : bool, default True
            False makes the pages shared, as all are at first.

        Raises
        ------
        ValueError
            start is above end.
        InvalidRegionError
            (EINVAL) There is no such page: its address has more than 64 bits.
        BusyError, MemoryError, Exception
            As set_region. KvmUnavailableError: the backend's kernel has no memory attributes.

        Notes
        -----
        As KVM_SET_MEMORY_ATTRIBUTES with KVM_MEMORY_ATTRIBUTE_PRIVATE. After an error nothing has
        changed. O(n) for n runs of private pages.
        """
        cdef extent e
        cdef bint inside = private
        if not set_extent(&e, False, start, end):
            return
        if e.last > LAST_GFN:
            raise InvalidRegionError(
                errno.EINVAL, f"gfn {e.last:#x} is above {LAST_GFN:#x}, the last guest page"
            )
        cdef object known = late("memslots.values.pageruns", "PageRuns")
        self.writer.enter("a change of memory attributes")
        try:
            before = self.private_now() or known()
            changed = before.changed(e.first, e.last + 1, inside)
            if self.writer.mirror is not None:
                self.writer.mirror.set_private(
                    e.first, e.last + 1, inside, before.runs(e.first, e.last + 1)
                )
            with cython.critical_section(self):
                self.private_pages = changed
        finally:
            self.writer.leave()

    def is_private(self, gfn):
        """Returns whether a guest page is private to the guest (`set_private`). O(log n)."""
        cdef gfn_t page = u64(gfn, "gfn")
        runs = self.private_now()
        return runs is not None and page in runs

    def private_runs(self, start=0, end=4503599627370496):
        """Returns the runs [start, end) of gfns that are private, in order.

        Parameters
        ----------
        start, end : int
            The guest pages to look at. By default all: there are 2**52.

        Returns
        -------
        list of (int, int)

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k runs there.
        """
        cdef extent e
        runs = self.private_now()
        if not set_extent(&e, False, start, end) or runs is None:
            return []
        return runs.runs(e.first, int(e.last) + 1)

    def free_id(self, as_id=0):
        """Returns the lowest id that no slot has.

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
            Called from inside a listener, or by a thread with an open transaction: use the
            transaction's free_id.

        Notes
        -----
        O(log n) over many calls, with any creates and deletes in between; the first call is O(n).
        Waits for a change that another thread is making. Two threads that each ask for an id and
        then create a slot may get the same id. To avoid that, ask in a transaction.
        """
        cdef uint32_t id
        cdef space *sp = self.space_of(as_id)
        self.writer.enter("a free id")
        try:
            id = self.writer.lowest_id(sp.as_id)
        finally:
            self.writer.leave()
        return room_for(id, sp.as_id, self.m.lim.max_slots)

    def map(self, as_id=0):
        """Returns what an address space holds now, as a value (MemoryMap).

        Parameters
        ----------
        as_id : int

        Returns
        -------
        MemoryMap
            Later changes do not affect it.

        Raises
        ------
        InvalidRegionError
            There is no such address space.
        MemoryError

        Notes
        -----
        O(1) if look-ups have made an index; else it makes one, O(n). Changes do not wait for it,
        with one exception. If Python has no GIL and changes spoil three tries, one change may wait
        while the slots are read.
        """
        return late("memslots.read.memorymap", "map_of")(self, self.space_of(as_id).as_id)

    def address_space(self, as_id):
        """Returns the reader of an address space (AddressSpace).

        InvalidRegionError if there is no such address space.
        """
        return AddressSpace(self, as_id)

    def vcpu(self, as_id=0):
        """Returns a reader of an address space with a last-used slot of its own (Vcpu).

        InvalidRegionError if there is no such address space.
        """
        return Vcpu(self, as_id)

    def subscribe(self, listener):
        """Subscribes a listener to every change from now on.

        Parameters
        ----------
        listener : object
            It has any of these methods:

            - ``prepare(change, old, new)`` is called before a change is made, and refuses the
              change by raising. `old` and `new` are Slots, or None.
            - ``invalidate(slot)`` is called before a slot goes or moves, once look-ups find it
              INVALID, so that cached translations can be dropped. It comes before the ``prepare``
              of the same change. Raising refuses the change as well.
            - ``commit(change, old, new)`` is called when a change is done. What it raises is
              reported as unraisable.

            Listeners are called in order of subscription, in the thread that makes the change. They
            may look up. A change from inside a listener is a BusyError.

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
        """Checks every property in every address space.

        Raises
        ------
        InvariantError
            A property does not hold; ``.property`` has the number of the first.
        BusyError
            Called from inside a listener: the properties only hold between changes.

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
        """Slot ids are below this number."""
        return self.m.lim.max_slots

    @property
    def address_spaces(self):
        """The number of address spaces."""
        return self.m.lim.nspaces

    @property
    def max_gfn(self):
        """The highest guest page that a slot may hold."""
        return self.m.lim.max_gfn

    @property
    def max_hva(self):
        """The end of user space. A slot's last byte is below it."""
        return self.m.lim.max_hva

    @property
    def manual_dirty_log(self):
        """0, 1 or 3, as given to the constructor."""
        return self.m.lim.manual_dirty_log

    @property
    def backend(self):
        """The backend in which every change is also made, or None."""
        return None if self.writer.mirror is None else self.writer.mirror.backend

    def __repr__(self):
        return (
            f"<Memslots: {len(self)} slots, {self.nr_pages} pages, generation {self.generation}>"
            if self.m.lim.nspaces == 1
            else f"<Memslots: {[len(self.address_space(k)) for k in range(self.address_spaces)]}"
            " slots by address space>"
        )

    def __reduce__(self):
        # With the lock held the copy shows one moment. Code that the copying may run (a finalizer,
        # say) cannot change anything.
        self.writer.enter("a copy")
        try:
            limits_, spaces = late("memslots.write.filling", "state_of")(self)
            runs = self.private_now()
        finally:
            self.writer.leave()
        # The last item is the state of a subclass, by Python's own protocol.
        arguments = (type(self), limits_, spaces)
        if runs:
            arguments += (runs.bounds,)
        return _restore, arguments, object.__getstate__(self)

    cdef object private_now(self):
        """Returns the PageRuns of private pages, or None: no page was ever private."""
        with cython.critical_section(self):
            now = self.private_pages
        return now

    cdef int fetch_log(self, uint32_t id, uint32_t as_id) except -1:
        """Takes over the marks that the backend has for a slot."""
        cdef object log
        # The slot must not be replaced between reading the backend's log and merging it.
        cdef bint entered = self.writer.enter_again("a dirty log")
        try:
            check_log_of(self.m, id, as_id)
            try:
                log = self.writer.mirror.get_dirty_log(id, as_id)
                if log is not None:
                    merge_log(self.m, id, as_id, log)
            except MemslotError:
                raise  # the backend refused
            except BaseException:
                # A signal, no memory, or a log that is not this slot's. The backend may have given
                # up its marks.
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


def _restore(cls, limits_, spaces, private=()):
    """Returns the Memslots of a pickle. No code of a subclass runs."""
    cdef Memslots vm = Memslots.__new__(cls, **limits_)
    late("memslots.write.filling", "restore")(vm.writer, spaces)
    if private:
        vm.private_pages = late("memslots.values.pageruns", "PageRuns")(private)
    return vm


cdef Reader any_reader(object reader):
    if not isinstance(reader, Reader):
        raise TypeError(f"needs a Memslots, AddressSpace or Vcpu, not {type(reader).__name__!r}")
    return <Reader>reader


cdef space *memslots_space(object reader) except NULL:
    return any_reader(reader).sp


cdef srcu_reader *memslots_reader(object reader) except NULL:
    return reader_of(any_reader(reader).m, any_reader(reader).own)


cdef object memslots_writer(object vm):
    return (<Memslots?>vm).writer


cdef machine *memslots_machine(object reader) except NULL:
    return any_reader(reader).m
