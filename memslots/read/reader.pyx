"""Readers: how every Memslots, AddressSpace and Vcpu looks up.

sections.pxd describes the protection of a single look-up from a writer. Batch calls release the
GIL, and enter a section for each stretch.
"""

import errno

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.alloc cimport alloc_free, alloc_lines
from memslots.core.atomics cimport atomic_load_relaxed
from memslots.core.index cimport index_gfn_to_hva, index_row, index_usable
from memslots.core.lookup cimport lookup_row, vcpu_cache
from memslots.core.lookup_batch cimport LOOKUP_IDS, TRANSLATE_READ, TRANSLATE_WRITE, lookup_kind
from memslots.core.machine cimport machine
from memslots.core.slot cimport slot, slot_end_gfn, slot_usable
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_count,
    slotset_first,
    slotset_first_from,
    slotset_first_hva,
    slotset_floor,
    slotset_init,
    slotset_last,
    slotset_next_hva,
    slotset_search,
    slotset_step,
)
from memslots.core.space cimport space, space_active, space_generation
from memslots.core.srcu cimport srcu_init, srcu_reader_get, srcu_reader_put
from memslots.core.units cimport (
    BAD_HVA,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    gfn_t,
    gpa_t,
    gpa_to_gfn,
    hva_t,
)
from memslots.read.batch cimport run_batch
from memslots.read.ranges cimport extent, overlaps, records, set_extent
from memslots.read.room cimport find_hole_of, holes_of, is_mapped_of, set_wish, wish
from memslots.read.sections cimport section, section_enter, section_leave
from memslots.values.integers cimport u32, u64
from memslots.values.rules cimport access_error, check_as_id

from memslots.errors import NoSuchSlotError, NotMappedError
from memslots.values.records import Slot, VcpuStats

# The empty machine of a reader that was never tied to one (made by a bare __new__).
cdef machine NO_MACHINE
cdef space NOWHERE
srcu_init(&NO_MACHINE.readers)
slotset_init(&NOWHERE.sets[0], 0)
slotset_init(&NOWHERE.sets[1], 1)
NOWHERE.active = &NOWHERE.sets[0]


cdef slot *before_hole(const slotset *set, const slot *after) noexcept nogil:
    """Returns the last slot before a hole, or NULL. `after` is the first slot after it, or NULL."""
    return slotset_last(set) if after is NULL else slotset_step(set, after, 0)


