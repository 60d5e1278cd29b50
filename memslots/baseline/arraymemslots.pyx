"""ArrayMemslots: Memslots as Linux would have had it until 5.16."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t

from memslots.arguments cimport u32, u64
from memslots.baseline.arrayfaces cimport ArrayReadFace, run_array_batch
from memslots.baseline.arraywriter cimport ArrayWriter
from memslots.baseline.slotarray cimport (
    array_slot,
    arrayspace,
    arrayspace_check,
    slot_from_array,
    slotarray_mark_dirty,
    slotarray_slots,
)
from memslots.copying cimport check_generation, check_spaces
from memslots.core.dirtylog cimport dirty_clear, dirty_get, dirty_put, dirty_words
from memslots.core.invariants cimport D1, HOLDS, S1, S2, S3, S4, property_id
from memslots.core.lookup cimport MARK_DIRTY
from memslots.core.region cimport limits
from memslots.core.slot cimport slot as slot_t
from memslots.core.units cimport gfn_t
from memslots.dirtylogs cimport cannot_clear, check_log, no_log, wrong_first, wrong_pages
from memslots.limits cimport limits_of, take_limits
from memslots.records cimport slot_record
from memslots.refusals cimport check_as_id, check_id
from memslots.verbs cimport (
    verb_create,
    verb_delete,
    verb_move,
    verb_set_flags,
    verb_set_region,
)

from memslots.baseline.arrayfaces import ArrayAddressSpace, ArrayVcpu
from memslots.errors import InvariantError
from memslots.listeners import Subscription
from memslots.records import Flags

cdef enum:
    MOST_IDS = 1 << 20  # bounds the id table; Linux had 2**15

cdef dict PROPERTY_NAMES = {
    <int>S1: "S1", <int>S2: "S2", <int>S3: "S3", <int>S4: "S4", <int>D1: "D1"
}


@cython.no_gc_clear
cdef class ArrayMemslots(ArrayReadFace):
    """The memory slots of one virtual machine, kept as KVM kept them until Linux 5.16.

    What Memslots is to be measured against: the slots of an address space are one sorted array,
    and every change copies all of it, a delete or a move with the slot marked INVALID first. The
    calls, their results and their errors are those of Memslots, but that there are no transactions.

    For one thread at a time. With the GIL that is so by itself, and a change while another thread's
    is under way (in a listener, say) is a BusyError; without it (free-threaded CPython), whoever
    uses it from several threads must lock.

    Parameters
    ----------
    max_slots, address_spaces, max_gfn, max_hva, manual_dirty_log : int
        As for Memslots, but that max_slots is 2**20 at most: the id table has four bytes for every
        id up to the greatest in use, and is copied with each change.

    Raises
    ------
    ValueError
        A limit that cannot be.

    Notes
    -----
    n in what follows is the number of slots. The complexity of whatever looks up is that of
    Memslots, but that in_hva_range is O(n).
    """

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
        take_limits(
            &lim, max_slots, address_spaces, max_gfn, max_hva, manual_dirty_log, MOST_IDS
        )
        self.writer = ArrayWriter.__new__(ArrayWriter)
        self.writer.own_spaces(&lim)
        self.sp = &self.writer.spaces[0]

    def set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr):
        """The ioctl KVM_SET_USER_MEMORY_REGION, as Memslots.set_region. O(n)."""
        return verb_set_region(
            self.writer, slot, flags, guest_phys_addr, memory_size, userspace_addr
        )

    def create(self, slot, base_gfn, npages, userspace_addr, flags=0, as_id=0):
        """Create a slot, as Memslots.create. O(n)."""
        return verb_create(
            self.writer, slot, base_gfn, npages, userspace_addr, flags, as_id
        )

    def move(self, slot, base_gfn, as_id=0):
        """Move a slot, as Memslots.move. O(n)."""
        return verb_move(self.writer, slot, base_gfn, as_id)

    def set_flags(self, slot, flags, as_id=0):
        """Change a slot's flags, as Memslots.set_flags. O(n)."""
        return verb_set_flags(self.writer, slot, flags, as_id)

    def delete(self, slot, as_id=0):
        """Delete a slot; gives it as it was, as Memslots.delete. O(n)."""
        return verb_delete(self.writer, slot, as_id)

    def transaction(self):
        """Not there: the array can take only one change at a time (NotImplementedError)."""
        raise NotImplementedError(
            "ArrayMemslots has no transactions: each change is a copy of the array of its own"
        )

    def mark_dirty(self, gfn, as_id=0):
        """Mark a guest page as written, as Memslots.mark_dirty. O(log n)."""
        cdef gfn_t page = u64(gfn, "gfn")
        cdef arrayspace *sp = self.space_of(as_id)
        slotarray_mark_dirty(sp.active, NULL, &page, 1)

    def mark_dirty_many(self, gfns, as_id=0):
        """Mark many guest pages as written, as Memslots.mark_dirty_many. O(m log n)."""
        run_array_batch(self.space_of(as_id), NULL, MARK_DIRTY, gfns, "gfns", None)

    def get_dirty_log(self, slot, as_id=0):
        """The dirty log of a slot, as Memslots.get_dirty_log. O(npages / 64)."""
        cdef bint take = self.writer.lim.manual_dirty_log == 0
        return get_log(self.writer, u32(slot, "slot"), u32(as_id, "as_id"), take)

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """Clear part of a slot's dirty log, as Memslots.clear_dirty_log. O(num_pages / 64)."""
        cdef uint32_t id = u32(slot, "slot")
        cdef uint64_t first = u64(first_page, "first_page")
        cdef uint32_t pages = u32(num_pages, "num_pages")
        cdef uint32_t space_id = u32(as_id, "as_id")
        cdef Py_buffer view
        PyObject_GetBuffer(bitmap, &view, PyBUF_SIMPLE)
        try:
            clear_log(self.writer, id, space_id, first, pages, &view)
        finally:
            PyBuffer_Release(&view)

    def address_space(self, as_id):
        """The read face of an address space (ArrayAddressSpace).

        InvalidRegionError where there is none of that number.
        """
        return ArrayAddressSpace(self, as_id)

    def vcpu(self, as_id=0):
        """A read face of an address space with a last-used slot of its own (ArrayVcpu).

        InvalidRegionError as address_space.
        """
        return ArrayVcpu(self, as_id)

    def subscribe(self, listener):
        """Have a listener hear of every change from now on, as Memslots.subscribe."""
        subscription = Subscription(self, listener)
        cdef tuple now = None
        cdef tuple then = None
        # Making the tuple may run a finalizer that closes another subscription: then once more.
        while now is not self.writer.subscriptions:
            now = self.writer.subscriptions
            then = (*now, subscription)
        self.writer.subscriptions = then
        return subscription

    def _unsubscribe(self, subscription):
        """Ends a subscription, for Subscription.close."""
        cdef tuple now = None
        cdef tuple then = None
        while now is not self.writer.subscriptions:
            now = self.writer.subscriptions
            then = tuple([one for one in now if one is not subscription])
        self.writer.subscriptions = then

    def check(self):
        """Walk everything, in every address space, as Memslots.check. O(n).

        InvariantError with the number of the first property of baseline/slotarray.pxd, or D1, that
        does not hold; BusyError from inside a listener.
        """
        cdef uint32_t as_id
        cdef uint64_t id
        cdef property_id broken
        self.writer.enter("a check")
        try:
            for as_id in range(self.writer.lim.nspaces):
                broken = arrayspace_check(&self.writer.spaces[as_id], &id)
                if broken == HOLDS:
                    broken = check_records(&self.writer.spaces[as_id], &id)
                if broken != HOLDS:
                    where = f"in address space {as_id}"
                    if id != ~<uint64_t>0:
                        where += f", at slot {id}"
                    raise InvariantError(PROPERTY_NAMES[<int>broken], where)
        finally:
            self.writer.leave()

    @property
    def max_slots(self):
        """Slot ids are below it."""
        return self.writer.lim.max_slots

    @property
    def address_spaces(self):
        """How many there are."""
        return self.writer.lim.nspaces

    @property
    def max_gfn(self):
        """The highest guest page a slot may hold."""
        return self.writer.lim.max_gfn

    @property
    def max_hva(self):
        """The end of user space: a slot's last byte is below it."""
        return self.writer.lim.max_hva

    @property
    def manual_dirty_log(self):
        """0, 1 or 3, as given."""
        return self.writer.lim.manual_dirty_log

    def __repr__(self):
        counts = [len(self.address_space(as_id)) for as_id in range(self.writer.lim.nspaces)]
        if len(counts) > 1:
            return f"<ArrayMemslots: {counts} slots by address space>"
        return (
            f"<ArrayMemslots: {len(self)} slots, {self.nr_pages} pages,"
            f" generation {self.generation}>"
        )

    def __reduce__(self):
        # Entered: what making a copy may run (a finalizer, say) cannot change anything.
        self.writer.enter("a copy")
        try:
            spaces = [space_state(self.writer, k) for k in range(self.writer.lim.nspaces)]
            limits_ = limits_of(self)
        finally:
            self.writer.leave()
        # The last: what a subclass has of its own, by Python's own protocol.
        return _restore, (type(self), limits_, spaces), object.__getstate__(self)

    cdef arrayspace *space_of(self, object as_id) except NULL:
        cdef uint32_t number = u32(as_id, "as_id")
        check_as_id(self.writer.lim, number)
        return &self.writer.spaces[number]


