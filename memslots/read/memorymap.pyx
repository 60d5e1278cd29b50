"""MemoryMap: the slots of an address space as they were at one moment, a value.

A map is an index (core/index.pxd) that is kept while the slots change. It reads all fields of the
rows but never the slots and their records, which may be gone. It makes a Slot when one is first
asked for, and only once.
"""

import errno
from operator import attrgetter

cimport cython
from cpython.buffer cimport PyObject_CheckBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from memslots.core.atomics cimport (
    atomic_compare_exchange_ptr,
    atomic_load_acquire_ptr,
    atomic_load_relaxed,
)
from memslots.core.idtable cimport idtable_find
from memslots.core.index cimport (
    INDEX_ANY_ID,
    INDEX_GUEST_MEMFD,
    index,
    index_drop,
    index_flags,
    index_gfn_to_hva,
    index_has_gfn,
    index_hold,
    index_row,
    index_row_of,
    index_usable,
    index_userspace_addr,
)
from memslots.core.index_policy cimport (
    index_policy_build,
    index_policy_copy,
    index_policy_current,
)
from memslots.core.lookup cimport lookup_shared, vcpu_cache
from memslots.core.lookup_batch cimport (
    LOOKUP_IDS,
    TRANSLATE_READ,
    TRANSLATE_WRITE,
    lookup_batch_index,
    lookup_kind,
)
from memslots.core.machine cimport machine
from memslots.core.rows cimport (
    ROWS_GOOD,
    ROWS_NO_MEMORY,
    ROWS_SAME_ID,
    ROWS_TOO_MANY,
    rows,
    rows_add,
    rows_cut,
    rows_fault,
    rows_free,
    rows_index,
    rows_join,
    rows_number,
    rows_pair,
    rows_reserve,
    rows_yield_ids,
)
from memslots.core.search cimport search_one
from memslots.core.slot cimport SLOT_CALLER_FLAGS, SLOT_GUEST_MEMFD, SLOT_INVALID, region
from memslots.core.slot cimport slot as slot_t
from memslots.core.slotset cimport slotset, slotset_count, slotset_first, slotset_step
from memslots.core.space cimport SWAPPING, space, space_active
from memslots.core.units cimport (
    LAST_GFN,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    gfn_t,
    gpa_t,
    gfn_range_fits,
    gpa_to_gfn,
    hva_t,
    page_aligned,
)
from memslots.core.views cimport (
    views,
    views_first_reaching,
    views_free,
    views_last_hva,
    views_new,
)
from memslots.read.batch cimport kind_element
from memslots.read.reader cimport Reader
from memslots.read.ranges cimport extent, extent_end, extent_start, set_extent
from memslots.read.room cimport set_wish, wish, wish_fits
from memslots.read.sections cimport reader_of, section, section_enter, section_leave
from memslots.values.buffers cimport (
    buffers,
    column,
    column_get,
    column_value,
    release_batch,
    release_column,
    take_batch,
    take_column,
)
from memslots.values.integers cimport u32, u64
from memslots.values.records cimport memfd_of, record_region, region_record
from memslots.values.rules cimport access_error

from memslots.errors import (
    InvalidRegionError,
    MemslotError,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
)
from memslots.values.records import Slot

cdef enum:
    LAST_ID = 0x7FFFFFFF  # an id fits an int32, the output of lookup_many
    MOST_PAGES = 0x7FFFFFFF  # rule 4
    TRIES = 3  # builds of an index that changes may spoil before one is made in one section

cdef object base_of = attrgetter("base_gfn")


cdef enum operation:
    LAY_OVER
    TAKE_AWAY
    KEEP_COMMON
    JOIN

cdef tuple COLUMNS = ("base_gfns", "npages", "userspace_addrs", "flags", "ids")