cdef class Reader:
    """The look-ups that Memslots, AddressSpace and Vcpu share. All read one address space.

    Memslots reads address space 0, an AddressSpace or a Vcpu the one it was made for. Any thread
    may use a reader while others make changes. Each call sees the slots as they were at one moment;
    in a batch, each stretch of a few dozen or hundred look-ups does.
    """

    def __cinit__(self):
        self.m = &NO_MACHINE
        self.sp = &NOWHERE

    def __reduce__(self):
        name = type(self).__name__
        raise TypeError(f"{name!r} cannot be pickled or copied: it belongs to its Memslots")

    # CPython passes a single positional-only argument as it is. That saves one and a half
    # nanoseconds of the 22 that a look-up of the last-used slot takes.
    @cython.always_allow_keywords(False)
    def lookup(self, gfn, /):
        """Returns the slot that holds a guest page.

        Parameters
        ----------
        gfn : int
            The page's number, 0 to 2**64 - 1.

        Returns
        -------
        Slot or None
            The same object at each call while the slot does not change. Inside a listener's
            ``invalidate`` or ``prepare``, a slot to be deleted or moved has ``Flags.INVALID``.

        Notes
        -----
        O(log n), O(1) if the last-used slot holds the page. Allocates nothing.
        """
        cdef gfn_t page = u64(gfn, "gfn")
        cdef section at = section_enter(self.m, self.own)
        cdef index_row room
        cdef const index_row *row = lookup_row(space_active(self.sp), at.own, page, &room)
        found = None if row is NULL else <object>row.record
        section_leave(&at)
        return found

    def lookup_many(self, gfns, out=None):
        """Returns the ids of the slots that hold many guest pages.

        Parameters
        ----------
        gfns : C-contiguous buffer of uint64
            A numpy array, an array.array("Q") or a memoryview. Not copied.
        out : C-contiguous writable buffer of int32, optional
            With as many elements.

        Returns
        -------
        numpy.ndarray or array.array or type of `out`
            int32 ids, -1 for a page that no slot holds. It is `out` if given. Otherwise it is a
            numpy array of the shape of `gfns` if that is one, else an array.array("i").

        Raises
        ------
        TypeError, ValueError
            A buffer has another element type or length, or is not contiguous or not writable; or
            `out` overlaps `gfns`.

        Notes
        -----
        O(m log n) for m pages; runs without the GIL.
        """
        return run_batch(self.m, self.sp, self.own, LOOKUP_IDS, gfns, "gfns", out)

    def gpa_to_hva(self, gpa, write=False):
        """Returns the host address of a guest address.

        Parameters
        ----------
        gpa : int
            In bytes; need not be aligned.
        write : bool
            Whether the address is to be written; a READONLY slot refuses that.

        Returns
        -------
        int

        Raises
        ------
        NotMappedError
            No slot holds the address, or the slot is INVALID.
        ReadOnlyError
            `write` is true and the slot is READONLY.

        Notes
        -----
        O(log n), O(1) if the last-used slot holds the page.
        """
        cdef gpa_t address = u64(gpa, "gpa")
        cdef bint writing = write
        cdef gfn_t gfn = gpa_to_gfn(address)
        cdef hva_t hva = BAD_HVA
        cdef section at = section_enter(self.m, self.own)
        cdef slotset *set = space_active(self.sp)
        cdef index_row room
        cdef const index_row *row = lookup_row(set, at.own, gfn, &room)
        if index_usable(row, writing):
            hva = index_gfn_to_hva(row, gfn) + (address & PAGE_OFFSET_MASK)
            section_leave(&at)
            return hva
        cdef slot *s = slotset_search(set, gfn)
        cdef slot *after = slotset_first_from(set, gfn)
        cdef slot *before = before_hole(set, after)
        cdef bint readable = slot_usable(s, False)
        next_record = None if after is NULL else <object>after.record
        last_record = None if before is NULL else <object>before.record
        section_leave(&at)
        raise access_error(address, s is not NULL, readable, last_record, next_record)

    def translate(self, gpas, out=None, write=False):
        """Returns the host addresses of many guest addresses.

        Parameters
        ----------
        gpas : C-contiguous buffer of uint64
            In bytes; need not be aligned. Not copied.
        out : C-contiguous writable buffer of uint64, optional
            With as many elements. May be `gpas` itself, but must not overlap it otherwise.
        write : bool
            As in gpa_to_hva.

        Returns
        -------
        numpy.ndarray or array.array or type of `out`
            uint64 addresses, BAD_HVA where gpa_to_hva would raise. The kind of array is as for
            lookup_many, but array.array("Q").

        Raises
        ------
        TypeError, ValueError
            As for lookup_many; or `out` overlaps `gpas` and is not `gpas` itself.

        Notes
        -----
        O(m log n) for m addresses; runs without the GIL.
        """
        cdef lookup_kind kind = TRANSLATE_WRITE if write else TRANSLATE_READ
        return run_batch(self.m, self.sp, self.own, kind, gpas, "gpas", out)

    def in_gfn_range(self, start, end):
        """Returns the slots that overlap a range of guest pages.

        Parameters
        ----------
        start, end : int
            The range [start, end), in pages.

        Returns
        -------
        list of Slot
            In gfn order, all of one generation.

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k slots.
        """
        cdef extent e
        if not set_extent(&e, False, start, end):
            return []
        return records(self.m, self.sp, self.own, &e)

    def in_hva_range(self, start, end):
        """Returns the guest pages whose host memory overlaps a range of host addresses.

        Parameters
        ----------
        start, end : int
            The range [start, end), in bytes; need not be aligned.

        Returns
        -------
        list of (Slot, int, int)
            A slot and its pages [start_gfn, end_gfn) that the range touches, even in part. In
            order of userspace_addr, all of one generation. Slots may overlap in host memory, so
            several may have the same byte.

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k slots that do not overlap in host memory, never more than O(k log n).
        """
        cdef extent e
        if not set_extent(&e, True, start, end):
            return []
        return overlaps(self.m, self.sp, self.own, &e)

    def floor(self, gfn):
        """Returns the last slot that begins at a guest page or before it.

        Parameters
        ----------
        gfn : int

        Returns
        -------
        Slot or None

        Notes
        -----
        O(log n).
        """
        cdef gfn_t page = u64(gfn, "gfn")
        cdef section at = section_enter(self.m, self.own)
        cdef slot *s = slotset_floor(space_active(self.sp), page)
        found = None if s is NULL else <object>s.record
        section_leave(&at)
        return found

    def ceil(self, gfn):
        """Returns the first slot that begins at a guest page or after it.

        Parameters
        ----------
        gfn : int

        Returns
        -------
        Slot or None

        Notes
        -----
        O(log n).
        """
        cdef gfn_t page = u64(gfn, "gfn")
        cdef section at = section_enter(self.m, self.own)
        cdef slotset *set = space_active(self.sp)
        cdef slot *s = slotset_floor(set, page)
        if s is NULL:
            s = slotset_first(set)
        elif s.base_gfn != page:
            s = slotset_step(set, s, 1)
        found = None if s is NULL else <object>s.record
        section_leave(&at)
        return found

    def holes(self, start=0, end=None):
        """Returns the runs of guest pages that no slot holds.

        Parameters
        ----------
        start, end : int
            The range [start, end), in pages. Without `end` it ends after max_gfn.

        Returns
        -------
        list of (int, int)
            The pages [start, end) of each run, in order.

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k slots in the range.
        """
        cdef extent e
        if end is None:
            end = max(self.m.lim.max_gfn + 1, u64(start, "start"))
        if not set_extent(&e, False, start, end):
            return []
        return holes_of(self.m, self.sp, self.own, e.first, e.last + 1)

    def find_hole(self, npages, start=0, end=None, align=1):
        """Returns the first page of the lowest run of guest pages that no slot holds.

        Parameters
        ----------
        npages : int
            The number of pages, at least 1.
        start, end : int
            The run lies in [start, end), in pages. Without `end` that ends after max_gfn.
        align : int
            The run begins at a multiple of this number of pages.

        Returns
        -------
        int or None
            The first page of the run; None if there is no such run.

        Raises
        ------
        ValueError
            npages or align is 0, or start is above end.

        Notes
        -----
        O(log n + k) for k slots that it passes over.
        """
        cdef wish w
        set_wish(&w, npages, start, end, align, self.m.lim.max_gfn + 1)
        return find_hole_of(self.m, self.sp, self.own, &w)

    def is_mapped(self, start, end):
        """Returns whether each guest page of a range is in a slot.

        Parameters
        ----------
        start, end : int
            The range [start, end), in pages.

        Returns
        -------
        bool
            True for an empty range.

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k slots in the range.
        """
        cdef extent e
        if not set_extent(&e, False, start, end):
            return True
        return is_mapped_of(self.m, self.sp, self.own, e.first, e.last + 1)

    @property
    def span(self):
        """The first page that a slot holds and the page after the last, or None. O(log n)."""
        cdef section at = section_enter(self.m, self.own)
        cdef slotset *set = space_active(self.sp)
        cdef slot *first = slotset_first(set)
        cdef gfn_t start = 0
        cdef gfn_t end = 0
        if first is not NULL:
            start = first.base_gfn
            end = slot_end_gfn(slotset_last(set))
        section_leave(&at)
        return None if end == 0 else (start, end)

    def hva_to_gpa(self, hva):
        """Returns the guest address of a host address: the lowest, if there are several.

        Parameters
        ----------
        hva : int
            In bytes; need not be aligned.

        Returns
        -------
        int

        Raises
        ------
        NotMappedError
            No slot has the host address.

        Notes
        -----
        O(log n + k) for k slots that have the address.
        """
        cdef hva_t address = u64(hva, "hva")
        cdef gpa_t lowest = ~<gpa_t>0
        cdef section at = section_enter(self.m, self.own)
        cdef slotset *set = space_active(self.sp)
        cdef slot *s = slotset_first_hva(set, address, address)
        while s is not NULL:
            lowest = min(lowest, (s.base_gfn << PAGE_SHIFT) + (address - s.userspace_addr))
            s = slotset_next_hva(set, s, address, address)
        section_leave(&at)
        if lowest == ~<gpa_t>0:
            raise NotMappedError(errno.EFAULT, f"no slot maps host address {address:#x}")
        return lowest

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
        cdef section at = section_enter(self.m, self.own)
        cdef uint32_t count = slotset_count(space_active(self.sp))
        section_leave(&at)
        return count

    def __iter__(self):
        cdef extent e
        e.by_hva = False
        e.first = 0
        e.last = ~<uint64_t>0
        return iter(records(self.m, self.sp, self.own, &e))

    def __reversed__(self):
        return reversed(list(self))

    @property
    def generation(self):
        """A number that no earlier state of the address space had.

        Space k of m uses k, k + m, k + 2m, and so on. A create or a change of flags advances it by
        one step, a delete or a move by two. While a swap waits for readers, bit 63 is set.
        """
        return space_generation(self.sp)

    @property
    def nr_pages(self):
        """The number of guest pages that the slots of the address space hold."""
        cdef section at = section_enter(self.m, self.own)
        cdef uint64_t npages = space_active(self.sp).npages
        section_leave(&at)
        return npages

    @property
    def as_id(self):
        """The number of the address space."""
        return self.sp.as_id

    cdef object slot_of(self, uint32_t id):
        """Returns the Slot of an id, or None."""
        cdef section at = section_enter(self.m, self.own)
        cdef slot *s = slotset_by_id(space_active(self.sp), id)
        found = None if s is NULL else <object>s.record
        section_leave(&at)
        return found


