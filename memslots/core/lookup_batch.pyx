"""Many look-ups in one call. The contract of each function is in lookup_batch.pxd.

The caller's numbers may change while a batch reads them, since a batch runs without the GIL. So a
number whose page is marked dirty is read once.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.core.atomics cimport atomic_load_relaxed
from memslots.core.dirtylog cimport dirty_mark
from memslots.core.index cimport (
    index_has_gfn,
    index_row,
    index_usable,
    index_userspace_addr,
)
from memslots.core.lookup cimport lookup_hva, lookup_in, lookup_row
from memslots.core.search cimport SEARCH_BLOCK, search_block, search_one
from memslots.core.slot cimport slot
from memslots.core.units cimport BAD_HVA, PAGE_SHIFT, gfn_t, hva_t

cdef enum:
    # Number of recent answers to try before searching, besides the last one. Guests alternate
    # between a few slots, so these hit often.
    RECENT = 2
    # If more than one number in FAR_APART needs a search, all numbers are searched for in groups. A
    # single search takes as long as about eight in a group.
    FAR_APART = 8
    NEAR = 1024  # the most numbers that are answered before the next such decision

# Numbers that have the same answer, in the batch's unit (gfns or gpas).
cdef struct interval:
    uint64_t first  # the first number
    uint64_t length  # the last number minus the first
    const index_row *row  # the slot that has them; NULL: they are in a hole


cdef void lookup_batch_tree(
    slotset *set,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil:
    cdef slot *s
    cdef const index_row *row
    cdef index_row room
    cdef uint64_t number
    cdef size_t i
    if kind == LOOKUP_IDS:
        for i in range(count):
            row = lookup_row(set, own, given[i], &room)
            (<int32_t *>out)[i] = row.id if row is not NULL else -1
    elif kind == MARK_DIRTY:
        for i in range(count):
            number = atomic_load_relaxed(&given[i])
            s = lookup_in(set, own, number)
            if s is not NULL:
                dirty_mark(s, number)
    else:
        for i in range(count):
            (<hva_t *>out)[i] = lookup_hva(set, own, given[i], kind == TRANSLATE_WRITE)


cdef inline int unit_of(lookup_kind kind) noexcept nogil:
    """Returns the shift from a gfn to a number of this kind of batch."""
    return PAGE_SHIFT if kind == TRANSLATE_READ or kind == TRANSLATE_WRITE else 0


cdef inline size_t width_of(lookup_kind kind) noexcept nogil:
    """Returns the size of an answer in bytes."""
    return sizeof(int32_t) if kind == LOOKUP_IDS else sizeof(hva_t)


cdef inline hva_t row_base(const index_row *row, lookup_kind kind) noexcept nogil:
    """Returns the number to add to a gpa of the slot for its hva; BAD_HVA if the slot refuses."""
    if not index_usable(row, kind == TRANSLATE_WRITE):
        return BAD_HVA
    return index_userspace_addr(row) - (row.base_gfn << PAGE_SHIFT)


cdef inline bint eight_in(const uint64_t *given, uint64_t first, uint64_t length) noexcept nogil:
    """Returns whether eight numbers are all in an interval, without a branch for each."""
    cdef bint inside = True
    cdef int i
    for i in range(8):
        inside &= given[i] - first <= length
    return inside


cdef size_t count_inside(const interval *same, const uint64_t *given, size_t count) noexcept nogil:
    """Returns how many numbers at the beginning of `given` are in the interval."""
    cdef size_t i = 0
    while i + 8 <= count and eight_in(given + i, same.first, same.length):
        i += 8
    while i < count and given[i] - same.first <= same.length:
        i += 1
    return i


cdef void answer_interval(
    const index *ix,
    const interval *same,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil:
    """Writes the answers to numbers that are all in the interval."""
    cdef const index_row *row = same.row
    cdef int32_t id
    cdef hva_t base
    cdef uint64_t number
    cdef size_t i
    if kind == LOOKUP_IDS:
        id = row.id if row is not NULL else -1
        for i in range(count):
            (<int32_t *>out)[i] = id
    elif kind == MARK_DIRTY:
        if row is not NULL:
            for i in range(count):
                number = atomic_load_relaxed(&given[i])
                if number - same.first <= same.length:
                    dirty_mark(ix.slots[row - ix.rows], number)
    else:
        base = row_base(row, kind) if row is not NULL else BAD_HVA
        for i in range(count):
            (<hva_t *>out)[i] = given[i] + base if base != BAD_HVA else BAD_HVA


cdef void interval_at(
    const index *ix, lookup_kind kind, uint32_t place, gfn_t gfn, interval *same
) noexcept nogil:
    """Sets the interval to the slot or hole that has `gfn`, whose search ended at `place`."""
    cdef int unit = unit_of(kind)
    cdef gfn_t first = 0
    cdef gfn_t last = ~<uint64_t>0 >> unit
    cdef const index_row *row = &ix.rows[place]
    same.row = NULL
    if index_has_gfn(row, gfn):
        same.row = row
        first = row.base_gfn
        last = first + row.npages - 1
    elif gfn < ix.rows[0].base_gfn:
        last = ix.rows[0].base_gfn - 1
    else:
        first = row.base_gfn + row.npages
        if place + 1 < ix.count:
            last = row[1].base_gfn - 1
    same.first = first << unit
    same.length = ((last - first) << unit) + ((<uint64_t>1 << unit) - 1)


cdef void search_interval(
    const index *ix, lookup_kind kind, uint64_t number, interval *same
) noexcept nogil:
    """Sets the interval to the slot or hole that has a number."""
    cdef gfn_t gfn = number >> unit_of(kind)
    interval_at(ix, kind, search_one(&ix.keys, gfn), gfn, same)


cdef inline bint is_recent(interval *recent, uint64_t number, interval *same) noexcept nogil:
    """Returns whether a recent interval has the number. If so, swaps it with `same`."""
    cdef interval before
    cdef size_t found = RECENT
    cdef size_t k
    for k in range(<size_t>RECENT):
        found = k if number - recent[k].first <= recent[k].length else found
    if found == RECENT:
        return False
    before = same[0]
    same[0] = recent[found]
    recent[found] = before
    return True


cdef size_t answer_near(
    const index *ix,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
    interval *same,
    size_t *searches,
) noexcept nogil:
    """Answers numbers from the recent answers. Stops if too many numbers need a search.

    Returns how many numbers it answered; `searches` is how many of them needed a search.
    """
    cdef size_t width = width_of(kind)
    cdef interval recent[RECENT]
    cdef size_t oldest = 0  # the place in `recent` to overwrite next
    cdef size_t i = 0
    cdef size_t n
    searches[0] = 0
    for n in range(<size_t>RECENT):
        recent[n] = same[0]
    count = min(count, <size_t>NEAR)
    while True:
        n = count_inside(same, given + i, count - i)
        answer_interval(ix, same, kind, given + i, <char *>out + i * width, n)
        i += n
        if i == count or searches[0] > FAR_APART + i // FAR_APART:
            return i
        if is_recent(recent, given[i], same):
            continue
        recent[oldest] = same[0]
        oldest = (oldest + 1) % RECENT
        searches[0] += 1
        search_interval(ix, kind, given[i], same)


cdef size_t answer_scattered(
    const index *ix,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
    const index_row **last,
) noexcept nogil:
    """Searches for each number. Returns how many are in no row of the three numbers before.

    `last` is the row of the last number, or NULL.
    """
    cdef uint32_t places[SEARCH_BLOCK]
    cdef gfn_t gfns[SEARCH_BLOCK]
    cdef const index_row *row
    cdef hva_t base
    cdef size_t changes = count
    cdef size_t i
    for i in range(count):
        gfns[i] = given[i] >> unit_of(kind)
    search_block(&ix.keys, gfns, places, count)
    if kind == LOOKUP_IDS:
        for i in range(count):
            row = &ix.rows[places[i]]
            (<int32_t *>out)[i] = row.id if index_has_gfn(row, gfns[i]) else -1
    elif kind == MARK_DIRTY:
        for i in range(count):
            row = &ix.rows[places[i]]
            if index_has_gfn(row, gfns[i]):
                dirty_mark(ix.slots[places[i]], gfns[i])
    else:
        for i in range(count):
            row = &ix.rows[places[i]]
            base = row_base(row, kind) if index_has_gfn(row, gfns[i]) else BAD_HVA
            (<hva_t *>out)[i] = given[i] + base if base != BAD_HVA else BAD_HVA
    for i in range(RECENT + 1, count):
        changes -= (
            (places[i] == places[i - 1])
            | (places[i] == places[i - 2])
            | (places[i] == places[i - 3])
        )
    row = &ix.rows[places[count - 1]]
    last[0] = row if index_has_gfn(row, gfns[count - 1]) else NULL
    return changes


cdef void lookup_batch_index(
    const index *ix,
    vcpu_cache *own,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
    bint *scattered,
) noexcept nogil:
    cdef size_t width = width_of(kind)
    cdef interval same
    cdef const index_row *last = NULL
    cdef size_t searches, n
    cdef size_t i = 0
    search_interval(ix, kind, given[0], &same)
    while i < count:
        if scattered[0]:
            n = min(<size_t>SEARCH_BLOCK, count - i)
            searches = answer_scattered(ix, kind, given + i, <char *>out + i * width, n, &last)
            own.misses += n
        else:
            n = answer_near(
                ix, kind, given + i, <char *>out + i * width, count - i, &same, &searches
            )
            own.hits += n - searches
            own.misses += searches
            last = same.row
        scattered[0] = searches > n // FAR_APART
        i += n
    if last is not NULL:
        own.last_used = last[0]
    else:
        own.last_used.npages = 0
    own.slot = NULL