@cython.final
cdef class MemoryMap:
    """MemoryMap(slots=(), as_id=None, generation=0)\n--\n
    The slots of an address space at one moment: an immutable value.

    ``vm.map()`` returns the map of a Memslots; a map can be made of Slots, too. It looks up as a
    Memslots does. It compares and hashes by value, without the generation; ids count if both maps
    fix them. ``a | b`` is `b` laid over `a`. ``a - b`` is the part of `a` outside of `b`'s pages,
    ``a & b`` the part inside. If a slot is cut, its first part keeps the id.

    Parameters
    ----------
    slots : iterable of Slot or of tuple, optional
        In any order, all of one address space. A tuple is (base_gfn, npages, userspace_addr), and
        may have flags and an id after these. A slot without an id may have any. Such slots get the
        lowest free ids, in gfn order; comparisons of maps ignore these ids.
    as_id : int, optional
        The address space; if left out, that of the Slots, or 0.
    generation : int, default 0
        A number to remember the map by.

    Raises
    ------
    OverlapError
        Two slots have a page in common.
    InvalidRegionError
        Two slots have an id in common; a slot breaks rule 1, 2 or 4; a Slot is of another address
        space.
    TypeError, OverflowError
        A value is no integer, or does not fit its field.

    Notes
    -----
    n is the number of slots. Any thread may use a map. A Slot is made when it is first asked for;
    later calls return the same object.
    """

    cdef bint is_made  # whether the map has its slots; it is immutable from then on
    cdef index *ix  # the slots; NULL: there are none
    cdef void **made  # [i]: the Slot of row i, a reference, or NULL; NULL: none was asked for
    cdef views *sorted  # the rows by id and by host address; NULL: not asked for
    # Slots in gfn order that give the range and the guest_memfd of each row with INDEX_GUEST_MEMFD;
    # None: there are no such rows
    cdef list memfds
    cdef readonly uint32_t as_id
    """The number of the address space."""
    cdef readonly uint64_t generation
    """The generation of the Memslots that the map was made of (Memslots.generation)."""
    cdef readonly uint64_t nr_pages
    """The number of guest pages that the slots hold."""

    def __init__(self, slots=(), as_id=None, generation=0):
        if self.is_made:
            raise TypeError("a MemoryMap is immutable")
        cdef uint64_t remembered = u64(generation, "generation")
        cdef list given = list(slots)
        cdef list memfds = None
        cdef rows r
        if as_id is None:
            as_id = next((item.as_id for item in given if isinstance(item, Slot)), 0)
        cdef uint32_t number = u32(as_id, "as_id")
        memset(&r, 0, sizeof(r))
        try:
            rows_reserve(&r, len(given))
            for item in given:
                record = add_item(&r, item, number)
                if record.guest_memfd is not None:
                    memfds = memfds or []
                    memfds.append(record)
            if memfds is not None:
                memfds.sort(key=base_of)
            self.take_rows(&r, number, remembered, memfds)
        finally:
            rows_free(&r)

    @staticmethod
    def from_arrays(
        base_gfns, npages, userspace_addrs, flags=0, ids=None, *, as_id=0, generation=0
    ):
        """Makes a MemoryMap of slots whose fields are in arrays.

        Parameters
        ----------
        base_gfns, npages, userspace_addrs : C-contiguous buffer of integers
            All of one length. numpy arrays, array.arrays or memoryviews, of any integer type.
        flags : int, Flags or buffer
            The flags of all slots, or of each.
        ids : buffer, optional
            If left out, the slots may have any ids.
        as_id, generation : int

        Returns
        -------
        MemoryMap

        Raises
        ------
        OverlapError, InvalidRegionError, OverflowError
            As MemoryMap.
        TypeError, ValueError
            An argument is no such buffer, or is not as long as the others.

        Notes
        -----
        O(n) if the slots are in order, else O(n log n). The map keeps no reference to the arrays.
        """
        cdef MemoryMap made = MemoryMap.__new__(MemoryMap)
        cdef uint32_t number = u32(as_id, "as_id")
        cdef uint64_t remembered = u64(generation, "generation")
        cdef rows r
        memset(&r, 0, sizeof(r))
        try:
            add_columns(&r, (base_gfns, npages, userspace_addrs, flags, ids), number)
            made.take_rows(&r, number, remembered, None)
        finally:
            rows_free(&r)
        return made

    def __dealloc__(self):
        cdef uint32_t i
        if self.made is not NULL:
            for i in range(self.ix.count):
                Py_XDECREF(<PyObject *>self.made[i])
            PyMem_Free(self.made)
        views_free(self.sorted)
        index_drop(self.ix)

    cdef int take_rows(
        self, rows *r, uint32_t as_id, uint64_t generation, list memfds
    ) except -1:
        """Completes the map with the index of rows, or raises the error that says why it cannot."""
        cdef rows_fault why
        cdef rows_pair which
        cdef index *ix
        cdef uint32_t i
        cdef bint again
        with nogil:
            ix = rows_index(r, &why, &which)
        if why != ROWS_GOOD:
            raise rows_error(r, why, &which, as_id)
        # Code that ran since (an iterable of slots, another thread) may have completed the map.
        with cython.critical_section(self):
            again = self.is_made
            self.is_made = True
        if again:
            index_drop(ix)
            raise TypeError("a MemoryMap is immutable")
        self.ix = ix
        self.as_id = as_id
        self.generation = generation
        self.memfds = memfds
        for i in range(self.count()):
            self.nr_pages += ix.rows[i].npages
        return 0

    cdef int take_memfds(self, list sources) except -1:
        """Finds the file and offset of each row in the maps that this one was made of.

        If two maps have the same page, the first one counts.
        """
        cdef uint32_t i
        cdef region r
        cdef list found = []
        for i in range(self.count()):
            self.region_at(i, &r)
            if r.flags & SLOT_GUEST_MEMFD:
                for source in sources:
                    if (<MemoryMap>source).memfds and memfd_of(
                        &r, (<MemoryMap>source).memfds, &r
                    ):
                        break
                found.append(region_record(&r))
        self.memfds = found
        return 0

    cdef object slot_at(self, uint32_t i):
        """Returns the Slot of row i. O(1)."""
        cdef void **made = <void **>atomic_load_acquire_ptr(<void *const *>&self.made)
        cdef void *none = NULL
        cdef void *there
        cdef region r
        if made is NULL:
            made = <void **>PyMem_Calloc(self.ix.count, sizeof(void *))
            if made is NULL:
                raise MemoryError("no memory for the Slots of a MemoryMap")
            # Release: pairs with the acquire above. The exchange below pairs likewise.
            if not atomic_compare_exchange_ptr(<void **>&self.made, &none, made):
                PyMem_Free(made)
                made = <void **>none
        there = atomic_load_acquire_ptr(&made[i])
        if there is not NULL:
            return <object>there
        self.region_at(i, &r)
        if r.flags & SLOT_GUEST_MEMFD:
            memfd_of(&r, self.memfds, &r)
        new = region_record(&r)
        none = NULL
        Py_INCREF(new)
        if not atomic_compare_exchange_ptr(&made[i], &none, <void *>new):
            Py_DECREF(new)  # another thread was first
            return <object>none
        return new

    cdef void region_at(self, uint32_t i, region *r) noexcept:
        region_of(&self.ix.rows[i], self.as_id, r)

    cdef inline const index_row *row_of(self, gfn_t gfn) noexcept nogil:
        """Returns the row that has the gfn, or NULL. O(log n)."""
        return lookup_shared(self.ix, gfn) if self.ix is not NULL else NULL

    cdef uint32_t first_from(self, gfn_t gfn) noexcept nogil:
        """Returns the place of the first row that ends after `gfn`, or count(). O(log n)."""
        cdef uint32_t place
        if self.ix is NULL or gfn < self.ix.rows[0].base_gfn:
            return 0
        place = search_one(&self.ix.keys, gfn)
        return place if index_has_gfn(&self.ix.rows[place], gfn) else place + 1

    cdef uint32_t first_above(self, gfn_t gfn) noexcept nogil:
        """Returns the place of the first row that begins after `gfn`, or count(). O(log n)."""
        if self.ix is NULL or gfn < self.ix.rows[0].base_gfn:
            return 0
        return search_one(&self.ix.keys, gfn) + 1

    cdef uint32_t count(self) noexcept nogil:
        return self.ix.count if self.ix is not NULL else 0

    cdef views *get_views(self) except? NULL:
        """Returns the views, made at the first call; NULL if there are no slots."""
        cdef void *there = atomic_load_acquire_ptr(<void *const *>&self.sorted)
        cdef views *made
        if there is not NULL or self.ix is NULL:
            return <views *>there
        with nogil:
            made = views_new(self.ix)
        if made is NULL:
            raise MemoryError("no memory for the views of a MemoryMap")
        if not atomic_compare_exchange_ptr(<void **>&self.sorted, &there, made):
            views_free(made)
            return <views *>there
        return made

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

        Notes
        -----
        O(log n), O(1) if the slot found last holds the page.
        """
        cdef const index_row *row = self.row_of(u64(gfn, "gfn"))
        return None if row is NULL else self.slot_at(<uint32_t>(row - self.ix.rows))

    def lookup_many(self, gfns, out=None):
        """Returns the ids of the slots that hold many guest pages. As Memslots.lookup_many."""
        return self.run(LOOKUP_IDS, gfns, "gfns", out)

    def gpa_to_hva(self, gpa, write=False):
        """Returns the host address of a guest address. As Memslots.gpa_to_hva.

        Raises NotMappedError, ReadOnlyError. O(log n).
        """
        cdef gpa_t address = u64(gpa, "gpa")
        cdef bint writing = write
        cdef gfn_t gfn = gpa_to_gfn(address)
        cdef const index_row *row = self.row_of(gfn)
        cdef uint32_t after
        if index_usable(row, writing):
            return index_gfn_to_hva(row, gfn) + (address & PAGE_OFFSET_MASK)
        after = self.first_from(gfn)
        raise access_error(
            address,
            row is not NULL,
            index_usable(row, False),
            self.slot_at(after - 1) if after > 0 else None,
            self.slot_at(after) if after < self.count() else None,
        )

    def translate(self, gpas, out=None, write=False):
        """Returns the host addresses of many guest addresses. As Memslots.translate."""
        return self.run(TRANSLATE_WRITE if write else TRANSLATE_READ, gpas, "gpas", out)

    cdef object run(self, lookup_kind kind, object given, str name, object out):
        cdef buffers taken
        cdef vcpu_cache cache
        cdef bint scattered = False
        memset(&cache, 0, sizeof(cache))
        out = take_batch(given, name, kind_element(kind), out, &taken)
        with nogil:
            if self.ix is NULL:
                # -1 and BAD_HVA are all ones.
                memset(
                    taken.results.buf,
                    0xFF,
                    taken.count * (sizeof(int32_t) if kind == LOOKUP_IDS else sizeof(hva_t)),
                )
            elif taken.count > 0:
                lookup_batch_index(
                    self.ix,
                    &cache,
                    kind,
                    <const uint64_t *>taken.numbers.buf,
                    taken.results.buf,
                    taken.count,
                    &scattered,
                )
        release_batch(&taken)
        return out

    def in_gfn_range(self, start, end):
        """Returns the slots that overlap [start, end) in gfn order. As Memslots.in_gfn_range."""
        cdef extent e
        cdef uint32_t i
        cdef list found = []
        if set_extent(&e, False, start, end):
            i = self.first_from(e.first)
            while i < self.count() and self.ix.rows[i].base_gfn <= e.last:
                found.append(self.slot_at(i))
                i += 1
        return found

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
            order of userspace_addr. Slots may overlap in host memory, so several may have the same
            byte.

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k slots that do not overlap in host memory, O(n) if they do; O(n log n) the
        first time.
        """
        cdef extent e
        cdef views *v
        cdef const index_row *row
        cdef hva_t hva
        cdef uint32_t i
        cdef list found = []
        if not set_extent(&e, True, start, end):
            return found
        v = self.get_views()
        if v is NULL:
            return found
        for i in range(views_first_reaching(v, e.first), v.count):
            row = v.by_hva[i]
            hva = index_userspace_addr(row)
            if hva > e.last:
                break
            if views_last_hva(row) >= e.first:
                found.append(
                    (
                        self.slot_at(<uint32_t>(row - self.ix.rows)),
                        extent_start(&e, row.base_gfn, hva),
                        extent_end(&e, row.base_gfn, row.npages, hva),
                    )
                )
        return found

    def floor(self, gfn):
        """Returns the last slot that begins at a page or before it, or None. As Memslots.floor."""
        cdef uint32_t i = self.first_above(u64(gfn, "gfn"))
        return None if i == 0 else self.slot_at(i - 1)

    def ceil(self, gfn):
        """Returns the first slot that begins at a page or after it, or None. As Memslots.ceil."""
        cdef gfn_t page = u64(gfn, "gfn")
        cdef uint32_t i = self.first_above(page)
        if i > 0 and self.ix.rows[i - 1].base_gfn == page:
            i -= 1
        return None if i == self.count() else self.slot_at(i)

    def holes(self, start=0, end=None):
        """Returns the runs of pages in [start, end) that no slot holds. As Memslots.holes.

        Without `end` the range ends after the last page that a slot can have.
        """
        cdef extent e
        cdef gfn_t gfn
        cdef uint32_t i
        cdef list found = []
        if end is None:
            end = max(LAST_GFN, u64(start, "start"))
        if not set_extent(&e, False, start, end):
            return found
        gfn = e.first
        i = self.first_from(gfn)
        while i < self.count() and self.ix.rows[i].base_gfn <= e.last:
            if self.ix.rows[i].base_gfn > gfn:
                found.append((gfn, self.ix.rows[i].base_gfn))
            gfn = self.ix.rows[i].base_gfn + self.ix.rows[i].npages
            i += 1
        if gfn <= e.last:
            found.append((gfn, e.last + 1))
        return found

    def find_hole(self, npages, start=0, end=None, align=1):
        """Returns the first page of the lowest hole, or None. As Memslots.find_hole.

        Without `end` the range ends after the last page that a slot can have.
        """
        cdef wish w
        cdef gfn_t gfn
        cdef uint32_t i
        set_wish(&w, npages, start, end, align, LAST_GFN)
        gfn = w.start
        i = self.first_from(gfn)
        while wish_fits(&w, &gfn):
            while i < self.count() and self.ix.rows[i].base_gfn + self.ix.rows[i].npages <= gfn:
                i += 1
            if i == self.count() or self.ix.rows[i].base_gfn >= gfn + w.npages:
                return gfn
            gfn = self.ix.rows[i].base_gfn + self.ix.rows[i].npages
        return None

    def is_mapped(self, start, end):
        """Returns whether each page of [start, end) is in a slot. As Memslots.is_mapped."""
        cdef extent e
        cdef gfn_t gfn
        cdef uint32_t i
        if not set_extent(&e, False, start, end):
            return True
        gfn = e.first
        i = self.first_from(gfn)
        while i < self.count() and self.ix.rows[i].base_gfn <= gfn:
            gfn = self.ix.rows[i].base_gfn + self.ix.rows[i].npages
            if gfn > e.last:
                return True
            i += 1
        return False

    @property
    def span(self):
        """The first page that a slot holds and the page after the last, or None. O(1)."""
        cdef const index_row *last
        if self.ix is NULL:
            return None
        last = &self.ix.rows[self.ix.count - 1]
        return self.ix.rows[0].base_gfn, last.base_gfn + last.npages

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
        O(log n + k) for k slots that have the address or begin before it; O(n log n) the first
        time.
        """
        cdef hva_t address = u64(hva, "hva")
        cdef views *v = self.get_views()
        cdef gpa_t lowest = ~<gpa_t>0
        cdef const index_row *row
        cdef uint32_t i
        if v is not NULL:
            for i in range(views_first_reaching(v, address), v.count):
                row = v.by_hva[i]
                if index_userspace_addr(row) > address:
                    break
                if views_last_hva(row) >= address:
                    lowest = min(
                        lowest,
                        (row.base_gfn << PAGE_SHIFT) + (address - index_userspace_addr(row)),
                    )
        if lowest == ~<gpa_t>0:
            raise NotMappedError(errno.EFAULT, f"no slot maps host address {address:#x}")
        return lowest

    def get(self, id, default=None):
        """Returns the slot of an id, or `default`. O(1); O(n log n) the first time."""
        found = self.slot_of(u32(id, "id"))
        return default if found is None else found

    def __getitem__(self, id):
        cdef uint32_t number = u32(id, "id")
        found = self.slot_of(number)
        if found is None:
            raise NoSuchSlotError(
                errno.ENOENT, f"there is no slot {number} in the map of address space {self.as_id}"
            )
        return found

    cdef object slot_of(self, uint32_t id):
        """Returns the Slot of an id, or None."""
        cdef views *v = self.get_views()
        cdef const index_row *row = NULL
        if v is not NULL:
            row = <const index_row *>idtable_find(&v.ids, id)
        return None if row is NULL else self.slot_at(<uint32_t>(row - self.ix.rows))

    def __contains__(self, slot_):
        if not isinstance(slot_, Slot):
            raise TypeError(
                f"`in` takes a Slot, not {type(slot_).__name__!r}; for an id, test get(id)"
            )
        return self.lookup(slot_.base_gfn) == slot_

    def __len__(self):
        return self.count()

    def __iter__(self):
        return iter(self.all())

    def __reversed__(self):
        return reversed(self.all())

    cdef list all(self):
        return [self.slot_at(i) for i in range(self.count())]

    def __or__(self, other):
        """Returns the map with `other` laid over it: if both have a page, `other`'s counts."""
        if not isinstance(self, MemoryMap) or not isinstance(other, MemoryMap):
            return NotImplemented
        return combined(<MemoryMap>self, <MemoryMap>other, LAY_OVER)

    def __sub__(self, other):
        """Returns the part of the map on pages that `other` does not have."""
        if not isinstance(self, MemoryMap) or not isinstance(other, MemoryMap):
            return NotImplemented
        return combined(<MemoryMap>self, <MemoryMap>other, TAKE_AWAY)

    def __and__(self, other):
        """Returns the part of the map on pages that `other` has, too."""
        if not isinstance(self, MemoryMap) or not isinstance(other, MemoryMap):
            return NotImplemented
        return combined(<MemoryMap>self, <MemoryMap>other, KEEP_COMMON)

    def merged(self):
        """Returns the map with adjacent slots joined.

        Joins slots that are adjacent in guest and in host memory and have the same flags. Slots of
        guest_memfds stay as they are.

        Returns
        -------
        MemoryMap
            The map with the fewest slots that holds the same. A joined slot has the id of its first
            part.

        Notes
        -----
        O(n).
        """
        return combined(self, self, JOIN)

    def diff(self, other):
        """Returns the differences to another map: pages and slots that came, went or changed.

        Parameters
        ----------
        other : MemoryMap
            The later map.

        Returns
        -------
        MapDiff
            False if there are none; prints like a diff. Ids are not compared.

        Raises
        ------
        ValueError
            The maps are of different address spaces.

        Notes
        -----
        O(n + m), and O(k log k) for k slots that differ.
        """
        if not isinstance(other, MemoryMap):
            raise TypeError(f"diff takes a MemoryMap, not {type(other).__name__!r}")
        check_space(self, other, "compared")
        from memslots.read.diff import differences

        # Slots that are the same in both maps make no difference.
        gone, come = changes_between(self, other)
        return differences(gone, [slot for slot, _ in come])

    def to_json(self):
        """Returns the map as JSON text: its slots, the address space, the generation.

        Returns
        -------
        str
        """
        from memslots.read.document import text_of

        return text_of(self.as_id, self.generation, self.items())

    @staticmethod
    def from_json(text):
        """Returns the map that a JSON text describes.

        Parameters
        ----------
        text : str or bytes
            A result of `to_json`, or a list of slots alone. A slot is an object with
            guest_phys_addr, memory_size, userspace_addr (numbers, or strings like "0x1000"), and
            optionally flags and id.

        Returns
        -------
        MemoryMap

        Raises
        ------
        ValueError
            The text is no JSON. JSON that is no map raises InvalidRegionError, a subclass.
        OverlapError, OverflowError
            As MemoryMap.
        """
        from memslots.read.document import map_of_text

        return MemoryMap(*map_of_text(text))

    def svg(self):
        """Returns the map as a picture: SVG text.

        Guest address 0 is at the top; holes are folded, flags set a slot's colour. A line joins
        slots on the same host memory. Only the first 256 slots are drawn.
        """
        from memslots.read.picture import svg

        return svg(self.all(), self.title())

    def _repr_html_(self):
        from memslots.read.picture import html

        return html(self.all(), self.title())

    cdef str title(self):
        return f"address space {self.as_id}: {self.count()} slot{'' if self.count() == 1 else 's'}"

    def __str__(self):
        if self.count() == 0:
            return "no slots"
        from memslots.read.table import slot_lines

        return "\n".join(slot_lines(self.all()))

    def __eq__(self, other):
        if not isinstance(other, MemoryMap):
            return NotImplemented
        cdef MemoryMap that = <MemoryMap>other
        cdef uint32_t i
        if self.as_id != that.as_id or self.count() != that.count():
            return False
        if self.ix is that.ix:
            return True
        for i in range(self.count()):
            if not is_same(&self.ix.rows[i], &that.ix.rows[i]):
                return False
            if self.ix.rows[i].hva & INDEX_GUEST_MEMFD and not same_memfd(self, i, that, i):
                return False
        return True

    def __hash__(self):
        # Ids are left out: a map whose slots may have any id equals one with fixed ids.
        cdef uint64_t mixed = self.as_id
        cdef uint32_t i
        cdef const index_row *row
        for i in range(self.count()):
            row = &self.ix.rows[i]
            mixed = mix(mixed ^ row.base_gfn)
            mixed = mix(mixed ^ (row.hva & ~<uint64_t>INDEX_ANY_ID))
            mixed = mix(mixed ^ row.npages)
        return <Py_hash_t>(mixed >> 1)

    def __reduce__(self):
        return MemoryMap, (self.items(), self.as_id, self.generation)

    cdef list items(self):
        """Returns the Slots, and tuples for those that may have any id."""
        cdef uint32_t i
        cdef list items = self.all()
        for i in range(self.count()):
            if self.ix.rows[i].hva & INDEX_ANY_ID:
                slot = items[i]
                if slot.guest_memfd is not None:
                    continue  # a tuple cannot hold a guest_memfd
                items[i] = (slot.base_gfn, slot.npages, slot.userspace_addr, int(slot.flags))
        return items

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return (
            f"<MemoryMap of address space {self.as_id}: {self.count()} slots,"
            f" generation {self.generation}>"
        )