cdef int tie(Reader reader, object owner, object as_id) except -1:
    """Makes a reader read an address space of the machine that `owner` reads."""
    if not isinstance(owner, Reader):
        raise TypeError(f"vm must be a Memslots, not {type(owner).__name__!r}")
    cdef Reader source = <Reader>owner
    cdef uint32_t number = u32(as_id, "as_id")
    check_as_id(&source.m.lim, number)
    reader.m = source.m
    reader.sp = source.m.spaces[number]
    reader.owner = owner
    return 0


# no_gc_clear: the collector must not clear `owner` while the reader points into it.
@cython.final
@cython.no_gc_clear
cdef class AddressSpace(Reader):
    """AddressSpace(vm, as_id)\n--\n
    The reader of one address space.

    Parameters
    ----------
    vm : Memslots
    as_id : int

    Raises
    ------
    InvalidRegionError
        There is no such address space.
    """

    def __cinit__(self, vm, as_id):
        tie(self, vm, as_id)

    def __repr__(self):
        return f"<AddressSpace {self.as_id}: {len(self)} slots, generation {self.generation}>"


@cython.final
@cython.no_gc_clear
cdef class Vcpu(Reader):
    """Vcpu(vm, as_id=0)\n--\n
    The reader of one address space, with a last-used slot of its own.

    Its cache is valid for one generation of the slots. Its misses do not touch the address space's
    own last-used slot. Use a Vcpu from one thread at a time. Any number of Vcpus may be used at
    once. If there is an index, their look-ups write to no common cache line but that of a Slot they
    return, which has its reference count. (If two threads do use one Vcpu, their answers are right,
    but not all of their look-ups use the cache or are counted.)

    Parameters
    ----------
    vm : Memslots
    as_id : int

    Raises
    ------
    InvalidRegionError
        There is no such address space.
    """

    def __cinit__(self, vm, as_id=0):
        tie(self, vm, as_id)
        # The cache has lines of its own, away from the object: every look-up writes its counts.
        self.own = <vcpu_cache *>alloc_lines(sizeof(vcpu_cache))
        if self.own is not NULL:
            self.own.reader = srcu_reader_get(&self.m.readers)
        if self.own is NULL or self.own.reader is NULL:
            raise MemoryError("no memory for a Vcpu")

    def __dealloc__(self):
        if self.own is not NULL:
            srcu_reader_put(self.own.reader)
            alloc_free(self.own)

    @property
    def stats(self):
        """How many look-ups the last-used slot answered, and how many had to search (VcpuStats).

        A look-up that finds no slot counts as a search. If the set has an index, a hit of a batch
        is a page in one of the few slots or holes used last. If few pages of a batch are in those,
        the batch searches for all pages in groups, and all count as searches.
        """
        return VcpuStats(atomic_load_relaxed(&self.own.hits), atomic_load_relaxed(&self.own.misses))

    def __repr__(self):
        return (
            f"<Vcpu of address space {self.as_id}:"
            f" {self.stats.hits} hits, {self.stats.misses} misses>"
        )
