"""ArrayMemslots: Memslots in the design that Linux had until 5.16."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t

from memslots.baseline.reader cimport ArrayReader, run_array_batch
from memslots.baseline.slotarray cimport (
    array_slot,
    arrayspace,
    arrayspace_check,
    slot_from_array,
    slotarray_mark_dirty,
    slotarray_slots,
)
from memslots.baseline.writer cimport ArrayWriter
from memslots.core.dirtylog cimport dirty_clear, dirty_get, dirty_words
from memslots.core.invariants cimport D1, HOLDS, S1, S2, S3, S4, property_id
from memslots.core.lookup_batch cimport MARK_DIRTY
from memslots.core.region cimport limits
from memslots.core.slot cimport slot as slot_t
from memslots.core.units cimport gfn_t
from memslots.dirty.logs cimport cannot_clear, no_log, wrong_first, wrong_pages
from memslots.values.integers cimport u32, u64
from memslots.values.limits cimport set_limits
from memslots.values.records cimport slot_record
from memslots.values.rules cimport check_as_id, check_id
from memslots.write.operations cimport (
    operation_create,
    operation_delete,
    operation_move,
    operation_set_flags,
    operation_set_region,
)

from memslots.baseline.reader import ArrayAddressSpace, ArrayVcpu
from memslots.errors import InvariantError

cdef enum:
    MOST_IDS = 1 << 20  # bounds the id table; Linux had 2**15

cdef dict PROPERTY_NAMES = {
    <int>S1: "S1", <int>S2: "S2", <int>S3: "S3", <int>S4: "S4", <int>D1: "D1"
}


@cython.no_gc_clear
@cython.auto_pickle(False)
cdef class ArrayMemslots(ArrayReader):
    """ArrayMemslots(max_slots=32764, *, address_spaces=1, max_gfn=1099511627775, \
max_hva=140737488351232, manual_dirty_log=0)\n--\n
    The memory slots of one virtual machine, kept as KVM kept them until Linux 5.16.

    Memslots is measured against it. The slots of an address space are one sorted array, and every
    change copies all of it. A delete or a move first publishes the copy with the slot marked
    INVALID. ArrayMemslots has the calls that are measured, with the results and errors of Memslots.
    It has no transactions and no listeners, and cannot be pickled.

    For one thread at a time. With the GIL that is always so. Without it (free-threaded CPython),
    callers that use it from several threads must lock.

    Parameters
    ----------
    max_slots, address_spaces, max_gfn, max_hva, manual_dirty_log : int
        As for Memslots, but max_slots is at most 2**20. The id table has four bytes for every id up
        to the greatest in use, and is copied with each change.

    Raises
    ------
    ValueError
        A limit is out of range.

    Notes
    -----
    n is the number of slots. The complexity of each look-up is that of Memslots, except that
    in_hva_range is O(n).
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
        set_limits(
            &lim, max_slots, address_spaces, max_gfn, max_hva, manual_dirty_log, MOST_IDS
        )
        self.writer = ArrayWriter.__new__(ArrayWriter)
        self.writer.own_spaces(&lim)
        self.sp = &self.writer.spaces[0]

    def set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr):
        """Does what Memslots.set_region does, in O(n)."""
        return operation_set_region(
            self.writer, slot, flags, guest_phys_addr, memory_size, userspace_addr
        )

    def create(self, slot, base_gfn, npages, userspace_addr, flags=0, as_id=0):
        """Creates a slot, as Memslots.create. O(n)."""
        return operation_create(
            self.writer, slot, base_gfn, npages, userspace_addr, flags, as_id
        )

    def move(self, slot, base_gfn, as_id=0):
        """Moves a slot, as Memslots.move. O(n)."""
        return operation_move(self.writer, slot, base_gfn, as_id)

    def set_flags(self, slot, flags, as_id=0):
        """Changes a slot's flags, as Memslots.set_flags. O(n)."""
        return operation_set_flags(self.writer, slot, flags, as_id)

    def delete(self, slot, as_id=0):
        """Deletes a slot and returns it as it was, as Memslots.delete. O(n)."""
        return operation_delete(self.writer, slot, as_id)

    def mark_dirty(self, gfn, as_id=0):
        """Marks a guest page as written, as Memslots.mark_dirty. O(log n)."""
        cdef gfn_t page = u64(gfn, "gfn")
        cdef arrayspace *sp = self.space_of(as_id)
        slotarray_mark_dirty(sp.active, NULL, &page, 1)

    def mark_dirty_many(self, gfns, as_id=0):
        """Marks many guest pages as written, as Memslots.mark_dirty_many. O(m log n)."""
        run_array_batch(self.space_of(as_id), NULL, MARK_DIRTY, gfns, "gfns", None)

    def get_dirty_log(self, slot, as_id=0):
        """Returns the dirty log of a slot, as Memslots.get_dirty_log. O(npages / 64)."""
        cdef bint take = self.writer.lim.manual_dirty_log == 0
        return get_log(self.writer, u32(slot, "slot"), u32(as_id, "as_id"), take)

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """Clears part of a slot's dirty log, as Memslots.clear_dirty_log. O(num_pages / 64)."""
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
        """Returns the reader of an address space (ArrayAddressSpace).

        InvalidRegionError if there is no such address space.
        """
        return ArrayAddressSpace(self, as_id)

    def vcpu(self, as_id=0):
        """Returns a reader of an address space with a last-used slot of its own (ArrayVcpu).

        InvalidRegionError if there is no such address space.
        """
        return ArrayVcpu(self, as_id)

    def check(self):
        """Checks every property in every address space, as Memslots.check. O(n).

        InvariantError with the number of the first property that does not hold: one of
        baseline/slotarray.pxd, or D1. BusyError in the middle of a change.
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
        """Slot ids are below this number."""
        return self.writer.lim.max_slots

    @property
    def address_spaces(self):
        """The number of address spaces."""
        return self.writer.lim.nspaces

    @property
    def max_gfn(self):
        """The highest guest page that a slot may hold."""
        return self.writer.lim.max_gfn

    @property
    def max_hva(self):
        """The end of user space: a slot's last byte is below it."""
        return self.writer.lim.max_hva

    @property
    def manual_dirty_log(self):
        """0, 1 or 3, as given to the constructor."""
        return self.writer.lim.manual_dirty_log

    def __repr__(self):
        counts = [len(self.address_space(as_id)) for as_id in range(self.writer.lim.nspaces)]
        if len(counts) > 1:
            return f"<ArrayMemslots: {counts} slots by address space>"
        return (
            f"<ArrayMemslots: {len(self)} slots, {self.nr_pages} pages,"
            f" generation {self.generation}>"
        )

    cdef arrayspace *space_of(self, object as_id) except NULL:
        cdef uint32_t number = u32(as_id, "as_id")
        check_as_id(self.writer.lim, number)
        return &self.writer.spaces[number]


cdef property_id check_records(const arrayspace *sp, uint64_t *id):
    """Checks S1 for the Slot that each slot has."""
    cdef uint32_t n
    cdef slot_t s
    for n in range(sp.active.count):
        slot_from_array(&slotarray_slots(sp.active)[n], sp.as_id, &s)
        id[0] = s.id
        if slot_record(&s) != <object>s.record:
            return S1
    return HOLDS


cdef int find_logging(ArrayWriter writer, uint32_t id, uint32_t as_id, slot_t *out) except -1:
    """Finds a slot that has a dirty log."""
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
    # This runs no Python code, so the slot stays as it is.
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
        record = <object>s.record  # holds a reference, since making a text may run Python code
        wrong = wrong_pages(record, s.npages, first, pages, bitmap.len)
    if wrong is not None:
        raise cannot_clear(id, as_id, wrong)
    # No text was made, so no Python code has run.
    dirty_clear(&s, first, pages, <const unsigned char *>bitmap.buf)
    return 0