# Cython does not let a cdef class choose its __module__, which Python reads from this name.
(<PyTypeObject *>MemoryMap).tp_name = "memslots.MemoryMap"


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """Spreads each bit over all bits (the end of splitmix64, Steele, Lea and Flood, 2014)."""
    x = (x ^ x >> 30) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * <uint64_t>0x94D049BB133111EB
    return x ^ x >> 31


cdef inline bint is_same(const index_row *x, const index_row *y) noexcept nogil:
    """Returns whether two rows are equal; their ids count if both have one."""
    return (
        x.base_gfn == y.base_gfn
        and x.npages == y.npages
        and not (x.hva ^ y.hva) & ~<uint64_t>INDEX_ANY_ID
        and (x.id == y.id or bool((x.hva | y.hva) & INDEX_ANY_ID))
    )


cdef void region_of(const index_row *row, uint32_t as_id, region *r) noexcept:
    r.id = <uint32_t>row.id
    r.as_id = as_id
    r.flags = index_flags(row)
    r.base_gfn = row.base_gfn
    r.npages = row.npages
    r.userspace_addr = index_userspace_addr(row)
    r.guest_memfd = 0
    r.guest_memfd_offset = 0


cdef bint same_memfd(MemoryMap a, uint32_t i, MemoryMap b, uint32_t j) except -1:
    """Returns whether two rows that are otherwise equal have the same file and offset."""
    x, y = a.slot_at(i), b.slot_at(j)
    return x.guest_memfd is y.guest_memfd and x.guest_memfd_offset == y.guest_memfd_offset


