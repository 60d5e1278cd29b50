"""Lists of rows on their way into an index. The contract of each function is in rows.pxd."""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from memslots.core.alloc cimport alloc_block, alloc_free
from memslots.core.idtable cimport (
    idtable,
    idtable_add,
    idtable_clear,
    idtable_drop_spare,
    idtable_find,
    idtable_get_spare,
    idtable_init,
    idtable_spare,
)
from memslots.core.index cimport (
    INDEX_ANY_ID,
    INDEX_FLAGS,
    INDEX_GUEST_MEMFD,
    index,
    index_add_row,
    index_new,
    index_row,
    index_seal,
    index_userspace_addr,
)
from memslots.core.units cimport PAGE_SHIFT, gfn_t, hva_t

cdef enum:
    FEW = 16  # the room of a list after its first row
    LAST_ID = 0x7FFFFFFF  # an index_row has 31 bits for an id


cdef void rows_free(rows *r) noexcept nogil:
    alloc_free(r.at)
    memset(r, 0, sizeof(rows))


cdef void rows_reserve(rows *r, size_t room) noexcept nogil:
    cdef index_row *more
    if room <= r.room or r.failed:
        return
    more = <index_row *>alloc_block(room * sizeof(index_row))
    if more is NULL:
        r.failed = True
        return
    if r.count > 0:
        memcpy(more, r.at, r.count * sizeof(index_row))
    alloc_free(r.at)
    r.at = more
    r.room = room


cdef void rows_add(rows *r, const index_row *row) noexcept nogil:
    if r.count == r.room:
        rows_reserve(r, max(2 * r.room, <size_t>FEW))
    if not r.failed:
        r.at[r.count] = row[0]
        r.at[r.count].record = <void *>r.count
        r.count += 1


cdef inline gfn_t end_of(const index_row *row) noexcept nogil:
    return row.base_gfn + row.npages


cdef inline void add_part(
    rows *r, const index_row *row, gfn_t first, gfn_t end, bint *cut
) noexcept nogil:
    """Adds the pages [first, end) of a row. `cut` says whether a part of it is added already."""
    cdef index_row part = row[0]
    part.base_gfn = first
    part.npages = <uint32_t>(end - first)
    part.hva += (first - row.base_gfn) << PAGE_SHIFT
    if cut[0]:
        part.hva |= INDEX_ANY_ID
    cut[0] = True
    rows_add(r, &part)


cdef void rows_cut(rows *r, const index *a, const index *b, bint keep_common) noexcept nogil:
    cdef const index_row *row
    cdef const index_row *other
    cdef uint32_t others = b.count if b is not NULL else 0
    cdef uint32_t i
    cdef uint32_t j = 0
    cdef gfn_t at, end
    cdef bint cut
    if a is NULL:
        return
    for i in range(a.count):
        row = &a.rows[i]
        at = row.base_gfn
        end = end_of(row)
        cut = False
        while j < others and end_of(&b.rows[j]) <= at:
            j += 1
        while j < others and b.rows[j].base_gfn < end:
            other = &b.rows[j]
            if keep_common:
                add_part(r, row, max(at, other.base_gfn), min(end, end_of(other)), &cut)
            elif other.base_gfn > at:
                add_part(r, row, at, other.base_gfn, &cut)
            at = end_of(other)
            if at >= end:
                break  # `other` may overlap the next row too
            j += 1
        if at < end and not keep_common:
            add_part(r, row, at, end, &cut)


cdef inline bint goes_on(
    const index_row *row, const index_row *next, uint32_t most
) noexcept nogil:
    """Returns whether `next` continues `row` in guest and host memory, as rows_join demands.

    No row continues across the end of the host's address space, nor in a guest_memfd.
    """
    cdef hva_t size = <hva_t>row.npages << PAGE_SHIFT
    return (
        end_of(row) == next.base_gfn
        and index_userspace_addr(row) + size == index_userspace_addr(next)
        and index_userspace_addr(next) != 0
        and not (row.hva ^ next.hva) & INDEX_FLAGS
        and not row.hva & INDEX_GUEST_MEMFD
        and <uint64_t>row.npages + next.npages <= most
    )


cdef void rows_join(rows *r, const index *a, uint32_t most) noexcept nogil:
    cdef index_row joined
    cdef uint32_t i
    if a is NULL:
        return
    joined = a.rows[0]
    for i in range(1, a.count):
        if goes_on(&joined, &a.rows[i], most):
            joined.npages += a.rows[i].npages
            if joined.hva & INDEX_ANY_ID and not a.rows[i].hva & INDEX_ANY_ID:
                joined.id = a.rows[i].id
                joined.hva ^= INDEX_ANY_ID
        else:
            rows_add(r, &joined)
            joined = a.rows[i]
    rows_add(r, &joined)


