"""Memslots: the slots of one virtual machine, and every change of them.

One writer at a time. The lock of a Memslots is the only lock: whoever takes it lets the GIL go
while waiting for it, and
while waiting for readers; so no reader ever waits for a writer. Listeners run while it is held.
"""

import errno

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    PyThread_type_lock,
)
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport uint32_t, uint64_t

from memslots.arguments cimport u32, u64
from memslots.batch cimport MARK_DIRTY, run_batch
from memslots.core.dirtylog cimport (
    dirty_clear,
    dirty_free,
    dirty_get,
    dirty_mark,
    dirty_put,
    dirty_words,
)
from memslots.core.invariants cimport HOLDS, check_space, report
from memslots.core.machine cimport MAX_SPACES, machine, machine_free, machine_new
from memslots.core.region cimport (
    ALLOWED,
    BEYOND_MAX_GFN,
    CHANGE_NONE,
    ID_IN_USE,
    NO_PAGES,
    NO_SUCH_SLOT,
    SIZE_NOT_ALIGNED,
    change_kind,
    limits,
    plan,
    refusal,
    region,
    region_beyond_max_gfn,
    region_check,
    region_from_bytes,
    region_plan,
)
from memslots.core.slot cimport slot as slot_t
from memslots.core.slot cimport slot_free
from memslots.core.slotset cimport (
    slotset_by_id,
    slotset_find,
    slotset_first,
    slotset_step,
)
from memslots.core.space cimport SWAPPING, space, space_active, space_generation
from memslots.core.srcu cimport srcu, srcu_idle, srcu_wait
from memslots.core.units cimport LAST_GFN, gfn_t, hva_t
from memslots.core.update cimport (
    change,
    update_apply_begin,
    update_apply_end,
    update_end,
    update_get,
    update_invalidate_begin,
    update_invalidate_end,
    update_leftover,
    update_must_invalidate,
    update_revert_begin,
    update_revert_end,
)
from memslots.faces cimport ReadFace
from memslots.listeners cimport ask_prepare, tell_commit, tell_invalidate
from memslots.records cimport slot_record
from memslots.refusals cimport refusal_error

from memslots.errors import InvalidRegionError, InvariantError, NoSuchSlotError, busy
from memslots.faces import AddressSpace, Vcpu
from memslots.listeners import Subscription
from memslots.records import Change

cdef enum:
    LAST_ID = 0x7FFFFFFF  # an id fits an int32, the output of lookup_many

# By change_kind.
cdef tuple CHANGES = (Change.NONE, Change.CREATE, Change.DELETE, Change.MOVE, Change.FLAGS_ONLY)
# By property_id.
cdef tuple PROPERTY_NAMES = (
    "", "R1", "R2", "R3", "R4", "R5", "H1", "S1", "S2", "S3", "S4", "P1", "P2", "D1"
)

# What a verb wants of the slot it names.
cdef enum demand:
    ANY
    NO_SLOT


cdef void release_record(slot_t *s) noexcept:
    """Lets go of the Slot kept with a slot."""
    if s is not NULL:
        Py_XDECREF(<PyObject *>s.record)
        s.record = NULL


cdef int keep_record(slot_t *s) except -1:
    """Makes the Slot kept with a slot, where there is a slot."""
    cdef object record
    if s is not NULL:
        record = slot_record(s)
        Py_INCREF(record)
        s.record = <void *>record
    return 0