cdef object invalid(size_t number, str what, object rule):
    return InvalidRegionError(errno.EINVAL, f"slot {number} of the map: {what}", rule)


cdef object add_item(rows *r, object item, uint32_t as_id):
    """Adds the row of a Slot or a tuple. Returns the Slot."""
    cdef region at
    cdef index_row row
    cdef size_t number = r.count
    cdef bint any_id = False
    if not isinstance(item, Slot):
        fields = tuple(item)
        if not 3 <= len(fields) <= 5:
            raise TypeError(
                "a slot is a Slot or (base_gfn, npages, userspace_addr[, flags[, id]]),"
                f" not {item!r}"
            )
        any_id = len(fields) < 5
        id = 0 if any_id else fields[4]
        try:
            item = Slot(id, as_id, *fields[:4])
        except MemslotError as error:
            raise invalid(number, error.strerror, error.rule) from None
        except OverflowError as error:
            raise OverflowError(f"slot {number} of the map: {error}") from None
    record_region(item, &at)
    if at.as_id != as_id:
        raise invalid(number, f"{item} is of address space {at.as_id}, not {as_id}", None)
    if not page_aligned(at.userspace_addr):
        raise invalid(number, f"userspace_addr {at.userspace_addr:#x} is not a multiple of 4096", 2)
    if at.id > LAST_ID:
        raise invalid(number, f"id {at.id} is above {LAST_ID}", 2)
    if at.npages > MOST_PAGES:
        raise invalid(number, f"{at.npages} pages are more than {MOST_PAGES}", 4)
    index_row_of(&row, &at)
    if any_id:
        row.hva |= INDEX_ANY_ID
    rows_add(r, &row)
    return item