cdef property_id check_records(const arrayspace *sp, uint64_t *id):
    """S1, for the Slot that each slot has."""
    cdef uint32_t n
    cdef slot_t s
    for n in range(sp.active.count):
        slot_from_array(&slotarray_slots(sp.active)[n], sp.as_id, &s)
        id[0] = s.id
        if slot_record(&s) != <object>s.record:
            return S1
    return HOLDS


cdef int find_logging(ArrayWriter writer, uint32_t id, uint32_t as_id, slot_t *out) except -1:
    """A slot that has a dirty log."""
    cdef array_slot *found
    check_id(writer.lim, id, as_id)
    found = writer.slot_of(as_id, id)
    if found is NULL or found.dirty is NULL:
        record = None if found is NULL else <object>found.record
        raise no_log(id, as_id, record)
    slot_from_array(found, as_id, out)
    return 0


cdef bytearray get_log(ArrayWriter writer, uint32_t id, uint32_t as_id, bint take):
    cdef slot_t s
    cdef bytearray log
    find_logging(writer, id, as_id, &s)
    # Runs no Python code, so the slot stays what it is.
    log = PyByteArray_FromStringAndSize(NULL, 8 * dirty_words(s.npages))
    dirty_get(&s, <unsigned char *>PyByteArray_AS_STRING(log), take)
    return log