cdef class Memslots(ReadFace):
    """The memory slots of one virtual machine, kept as KVM keeps them since Linux 5.17.

    All ways to look up (see ReadFace) read address space 0; `address_space` and `vcpu` give the
    same for another.

    Parameters
    ----------
    max_slots : int, default 32764
        Slot ids are below it; 1 to 2**31 - 1.
    address_spaces : int, default 1
        How many; 1 to 16. x86 with system management mode has 2.
    max_gfn : int, default 2**40 - 1
        The highest guest page a slot may hold.
    max_hva : int, default 2**47 - 4096
        The end of user space: a slot's last byte is below it.
    manual_dirty_log : {0, 1, 3}
        As KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 takes it: with bit 0 `get_dirty_log` leaves the log as
        it is, with bit 1 a new log starts with every page marked.

    Raises
    ------
    ValueError
        A limit that cannot be.

    Notes
    -----
    Safe to use from any thread: look-ups wait for nobody, changes wait for one another. Pickling
    and copying take the limits, slots, dirty logs and generations; listeners and Vcpus stay behind.
    """

    cdef PyThread_type_lock lock  # held by the thread that is changing something
    cdef unsigned long writer  # that thread's ident; 0: none. Written by whoever holds the lock
    # the listeners' Subscriptions; replaced as a whole, never changed in place
    cdef tuple subscriptions

    def __cinit__(
        self,
        max_slots=32764,
        *,
        address_spaces=1,
        max_gfn=(1 << 40) - 1,
        max_hva=(1 << 47) - 4096,
        manual_dirty_log=0,
    ):
        cdef limits lim
        cdef uint64_t ids = u64(max_slots, "max_slots")
        lim.nspaces = u32(address_spaces, "address_spaces")
        lim.max_gfn = u64(max_gfn, "max_gfn")
        lim.max_hva = u64(max_hva, "max_hva")
        lim.manual_dirty_log = u32(manual_dirty_log, "manual_dirty_log")
        if not 1 <= ids <= LAST_ID:
            raise ValueError(f"max_slots must be 1 to 2**31 - 1, not {ids}")
        if not 1 <= lim.nspaces <= MAX_SPACES:
            raise ValueError(f"address_spaces must be 1 to {MAX_SPACES}, not {lim.nspaces}")
        if lim.max_gfn > LAST_GFN:
            raise ValueError(f"max_gfn must be below 2**52, not {lim.max_gfn:#x}")
        if lim.manual_dirty_log not in (0, 1, 3):
            raise ValueError(f"manual_dirty_log must be 0, 1 or 3, not {lim.manual_dirty_log}")
        lim.max_slots = <uint32_t>ids
        self.subscriptions = ()
        self.lock = PyThread_allocate_lock()
        cdef machine *m = machine_new(&lim) if self.lock is not NULL else NULL
        if m is NULL:
            raise MemoryError("no memory for the address spaces")
        self.m = m
        self.sp = m.spaces[0]

    def __dealloc__(self):
        cdef uint32_t as_id
        cdef slot_t *s
        cdef slot_t *next
        cdef slot_t *chain = NULL
        # A walk steps on slots it has passed, so none is freed before its end: they are chained, by
        # the member that has just lost its use.
        for as_id in range(self.m.lim.nspaces):
            s = slotset_first(&self.m.spaces[as_id].sets[0])
            while s is not NULL:
                next = slotset_step(&self.m.spaces[as_id].sets[0], s, 1)
                release_record(s)
                s.record = chain
                chain = s
                s = next
        while chain is not NULL:
            s = chain
            chain = <slot_t *>s.record
            dirty_free(s.dirty)
            slot_free(s)
        if self.m.lim.nspaces != 0:  # else __cinit__ did not get as far as making one
            machine_free(self.m)
        if self.lock is not NULL:
            PyThread_free_lock(self.lock)

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
            Whatever a listener's ``prepare`` or ``invalidate`` raised to refuse.

        Notes
        -----
        After an error nothing has changed; where a delete or a move was refused by a listener or by
        rule 7, the generation has gone on. O(log n).
        """
        cdef region r
        cdef uint32_t slot_arg = u32(slot, "slot")
        cdef uint32_t bits = u32(flags, "flags")
        cdef uint64_t gpa = u64(guest_phys_addr, "guest_phys_addr")
        cdef uint64_t size = u64(memory_size, "memory_size")
        cdef hva_t hva = u64(userspace_addr, "userspace_addr")
        cdef refusal why
        self.enter("a change")
        try:
            why = region_from_bytes(&self.m.lim, slot_arg, bits, gpa, size, hva, &r)
            if why != ALLOWED:
                given = f"{size if why == SIZE_NOT_ALIGNED else gpa:#x}"
                raise refusal_error(why, &self.m.lim, &r, NULL, given)
            return CHANGES[self.make(&r, ANY)]
        finally:
            self.leave()

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
        cdef region r
        r.id = u32(slot, "slot")
        r.base_gfn = u64(base_gfn, "base_gfn")
        r.npages = u64(npages, "npages")
        r.userspace_addr = u64(userspace_addr, "userspace_addr")
        r.flags = u32(flags, "flags")
        r.as_id = u32(as_id, "as_id")
        self.enter("a change")
        try:
            self.check_region(&r)
            if r.npages == 0:
                raise refusal_error(NO_PAGES, &self.m.lim, &r, NULL, "")
            self.make(&r, NO_SLOT)
            return self.current(&r)
        finally:
            self.leave()

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
        cdef region r
        cdef uint32_t id = u32(slot, "slot")
        cdef gfn_t base = u64(base_gfn, "base_gfn")
        cdef uint32_t space_id = u32(as_id, "as_id")
        self.enter("a change")
        try:
            self.region_of(&r, id, space_id)
            r.base_gfn = base
            self.check_region(&r)
            self.make(&r, ANY)
            return self.current(&r)
        finally:
            self.leave()

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
        cdef region r
        cdef uint32_t id = u32(slot, "slot")
        cdef uint32_t bits = u32(flags, "flags")
        cdef uint32_t space_id = u32(as_id, "as_id")
        self.enter("a change")
        try:
            self.region_of(&r, id, space_id)
            r.flags = bits
            self.check_region(&r)
            self.make(&r, ANY)
            return self.current(&r)
        finally:
            self.leave()

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
        cdef region r
        cdef uint32_t id = u32(slot, "slot")
        cdef uint32_t space_id = u32(as_id, "as_id")
        self.enter("a change")
        try:
            self.region_of(&r, id, space_id)
            was = self.current(&r)
            r.npages = 0
            self.make(&r, ANY)
            return was
        finally:
            self.leave()

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
        cdef slot_t *s = slotset_find(space_active(self.space_of(as_id)), page)
        if s is not NULL:
            dirty_mark(s, page)

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
        return self.get_log(u32(slot, "slot"), u32(as_id, "as_id"))

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
            self.clear_log(id, space_id, first, pages, &view)
        finally:
            PyBuffer_Release(&view)

    def address_space(self, as_id):
        """The read face of an address space (AddressSpace).

        InvalidRegionError where there is none of that number.
        """
        return AddressSpace(self, as_id)

    def vcpu(self, as_id=0):
        """A read face of an address space with a last-used slot of its own (Vcpu).

        InvalidRegionError as address_space.
        """
        return Vcpu(self, as_id)

    def subscribe(self, listener):
        """Have a listener hear of every change from now on.

        Parameters
        ----------
        listener : object
            With any of these methods:

            - ``prepare(change, old, new)`` is asked before a change is made, and refuses by raising;
              `old` and `new` are Slots, None where there is none.
            - ``invalidate(slot)`` is told before a slot goes or moves that look-ups find it INVALID
              from now on, so
              that cached translations can be dropped. It comes before that change's ``prepare``.
              Raising refuses as well.
            - ``commit(change, old, new)`` is told when a change is done. What it raises is reported as
              unraisable.

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
        subscription = Subscription(self, listener)
        self.subscriptions += (subscription,)
        return subscription

    def _unsubscribe(self, subscription):
        """Ends a subscription, for Subscription.close."""
        self.subscriptions = tuple([one for one in self.subscriptions if one is not subscription])

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
        self.enter("a check")
        try:
            for as_id in range(self.m.lim.nspaces):
                check_space(self.m.spaces[as_id], &found)
                if found.broken != HOLDS:
                    where = f"in set {found.k} of address space {as_id}"
                    if found.in_hva_tree:
                        where += ", hva tree"
                    if found.id != ~<uint64_t>0:
                        where += f", at slot {found.id}"
                    raise InvariantError(PROPERTY_NAMES[<int>found.broken], where)
        finally:
            self.leave()

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

    def __repr__(self):
        return (
            f"<Memslots: {len(self)} slots, {self.nr_pages} pages, generation {self.generation}>"
            if self.m.lim.nspaces == 1
            else f"<Memslots: {[len(self.address_space(k)) for k in range(self.address_spaces)]}"
            " slots by address space>"
        )

    def __reduce__(self):
        limits_ = {
            "max_slots": self.max_slots,
            "address_spaces": self.address_spaces,
            "max_gfn": self.max_gfn,
            "max_hva": self.max_hva,
            "manual_dirty_log": self.manual_dirty_log,
        }
        # The lock: a copy is of one moment, and what making it may run (a finalizer, say) cannot
        # change anything.
        self.enter("a copy")
        try:
            spaces = [self.state_of(as_id) for as_id in range(self.address_spaces)]
        finally:
            self.leave()
        return _restore, (type(self), limits_, spaces), getattr(self, "__dict__", None) or None

    cdef object state_of(self, uint32_t as_id):
        """An address space for pickling: its generation, and the Slots with their dirty logs or
        None.
        """
        cdef space *sp = self.m.spaces[as_id]
        cdef slot_t *s
        slots = []
        for record in self.address_space(as_id):
            s = slotset_by_id(space_active(sp), record.id)
            log = None
            if s.dirty is not NULL:
                log = bytearray(8 * dirty_words(s.npages))
                dirty_get(s, <unsigned char *>PyByteArray_AS_STRING(log), False)
            slots.append((record, log))
        return space_generation(sp), slots

    cdef int restore_space(self, uint32_t as_id, object state) except -1:
        """Fills an empty address space with what state_of gave.

        A state that breaks a rule is refused by that rule.
        """
        cdef space *sp = self.m.spaces[as_id]
        generation, slots = state
        for record, log in slots:
            self.create(
                record.id,
                record.base_gfn,
                record.npages,
                record.userspace_addr,
                record.flags,
                as_id,
            )
            if log is not None:
                self.restore_log(sp, record.id, bytes(log))
        sp.active.generation = u64(generation, "generation")
        if generation % sp.nspaces != as_id or sp.active.generation & SWAPPING:
            raise ValueError(f"address space {as_id} cannot have generation {generation:#x}")
        return 0

    cdef bytearray get_log(self, uint32_t id, uint32_t as_id):
        cdef bytearray log
        cdef size_t size
        cdef slot_t *s
        while True:
            size = 8 * dirty_words(self.logging(id, as_id).npages)
            log = bytearray(size)
            # Making it may have run other Python code, and that may have changed the slot.
            s = self.logging(id, as_id)
            if 8 * dirty_words(s.npages) == size:
                dirty_get(
                    s, <unsigned char *>PyByteArray_AS_STRING(log), not self.m.lim.manual_dirty_log
                )
                return log

    cdef int clear_log(
        self, uint32_t id, uint32_t as_id, uint64_t first, uint64_t pages, const Py_buffer *view
    ) except -1:
        cdef slot_t *s = NULL
        cdef str wrong = None
        self.check_id(id, as_id)
        if first & 63:
            wrong = f"first_page {first} is not a multiple of 64"
        else:
            s = self.logging(id, as_id)
            if first > s.npages or pages > s.npages - first:
                wrong = f"pages [{first}, {first + pages}) are not all in {<object>s.record}"
            elif pages & 63 and first + pages != s.npages:
                wrong = (
                    f"num_pages {pages} is not a multiple of 64 and does not reach the end of"
                    f" {<object>s.record}"
                )
            elif <uint64_t>view.len < 8 * dirty_words(pages):
                wrong = (
                    f"the bitmap of {pages} pages takes {8 * dirty_words(pages)} bytes,"
                    f" not {view.len}"
                )
        if wrong is not None:
            raise InvalidRegionError(
                errno.EINVAL, f"clear_dirty_log, slot {id} of address space {as_id}: {wrong}"
            )
        dirty_clear(s, first, pages, <const unsigned char *>view.buf)
        return 0

    cdef int restore_log(self, const space *sp, uint32_t id, bytes log) except -1:
        """Makes a slot's dirty log what a copy says."""
        cdef slot_t *s = slotset_by_id(space_active(sp), id)
        cdef uint64_t npages = s.npages
        if s.dirty is NULL or <uint64_t>len(log) != 8 * dirty_words(npages):
            raise ValueError(f"slot {id} cannot have a dirty log of {len(log)} bytes")
        if int.from_bytes(log, "little") >> npages:
            raise ValueError(f"slot {id}: its dirty log marks pages that it does not have")
        dirty_put(s, log)
        return 0

    cdef int enter(self, str what) except -1:
        """Becomes the writer. BusyError for the thread that is it already: it is in a listener."""
        cdef unsigned long me = PyThread_get_thread_ident()
        # Another thread may be writing this; but nobody else writes this thread's ident.
        if self.writer == me:
            raise busy(what)
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.writer = me
        return 0

    cdef void leave(self) noexcept:
        self.writer = 0
        PyThread_release_lock(self.lock)

    cdef void wait_for_readers(self) noexcept:
        """Lets the batch calls that may be in the old set come out.

        Single look-ups are never there: this holds the GIL.
        """
        if not srcu_idle(&self.m.readers):
            with nogil:
                srcu_wait(&self.m.readers)

    cdef space *space_of(self, object as_id) except NULL:
        cdef uint32_t number = u32(as_id, "as_id")
        self.check_id(0, number)
        return self.m.spaces[number]

    cdef int check_id(self, uint32_t id, uint32_t as_id) except -1:
        """Refuses an id or an address space that cannot be."""
        cdef region r
        r.id = id
        r.as_id = as_id
        r.flags = 0
        r.base_gfn = 0
        r.npages = 0
        r.userspace_addr = 0
        return self.check_region(&r)

    cdef int check_region(self, const region *r) except -1:
        """Rules 1 and 2."""
        cdef refusal why = region_check(&self.m.lim, r)
        if why != ALLOWED:
            raise refusal_error(why, &self.m.lim, r, NULL, "")
        return 0

    cdef slot_t *logging(self, uint32_t id, uint32_t as_id) except NULL:
        """The slot of this id, which has a dirty log."""
        cdef slot_t *s
        self.check_id(id, as_id)
        s = slotset_by_id(space_active(self.m.spaces[as_id]), id)
        if s is NULL:
            raise NoSuchSlotError(errno.ENOENT, f"there is no slot {id} in address space {as_id}")
        if s.dirty is NULL:
            raise NoSuchSlotError(errno.ENOENT, f"{<object>s.record} has no dirty log")
        return s

    cdef int region_of(self, region *r, uint32_t id, uint32_t as_id) except -1:
        """The region that a slot is, for a change of it."""
        cdef slot_t *s
        self.check_id(id, as_id)
        s = slotset_by_id(space_active(self.m.spaces[as_id]), id)
        r.id = id
        r.as_id = as_id
        if s is NULL:
            raise refusal_error(NO_SUCH_SLOT, &self.m.lim, r, NULL, "")
        r.flags = s.flags
        r.base_gfn = s.base_gfn
        r.npages = s.npages
        r.userspace_addr = s.userspace_addr
        return 0

    cdef object current(self, const region *r):
        """The Slot of the region's id, which there is."""
        return <object>slotset_by_id(space_active(self.m.spaces[r.as_id]), r.id).record

    cdef change_kind make(self, const region *r, demand wants) except? CHANGE_NONE:
        """Rules 3 to 7, and the change that the region asks for. The caller is the writer."""
        cdef const limits *lim = &self.m.lim
        cdef space *sp = self.m.spaces[r.as_id]
        cdef tuple subscriptions = self.subscriptions
        cdef bint invalidated = False
        cdef plan p
        cdef change c
        cdef refusal why = region_plan(space_active(sp), r, &p)
        if wants == NO_SLOT and p.old is not NULL:
            why = ID_IN_USE
        if why == ALLOWED:
            if p.kind == CHANGE_NONE:
                return p.kind
            why = update_get(&c, sp, lim, r, &p)
        if why != ALLOWED:
            raise refusal_error(why, lim, r, &p, "")
        try:
            keep_record(c.new)
            keep_record(c.invalid)
            kind = CHANGES[<int>c.kind]
            old = None if c.old is NULL else <object>c.old.record
            new = None if c.new is NULL else <object>c.new.record
            if update_must_invalidate(&c):
                update_invalidate_begin(&c)
                invalidated = True
                self.wait_for_readers()
                update_invalidate_end(&c)
                tell_invalidate(subscriptions, old)
            if c.new is not NULL and region_beyond_max_gfn(lim, r):
                raise refusal_error(BEYOND_MAX_GFN, lim, r, &p, "")
            ask_prepare(subscriptions, kind, old, new)
        except BaseException:
            if invalidated:
                update_revert_begin(&c)
                self.wait_for_readers()
                update_revert_end(&c)
            self.finish(&c)
            raise
        update_apply_begin(&c)
        self.wait_for_readers()
        update_apply_end(&c)
        self.finish(&c)
        tell_commit(subscriptions, kind, old, new)
        return c.kind

    cdef void finish(self, change *c) noexcept:
        """Frees what the sets no longer hold."""
        release_record(update_leftover(c))
        release_record(c.invalid)
        update_end(c)


def _restore(cls, limits_, spaces):
    """Makes the Memslots of a pickle."""
    vm = cls(**limits_)
    if len(spaces) != vm.address_spaces:
        raise ValueError(f"{len(spaces)} address spaces where there are {vm.address_spaces}")
    for as_id, state in enumerate(spaces):
        (<Memslots?>vm).restore_space(as_id, state)
    return vm


cdef ReadFace face_of(object face):
    if not isinstance(face, ReadFace):
        raise TypeError(f"not a Memslots, AddressSpace or Vcpu: {type(face).__name__!r}")
    return <ReadFace>face


cdef space *memslots_space(object face) except NULL:
    return face_of(face).sp


cdef srcu *memslots_readers(object face) except NULL:
    return &face_of(face).m.readers


cdef machine *memslots_machine(object face) except NULL:
    return face_of(face).m