cdef bint has_elements(object given) except -1:
    """Returns whether an argument is a buffer. A number of numpy is one too, without dimensions."""
    return PyObject_CheckBuffer(given) and memoryview(given).ndim > 0


cdef int add_columns(rows *r, tuple given, uint32_t as_id) except -1:
    """Adds the rows whose fields are in buffers. Flags may be an integer, ids None."""
    cdef column columns[5]
    cdef uint64_t fields[5]
    cdef int k
    cdef size_t i, count
    cdef region at
    cdef index_row row
    cdef bint good = True
    at.as_id = as_id
    memset(columns, 0, sizeof(columns))
    memset(fields, 0, sizeof(fields))
    try:
        for k in range(5):
            if k == 4 and given[k] is None:
                continue
            if k == 3 and not has_elements(given[k]):
                fields[k] = u32(given[k], "flags")
                continue
            take_column(given[k], COLUMNS[k], &columns[k])
            if columns[k].count != columns[0].count:
                raise ValueError(
                    f"{COLUMNS[k]} must have {columns[0].count} elements, as base_gfns has,"
                    f" not {columns[k].count}"
                )
        count = columns[0].count
        with nogil:
            rows_reserve(r, count)
            for i in range(count):
                for k in range(5):
                    if columns[k].buffer.buf is not NULL:
                        good = good and column_get(&columns[k], i, &fields[k])
                if (
                    not good
                    or fields[1] - 1 >= MOST_PAGES
                    or not gfn_range_fits(fields[0], fields[1])
                    or not page_aligned(fields[2])
                    or fields[2] + (fields[1] << PAGE_SHIFT) - 1 < fields[2]
                    or fields[3] & ~<uint64_t>(SLOT_CALLER_FLAGS | SLOT_INVALID)
                    or fields[4] > LAST_ID
                ):
                    good = False
                    break
                at.base_gfn = fields[0]
                at.npages = fields[1]
                at.userspace_addr = fields[2]
                at.flags = <uint32_t>fields[3]
                at.id = <uint32_t>fields[4]
                index_row_of(&row, &at)
                if columns[4].buffer.buf is NULL:
                    row.hva |= INDEX_ANY_ID
                rows_add(r, &row)
                if r.failed:
                    break
        if not good:
            # add_item checks the same numbers as a tuple, and raises the error that says what is
            # wrong.
            add_item(r, [column_value(&columns[k], i, fields[k]) for k in range(5)], as_id)
    finally:
        for k in range(5):
            release_column(&columns[k])
    return 0


