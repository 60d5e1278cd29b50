"""MemoryMap: the slots of an address space as they were at one moment, a value.

It is an index (core/index.pxd) that is kept while the slots change. Of its rows everything is read
but the slots and their Slots, which may be gone: a Slot that is asked for is made, and made once.
"""

import errno

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, PyObject
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memset

from memslots.core.alloc cimport alloc_block, alloc_free
from memslots.core.atomics cimport (
    atomic_compare_exchange_ptr,
    atomic_load_acquire_ptr,
    atomic_load_relaxed,
)
from memslots.core.idtable cimport (
    idtable,
    idtable_add,
    idtable_clear,
    idtable_find,
    idtable_get_spare,
    idtable_init,
    idtable_spare,
)
from memslots.core.index cimport (
    index,
    index_add_row,
    index_drop,
    index_flags,
    index_gfn_to_hva,
    index_has_gfn,
    index_hold,
    index_new,
    index_row,
    index_row_of,
    index_seal,
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
from memslots.core.search cimport search_one
from memslots.core.slot cimport region
from memslots.core.slotset cimport slotset, slotset_count
from memslots.core.space cimport SWAPPING, space, space_active
from memslots.core.units cimport (
    LAST_GFN,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    gfn_t,
    gpa_t,
    gpa_to_gfn,
    hva_t,
    page_aligned,
)
from memslots.read.batch cimport kind_element
from memslots.read.reader cimport Reader
from memslots.read.ranges cimport extent, extent_end, extent_start, set_extent
from memslots.read.room cimport set_wish, wish, wish_fits
from memslots.read.sections cimport reader_of, section, section_enter, section_leave
from memslots.values.buffers cimport buffers, release_batch, take_batch
from memslots.values.integers cimport u32, u64
from memslots.values.records cimport record_region, region_record
from memslots.values.rules cimport access_error

from memslots.errors import InvalidRegionError, NoSuchSlotError, NotMappedError, OverlapError
from memslots.values.records import Slot

cdef enum:
    LAST_ID = 0x7FFFFFFF  # an id fits an int32, the output of lookup_many
    MOST_PAGES = 0x7FFFFFFF  # rule 4
    TRIES = 3  # builds of an index that a change may spoil before it is made in one section

# What is worked out of a map when it is first asked for: its slots by id, and by host address.
cdef struct views:
    idtable ids  # of rows
    uint32_t count  # of those that follow
    const index_row **by_hva  # by userspace_addr, then by base_gfn
    hva_t *reach  # [i]: the last host byte of any of by_hva[0] to by_hva[i]


cdef inline hva_t last_hva(const index_row *row) noexcept nogil:
    return index_userspace_addr(row) + (<uint64_t>row.npages << PAGE_SHIFT) - 1


cdef int compare_hva(const void *a, const void *b) noexcept nogil:
    cdef const index_row *x = (<const index_row **>a)[0]
    cdef const index_row *y = (<const index_row **>b)[0]
    cdef hva_t at_x = index_userspace_addr(x)
    cdef hva_t at_y = index_userspace_addr(y)
    if at_x != at_y:
        return 1 if at_x > at_y else -1
    return 1 if x.base_gfn > y.base_gfn else -1


cdef void views_free(views *v) noexcept nogil:
    if v is not NULL:
        idtable_clear(&v.ids)
        alloc_free(v.by_hva)
        alloc_free(v.reach)
        alloc_free(v)


cdef views *views_new(index *ix) noexcept nogil:
    """Works out the views of an index, or NULL: no memory. O(n log n)."""
    cdef views *v = <views *>alloc_block(sizeof(views))
    cdef index_row shape  # only its layout is used
    cdef idtable_spare spare
    cdef uint32_t i
    cdef hva_t reach = 0
    if v is NULL:
        return NULL
    memset(v, 0, sizeof(views))
    idtable_init(&v.ids, <ptrdiff_t>(<char *>&shape.id - <char *>&shape))
    v.by_hva = <const index_row **>alloc_block(ix.count * sizeof(void *))
    v.reach = <hva_t *>alloc_block(ix.count * sizeof(hva_t))
    if (
        v.by_hva is NULL
        or v.reach is NULL
        or idtable_get_spare(&v.ids, ix.count, &spare) != 0
    ):
        views_free(v)
        return NULL
    for i in range(ix.count):
        idtable_add(&v.ids, &ix.rows[i], &spare)
        v.by_hva[i] = &ix.rows[i]
    qsort(v.by_hva, ix.count, sizeof(void *), compare_hva)
    for i in range(ix.count):
        reach = max(reach, last_hva(v.by_hva[i]))
        v.reach[i] = reach
    v.count = ix.count
    return v


cdef uint32_t first_reaching(const views *v, hva_t first) noexcept nogil:
    """The first place in by_hva from which on there may be one that ends at `first` or after it."""
    cdef uint32_t low = 0
    cdef uint32_t high = v.count
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if v.reach[middle] < first:
            low = middle + 1
        else:
            high = middle
    return low


@cython.final
cdef class MemoryMap:
    """The slots of an address space at one moment: an immutable value.

    ``vm.map()`` gives what a Memslots holds; or it is made of Slots. It looks up as a Memslots
    does. Compares and hashes by value, the generation left out.

    Parameters
    ----------
    slots : iterable of Slot or of tuple, optional
        In any order, all of one address space. A tuple is (base_gfn, npages, userspace_addr), and
        may have flags and an id after these; of those without an id each gets the lowest that no
        other has, in the order given.
    as_id : int, optional
        The address space; if left out, that of the Slots, or 0.
    generation : int, default 0
        A number to remember it by.

    Raises
    ------
    OverlapError
        Two slots have a page in common.
    InvalidRegionError
        Two slots have an id in common; what cannot be a slot (rules 1, 2 and 4); a Slot of another
        address space.
    TypeError, OverflowError
        For what is no integer, or does not fit its field.

    Notes
    -----
    n is the number of slots. Safe to use from any thread. A Slot is made when it is first asked
    for; from then on the same object is given.
    """

    cdef bint is_made  # whether it is what it is to be, for ever
    cdef index *ix  # the slots; NULL: there are none
    cdef void **made  # [i]: the Slot of row i, a reference, or NULL; NULL: none was asked for
    cdef views *sorted  # or NULL: not asked for
    cdef readonly uint32_t as_id
    """The number of the address space."""
    cdef readonly uint64_t generation
    """The generation of the Memslots that it was made of (Memslots.generation)."""
    cdef readonly uint64_t nr_pages
    """How many guest pages the slots hold."""

    def __init__(self, slots=(), as_id=None, generation=0):
        if self.is_made:
            raise TypeError("a MemoryMap is immutable")
        cdef uint64_t remembered = u64(generation, "generation")
        cdef list given = list(slots)
        if as_id is None:
            as_id = next((item.as_id for item in given if isinstance(item, Slot)), 0)
        cdef uint32_t number = u32(as_id, "as_id")
        self.fill(slots_of(given, number), number)
        self.generation = remembered
        self.is_made = True

    def __dealloc__(self):
        cdef uint32_t i
        if self.made is not NULL:
            for i in range(self.ix.count):
                Py_XDECREF(<PyObject *>self.made[i])
            PyMem_Free(self.made)
        views_free(self.sorted)
        index_drop(self.ix)

    cdef int fill(self, list all, uint32_t as_id) except -1:
        """Makes the index of Slots that are in gfn order, and neither overlap nor share an id."""
        cdef index *ix
        cdef index_row row
        cdef region r
        self.as_id = as_id
        if not all:
            return 0
        ix = index_new(<uint32_t>len(all), all[0].base_gfn, all[len(all) - 1].base_gfn)
        if ix is NULL:
            raise MemoryError("no memory for a MemoryMap")
        for record in all:
            record_region(record, &r)
            index_row_of(&row, &r)
            index_add_row(ix, &row)
            self.nr_pages += r.npages
        index_seal(ix)
        self.ix = ix
        return 0

    cdef object slot_at(self, uint32_t i):
        """The Slot of row i. O(1)."""
        cdef void **made = <void **>atomic_load_acquire_ptr(<void *const *>&self.made)
        cdef void *none = NULL
        cdef void *there
        cdef region r
        if made is NULL:
            made = <void **>PyMem_Calloc(self.ix.count, sizeof(void *))
            if made is NULL:
                raise MemoryError("no memory for the Slots of a MemoryMap")
            # Release: pairs with the acquire above, as below.
            if not atomic_compare_exchange_ptr(<void **>&self.made, &none, made):
                PyMem_Free(made)
                made = <void **>none
        there = atomic_load_acquire_ptr(&made[i])
        if there is not NULL:
            return <object>there
        self.region_at(i, &r)
        new = region_record(&r)
        none = NULL
        Py_INCREF(new)
        if not atomic_compare_exchange_ptr(&made[i], &none, <void *>new):
            Py_DECREF(new)  # another thread was first
            return <object>none
        return new

    cdef void region_at(self, uint32_t i, region *r) noexcept:
        cdef const index_row *row = &self.ix.rows[i]
        r.id = <uint32_t>row.id
        r.as_id = self.as_id
        r.flags = index_flags(row)
        r.base_gfn = row.base_gfn
        r.npages = row.npages
        r.userspace_addr = index_userspace_addr(row)

    cdef inline const index_row *row_of(self, gfn_t gfn) noexcept nogil:
        """The row that has the gfn, or NULL. O(log n)."""
        return lookup_shared(self.ix, gfn) if self.ix is not NULL else NULL

    cdef uint32_t first_from(self, gfn_t gfn) noexcept nogil:
        """The place of the first row that ends after `gfn`; count: there is none. O(log n)."""
        cdef uint32_t place
        if self.ix is NULL or gfn < self.ix.rows[0].base_gfn:
            return 0
        place = search_one(&self.ix.keys, gfn)
        return place if index_has_gfn(&self.ix.rows[place], gfn) else place + 1

    cdef uint32_t first_above(self, gfn_t gfn) noexcept nogil:
        """The place of the first row that begins after `gfn`; count: there is none. O(log n)."""
        if self.ix is NULL or gfn < self.ix.rows[0].base_gfn:
            return 0
        return search_one(&self.ix.keys, gfn) + 1

    cdef uint32_t count(self) noexcept nogil:
        return self.ix.count if self.ix is not NULL else 0

    cdef views *views(self) except? NULL:
        """The views, which are worked out at the first time; NULL: there are no slots."""
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
        """The slot that holds a guest page.

        Parameters
        ----------
        gfn : int
            The page's number, 0 to 2**64 - 1.

        Returns
        -------
        Slot or None

        Notes
        -----
        O(log n), O(1) where the slot found last holds the page.
        """
        cdef const index_row *row = self.row_of(u64(gfn, "gfn"))
        return None if row is NULL else self.slot_at(<uint32_t>(row - self.ix.rows))

    def lookup_many(self, gfns, out=None):
        """The ids of the slots that hold many guest pages. As Memslots.lookup_many."""
        return self.run(LOOKUP_IDS, gfns, "gfns", out)

    def gpa_to_hva(self, gpa, write=False):
        """The host address of a guest address. As Memslots.gpa_to_hva.

        NotMappedError, ReadOnlyError. O(log n).
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
        """The host addresses of many guest addresses. As Memslots.translate."""
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
        """The slots that overlap the pages [start, end), in gfn order. As Memslots.in_gfn_range."""
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
        """The guest pages whose host memory overlaps a range of host addresses.

        Parameters
        ----------
        start, end : int
            The range [start, end), in bytes; need not be aligned.

        Returns
        -------
        list of (Slot, int, int)
            The slot and the pages [start_gfn, end_gfn) of it that the range touches, if only in
            part; in order of userspace_addr. Slots may overlap in host memory: then a byte is in
            several.

        Raises
        ------
        ValueError
            start is above end.

        Notes
        -----
        O(log n + k) for k slots that do not overlap in host memory, O(n) where they do; O(n log n)
        the first time.
        """
        cdef extent e
        cdef views *v
        cdef const index_row *row
        cdef hva_t hva
        cdef uint32_t i
        cdef list found = []
        if not set_extent(&e, True, start, end):
            return found
        v = self.views()
        if v is NULL:
            return found
        for i in range(first_reaching(v, e.first), v.count):
            row = v.by_hva[i]
            hva = index_userspace_addr(row)
            if hva > e.last:
                break
            if last_hva(row) >= e.first:
                found.append(
                    (
                        self.slot_at(<uint32_t>(row - self.ix.rows)),
                        extent_start(&e, row.base_gfn, hva),
                        extent_end(&e, row.base_gfn, row.npages, hva),
                    )
                )
        return found

    def floor(self, gfn):
        """The last slot that begins at a page or before it, or None. As Memslots.floor."""
        cdef uint32_t i = self.first_above(u64(gfn, "gfn"))
        return None if i == 0 else self.slot_at(i - 1)

    def ceil(self, gfn):
        """The first slot that begins at a page or after it, or None. As Memslots.ceil."""
        cdef gfn_t page = u64(gfn, "gfn")
        cdef uint32_t i = self.first_above(page)
        if i > 0 and self.ix.rows[i - 1].base_gfn == page:
            i -= 1
        return None if i == self.count() else self.slot_at(i)

    def holes(self, start=0, end=None):
        """The runs of pages in [start, end) that no slot holds. As Memslots.holes.

        If `end` is left out, they go to the last page that a slot can have.
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
        """The lowest run of pages that no slot holds, or None. As Memslots.find_hole.

        If `end` is left out, it may be at the last page that a slot can have.
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
        """Whether each page of [start, end) is in a slot. As Memslots.is_mapped."""
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
        """The guest address of a host address: the lowest, if there are several.

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
            No slot is on it.

        Notes
        -----
        O(log n + k) for k slots that are on it or begin before it; O(n log n) the first time.
        """
        cdef hva_t address = u64(hva, "hva")
        cdef views *v = self.views()
        cdef gpa_t lowest = ~<gpa_t>0
        cdef const index_row *row
        cdef uint32_t i
        if v is not NULL:
            for i in range(first_reaching(v, address), v.count):
                row = v.by_hva[i]
                if index_userspace_addr(row) > address:
                    break
                if last_hva(row) >= address:
                    lowest = min(
                        lowest,
                        (row.base_gfn << PAGE_SHIFT) + (address - index_userspace_addr(row)),
                    )
        if lowest == ~<gpa_t>0:
            raise NotMappedError(errno.EFAULT, f"no slot is on host address {address:#x}")
        return lowest

    def get(self, id, default=None):
        """The slot of an id, or `default`. O(1); O(n log n) the first time."""
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
        """The Slot of an id, or None."""
        cdef views *v = self.views()
        cdef const index_row *row = NULL
        if v is not NULL:
            row = <const index_row *>idtable_find(&v.ids, id)
        return None if row is NULL else self.slot_at(<uint32_t>(row - self.ix.rows))

    def __contains__(self, slot_):
        if not isinstance(slot_, Slot):
            raise TypeError(
                f"`in` asks whether a Slot is one of the map's, not {type(slot_).__name__!r};"
                " for an id, ask whether get(id) is None"
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

    def __eq__(self, other):
        if not isinstance(other, MemoryMap):
            return NotImplemented
        cdef MemoryMap that = <MemoryMap>other
        cdef const index_row *x
        cdef const index_row *y
        cdef uint32_t i
        if self.as_id != that.as_id or self.count() != that.count():
            return False
        if self.ix is that.ix:
            return True
        for i in range(self.count()):
            x = &self.ix.rows[i]
            y = &that.ix.rows[i]
            if x.base_gfn != y.base_gfn or x.npages != y.npages:
                return False
            if x.hva != y.hva or x.id != y.id:
                return False
        return True

    def __hash__(self):
        return hash((self.as_id, tuple(self.all())))

    def __reduce__(self):
        return MemoryMap, (self.all(), self.as_id, self.generation)

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


cdef object checked(object slot, uint32_t as_id, set ids):
    """A Slot that may be in a map of an address space where these ids are in use."""
    cdef region r
    record_region(slot, &r)
    if r.as_id != as_id:
        raise InvalidRegionError(errno.EINVAL, f"{slot} is of address space {r.as_id}, not {as_id}")
    if not page_aligned(r.userspace_addr):
        raise InvalidRegionError(
            errno.EINVAL, f"userspace_addr {r.userspace_addr:#x} is not a multiple of 4096", 2
        )
    if r.id > LAST_ID:
        raise InvalidRegionError(errno.EINVAL, f"id {r.id} is above {LAST_ID}", 2)
    if r.npages > MOST_PAGES:
        raise InvalidRegionError(
            errno.EINVAL, f"{r.npages} pages; a slot has at most {MOST_PAGES}", 4
        )
    if r.id in ids:
        raise InvalidRegionError(errno.EEXIST, f"two slots have the id {r.id}")
    ids.add(r.id)
    return slot


cdef object slot_of_fields(object fields, uint32_t as_id, object id):
    """The Slot of (base_gfn, npages, userspace_addr, flags)."""
    base_gfn, npages, userspace_addr, flags = fields
    return Slot(id, as_id, base_gfn, npages, userspace_addr, flags)


cdef list slots_of(list given, uint32_t as_id):
    """The Slots that a MemoryMap is to hold, in gfn order."""
    cdef list all = []
    cdef list unnumbered = []
    cdef set ids = set()
    cdef uint32_t id = 0
    for item in given:
        if isinstance(item, Slot):
            all.append(checked(item, as_id, ids))
            continue
        fields = tuple(item)
        if not 3 <= len(fields) <= 5:
            raise TypeError(
                "a slot is a Slot or (base_gfn, npages, userspace_addr[, flags[, id]]),"
                f" not {item!r}"
            )
        if len(fields) == 5:
            all.append(checked(slot_of_fields(fields[:4], as_id, fields[4]), as_id, ids))
        else:
            unnumbered.append(fields if len(fields) == 4 else (*fields, 0))
    for fields in unnumbered:
        while id in ids:
            id += 1
        all.append(checked(slot_of_fields(fields, as_id, id), as_id, ids))
    all.sort(key=lambda slot: slot.base_gfn)
    for before, after in zip(all, all[1:]):
        if before.end_gfn > after.base_gfn:
            raise OverlapError(
                errno.EEXIST,
                f"{after} and {before} have pages in common",
                6,
                existing=before,
                requested=after,
            )
    return all


def map_of(Reader reader not None, uint32_t as_id):
    """Returns the MemoryMap of what an address space holds now.

    O(1) where it has an index; else as a batch that makes one, O(n).
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
            # Changes come faster than an index can be made in parts. This once they wait for it.
            ix = index_policy_copy(set)
        section_leave(&at)
        if ix is not NULL or count == 0:
            break
        if tries == TRIES:
            raise MemoryError("no memory for a MemoryMap")
        tries += 1
        with nogil:
            index_policy_build(sp, reader_of(m, NULL))
    if generation & SWAPPING:  # what it will be when the swap has ended
        generation = (generation & ~SWAPPING) + sp.nspaces
    made.ix = ix
    made.as_id = sp.as_id
    made.generation = generation
    made.nr_pages = npages
    made.is_made = True
    return made
