"""The readers of the arrays: what memslots.read.reader is to the trees.

A pointer into an array is valid until Python code runs, since that code may make a change. So none
is kept across a call that may run Python code.
"""

import errno

cimport cython
from libc.stdint cimport int32_t, uint64_t

from memslots.baseline.slotarray cimport (
    array_slot,
    array_slot_has_gfn,
    slot_from_array,
    slotarray,
    slotarray_by_id,
    slotarray_first_from,
    slotarray_hva,
    slotarray_hvas,
    slotarray_ids,
    slotarray_lookup,
    slotarray_mark_dirty,
    slotarray_next_hva,
    slotarray_slots,
)
from memslots.core.lookup_batch cimport (
    LOOKUP_IDS,
    MARK_DIRTY,
    TRANSLATE_READ,
    TRANSLATE_WRITE,
    lookup_kind,
)
from memslots.core.slot cimport region, slot, slot_usable
from memslots.core.units cimport BAD_HVA, gfn_t, gpa_t, gpa_to_gfn, hva_t
from memslots.read.batch cimport kind_element
from memslots.read.ranges cimport extent, extent_end, extent_start, set_extent
from memslots.values.buffers cimport buffers, release_batch, take_batch
from memslots.values.integers cimport u32, u64
from memslots.values.records cimport record_region
from memslots.values.rules cimport access_error, check_as_id

from memslots.errors import NoSuchSlotError
from memslots.values.records import Slot, VcpuStats


cdef struct empty_array:
    slotarray head
    array_slot none  # the first slot, which every array has


# The array of a reader that was never tied to a writer (one made by a bare __new__): it is empty.
cdef empty_array NOTHING
cdef arrayspace NOWHERE
NOWHERE.active = &NOTHING.head


cdef object userspace_addr_of(object record):
    return record.userspace_addr


cdef list records(const arrayspace *sp, const extent *e):
    """Returns the Slots that an extent touches, in order of base_gfn or of userspace_addr."""
    # The list is made before the array is read. Appending to it runs no Python code.
    cdef list found = []
    cdef const slotarray *a = sp.active
    cdef const array_slot *s = slotarray_slots(a)
    cdef uint32_t n
    if e.by_hva:
        n = slotarray_next_hva(a, 0, e.first, e.last)
        while n < a.count:
            found.append(<object>s[n].record)
            n = slotarray_next_hva(a, n + 1, e.first, e.last)
        if len(found) > 1:
            found.sort(key=userspace_addr_of)
        return found
    for n in range(slotarray_first_from(a, e.first), a.count):
        if s[n].base_gfn > e.last:
            break
        found.append(<object>s[n].record)
    return found


cdef list overlaps(const arrayspace *sp, const extent *e):
    """Returns each Slot that an extent of host addresses touches, with the gfns that it touches."""
    cdef list found = records(sp, e)
    cdef region r
    cdef Py_ssize_t i
    for i in range(len(found)):
        record = found[i]
        record_region(record, &r)
        found[i] = (
            record,
            extent_start(e, r.base_gfn, r.userspace_addr),
            extent_end(e, r.base_gfn, r.npages, r.userspace_addr),
        )
    return found