cdef object rows_error(rows *r, rows_fault why, const rows_pair *which, uint32_t as_id):
    cdef region at
    cdef const index_row *first
    cdef const index_row *second
    if why == ROWS_NO_MEMORY:
        return MemoryError("no memory for a MemoryMap")
    if why == ROWS_TOO_MANY:
        return NoRoomError(errno.ENOSPC, f"{r.count} slots are more than there are ids")
    first = &r.at[which.first]
    second = &r.at[which.second]
    if rows_number(first) > rows_number(second):
        first, second = second, first
    if why == ROWS_SAME_ID:
        return InvalidRegionError(
            errno.EEXIST,
            f"slots {rows_number(first)} and {rows_number(second)} of the map have the id"
            f" {first.id}",
        )
    region_of(first, as_id, &at)
    existing = region_record(&at)
    region_of(second, as_id, &at)
    requested = region_record(&at)
    return OverlapError(
        errno.EEXIST,
        f"slots {rows_number(first)} and {rows_number(second)} of the map have pages in common:"
        f" {existing} and {requested}",
        6,
        existing=existing,
        requested=requested,
    )


cdef int check_space(MemoryMap a, MemoryMap b, str done) except -1:
    if a.as_id != b.as_id:
        raise ValueError(f"maps of address spaces {a.as_id} and {b.as_id} cannot be {done}")
    return 0