cdef int clear_log(
    ArrayWriter writer,
    uint32_t id,
    uint32_t as_id,
    uint64_t first,
    uint64_t pages,
    const Py_buffer *bitmap,
) except -1:
    cdef slot_t s
    cdef str wrong = wrong_first(first)
    check_id(writer.lim, id, as_id)
    if wrong is None:
        find_logging(writer, id, as_id, &s)
        record = <object>s.record  # a reference, since to make a text may run Python code
        wrong = wrong_pages(record, s.npages, first, pages, bitmap.len)
    if wrong is not None:
        raise cannot_clear(id, as_id, wrong)
    # Nothing was wrong, so no text was made: no Python code has been run.
    dirty_clear(&s, first, pages, <const unsigned char *>bitmap.buf)
    return 0


cdef object space_state(ArrayWriter writer, uint32_t as_id):
    """An address space: its generation, and its Slots with their dirty logs or None.

    The caller has entered.
    """
    cdef const arrayspace *sp = &writer.spaces[as_id]
    cdef uint32_t n
    cdef list slots = []
    for n in range(sp.active.count):
        record = <object>slotarray_slots(sp.active)[n].record
        log = None
        if record.flags & Flags.LOG_DIRTY_PAGES:
            log = bytes(get_log(writer, record.id, as_id, False))
        slots.append((record, log))
    return sp.active.generation, slots


cdef int restore_space(ArrayWriter writer, uint32_t as_id, object state) except -1:
    """Fills an empty address space. A state that breaks a rule is refused by that rule."""
    cdef slot_t s
    cdef uint64_t last
    generation, slots = state
    last = u64(generation, "generation")
    for record, log in slots:
        verb_create(
            writer,
            record.id,
            record.base_gfn,
            record.npages,
            record.userspace_addr,
            record.flags,
            as_id,
        )
        if log is not None:
            find_logging(writer, record.id, as_id, &s)
            check_log(s.id, s.npages, log)
            dirty_put(&s, <bytes>log)
    check_generation(as_id, writer.lim.nspaces, last)
    writer.spaces[as_id].active.generation = last
    return 0


def _restore(cls, limits_, spaces):
    """Makes the ArrayMemslots of a pickle. No code of a subclass runs."""
    cdef ArrayMemslots vm = ArrayMemslots.__new__(cls, **limits_)
    check_spaces(vm.writer.lim.nspaces, spaces)
    for as_id, state in enumerate(spaces):
        restore_space(vm.writer, as_id, state)
    return vm