cdef int ids_of(
    idtable *table, const index_row *at, size_t count, const index_row **twice
) noexcept nogil:
    """Makes a table of the rows without INDEX_ANY_ID.

    Returns 0, or -1 if there is no memory or `twice` has the id of a row before it.
    """
    cdef index_row shape  # only its layout is used
    cdef idtable_spare spare
    cdef size_t i
    idtable_init(table, <ptrdiff_t>(<char *>&shape.id - <char *>&shape))
    twice[0] = NULL
    if idtable_get_spare(table, <uint32_t>count, &spare) != 0:
        return -1
    for i in range(count):
        if not at[i].hva & INDEX_ANY_ID:
            if table.count > 0 and idtable_find(table, <uint32_t>at[i].id) is not NULL:
                twice[0] = &at[i]
                break
            idtable_add(table, <void *>&at[i], &spare)
    idtable_drop_spare(&spare)  # still there if every row has INDEX_ANY_ID
    return -1 if twice[0] is not NULL else 0


cdef int rows_yield_ids(rows *r, const index *other) noexcept nogil:
    cdef idtable table
    cdef const index_row *twice
    cdef size_t i
    if other is NULL or r.failed:
        return 0
    if ids_of(&table, other.rows, other.count, &twice) != 0:
        return -1
    for i in range(r.count):
        if idtable_find(&table, <uint32_t>r.at[i].id) is not NULL:
            r.at[i].hva |= INDEX_ANY_ID
    idtable_clear(&table)
    return 0


cdef int compare_gfn(const void *a, const void *b) noexcept nogil:
    cdef const index_row *x = <const index_row *>a
    cdef const index_row *y = <const index_row *>b
    if x.base_gfn != y.base_gfn:
        return 1 if x.base_gfn > y.base_gfn else -1
    # The row given first comes first, so that errors are the same on every system.
    return 1 if rows_number(x) > rows_number(y) else -1


cdef rows_fault check_order(rows *r, rows_pair *which) noexcept nogil:
    """Sorts the rows, unless they are in order. Returns ROWS_OVERLAP if two of them overlap."""
    cdef size_t i
    for i in range(1, r.count):
        if r.at[i - 1].base_gfn > r.at[i].base_gfn:
            qsort(r.at, r.count, sizeof(index_row), compare_gfn)
            break
    for i in range(1, r.count):
        if end_of(&r.at[i - 1]) > r.at[i].base_gfn:
            which.first = i - 1
            which.second = i
            return ROWS_OVERLAP
    return ROWS_GOOD


cdef rows_fault give_ids(rows *r, rows_pair *which) noexcept nogil:
    cdef idtable table
    cdef const index_row *twice
    cdef index_row *other
    cdef uint32_t next = 0
    cdef rows_fault why = ROWS_GOOD
    cdef size_t i
    if ids_of(&table, r.at, r.count, &twice) != 0:
        why = ROWS_NO_MEMORY
        if twice is not NULL:
            other = <index_row *>idtable_find(&table, <uint32_t>twice.id)
            which.first = other - r.at
            which.second = twice - r.at
            why = ROWS_SAME_ID
    else:
        for i in range(r.count):
            if r.at[i].hva & INDEX_ANY_ID:
                while idtable_find(&table, next) is not NULL:
                    next += 1
                r.at[i].id = <int32_t>next
                next += 1
    idtable_clear(&table)
    return why


cdef index *rows_index(rows *r, rows_fault *why, rows_pair *which) noexcept nogil:
    cdef index *ix
    cdef size_t i
    why[0] = ROWS_NO_MEMORY if r.failed else ROWS_GOOD
    if r.failed or r.count == 0:
        return NULL
    why[0] = ROWS_TOO_MANY
    if r.count > LAST_ID:
        return NULL
    why[0] = check_order(r, which)
    if why[0] == ROWS_GOOD:
        why[0] = give_ids(r, which)
    if why[0] != ROWS_GOOD:
        return NULL
    ix = index_new(<uint32_t>r.count, r.at[0].base_gfn, r.at[r.count - 1].base_gfn)
    if ix is NULL:
        why[0] = ROWS_NO_MEMORY
        return NULL
    for i in range(r.count):
        r.at[i].record = NULL
        index_add_row(ix, &r.at[i])
    index_seal(ix)
    return ix