cdef MemoryMap combined(MemoryMap a, MemoryMap b, operation what):
    """Returns the map that a set operation makes of two."""
    cdef MemoryMap made = MemoryMap.__new__(MemoryMap)
    cdef rows r
    cdef uint32_t i
    check_space(a, b, "combined")
    memset(&r, 0, sizeof(r))
    try:
        with nogil:
            if what == JOIN:
                rows_join(&r, a.ix, MOST_PAGES)
            else:
                rows_cut(&r, a.ix, b.ix, what == KEEP_COMMON)
            if what == LAY_OVER and b.ix is not NULL:
                if rows_yield_ids(&r, b.ix) != 0:
                    r.failed = True
                rows_reserve(&r, r.count + b.ix.count)
                for i in range(b.ix.count):
                    rows_add(&r, &b.ix.rows[i])
        made.take_rows(&r, a.as_id, 0, None)
    finally:
        rows_free(&r)
    if a.memfds is not None or b.memfds is not None:
        made.take_memfds([b, a] if what == LAY_OVER else [a])
    return made


def changes_between(MemoryMap now not None, MemoryMap wanted not None):
    """Returns the slots to remove and to add to turn one map into another of the same space.

    Returns
    -------
    list of Slot, list of (Slot, bool)
        Both in gfn order. The bool says whether the added slot may have any id.

    Notes
    -----
    O(n + m); O(m log m) the first time, if some of `wanted`'s slots may have any id and some not.
    """
    cdef list gone = []
    cdef list come = []
    cdef uint32_t i = 0
    cdef uint32_t j = 0
    cdef uint32_t k
    cdef uint32_t any_ids = 0
    cdef views *v = NULL
    cdef const index_row *x
    cdef const index_row *y
    cdef const index_row *other
    cdef bint same
    for k in range(wanted.count()):
        any_ids += bool(wanted.ix.rows[k].hva & INDEX_ANY_ID)
    if 0 < any_ids < wanted.count():
        v = wanted.get_views()
    while i < now.count() or j < wanted.count():
        x = &now.ix.rows[i] if i < now.count() else NULL
        y = &wanted.ix.rows[j] if j < wanted.count() else NULL
        if x is not NULL and y is not NULL and x.base_gfn == y.base_gfn:
            same = (
                x.npages == y.npages
                and not (x.hva ^ y.hva) & ~<uint64_t>INDEX_ANY_ID
                and (x.id == y.id or bool(y.hva & INDEX_ANY_ID))
            )
            if same and x.hva & INDEX_GUEST_MEMFD:
                same = same_memfd(now, i, wanted, j)
            if same and v is not NULL and y.hva & INDEX_ANY_ID:
                # The slot keeps its id, unless another slot of `wanted` is to have that id.
                other = <const index_row *>idtable_find(&v.ids, <uint32_t>x.id)
                same = other is NULL or other is y or bool(other.hva & INDEX_ANY_ID)
            if same:
                i += 1
                j += 1
                continue
        if x is not NULL and (y is NULL or x.base_gfn <= y.base_gfn):
            gone.append(now.slot_at(i))
            i += 1
        else:
            come.append((wanted.slot_at(j), bool(y.hva & INDEX_ANY_ID)))
            j += 1
    return gone, come