cdef void run(
    arrayspace *sp,
    array_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil:
    if kind == LOOKUP_IDS:
        slotarray_ids(sp.active, own, given, <int32_t *>out, count)
    elif kind == MARK_DIRTY:
        slotarray_mark_dirty(sp.active, own, given, count)
    else:
        slotarray_hvas(sp.active, own, given, <hva_t *>out, count, kind == TRANSLATE_WRITE)


cdef object run_array_batch(
    arrayspace *sp, array_cache *own, lookup_kind kind, object given, str name, object out
):
    cdef buffers taken
    out = take_batch(given, name, kind_element(kind), out, &taken)
    # The GIL stays held: a change by another thread would take the array away.
    run(sp, own, kind, <const uint64_t *>taken.numbers.buf, taken.results.buf, taken.count)
    release_batch(&taken)
    return out


cdef class ArrayReader:
    """The base class of ArrayMemslots, ArrayAddressSpace and ArrayVcpu: all look-ups.

    Results, errors and units are those of `memslots.read.reader.Reader`, method by method. For one
    thread at a time. With the GIL that is always so. Without it, callers that use it from several
    threads must lock. Batch calls hold the GIL.
    """

    def __cinit__(self):
        self.sp = &NOWHERE

    def __reduce__(self):
        name = type(self).__name__
        raise TypeError(f"{name!r} cannot be pickled or copied: it exists only to be measured")

    @cython.always_allow_keywords(False)
    def lookup(self, gfn, /):
        """Returns the slot that holds a guest page, or None.

        O(log n), or O(1) if the last-used slot holds the page. Allocates nothing.
        """
        cdef gfn_t page = u64(gfn, "gfn")
        cdef array_slot *s = slotarray_lookup(self.sp.active, self.own, page)
        return None if s is NULL else <object>s.record

    def lookup_many(self, gfns, out=None):
        """Returns the ids of the slots that hold many guest pages.

        uint64 in, int32 out, -1 if no slot holds the page. O(m log n) for m pages.
        """
        return run_array_batch(self.sp, self.own, LOOKUP_IDS, gfns, "gfns", out)

    def gpa_to_hva(self, gpa, write=False):
        """Returns the host address of a guest address, both in bytes.

        NotMappedError, ReadOnlyError. O(log n), or O(1) if the last-used slot holds the page.
        """
        cdef gpa_t address = u64(gpa, "gpa")
        cdef bint writing = write
        cdef hva_t hva = slotarray_hva(self.sp.active, self.own, address, writing)
        if hva != BAD_HVA:
            return hva
        raise no_access(self.sp, address)

    def translate(self, gpas, out=None, write=False):
        """Returns the host addresses of many guest addresses.

        Both are uint64, in bytes; BAD_HVA if there is none. O(m log n) for m addresses.
        """
        cdef lookup_kind kind = TRANSLATE_WRITE if write else TRANSLATE_READ
        return run_array_batch(self.sp, self.own, kind, gpas, "gpas", out)

    def in_gfn_range(self, start, end):
        """Returns the slots that overlap the guest pages [start, end), in gfn order.

        ValueError: start is above end. O(log n + k) for k slots.
        """
        cdef extent e
        return records(self.sp, &e) if set_extent(&e, False, start, end) else []

    def in_hva_range(self, start, end):
        """Returns (slot, start_gfn, end_gfn) of every overlap with the host bytes [start, end).

        In order of userspace_addr. ValueError: start is above end. O(n): there is no index by host
        address.
        """
        cdef extent e
        return overlaps(self.sp, &e) if set_extent(&e, True, start, end) else []

    def get(self, id, default=None):
        """Returns the slot of an id, or `default`. O(1)."""
        found = self.slot_of(u32(id, "id"))
        return default if found is None else found

    def __getitem__(self, id):
        cdef uint32_t number = u32(id, "id")
        found = self.slot_of(number)
        if found is None:
            raise NoSuchSlotError(
                errno.ENOENT, f"there is no slot {number} in address space {self.sp.as_id}"
            )
        return found

    def __contains__(self, slot_):
        if not isinstance(slot_, Slot):
            raise TypeError(
                f"`in` takes a Slot, not {type(slot_).__name__!r}; for an id, test get(id)"
            )
        return slot_.as_id == self.sp.as_id and self.slot_of(slot_.id) == slot_

    def __len__(self):
        return self.sp.active.count

    def __iter__(self):
        cdef extent e
        e.by_hva = False
        e.first = 0
        e.last = ~<uint64_t>0
        return iter(records(self.sp, &e))

    def __reversed__(self):
        return reversed(list(self))

    @property
    def generation(self):
        """A number that no earlier state of the address space had, as Reader's."""
        return self.sp.active.generation

    @property
    def nr_pages(self):
        """The number of guest pages that the slots of the address space hold."""
        return self.sp.active.npages

    @property
    def as_id(self):
        """The number of the address space."""
        return self.sp.as_id

    cdef object slot_of(self, uint32_t id):
        """Returns the Slot of an id, or None."""
        cdef array_slot *s = slotarray_by_id(self.sp.active, id)
        return None if s is NULL else <object>s.record


cdef object no_access(const arrayspace *sp, gpa_t gpa):
    """Returns the error for an access that no slot allows."""
    cdef const slotarray *a = sp.active
    cdef const array_slot *slots = slotarray_slots(a)
    cdef gfn_t gfn = gpa_to_gfn(gpa)
    cdef uint32_t after = slotarray_first_from(a, gfn)
    cdef bint inside = after < a.count and array_slot_has_gfn(&slots[after], gfn)
    cdef bint readable = False
    cdef slot s
    if inside:
        slot_from_array(&slots[after], sp.as_id, &s)
        readable = slot_usable(&s, False)
    last_record = None if after == 0 else <object>slots[after - 1].record
    next_record = None if after == a.count else <object>slots[after].record
    return access_error(gpa, inside, readable, last_record, next_record)


cdef int tie(ArrayReader reader, object owner, object as_id) except -1:
    """Ties a reader to an address space of the ArrayMemslots that `owner` reads."""
    if not isinstance(owner, ArrayReader):
        raise TypeError(f"vm must be an ArrayMemslots, not {type(owner).__name__!r}")
    cdef ArrayWriter writer = (<ArrayReader>owner).writer
    cdef uint32_t number = u32(as_id, "as_id")
    if writer is None:
        raise TypeError("vm belongs to no ArrayMemslots")
    check_as_id(writer.lim, number)
    reader.writer = writer
    reader.owner = owner
    reader.sp = &writer.spaces[number]
    return 0


# no_gc_clear: the collector must not take the writer away while the pointer into the writer is
# there.
@cython.final
@cython.no_gc_clear
cdef class ArrayAddressSpace(ArrayReader):
    """The reader of one address space.

    InvalidRegionError if there is no such address space.
    """

    def __cinit__(self, vm, as_id):
        tie(self, vm, as_id)

    def __repr__(self):
        return f"<ArrayAddressSpace {self.as_id}: {len(self)} slots, generation {self.generation}>"


@cython.final
@cython.no_gc_clear
cdef class ArrayVcpu(ArrayReader):
    """The reader of one address space, with a last-used slot of its own.

    The last-used slot is valid for one generation of the slots. Its misses search the array and do
    not touch the last-used slot of the address space. InvalidRegionError if there is no such
    address space.
    """

    cdef array_cache cache  # the target of own

    def __cinit__(self, vm, as_id=0):
        tie(self, vm, as_id)
        self.cache.generation = BAD_HVA  # no array has this generation
        self.own = &self.cache

    @property
    def stats(self):
        """The numbers of look-ups that the last-used slot answered, and that searched the array.

        A VcpuStats. A look-up that finds no slot counts as a search of the array.
        """
        return VcpuStats(self.cache.hits, self.cache.misses)

    def __repr__(self):
        return (
            f"<ArrayVcpu of address space {self.as_id}:"
            f" {self.stats.hits} hits, {self.stats.misses} misses>"
        )