cdef int add_memfds(list memfds, const slotset *set) except -1:
    cdef const slot_t *s = slotset_first(set)
    while s is not NULL:
        if s.flags & SLOT_GUEST_MEMFD:
            memfds.append(<object>s.record)
        s = slotset_step(set, s, 1)
    return 0


def map_of(Reader reader not None, uint32_t as_id):
    """Returns the MemoryMap of what an address space holds now.

    O(1) if the space has an index; otherwise makes one as a batch does, O(n).
    """
    cdef machine *m = reader.m
    cdef space *sp = m.spaces[as_id]
    cdef MemoryMap made = MemoryMap.__new__(MemoryMap)
    cdef slotset *set
    cdef section at
    cdef index *ix
    cdef uint32_t count
    cdef uint64_t generation, npages
    cdef int tries = 0
    # Made before the section: no Python code may run in one.
    cdef list memfds = [] if sp.has_memfds else None
    while True:
        at = section_enter(m, NULL)
        set = space_active(sp)
        generation = atomic_load_relaxed(&set.generation)
        npages = set.npages
        count = slotset_count(set)
        ix = index_policy_current(set)
        if ix is not NULL:
            index_hold(ix)
        elif tries == TRIES:
            # Changes come faster than an index can be made in parts. This time they must wait.
            ix = index_policy_copy(set)
        if ix is not NULL and memfds is not None:
            add_memfds(memfds, set)
        section_leave(&at)
        if ix is not NULL or count == 0:
            break
        if tries == TRIES:
            raise MemoryError("no memory for a MemoryMap")
        tries += 1
        with nogil:
            index_policy_build(sp, reader_of(m, NULL))
    if generation & SWAPPING:  # use the generation after the swap
        generation = (generation & ~SWAPPING) + sp.nspaces
    made.ix = ix
    made.memfds = memfds
    made.as_id = sp.as_id
    made.generation = generation
    made.nr_pages = npages
    made.is_made = True
    return made


cdef int map_index(object map, const index **ix, uint32_t *as_id) except -1:
    if not isinstance(map, MemoryMap):
        raise TypeError(f"map must be a MemoryMap, not {type(map).__name__!r}")
    ix[0] = (<MemoryMap>map).ix
    as_id[0] = (<MemoryMap>map).as_id
    return 0


cdef list map_memfds(object map):
    return (<MemoryMap>map).memfds
